"""n-step returns and everything else that walks the buffer by index, for real and for synthetic rows."""

import numpy as np
import pytest
import torch
from tianshou.algorithm import Algorithm
from tianshou.data import Batch
from tianshou_helpers import MARK, PLAIN, assert_same, count_into, make_buffer, make_plain, refreshed

CLASSES = pytest.mark.parametrize("cls", PLAIN)
GAMMA = 0.9


def target_q(buffer, indices):
    """Q of the next observation: 0.01 of what it counts."""
    return torch.as_tensor(0.01 * buffer[indices].obs_next)


def returns(buffer, indices, n_step):
    batch = Algorithm.compute_nstep_return(buffer[indices], buffer, indices, target_q, GAMMA, n_step)
    return batch.returns.flatten().numpy()


@CLASSES
@pytest.mark.parametrize("n_step", [1, 3, 5])
def test_synthetic_rows_have_their_one_step_target_whatever_n_is(cls, n_step):
    buffer = refreshed(cls)
    indices = np.arange(400, 700)
    rows = buffer.synthetic.rows
    bootstrapped = torch.where(rows.terminated, 0.0, 0.01 * rows.next_observation.flatten())
    np.testing.assert_allclose(returns(buffer, indices, n_step), MARK + GAMMA * bootstrapped.numpy(), rtol=1e-5)
    assert 0 < int(rows.terminated.sum()) < 300


@CLASSES
@pytest.mark.parametrize("n_step", [1, 3, 5])
def test_real_rows_have_the_plain_buffers_returns(cls, n_step):
    ours, plain = make_buffer(cls, 160, 2), make_plain(cls, 160, 2)
    for buffer in (ours, plain):  # the rings of 80 wrap; the last episodes are unfinished
        count_into(buffer, 0, 105, ends=range(9, 75, 10), timeouts=range(14, 100, 15))
    mixed = ours.sample_indices(64)
    assert (mixed >= 160).sum() == 32
    indices = plain.sample_indices(0)
    wanted = returns(plain, indices, n_step)
    np.testing.assert_array_equal(returns(ours, indices, n_step), wanted)
    real = mixed < 160
    np.testing.assert_array_equal(returns(ours, mixed, n_step)[real], returns(plain, mixed[real], n_step))


def test_three_step_returns_worked_out_by_hand():
    buffer = make_buffer(retrain_every=120)
    count_into(buffer, 0, 120, ends=[4], timeouts=[9])
    buffer.sample(2)
    got = returns(buffer, np.array([0, 3, 4, 8, 9, 119]), 3)
    wanted = [
        1 + 0.9 + 0.81 + 0.729 * 0.03,  # 0, 1, 2, then Q of 3
        1 + 0.9,  # 3 and the terminal 4
        1,
        1 + 0.9 + 0.81 * 0.1,  # 8 and 9, cut: Q of 10
        1 + 0.9 * 0.1,
        1 + 0.9 * 1.2,  # the newest row
    ]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@CLASSES
def test_neighbours(cls):
    ours, plain = refreshed(cls), make_plain(cls, buffer_num=2)
    count_into(plain, 0, 75, ends=range(9, 75, 10), timeouts=range(14, 75, 15))
    real = np.concatenate((np.arange(75), np.arange(200, 275)))
    synthetic = np.arange(400, 700)
    for name in ("next", "prev"):
        step = getattr(ours, name)
        np.testing.assert_array_equal(step(real), getattr(plain, name)(real))
        np.testing.assert_array_equal(step(synthetic), synthetic)
        np.testing.assert_array_equal(step(np.array([3, 500, 203])), [getattr(plain, name)(3), 500, 203 + step(3) - 3])
        assert step(500) == 500
        assert step(3) == getattr(plain, name)(3)
        assert step([3, 500]).tolist() == [getattr(plain, name)(3), 500]


def test_value_mask_and_unfinished_rows():
    buffer = refreshed()
    count_into(buffer, 75, 78, ids=[1])
    assert buffer.unfinished_index().tolist() == [277]
    synthetic = np.arange(400, 700)
    np.testing.assert_array_equal(Algorithm.value_mask(buffer, synthetic), ~buffer.synthetic.rows.terminated.numpy())
    np.testing.assert_array_equal(Algorithm.value_mask(buffer, np.arange(10)), [True] * 9 + [False])


def test_done_in_a_batch_says_where_bootstrapping_stops():
    """CQL and BCQ read it there, whereas n-step returns read it, and that every synthetic row ends, in the storage."""
    buffer = refreshed()
    terminated = buffer.synthetic.rows.terminated.numpy()
    np.testing.assert_array_equal(buffer[np.arange(400, 700)].done, terminated)
    np.testing.assert_array_equal(buffer[np.array([9, 14, 15, 400])].done, [True, True, False, terminated[0]])
    assert buffer[400].done == terminated[0]
    assert buffer[400].obs.shape == buffer[3].obs.shape == (1,)
    assert buffer[[9, 401]].done.tolist() == [True, terminated[1]]
    assert buffer[9].done
    assert buffer.done[400:].all()
    batch, _ = buffer.sample(200)
    assert 0 < batch.done[100:].sum() < 100


def test_a_mask_of_the_storage():
    buffer = refreshed()
    assert_same(buffer[buffer.rew == MARK], buffer[np.arange(400, 700)])
    assert_same(buffer[buffer.obs[:400, 0] == 1003], buffer[np.array([203])])


def test_episodic_returns_of_a_mixed_batch():
    buffer = refreshed()
    indices = np.concatenate((np.arange(10), [400, 401]))
    values = np.zeros(12)
    returns, _ = Algorithm.compute_episodic_return(
        buffer[indices], buffer, indices, v_s_=values, v_s=values, gamma=GAMMA, gae_lambda=1.0
    )
    np.testing.assert_allclose(returns[9], 1)
    np.testing.assert_allclose(returns[8], 1.9)
    np.testing.assert_allclose(returns[10:], MARK)


def test_buffer_indices_and_edges():
    buffer = refreshed()
    assert buffer.subbuffer_edges.tolist() == [0, 200, 400, 700]
    assert buffer.get_buffer_indices(3, 6).tolist() == [3, 4, 5]
    assert buffer.get_buffer_indices(398, 202).tolist() == [398, 399, 200, 201]
    assert buffer.get_buffer_indices(399, 400).tolist() == [399]
    assert buffer.get_buffer_indices(400, 401).tolist() == [400]
    assert buffer.get_buffer_indices(699, 700).tolist() == [699]
    with pytest.raises(ValueError, match="same subbuffer"):
        buffer.get_buffer_indices(398, 401)


@pytest.mark.parametrize(
    "index",
    [-1, [-1, 3], np.array([-2, 5]), slice(-3, None), slice(None), ..., np.arange(160) > 150],
    ids=["number", "list", "array", "slice", "all", "ellipsis", "mask"],
)
def test_an_index_of_get_means_real_rows(index):
    ours, plain = make_buffer(size=160), make_plain(size=160)
    for buffer in (ours, plain):
        count_into(buffer, 0, 160)
    ours.sample(2)
    for key in ("obs", "rew"):
        np.testing.assert_array_equal(ours.get(index, key), plain.get(index, key))
    if index is ...:
        assert_same(ours[index], plain[index])


@pytest.mark.parametrize("read", [lambda buffer, index: buffer[index], lambda buffer, index: buffer.get(index, "rew")])
def test_an_index_below_the_first_real_row_is_out_of_range(read):
    buffer = refreshed()
    for index in (-401, [3, -401]):
        with pytest.raises(IndexError):
            read(buffer, index)


def test_get_reads_both_kinds_of_rows():
    buffer = refreshed()
    assert buffer.get(np.array([3, 203]), "obs").flatten().tolist() == [3, 1003]
    np.testing.assert_array_equal(buffer.get(450, "obs"), buffer.synthetic.rows.observation[50].numpy())
    assert isinstance(buffer.get(450, "info", Batch()), Batch)
