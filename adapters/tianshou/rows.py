"""Between Tianshou's `Batch` and `Transitions`: reading real rows, making room for synthetic ones, writing them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from ..transitions import SEPARATOR, Observation, Transitions

#: The keys of a stored batch that are modelled.
MODELLED = {"obs", "act", "rew", "terminated", "truncated", "done", "obs_next"}


def modelled(batch: Any) -> Batch:
    """The same arrays, without the keys that are not modelled."""
    out = Batch()
    out.__dict__.update({key: value for key, value in batch.items() if key in MODELLED})
    return out


def to_transitions(batch: Any) -> Transitions:
    """The rows of a batch as tensors, views where the dtypes allow it.

    Args:
        batch: has ``obs``, ``act``, ``rew`` ``[N]``, ``terminated`` and ``obs_next``; ``truncated``, the time limit,
            does not count as terminal.

    Raises:
        ValueError, TypeError: a key that the upsampler cannot model, by its name.
    """
    if isinstance(batch.act, Batch):
        raise TypeError(
            f"act has the keys {sorted(batch.act.keys())}: Dict and Tuple actions are not supported; flatten them in "
            "the environment."
        )
    if np.ndim(batch.rew) != 1:
        raise ValueError(
            f"rew has shape {tuple(np.shape(batch.rew))}, but one number a row, [N], is wanted: rewards of several "
            "agents or objectives are not supported."
        )
    observation = _tensors("obs", batch.obs)
    return Transitions(
        observation=observation,
        action=_tensor("act", batch.act),
        reward=_tensor("rew", batch.rew).to(torch.float32),
        next_observation=_as_stored(observation, _tensors("obs_next", batch.obs_next)),
        terminated=_tensor("terminated", batch.terminated).to(torch.bool),
    )


def _tensors(name: str, value: Any) -> Observation:
    if not isinstance(value, Batch):
        return _tensor(name, value)
    for key in value.keys():  # noqa: SIM118  # iterating over a Batch gives its rows
        if SEPARATOR in key:
            raise ValueError(f"{name}: the key {key!r} contains {SEPARATOR!r}, which separates nested keys; rename it.")
    return {key: _tensors(f"{name}{SEPARATOR}{key}", child) for key, child in value.items()}


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    if array.dtype == object:
        raise TypeError(
            f"{name} holds Python objects (such as text), which the upsampler cannot model; wanted numbers. Leave "
            "them out of the observations or encode them."
        )
    # torch warns about read-only arrays, so these are copied; stored arrays are writable.
    return torch.from_numpy(np.require(array, requirements="W"))


def _as_stored(observation: Observation, following: Observation) -> Observation:
    """The next observation in the dtypes of the observation, as `Transitions` requires."""
    if isinstance(observation, Tensor) or isinstance(following, Tensor):
        return following.to(observation.dtype) if isinstance(observation, Tensor) else following  # type: ignore[union-attr]
    return {key: _as_stored(observation[key], child) for key, child in following.items() if key in observation}


def extended(batch: Any, num_rows: int) -> Batch:
    """The same keys with room for `num_rows` rows; new memory only for arrays that are shorter.

    New rows hold what Tianshou gives a row that lacks a key: 0, False or None.
    """
    out = Batch()
    for key, value in batch.items():
        out.__dict__[key] = _extended(value, num_rows)
    return out


def _extended(value: Any, num_rows: int) -> Any:
    if isinstance(value, Batch):
        return extended(value, num_rows)
    if value is None or len(value) >= num_rows:
        return value
    shape = (num_rows, *value.shape[1:])
    longer: Any
    if isinstance(value, Tensor):
        longer = torch.zeros(shape, dtype=value.dtype, device=value.device)
    elif value.dtype == object:
        longer = np.full(shape, None, object)
    else:
        longer = np.zeros(shape, value.dtype)
    longer[: len(value)] = value
    return longer


def write_transitions(batch: Any, first: int, rows: Transitions) -> None:
    """Put synthetic rows into the slots from `first` on, each of them an episode of one step.

    Because an episode ends with each row, n-step returns do not include the next row. A row that is not terminal ends
    by the time limit, so that its target bootstraps from its next observation. Keys that are not modelled (``info``,
    ``policy``, keys added by a hook) keep their values from `extended`.
    """
    slots = slice(first, first + len(rows))
    _put(batch.obs, slots, rows.observation)
    _put(batch.act, slots, rows.action)
    _put(batch.rew, slots, rows.reward)
    _put(batch.obs_next, slots, rows.next_observation)
    _put(batch.terminated, slots, rows.terminated)
    _put(batch.truncated, slots, ~rows.terminated)
    batch.done[slots] = True


def blank_others(batch: Any, slots: slice) -> None:
    """Set the keys that are not modelled to 0, False or None in `slots`."""
    for key, value in batch.items():
        if key in MODELLED:
            continue
        for leaf in _leaves(value):
            leaf[slots] = None if isinstance(leaf, np.ndarray) and leaf.dtype == object else 0


def rows_with_null(batch: Batch) -> NDArray[np.bool_]:
    """True for the rows with a NaN or a None in any key, ``[N]``."""
    null = [np.asarray(leaf).reshape(len(leaf), -1).any(axis=1) for leaf in _leaves(batch.isnull())]
    return np.logical_or.reduce(null)


def _put(target: Any, slots: slice, value: Observation) -> None:
    if isinstance(value, Tensor):
        if isinstance(target, np.ndarray) and target.dtype.kind in "iu" and value.is_floating_point():
            value = value.round()  # writing into integers truncates
        target[slots] = value if isinstance(target, Tensor) else value.numpy()
    else:
        for key, child in value.items():
            _put(target[key], slots, child)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Batch):
        for child in value.values():
            yield from _leaves(child)
    elif value is not None:
        yield value
