"""Which key of a stored tensordict is which part of a transition, and what a synthetic row has under each key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDictBase, unravel_key
from torch import Tensor

from ..transitions import SEPARATOR, Transitions
from ..transitions.fields import is_image

Key = tuple[str, ...]

_FLAGS = frozenset({"done", "terminated", "truncated"})
#: What TorchRL's collectors and transforms write besides the transition; by the last part of the key.
_BOOKKEEPING = _FLAGS | {"reward", "traj_ids", "step_count", "episode_reward", "is_init", "_reset"}
#: What `MultiStepTransform` writes: the discount of the row's steps, and what follows from it.
_DISCOUNT, _STEPS, _FROM_DISCOUNT = ("gamma",), ("steps_to_next_obs",), (("steps_to_next_obs",), ("nonterminal",))


@dataclass(frozen=True)
class Layout:
    """The keys of a stored row that make up a transition.

    Attributes:
        columns: key of each field of `Transitions`, by the field's name there.
        row_shapes: shape of one row under each of the storage's keys.
        done, truncated: keys of these flags, None where there is none.
        is_terminated: whether there is a ``terminated`` flag; without one, ``done`` is used.
    """

    columns: Mapping[str, Key]
    row_shapes: Mapping[Key, torch.Size]
    done: Key | None
    truncated: Key | None
    is_terminated: bool

    @classmethod
    def of(cls, data: TensorDictBase, modelled_keys: Sequence[Key] = ()) -> Layout:
        """The layout of a tensordict of transitions.

        Args:
            data: rows, or a single one.
            modelled_keys: further keys that the upsampler is to learn.

        Raises:
            ValueError: no next observation, reward or terminal flag, an image, or an action or a reward of several
                parts.
        """
        leaves = {key: tensor for key, tensor in tensors_of(data)}
        row_shapes = {key: tensor.shape[data.batch_dims :] for key, tensor in leaves.items()}
        columns: dict[str, Key] = {}
        for field, key in _observations(leaves):
            columns[field], columns[f"next_{field}"] = key, ("next", *key)
        columns["action"] = _action(leaves)
        reward, done, terminated, truncated = (
            _scalar(name, leaves, row_shapes) for name in ("reward", "done", "terminated", "truncated")
        )
        if reward is None:
            raise ValueError(f"the data have no ('next', 'reward'), only {_shown(leaves)}.")
        ended = terminated or done
        if ended is None:
            raise ValueError(
                f"the data have neither ('next', 'terminated') nor ('next', 'done'), only {_shown(leaves)}: without "
                "one of them nothing says where an episode ends. Store transitions as TorchRL's collectors write them."
            )
        columns["reward"], columns["terminated"] = reward, ended
        if _STEPS in leaves:
            if _DISCOUNT not in leaves:
                raise ValueError(
                    "the data have 'steps_to_next_obs' but no 'gamma': n-step rows need both. Use MultiStepTransform "
                    "or MultiStep, which write them."
                )
            columns["discount"] = _DISCOUNT
        for key in modelled_keys:
            if key not in leaves:
                raise ValueError(f"modelled_keys names {_name(key)}, but the data have only {_shown(leaves)}.")
            if key not in columns.values():
                columns[_field("extra", key)] = key
        # Last, because whole trajectories as rows, which other checks tell, may be as large as images.
        for name, key in columns.items():
            if name.startswith(("observation", "extra")):
                _reject_image(key, leaves[key], row_shapes[key])
        return cls(columns, row_shapes, done, truncated, terminated is not None)

    # -- reading -----------------------------------------------------------------------------------------------------

    def transitions(self, stored: TensorDictBase, one_hot: bool | None) -> Transitions:
        """Stored rows ``[N]`` as transitions, views wherever the stored dtype and shape are those of a transition.

        Args:
            stored: the rows.
            one_hot: whether actions are one-hot; None to detect it.

        Raises:
            ValueError: `one_hot` is True, but the actions are not.
        """
        columns = {name: stored.get(key).detach() for name, key in self.columns.items()}
        num_rows = stored.shape[0]
        for name in ("reward", "discount"):
            if name in columns:
                columns[name] = columns[name].reshape(num_rows).to(torch.float32)
        for name, column in columns.items():
            if name.startswith("observation"):
                # `Transitions` requires one dtype for both; the storage and its batches keep each its own.
                columns[f"next_{name}"] = columns[f"next_{name}"].to(column.dtype)
        ended = columns["terminated"].reshape(num_rows).to(torch.bool)
        if not self.is_terminated and self.truncated is not None:
            ended = ended & ~stored.get(self.truncated).reshape(num_rows).to(torch.bool)
        columns["terminated"] = ended
        if one_hot is None:
            one_hot = _is_one_hot(columns["action"])
        elif one_hot and not _is_one_hot(columns["action"]):
            raise ValueError("earlier actions were one-hot, but some of the stored ones are not.")
        if one_hot:
            columns["action"] = columns["action"].to(torch.uint8).argmax(-1)
        return Transitions.from_flat(columns)

    def are_categories(self, action_shape: Sequence[int]) -> bool:
        """Whether an action of this shape is the category that the storage holds one-hot."""
        return len(action_shape) < len(self.row_shapes[self.columns["action"]])

    def episode_ends(self, stored: TensorDictBase) -> Tensor:
        """Rows with which an episode ended, ``[N]`` bool."""
        ends = [key for key in (self.done, self.truncated, self.columns["terminated"]) if key is not None]
        return torch.stack([stored.get(key).reshape(stored.shape[0]).to(torch.bool) for key in ends]).any(0)

    def trajectories(self, stored: TensorDictBase) -> NDArray[np.int64] | None:
        """The number of each row's trajectory, as a collector writes it, ``[N]``; None without one."""
        keys = [key for key, shape in self.row_shapes.items() if key[-1] == "traj_ids" and shape.numel() == 1]
        return stored.get(keys[0]).reshape(stored.shape[0]).to(torch.int64).cpu().numpy() if keys else None

    def max_steps(self, stored: TensorDictBase) -> int:
        """Environment steps that a row spans at most."""
        return int(stored.get(_STEPS).max()) if _STEPS in self.row_shapes and len(stored) else 1

    # -- filling -----------------------------------------------------------------------------------------------------

    def synthetic_leaves(self, rows: Transitions, stored: TensorDictBase, addresses: Tensor) -> dict[Key, Tensor]:
        """The keys that synthetic rows have values of their own for, in the shape and dtype of the stored rows.

        A row is an episode of one step: done, and truncated unless it is terminated, so that nothing is looked up after
        it and its target still bootstraps. All other keys, such as the flags of the state before the step, are copied
        from some real row.

        Args:
            rows: the synthetic set, M rows.
            stored: real rows ``[N]``, whose keys and dtypes are copied.
            addresses: ``[M]``, the index of each row.

        Raises:
            ValueError: the set lacks fields of the stored rows, because it was learned without, or has others.
        """
        columns = rows.flat()
        if lacking := self.columns.keys() - columns.keys():
            fields = ", ".join(sorted(name for name in lacking if not name.startswith("next_")))
            raise ValueError(f"they lack the fields {fields}")
        if self.are_categories(rows.action.shape[1:]):
            num_actions = self.row_shapes[self.columns["action"]][-1]
            columns["action"] = torch.nn.functional.one_hot(rows.action.to(torch.int64), num_actions)
        for name, key in self.columns.items():
            size, wanted = columns[name][:1].numel(), self.row_shapes[key].numel()
            if size not in (1, wanted):
                raise ValueError(f"their {name} has {size} elements a row, and the stored one {wanted}")
        filled: dict[Key, Tensor] = {key: columns[name] for name, key in self.columns.items()}
        terminated = rows.terminated
        leaves = dict(tensors_of(stored))
        for key in leaves:
            if key[0] == "next" and key[-1] in _FLAGS:
                filled[key] = self._flag(key[-1], terminated)
            elif key[-1] == "traj_ids":
                filled[key] = _constant(-1, addresses)
            elif key == ("index",) and leaves[key].dtype == torch.int64:
                filled[key] = addresses
            elif key in _FROM_DISCOUNT and rows.discount is not None:
                filled[key] = _looked_up(leaves[key], stored.get(_DISCOUNT), rows.discount)
        return {key: _like(tensor, leaves[key], self.row_shapes[key]) for key, tensor in filled.items()}

    def _flag(self, name: str, terminated: Tensor) -> Tensor:
        if name == "terminated" or (name == "done" and not self.is_terminated):
            return terminated
        if name == "done":
            return _constant(True, terminated)
        return ~terminated if self.is_terminated else _constant(False, terminated)


def normalized_keys(keys: Any) -> tuple[Key, ...]:
    """The user's nested keys as tuples.

    Raises:
        TypeError: no sequence of keys.
    """
    if isinstance(keys, str) or not isinstance(keys, Sequence):
        raise TypeError(f"modelled_keys is {keys!r}; wanted a sequence of keys, such as ['cost', ('next', 'energy')].")
    return tuple(_as_tuple(key) for key in keys)


def _as_tuple(key: Any) -> Key:
    try:
        key = unravel_key(key)
    except RuntimeError as error:
        raise TypeError(f"modelled_keys has {key!r}; wanted a string or a tuple of strings.") from error
    return (key,) if isinstance(key, str) else key


def tensors_of(data: TensorDictBase) -> Iterator[tuple[Key, Tensor]]:
    """Every tensor, with its key as a tuple."""
    for key, tensor in data.items(include_nested=True, leaves_only=True):
        if isinstance(tensor, Tensor):
            yield (key,) if isinstance(key, str) else key, tensor


def _observations(leaves: Mapping[Key, Tensor]) -> list[tuple[str, Key]]:
    """Field name and root key of every observation: what is there both now and next."""
    keys = [
        key
        for key in leaves
        if ("next", *key) in leaves
        and key[0] not in ("next", "collector")
        and key != ("index",)
        and key[-1] not in _BOOKKEEPING
        and "action" not in key
    ]
    if not keys:
        raise ValueError(
            f"the data have no observation under 'next', only {_shown(leaves)}: a transition needs its next "
            "observation, as in ('next', 'observation') beside 'observation'. Store transitions as TorchRL's "
            "collectors write them, without compact_obs."
        )
    return [("observation", keys[0])] if len(keys) == 1 else [(_field("observation", key), key) for key in keys]


def _field(group: str, key: Key) -> str:
    for part in key:
        if SEPARATOR in part:
            raise ValueError(f"the key {_name(key)} contains {SEPARATOR!r}, which separates nested keys; rename it.")
    return SEPARATOR.join((group, *key))


def _action(leaves: Mapping[Key, Tensor]) -> Key:
    found = [key for key in leaves if key[0] != "next" and "action" in key]
    if ("action",) in found:
        return ("action",)
    if len(found) == 1:
        return found[0]
    if not found:
        raise ValueError(f"the data have no 'action', only {_shown(leaves)}.")
    raise ValueError(
        f"the data have several actions, {_shown(found)}: only one is supported. Concatenate them into one tensor "
        "under 'action'."
    )


def _scalar(name: str, leaves: Mapping[Key, Tensor], row_shapes: Mapping[Key, torch.Size]) -> Key | None:
    """The key under ``next`` that ends in `name` and holds one number per row, None if nothing does."""
    found = [key for key in leaves if key[0] == "next" and key[-1] == name]
    single = [key for key in found if row_shapes[key].numel() == 1]
    if ("next", name) in single:
        return ("next", name)
    if len(single) == 1:
        return single[0]
    if found:
        shapes = ", ".join(f"{_name(key)} of shape {list(row_shapes[key])}" for key in found)
        raise ValueError(
            f"the data have {shapes} in each row; wanted one {name} per row, under ('next', {name!r}). Rewards and "
            "flags of several agents or objectives are not supported: reduce them first. If rows are whole "
            "trajectories, flatten them before they are stored."
        )
    return None


def _reject_image(key: Key, tensor: Tensor, row_shape: torch.Size) -> None:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if is_image(dtype, tuple(row_shape)):
        raise ValueError(
            f"{_name(key)} is an image ({dtype} of shape {list(row_shape)}): the upsampler models vectors. Encode "
            "images first (a transform that replaces them with the features of a frozen encoder) and store these."
        )


def _is_one_hot(action: Tensor) -> bool:
    """Whether actions ``[N, ..., n]``, n > 1, are all one-hot.

    Raises:
        ValueError: each of them is several one-hot blocks side by side.
    """
    if action.ndim < 2 or action.shape[-1] < 2 or not bool(((action == 0) | (action == 1)).all()):
        return False
    ones = (action != 0).sum(-1)
    if bool((ones == 1).all()):
        return True
    if not action.is_floating_point() and bool((ones == ones.flatten()[0]).all()) and int(ones.flatten()[0]) > 1:
        raise ValueError(
            f"actions of {action.shape[-1]} zeros and ones, {int(ones.flatten()[0])} ones in each, look like several "
            "one-hot blocks (MultiOneHot): not supported. Use categorical actions (MultiCategorical)."
        )
    return False


def _looked_up(values: Tensor, stored_discount: Tensor, discount: Tensor) -> Tensor:
    """For each synthetic discount, what a real row of that discount has under another key."""
    known, inverse = torch.unique(stored_discount.reshape(-1).to(discount.dtype), return_inverse=True)
    example = torch.empty_like(known, dtype=torch.int64)
    example[inverse] = torch.arange(len(inverse), device=inverse.device)
    nearest = torch.searchsorted(known, discount).clamp(max=len(known) - 1)
    return values[example[nearest]]


def _constant(value: bool | int, like: Tensor) -> Tensor:
    """`value` for each row of `like`, ``[M]``; one number in memory, so that gathering rows stays in the cache."""
    return torch.tensor(value, device=like.device).expand(len(like))


def _like(tensor: Tensor, stored: Tensor, row_shape: torch.Size) -> Tensor:
    """Rows ``[M, ...]`` in the dtype of stored ones, reshaped or expanded to the stored shape of a row."""
    if tensor.dtype != stored.dtype:
        if tensor.is_floating_point() and not stored.is_floating_point():
            tensor = tensor.round()
        tensor = tensor.to(stored.dtype)
    num_rows = tensor.shape[0]
    if tensor[:1].numel() == row_shape.numel():
        return tensor.reshape(num_rows, *row_shape)
    return tensor.reshape(num_rows, *(1 for _ in row_shape)).expand(num_rows, *row_shape)


def _name(key: Key) -> str:
    return repr(key[0] if len(key) == 1 else key)


def _shown(keys: Iterable[Key]) -> str:
    return ", ".join(sorted(_name(key) for key in keys))
