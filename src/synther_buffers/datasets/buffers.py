"""Replay buffers that a framework has saved: Stable-Baselines3's pickles, Tianshou's HDF5 and pickles."""

from __future__ import annotations

import logging
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..transitions import SEPARATOR, TransitionSpec
from .base import NO_ROWS, Dataset
from .flat import ArraySource, FlatDataset, Layout, Source

logger = logging.getLogger(__name__)

_TIANSHOU = Layout("obs", "act", "rew", "obs_next", "terminated", "truncated")


class SB3Dataset(FlatDataset):
    """What `model.save_replay_buffer` wrote.

    Stable-Baselines3's algorithms store Box actions scaled to [-1, 1]: these come back in the environment's range. A
    loop of one's own stores what it likes: actions that go beyond [-1, 1], or whose space has no bounds, cannot have
    been scaled and come back as they are stored.
    """

    format = "sb3"

    def __init__(self, path: str | Path, buffer: Any) -> None:
        spec = TransitionSpec.from_spaces(buffer.observation_space, buffer.action_space)
        observations, actions, done = buffer.observations, buffer.actions, buffer.dones
        size, num_envs = (buffer.buffer_size if buffer.full else buffer.pos), buffer.n_envs
        if size == 0:
            raise ValueError(f"{path}: the buffer is empty.")
        order = np.arange(size)
        if buffer.full:
            order = (order + buffer.pos) % buffer.buffer_size  # the oldest row lies at the write position
        # With optimize_memory_usage there is no array of next observations...
        has_next = getattr(buffer, "next_observations", None) is not None
        if buffer.full and not has_next:
            order = order[1:]  # ...and the oldest observation gave way to the newest row's next one
            size -= 1
            if size == 0:
                raise ValueError(NO_ROWS.format(path))

        def rows(array: Any) -> Any:
            """``[slots, envs, ...]`` as rows, one environment after the other, each in the order of writing."""
            if isinstance(array, dict):
                return {key: rows(child) for key, child in array.items()}
            return np.concatenate([np.asarray(array)[order, env] for env in range(num_envs)])

        action = rows(actions)
        if isinstance(buffer.action_space, spaces.Box):
            action = _unscaled(path, action, buffer.action_space)
        timeout = rows(buffer.timeouts) > 0
        if not getattr(buffer, "handle_timeout_termination", True):
            logger.warning("%s does not tell time limits from terminals (handle_timeout_termination=False).", path)
        ended = rows(done) > 0
        columns = {
            **_flat("observations", rows(observations)),
            "actions": action,
            "rewards": rows(buffer.rewards),
            "terminals": ended & ~timeout,
            "timeouts": timeout,
        }
        if has_next:
            columns |= _flat("next_observations", rows(buffer.next_observations))
        shapes = {field.name: field.shape for field in spec.fields}
        for key in columns:
            root, *rest = key.split(SEPARATOR)
            name = SEPARATOR.join([root.removesuffix("s"), *rest])
            if name in shapes:
                columns[key] = columns[key].reshape(size * num_envs, *shapes[name])
        breaks = tuple(range(size - 1, size * num_envs, size))
        super().__init__(ArraySource(path, columns), Layout(), spec, breaks)


def _unscaled(path: str | Path, action: NDArray[Any], space: spaces.Box) -> NDArray[Any]:
    """Actions in the range of their space, be they stored by an algorithm of Stable-Baselines3 or by another loop."""
    low, high = (bound.reshape(1, -1) for bound in (space.low, space.high))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return action
    # Scaling to [-1, 1] and clipping may round to the next number of float32.
    if not (np.abs(action) <= 1.0 + 1e-6).all():
        logger.info("%s: actions go beyond [-1, 1], so that they were not scaled; they are read as stored.", path)
        return action
    return (low + 0.5 * (action.reshape(-1, low.size) + 1.0) * (high - low)).astype(action.dtype)


class TianshouDataset(FlatDataset):
    """What `save_hdf5` or pickling a Tianshou buffer wrote. Actions are as the policy gave them."""

    format = "tianshou"


def open_tianshou_hdf5(path: str | Path) -> TianshouDataset:
    """Read a buffer that `save_hdf5` wrote; nothing in it is unpickled."""
    from .hdf5 import Hdf5Source, member, open_file

    with open_file(path) as file:
        state = {key: np.asarray(file.attrs[key]) for key in ("_size", "maxsize", "stack_num") if key in file.attrs}
        for key in ("_lengths", "_offset", "last_index"):
            dataset = member(path, file, key)
            if dataset is not None:
                if dataset.shape is None or math.prod(dataset.shape) > 1_000_000 or dataset.dtype.kind not in "iu":
                    raise ValueError(f"{path}: {key} is no list of whole numbers; the buffer is damaged.")
                state[key] = np.asarray(dataset[()])
    segments, breaks = _rings(path, state)
    return TianshouDataset(Hdf5Source(path, _TIANSHOU, "_meta", segments), _TIANSHOU, breaks=breaks)


def open_pickle(path: str | Path, allow_pickle: bool) -> Dataset:
    """Read a pickled buffer of either framework.

    Raises:
        ValueError: not allowed, or something else.
    """
    if not allow_pickle:
        raise ValueError(
            f"{path} is a pickle, and loading it can run any code that is in it. If you trust whoever made it, say so: "
            "allow_pickle=True, or --allow-pickle."
        )
    try:
        with Path(path).open("rb") as file:
            buffer = pickle.load(file)
    except Exception as error:  # unpickling raises whatever the classes in it raise
        raise ValueError(f"{path} cannot be unpickled ({error!r}).") from error
    try:
        if hasattr(buffer, "_meta") and hasattr(buffer, "last_index"):
            return _unpickled_tianshou(path, buffer)
        if hasattr(buffer, "observations") and hasattr(buffer, "dones"):
            return SB3Dataset(path, buffer)
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, ArithmeticError) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise  # ours
        raise ValueError(f"{path}: the {type(buffer).__name__} in it is damaged or not supported ({error}).") from error
    raise ValueError(
        f"{path} holds a {type(buffer).__name__}; wanted a replay buffer of Stable-Baselines3 or Tianshou."
    )


def _unpickled_tianshou(path: str | Path, buffer: Any) -> TianshouDataset:
    state = {key: np.asarray(buffer.__dict__[key]) for key in _STATE if key in buffer.__dict__}
    meta = buffer.__dict__["_meta"]
    columns: dict[str, NDArray[Any]] = {}
    for key in _TIANSHOU.keys:
        if key in meta:
            columns |= _flat(key, meta[key])
    segments, breaks = _rings(path, state)
    source: Source = ArraySource(path, columns, segments)
    return TianshouDataset(source, _TIANSHOU, breaks=breaks)


_STATE = ("_size", "maxsize", "stack_num", "_lengths", "_offset", "last_index")


def _rings(path: str | Path, state: dict[str, NDArray[Any]]) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
    """The written rows of each ring in the order of writing, and the numbers of their newest rows.

    Raises:
        ValueError: a damaged or stacked buffer.
    """
    stack_num = _whole(path, state, "stack_num") if "stack_num" in state else 1
    if stack_num > 1:
        raise ValueError(f"{path}: stack_num={stack_num}; rows of stacked frames are not supported.")
    maxsize, newest = _whole(path, state, "maxsize"), _wholes(path, state, "last_index")
    offsets = _wholes(path, state, "_offset") if "_offset" in state else [0]
    lengths = _wholes(path, state, "_lengths") if "_lengths" in state else [_whole(path, state, "_size")]
    if not len(offsets) == len(lengths) == len(newest):
        raise ValueError(
            f"{path}: a damaged Tianshou buffer: {len(offsets)} offsets, {len(lengths)} lengths and {len(newest)} last "
            "indices; wanted one of each for a ring."
        )
    rings = zip(offsets, [*offsets[1:], maxsize], lengths, newest, strict=True)
    segments: list[tuple[int, int]] = []
    breaks, total = [], 0
    for start, stop, length, last in rings:
        if not (0 <= start <= stop and 0 <= length <= stop - start and (length == 0 or start <= last < stop)):
            raise ValueError(f"{path}: the buffer's counters do not fit each other (ring {start}..{stop}).")
        if length == 0:
            continue
        if length == stop - start and last + 1 < stop:  # full: the oldest row comes after the newest one
            segments.append((last + 1, stop))
        segments.append((start, last + 1 if length == stop - start else start + length))
        total += length
        breaks.append(total - 1)
    if not segments:
        raise ValueError(f"{path}: the buffer is empty.")
    return segments, tuple(breaks)


def _wholes(path: str | Path, state: dict[str, NDArray[Any]], key: str) -> list[int]:
    """Whole numbers of the buffer's state.

    Raises:
        ValueError: something else, or nothing.
    """
    if key not in state:
        raise ValueError(f"{path} is no saved Tianshou buffer, or a damaged one: it has no {key}.")
    array = state[key]
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise ValueError(
            f"{path}: a damaged Tianshou buffer: {key} has dtype {array.dtype} and shape {array.shape}; wanted whole "
            "numbers."
        )
    return [int(value) for value in array.reshape(-1)]


def _whole(path: str | Path, state: dict[str, NDArray[Any]], key: str) -> int:
    """One whole number, likewise."""
    values = _wholes(path, state, key)
    if len(values) != 1:
        raise ValueError(f"{path}: a damaged Tianshou buffer: {key} has {len(values)} values; wanted one.")
    return values[0]


def _flat(name: str, value: Any) -> dict[str, NDArray[Any]]:
    """Nested dicts (or Tianshou's Batch) of arrays by their joined keys."""
    if hasattr(value, "keys"):
        out: dict[str, NDArray[Any]] = {}
        for key in value.keys():  # noqa: SIM118 (a Batch iterates over its rows)
            out |= _flat(f"{name}{SEPARATOR}{key}", value[key])
        return out
    return {name: np.asarray(value)}
