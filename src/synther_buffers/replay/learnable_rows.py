"""Which real rows a refresh may learn."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from ..transitions import Transitions
from .holdout import RowOrder


def finite_rows(rows: Transitions) -> NDArray[np.bool_]:
    """True for rows without NaN or infinity, ``[N]``."""
    finite = np.ones(len(rows), np.bool_)
    for _, good in _finite_columns(rows):
        finite &= good.all(1).cpu().numpy()
    return finite


def non_finite_columns(rows: Transitions) -> dict[str, int]:
    """The number of rows with NaN or infinity, by field and columns; only fields that have some."""
    counts = {}
    for name, good in _finite_columns(rows):
        if bool(good.all()):
            continue
        bad = (~good).any(0).nonzero().flatten().tolist()
        column = name if rows.flat()[name].ndim == 1 else f"{name}[{', '.join(map(str, bad[:5]))}]"
        counts[column] = int((~good).any(1).sum())
    return counts


def reaches_held_out(held: NDArray[np.bool_], order: RowOrder, max_steps: int) -> NDArray[np.bool_]:
    """True for held-out rows, and for rows of up to `max_steps` steps that reach into them, ``[N]``."""
    key = order.stream.astype(np.int64) * 2**40 + order.write_index
    reaches = held.copy()
    for steps in range(1, max_steps):
        reaches |= np.isin(key + steps, key[held])
    return reaches


def _finite_columns(rows: Transitions) -> Iterator[tuple[str, torch.Tensor]]:
    """For each field of floats, its name and which elements are finite, ``[N, size]``."""
    for name, tensor in rows.flat().items():
        if tensor.is_floating_point():
            yield name, torch.isfinite(tensor.reshape(len(rows), -1))
