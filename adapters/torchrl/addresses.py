"""The index of a synthetic row: a negative integer that no real row has and that no priority tree accepts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

Index = Tensor | tuple[Tensor, ...]

#: The address of row 0 of synthetic set 0; row j of set g has ``FIRST - g * _SET - j``. It is far below every negative
#: index that counts from the end of a storage.
FIRST = -(2**40)
_SET = 2**32


def address_of(rows: Tensor, generation: int) -> Tensor:
    """The addresses of rows of the synthetic set that a refresh made, ``[N]`` int64."""
    return FIRST - generation * _SET - rows


def row_of(address: Tensor) -> Tensor:
    """The rows at `address` of their synthetic sets, ``[N]`` int64."""
    return (FIRST - address) % _SET


def generation_of(address: Tensor) -> Tensor:
    """The refreshes that made the rows at `address`, ``[N]`` int64."""
    return (FIRST - address) // _SET


def is_synthetic(index: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Which rows of a batch are synthetic, by its index.

    Args:
        index: ``batch["index"]`` (``[N]``, or ``[N, ndim]`` for a storage of several dimensions), or the tuple of
            coordinates that ``sample(return_info=True)`` gives.

    Returns:
        ``[N]`` bool.
    """
    if isinstance(index, tuple):
        return torch.as_tensor(index[0]) <= FIRST
    index = torch.as_tensor(index)
    return (index <= FIRST) if index.ndim < 2 else (index <= FIRST).flatten(1).any(1)


def names_rows(index: Any) -> bool:
    """Whether an index gives rows one by one, as those of samplers do, and is no slice, mask, key or single row."""
    first = index[0] if isinstance(index, tuple) and index else index
    return isinstance(first, Tensor | np.ndarray) and first.ndim > 0 and first.dtype not in (torch.bool, np.bool_)


def as_many(index: Tensor, num_rows: int) -> Tensor:
    """`num_rows` of a batch's real addresses; the first row of the storage if it has none."""
    if len(index) == 0:
        return index.new_zeros(num_rows)
    if len(index) < num_rows:
        index = index.repeat(-(-num_rows // len(index)))
    return index[:num_rows]


def is_same(index: Any, drawn: Index) -> bool:
    """Whether `index` is the one just drawn; a tuple may be a new one with the same tensors."""
    if isinstance(drawn, tuple):
        return isinstance(index, tuple) and len(index) == len(drawn) and index[0] is drawn[0]
    return index is drawn
