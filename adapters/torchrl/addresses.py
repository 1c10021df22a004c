"""The index of a synthetic row: an integer that no real row can have, negative so that no priority tree takes it."""

from __future__ import annotations

import torch
from torch import Tensor

#: The address of synthetic row 0; row j has ``FIRST - j``. Far below what counts from the end of any storage.
FIRST = -(2**40)


def address_of(rows: Tensor) -> Tensor:
    """The addresses of rows of the synthetic set, ``[N]`` int64."""
    return FIRST - rows


def row_of(address: Tensor) -> Tensor:
    """The rows of the synthetic set at `address`, ``[N]`` int64."""
    return FIRST - address


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
