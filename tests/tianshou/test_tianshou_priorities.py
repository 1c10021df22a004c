"""Prioritised replay: only real rows carry priorities, and every row has a sensible importance weight."""
# ruff: noqa: NPY002  # Tianshou draws by priority from NumPy's global stream

import numpy as np
import pytest
import torch
from batches import real_places, synthetic_places
from synther_buffers.tianshou import SynthERPrioritizedReplayBuffer
from tianshou.data import PrioritizedReplayBuffer, PrioritizedVectorReplayBuffer
from tianshou_helpers import MARK, count_into, make_buffer, make_plain, refreshed, rows


def prioritized(**kwargs):
    return refreshed(SynthERPrioritizedReplayBuffer, **kwargs)


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
def test_td_errors_of_a_mixed_batch_reach_the_real_rows_alone(convert):
    ours, plain = prioritized(), make_plain(SynthERPrioritizedReplayBuffer, buffer_num=2)
    count_into(plain, 0, 75)
    index = np.array([3, 450, 210, 699, 400])
    ours.update_weight(index, convert([5.0, 1e6, 0.1, 1e6, 0.0]))
    plain.update_weight(index[[0, 2]], convert([5.0, 0.1]))
    real = plain.sample_indices(0)
    np.testing.assert_array_equal(ours.weight[real], plain.weight[real])
    assert ours.weight.reduce() == plain.weight.reduce()
    assert (ours._max_prio, ours._min_prio) == (plain._max_prio, plain._min_prio)
    count_into(ours, 75, 76)
    count_into(plain, 75, 76)
    np.testing.assert_array_equal(ours.weight[np.arange(400)], plain.weight[np.arange(400)])


def test_td_errors_of_synthetic_rows_alone_are_dropped():
    buffer = prioritized()
    before = buffer.weight._value.copy()
    buffer.update_weight(np.array([400, 500]), np.array([3.0, 4.0]))
    np.testing.assert_array_equal(buffer.weight._value, before)


def test_real_rows_are_drawn_by_priority_and_are_never_synthetic():
    buffer = prioritized()
    buffer.update_weight(buffer.sample_indices(0), np.full(150, 1e-9))
    buffer.update_weight(np.array([7]), np.array([1e3]))
    index = buffer.sample_indices(64)
    assert set(index[real_places(64)]) == {7}
    assert (index[synthetic_places(64)] >= 400).all()


def test_a_synthetic_row_weighs_as_much_as_a_real_one_of_mean_priority():
    buffer = prioritized(alpha=0.5, beta=0.4)
    everything = buffer.sample_indices(0)
    buffer.update_weight(everything, np.where(np.arange(150) < 50, 16.0, 1.0))
    # Priorities to the power of alpha: 50 times 4 and 100 times 1, mean 2.
    weights = buffer.get_weight(np.array([everything[0], everything[149], 400, 699]))
    np.testing.assert_allclose(weights, [4**-0.4, 1, 2**-0.4, 2**-0.4], rtol=1e-4)
    assert buffer.get_weight(450) == pytest.approx(2**-0.4, rel=1e-4)
    # In a batch they are divided by the largest, here that of the row of least priority.
    batch = buffer[np.array([everything[0], everything[149], 400])]
    np.testing.assert_allclose(batch.weight, [4**-0.4, 1, 2**-0.4], rtol=1e-4)


@pytest.mark.parametrize(("buffer_num", "plain"), [(1, PrioritizedReplayBuffer), (2, PrioritizedVectorReplayBuffer)])
def test_weight_norm_and_set_beta_do_what_they_do_in_tianshou(buffer_num, plain):
    sizes = (400, buffer_num) if buffer_num > 1 else (400,)
    ours = make_buffer(SynthERPrioritizedReplayBuffer, 400, buffer_num, weight_norm=False, synthetic_fraction=0.0)
    theirs = plain(*sizes, alpha=0.6, beta=0.4, weight_norm=False)
    index = np.array([5, 19])
    for buffer in (ours, theirs):
        for step in range(20):
            buffer.add(rows(step), [0])
        buffer.update_weight(np.arange(20), np.linspace(1, 20, 20))
    np.testing.assert_array_equal(ours[index].weight, theirs[index].weight)
    before = ours[index].weight
    for buffer in (ours, theirs):
        buffer.set_beta(1.0)
    np.testing.assert_array_equal(ours[index].weight, theirs[index].weight)
    assert (ours[index].weight != before).all() == (buffer_num == 1)


def test_beta_and_weight_norm_reach_synthetic_rows_and_files(tmp_path):
    buffer = make_buffer(SynthERPrioritizedReplayBuffer, alpha=0.5, weight_norm=False)
    count_into(buffer, 0, 130)
    buffer.sample(2)
    buffer.update_weight(np.arange(130), np.where(np.arange(130) < 65, 9.0, 1.0))
    buffer.set_beta(1.0)
    buffer.save_hdf5(str(tmp_path / "buffer.hdf5"))
    for each in (buffer, SynthERPrioritizedReplayBuffer.load_hdf5(str(tmp_path / "buffer.hdf5"))):
        # Priorities to the power of alpha: half of them 3, half 1, mean 2.
        np.testing.assert_allclose(each[np.array([0, 129, 450])].weight, [1 / 3, 1, 1 / 2], rtol=1e-4)


def test_new_rows_and_synthetic_ones_weigh_the_same():
    buffer = prioritized()
    batch, _ = buffer.sample(40)
    np.testing.assert_allclose(batch.weight, 1.0)
    assert (batch.rew == MARK).sum() == 20


def test_importance_weights_make_priorities_unbiased():
    # With beta = 1 the weighted mean over draws is the plain mean of the real rows: 74.5 / 2 more for synthetic ones.
    buffer = prioritized(alpha=1.0, beta=1.0)
    everything = buffer.sample_indices(0)
    priorities = np.linspace(0.5, 2.0, 150)
    buffer.update_weight(everything, priorities)
    index = np.concatenate([buffer.sample_indices(2000) for _ in range(20)])
    real = index < 400
    weight = buffer.get_weight(index)
    value = np.where(index % 200 < 75, index % 200, 0)
    # Draws of real rows with high priority come more often and weigh less.
    assert np.average(value[real], weights=weight[real]) == pytest.approx(37, abs=0.6)
    # Both kinds have half of the batch and, on average, the same weight.
    assert weight[real].mean() == pytest.approx(weight[~real].mean(), rel=0.02)


def test_rows_that_come_in_bulk_can_be_drawn():
    source = make_plain(SynthERPrioritizedReplayBuffer)
    count_into(source, 0, 60)
    moved = make_buffer(SynthERPrioritizedReplayBuffer)
    moved.update(source)
    made = SynthERPrioritizedReplayBuffer.from_data(
        **{key: source[:][key] for key in ("obs", "act", "rew", "terminated", "truncated", "done", "obs_next")},
        alpha=0.6, beta=0.4, retrain_every=60,
    )  # fmt: skip
    for buffer in (moved, made):
        np.random.seed(0)
        batch, index = buffer.sample(600)
        assert set(index) == set(range(60))
        assert np.isfinite(batch.weight).all()


def test_after_a_reset_the_old_rows_have_no_priorities():
    buffer = prioritized()
    buffer.reset()
    assert buffer.weight.reduce() == 0.0
    count_into(buffer, 0, 65)
    batch, index = buffer.sample(40)
    real = index[real_places(40)]
    assert (real < 400).all()
    assert (real % 200 < 65).all()
    np.testing.assert_allclose(batch.weight, 1.0)
