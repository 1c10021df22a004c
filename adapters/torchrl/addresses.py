"""The index of a synthetic row: a negative integer that no real row has and that no priority tree accepts."""

from __future__ import annotations

import torch
from torch import Tensor

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
        return index[0] <= FIRST
    index = torch.as_tensor(index)
    return (index <= FIRST) if index.ndim < 2 else (index <= FIRST).flatten(1).any(1)
