"""Where a batch has its real rows, and where its synthetic ones."""

import numpy as np

from synther_buffers.replay.interleaving import is_synthetic_place


def real_places(num_rows: int, num_synthetic: int | None = None) -> np.ndarray:
    """Places of the real rows, in order; half of the batch is synthetic unless told otherwise."""
    return np.flatnonzero(~mask(num_rows, num_synthetic))


def synthetic_places(num_rows: int, num_synthetic: int | None = None) -> np.ndarray:
    return np.flatnonzero(mask(num_rows, num_synthetic))


def mask(num_rows: int, num_synthetic: int | None = None) -> np.ndarray:
    """True where a batch has a synthetic row."""
    count = num_rows // 2 if num_synthetic is None else num_synthetic
    return is_synthetic_place(num_rows - count, count)
