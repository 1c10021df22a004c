"""The places of the synthetic rows in a batch: spread so that each slice of it has about the same share of them.

Many clients draw one large batch and split it into minibatches. If the real rows came first, most of these would be all
real or all synthetic.
"""

from __future__ import annotations

import math
import threading
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Its multiples modulo 1 are spread evenly over the unit interval, for consecutive numbers and for every fixed stride,
#: so that slices and `batch[i::n]` have about the same share of synthetic rows (Knuth, The Art of Computer Programming,
#: volume 3, section 6.4, theorem S).
_GOLDEN_RATIO = (5**0.5 - 1) / 2
#: Fields of at least this size in bytes are gathered in memory that is kept between batches, because allocating it for
#: each batch takes longer than the copy. What is larger than the second size is not kept: one such batch, as an
#: evaluation may draw, would occupy the memory for as long as its thread lives.
_LARGE, _TOO_LARGE = 65_536, 64 * 2**20
_kept = threading.local()
#: Orders that are kept. Most clients draw batches of one size; where each has another, keeping many only takes memory.
_MOST_KEPT = 16


@lru_cache(_MOST_KEPT)
def is_synthetic_place(num_real: int, num_synthetic: int) -> NDArray[np.bool_]:
    """Which places of a batch hold synthetic rows.

    They are fixed for given numbers. Rows are drawn independently, so a random arrangement has no advantage.

    Args:
        num_real: real rows of the batch.
        num_synthetic: synthetic rows of the batch.

    Returns:
        ``[num_real + num_synthetic]`` bool, read-only. In any 32 consecutive places of a large batch, the number of
        synthetic rows differs by at most two from the batch's share of 32.
    """
    num_rows = num_real + num_synthetic
    mask = np.zeros(num_rows, np.bool_)
    mask[np.argsort(np.arange(num_rows) * _GOLDEN_RATIO % 1.0, kind="stable")[:num_synthetic]] = True
    mask.setflags(write=False)
    return mask


@lru_cache(_MOST_KEPT)
def batch_order(num_real: int, num_synthetic: int) -> NDArray[np.int64]:
    """For each place of a batch, the index of its row among the real rows followed by the synthetic ones.

    Real rows keep their order, and so do synthetic rows.

    Returns:
        ``[num_real + num_synthetic]`` int64, read-only: ``torch.cat((real, synthetic))[order]`` is the batch.
    """
    mask = is_synthetic_place(num_real, num_synthetic)
    order = np.where(mask, num_real + np.cumsum(mask) - 1, np.cumsum(~mask) - 1)
    order.setflags(write=False)
    return order


@lru_cache(_MOST_KEPT)
def batch_order_on(num_real: int, num_synthetic: int, device: torch.device) -> Tensor:
    """`batch_order` as a tensor on a device, which must not be written to."""
    return torch.tensor(batch_order(num_real, num_synthetic), device=device)


def gather(
    real: NDArray[np.generic],
    real_rows: NDArray[np.int64],
    synthetic: NDArray[np.generic],
    synthetic_rows: NDArray[np.int64],
) -> NDArray[np.generic]:
    """One field of a batch, rows of two stores interleaved, in new memory.

    Args:
        real: the stored rows, ``[N, ...]``.
        real_rows: indices into `real`, ``[n]``, all in range.
        synthetic: the synthetic rows, ``[M, ...]`` of the same shape and dtype, or a single one, ``[1, ...]``, for all.
        synthetic_rows: indices into `synthetic`, ``[m]``.

    Returns:
        ``[n + m, ...]``, in the order of `batch_order`.
    """
    num_real, num_synthetic = len(real_rows), len(synthetic_rows)
    both = _room((num_real + num_synthetic, *real.shape[1:]), real.dtype)
    # NumPy takes half of torch's time here. mode="clip" avoids a buffered copy.
    real.take(real_rows, 0, both[:num_real], "clip")
    if len(synthetic) == 1:
        both[num_real:] = synthetic
    else:
        synthetic.take(synthetic_rows, 0, both[num_real:], "clip")
    # A second pass over a batch in the cache is faster than scattered writes in the first.
    return both.take(batch_order(num_real, num_synthetic), 0)


def _room(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    size = math.prod(shape) * dtype.itemsize
    if not _LARGE <= size <= _TOO_LARGE:
        return np.empty(shape, dtype)
    kept = getattr(_kept, "bytes", None)
    if kept is None or len(kept) < size:
        kept = _kept.bytes = np.empty(size, np.uint8)
    return kept[:size].view(dtype).reshape(shape)
