"""Real and synthetic rows spread over a batch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synther_buffers.replay.interleaving import _kept, batch_order, batch_order_on, gather, is_synthetic_place
from synther_buffers.replay.last_batch import LastBatch


def test_the_places_of_a_small_batch_worked_out_by_hand():
    # Multiples of 0.618 modulo 1: 0, .62, .24, .85, .47, .09, .71, .33. The four smallest are those of 0, 5, 2 and 7.
    assert is_synthetic_place(4, 4).tolist() == [True, False, True, False, False, True, False, True]
    # Real rows are 0 to 3 of both, synthetic ones 4 to 7; each kind keeps its order.
    assert batch_order(4, 4).tolist() == [4, 0, 5, 1, 2, 6, 3, 7]


@given(st.integers(0, 300), st.integers(0, 300))
def test_every_row_has_one_place(num_real, num_synthetic):
    mask, order = is_synthetic_place(num_real, num_synthetic), batch_order(num_real, num_synthetic)
    assert mask.sum() == num_synthetic
    assert sorted(order.tolist()) == list(range(num_real + num_synthetic))
    np.testing.assert_array_equal(mask, order >= num_real)
    assert order[~mask].tolist() == list(range(num_real))
    assert order[mask].tolist() == list(range(num_real, num_real + num_synthetic))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("num_rows", [64, 256, 640, 2_560, 25_600])
def test_every_slice_is_a_fair_mix(num_rows, share):
    num_synthetic = int(num_rows * share)
    mask = is_synthetic_place(num_rows - num_synthetic, num_synthetic)
    counts = np.convolve(mask, np.ones(32, int), "valid")
    assert counts.min() >= 32 * share - 2.5
    assert counts.max() <= 32 * share + 2.5


@pytest.mark.parametrize("stride", [2, 3, 4, 5, 8, 16])
def test_so_is_every_slice_with_a_stride(stride):
    mask = is_synthetic_place(1_280, 1_280)
    for first in range(stride):
        counts = np.convolve(mask[first::stride], np.ones(32, int), "valid")
        assert counts.min() >= 12
        assert counts.max() <= 20


def test_the_mask_is_on_the_cpu_whatever_the_default_device():
    made = LastBatch()
    made.interleaved(3, 3)
    with torch.device("meta"):
        assert made.mask().tolist() == is_synthetic_place(3, 3).tolist()


def test_batches_of_many_sizes_do_not_pile_up():
    for num_real in range(100):
        batch_order(num_real, 5)
    assert batch_order.cache_info().currsize * 8 * 255_000 < 40e6  # bytes, if each were of 255,000 rows


def test_one_large_batch_does_not_occupy_memory_for_ever():
    rows = np.arange(200_000.0)[:, None].repeat(100, 1)  # 153 MiB
    order = np.arange(len(rows) // 2)
    large = gather(rows, order, rows, order + len(order))
    kept = getattr(_kept, "bytes", ())
    assert len(kept) <= 64 * 2**20
    np.testing.assert_array_equal(np.sort(large[:, 0]), rows[:, 0])
    small = gather(rows, order[:1_000], rows, order[1_000:2_000])
    np.testing.assert_array_equal(np.sort(small[:, 99]), rows[:2_000, 99])


def test_what_is_cached_cannot_be_written_to():
    for array in (is_synthetic_place(3, 3), batch_order(3, 3)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    assert batch_order_on(3, 3, torch.device("cpu")).tolist() == batch_order(3, 3).tolist()
