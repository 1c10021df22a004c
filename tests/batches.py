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


def assert_every_slice_is_fair(is_synthetic: np.ndarray, length: int = 32) -> None:
    """Of every `length` consecutive rows of a batch, 30 to 70 % are synthetic, wherever a client cuts it."""
    counts = np.convolve(is_synthetic, np.ones(length, int), "valid")
    assert len(counts) > 1, "the batch is no longer than a slice"
    assert 0.3 * length <= counts.min()
    assert counts.max() <= 0.7 * length
