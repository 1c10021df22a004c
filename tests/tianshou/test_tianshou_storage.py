"""The methods that change the storage other than by `add`: reset, set_batch, update, from_data, dropnull, keys."""

import h5py
import numpy as np
import pytest
from batches import mask
from synther_buffers.tianshou import SynthERPrioritizedReplayBuffer, SynthERReplayBuffer
from tianshou.data import Batch, Collector, ReplayBuffer
from tianshou_helpers import (
    MARK,
    PLAIN,
    CounterEnv,
    Marked,
    assert_same,
    count_into,
    dqn,
    envs,
    make_buffer,
    make_plain,
    refreshed,
    rows,
)

CLASSES = pytest.mark.parametrize("cls", PLAIN)
NAMES = ("obs", "act", "rew", "terminated", "truncated", "done", "obs_next")


def data(num_rows, first=0):
    """The rows that `count_into` writes, terminal every tenth."""
    step = np.arange(first, first + num_rows, dtype=np.float32)[:, None]
    terminated = np.arange(first, first + num_rows) % 10 == 9
    return {
        "obs": step,
        "act": np.full((num_rows, 1), 0.5, np.float32),
        "rew": np.ones(num_rows),
        "terminated": terminated,
        "truncated": np.zeros(num_rows, np.bool_),
        "done": terminated,
        "obs_next": step + 1,
    }


def num_synthetic(buffer, size=40):
    return int((buffer.sample(size)[0].rew == MARK).sum())


@CLASSES
@pytest.mark.parametrize("keep_statistics", [False, True])
def test_reset_forgets_everything(cls, keep_statistics):
    buffer = refreshed(cls)
    count_into(buffer, 75, 77)
    buffer.reset(keep_statistics=keep_statistics)
    assert len(buffer) == 0
    assert buffer.synthetic.num_observed == 0
    assert buffer.synthetic.rows is None
    # The return of the running episode (two rows of reward 1) goes on only if it is kept.
    _, episode_return, length, _ = buffer.add(rows(77, 2, terminated=True))
    assert episode_return.tolist() == ([3, 3] if keep_statistics else [1, 1])
    assert length.tolist() == ([3, 3] if keep_statistics else [1, 1])
    count_into(buffer, 0, 58)
    assert num_synthetic(buffer) == 0
    count_into(buffer, 58, 60)
    assert num_synthetic(buffer) == 20


def test_a_collectors_reset_empties_the_buffer_and_it_learns_again():
    env = CounterEnv(num_actions=2)
    buffer = make_buffer(retrain_every=100)
    collector = Collector(dqn(env), envs(lambda: env), buffer)
    for _ in range(2):
        collector.reset()
        assert len(buffer) == 0
        assert buffer.synthetic.num_refreshes == 0
        collector.collect(n_step=100, random=True)
        assert num_synthetic(buffer) == 20


def test_set_batch_stores_other_data_and_forgets_what_was_learned():
    buffer = make_buffer(size=150)
    count_into(buffer, 0, 150)
    assert num_synthetic(buffer) == 20
    other = Batch(data(150, first=1000))
    buffer.set_batch(other)
    assert set(other.keys()) == set(NAMES)
    assert len(other.rew) == 150
    assert_same(buffer[:], Batch(other, info=Batch(), policy=Batch()))
    assert buffer.synthetic.num_refreshes == 0
    assert buffer.synthetic.num_observed == 150
    batch, index = buffer.sample(40)
    assert (index >= 150).sum() == 20
    assert batch.obs.min() >= 1000
    assert (batch.rew[index >= 150] == MARK).all()
    buffer.add(rows(5, terminated=True))  # the sub-buffer sees the new storage
    assert buffer.unfinished_index().tolist() == []


def test_set_batch_keeps_the_rings_order():
    buffer = make_buffer(size=150)
    count_into(buffer, 0, 160)
    buffer.set_batch(Batch(data(150)))
    # Slot 10 is the oldest; the rows count from 0 again.
    assert buffer.row_order().write_index.tolist() == [*range(140, 150), *range(140)]


def test_update_takes_rows_from_another_buffer():
    plain, ours = ReplayBuffer(150), make_buffer(size=150)
    source = ReplayBuffer(100)
    for step in range(130):  # wrapped: rows 30 to 129, oldest first
        source.add(rows(step, terminated=step % 10 == 9)[0])
    for buffer in (plain, ours):
        assert buffer.update(source).tolist() == list(range(100))
        assert buffer.update(source).tolist() == [*range(100, 150), *range(50)]
    assert_same(ours[:], plain[:])
    assert ours.obs[:3].flatten().tolist() == [80, 81, 82]
    np.testing.assert_array_equal(ours.next(np.arange(150)), plain.next(np.arange(150)))
    assert ours.synthetic.num_observed == 200
    assert num_synthetic(ours) == 20
    train, held = ours.synthetic.upsampler.trained[0]
    assert len(train) + len(held) == 150
    assert ours.row_order().write_index.tolist() == [*range(150, 200), *range(50, 150)]
    assert ours.update(ReplayBuffer(10)).tolist() == []


@CLASSES
def test_update_with_an_empty_buffer_changes_nothing(cls):
    buffer = make_buffer(cls)
    count_into(buffer, 0, 130)
    slots = buffer.update(ReplayBuffer(10))
    assert slots.tolist() == []
    assert slots.dtype == np.int64
    assert len(buffer) == buffer.synthetic.num_observed == 130


def test_a_buffer_that_is_too_small_is_refused_before_rows_are_stored(monkeypatch):
    source = ReplayBuffer(30)
    for step in range(5):
        source.add(rows(step)[0])
    buffer = make_buffer(size=50)
    with pytest.raises(ValueError, match="retrain_every=120 is more than total_size=50"):
        buffer.update(source)
    assert len(buffer) == 0
    with pytest.raises(ValueError, match="retrain_every=120 is more than total_size=50"):
        buffer.set_batch(Batch(data(50)))
    assert not buffer._meta.get_keys()
    monkeypatch.setattr(SynthERReplayBuffer, "set_batch", None)
    with pytest.raises(ValueError, match="retrain_every=120 is more than total_size=50"):
        SynthERReplayBuffer.from_data(**data(50), retrain_every=120)


def test_update_of_several_sub_buffers_is_as_impossible_as_in_tianshou():
    with pytest.raises(NotImplementedError):
        make_buffer(buffer_num=2).update(ReplayBuffer(10))


@CLASSES
def test_from_data(cls, tmp_path):
    options = {"alpha": 0.6, "beta": 0.4} if cls is SynthERPrioritizedReplayBuffer else {}
    columns = data(150)
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        for name in NAMES:
            file[name] = columns[name]
        datasets = [file[name] for name in NAMES]
        buffer = cls.from_data(*datasets, upsampler=Marked, retrain_every=150, num_synthetic=100, **options)
    assert len(buffer) == buffer.maxsize == 150
    assert_same(buffer[:], Batch(columns, info=Batch(), policy=Batch()) if not options else buffer[:])
    assert num_synthetic(buffer) == 20
    assert buffer.next(np.array([0, 8, 9, 149])).tolist() == [1, 9, 9, 149]
    assert buffer.prev(np.array([0, 1, 10])).tolist() == [0, 0, 10]
    assert buffer.unfinished_index().tolist() == []
    buffer.add(rows(7))
    assert buffer[0].obs == 7
    assert buffer.synthetic.num_observed == 151


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_from_data_of_no_rows_is_an_empty_buffer(fraction):
    buffer = SynthERReplayBuffer.from_data(**data(0), synthetic_fraction=fraction)
    assert len(buffer) == len(ReplayBuffer.from_data(**data(0))) == 0
    assert not buffer._meta.get_keys()


def test_rows_that_came_without_add_count_too():
    buffer = make_buffer(size=300)
    buffer.set_batch(Batch(data(300)))
    child = buffer.buffers[0]
    child._size = buffer._lengths[0] = child._insertion_idx = 130
    child.last_index[0] = buffer.last_index[0] = 129
    assert num_synthetic(buffer) == 20
    assert buffer.synthetic.num_observed == 130
    assert buffer.row_order().write_index.tolist() == list(range(130))
    buffer.add(rows(7))
    assert buffer.synthetic.num_observed == 131
    assert buffer.row_order().write_index.tolist() == list(range(131))


def test_from_data_of_different_lengths():
    columns = data(150) | {"rew": np.ones(149)}
    with pytest.raises(ValueError, match=r"differ in length: .*'rew': 149"):
        SynthERReplayBuffer.from_data(**columns, retrain_every=10)


def test_set_array_at_key():
    ours, plain = refreshed(), make_plain(buffer_num=2)
    count_into(plain, 0, 75, ends=range(9, 75, 10), timeouts=range(14, 75, 15))
    for buffer in (ours, plain):
        buffer.set_array_at_key(np.arange(3.0), "some", index=np.array([4, 5, 206]), default_value=-1.0)
        buffer.set_array_at_key(np.arange(2.0), "gaps", index=np.array([4, 5]))  # NaN elsewhere
        buffer.set_array_at_key(np.arange(400.0), "whole")
        buffer.set_array_at_key(np.full(2, 9.0), "rew", index=np.array([0, 1]))
    assert_same(ours[:], plain[:])
    synthetic = ours[np.arange(400, 700)]
    assert not synthetic.some.any()
    assert not synthetic.gaps.any()
    assert not synthetic.whole.any()
    assert (synthetic.rew == MARK).all()
    with pytest.raises(ValueError, match="seq has 700 rows, but the buffer has 400"):
        ours.set_array_at_key(np.arange(700.0), "whole")


@pytest.mark.parametrize(
    ("index", "value"),
    [
        ([-1], [5.0]),
        (-1, 5.0),
        (slice(-3, None), [1.0, 2.0, 3.0]),
        (slice(None), np.arange(150.0)),
        (..., np.arange(150.0)),
        (np.arange(150) < 2, [8.0, 9.0]),
    ],
    ids=["list", "number", "slice", "all", "ellipsis", "mask"],
)
@pytest.mark.parametrize("key", ["mine", "rew"])
def test_an_index_of_set_array_at_key_means_real_rows(key, index, value):
    ours, plain = make_buffer(size=150), make_plain(size=150)
    for buffer in (ours, plain):
        count_into(buffer, 0, 150)
    ours.sample(2)
    for buffer in (ours, plain):
        buffer.set_array_at_key(np.asarray(value), key, index, default_value=0.0)
    assert_same(ours[:], plain[:])
    assert (ours.rew[150:] == MARK).all()
    with pytest.raises(IndexError):
        ours.set_array_at_key(np.asarray([5.0]), key, [-151], default_value=0.0)


def test_a_key_put_into_the_storage_directly():
    """As calibrated CQL does it, with a value for each real row."""
    buffer = make_buffer()
    count_into(buffer, 0, 130)
    buffer._meta = Batch(**buffer._meta.__dict__, calibration_returns=np.full(130, 3.0))
    batch, index = buffer.sample(60)
    assert (index >= 400).sum() == 30
    assert batch.calibration_returns.tolist() == np.where(index >= 400, 0.0, 3.0).tolist()


def test_a_storage_replaced_while_synthetic_rows_are_served():
    buffer = make_buffer()
    count_into(buffer, 0, 130)
    buffer.sample(60)
    buffer._meta = Batch(**buffer._meta.__dict__, calibration_returns=np.full(130, 3.0))
    batch, index = buffer.sample(60)
    assert (batch.rew == MARK).sum() == 30
    assert batch.calibration_returns.tolist() == np.where(index >= 400, 0.0, 3.0).tolist()


class NearlyTwo(Marked):
    """Draws rewards just below 2."""

    def sample(self, num_samples):
        drawn = super().sample(num_samples)
        drawn.reward[:] = 1.9
        return drawn


def test_synthetic_rewards_are_rounded_where_rewards_are_integers():
    columns = data(200) | {"rew": np.ones(200, np.int64)}
    buffer = SynthERReplayBuffer.from_data(
        **columns, upsampler=NearlyTwo, retrain_every=150, num_synthetic=100, progress_bar=False
    )
    rewards = buffer.sample(40)[0].rew
    assert rewards.dtype == np.int64
    assert rewards.tolist() == np.where(mask(40), 2, 1).tolist()


def null_into(buffer, steps):
    """NaN into the given slots, as an incomplete hook leaves it."""
    buffer.set_array_at_key(np.zeros(buffer.maxsize), "mine")
    buffer.set_array_at_key(np.full(len(steps), np.nan), "mine", index=np.asarray(steps))


def test_hasnull_sees_the_real_rows():
    buffer = refreshed()
    assert not buffer.hasnull()
    null_into(buffer, [205])
    assert buffer.hasnull()
    assert int(buffer.isnull().mine.sum()) == 1


@CLASSES
def test_dropnull_closes_up_the_other_rows_in_their_order(cls):
    buffer = make_buffer(cls, 240, 2)
    count_into(buffer, 0, 127, ends=range(9, 120, 10), ids=[0])  # the ring of 120 wraps: 7 to 126, 7 in slot 7
    count_into(buffer, 0, 22, ends=[19], ids=[1])
    assert num_synthetic(buffer) == 20
    if cls is SynthERPrioritizedReplayBuffer:
        buffer.update_weight(np.array([8, 9]), np.array([8.0, 9.0]))
    null_into(buffer, [7, 6, 120, 140])  # steps 7 and 126 of the first, 0 and 20 of the second
    buffer.dropnull()
    assert not buffer.hasnull()
    assert len(buffer) == 138
    assert buffer[:].obs.flatten().tolist() == [*range(8, 126), *range(1001, 1020), 1021]
    assert buffer.unfinished_index().tolist() == [117, 139]
    assert buffer.prev(np.array([0, 117, 139])).tolist() == [0, 116, 139]  # 1019, before 1021, ended an episode
    assert buffer.next(np.array([1, 116, 117])).tolist() == [1, 117, 117]  # step 9 is terminal
    assert buffer.row_order().write_index.tolist() == [*range(8, 126), *range(1, 20), 21]
    if cls is SynthERPrioritizedReplayBuffer:
        np.testing.assert_allclose(buffer.weight[np.array([0, 1])], [8**0.6, 9**0.6], rtol=1e-5)
        assert (buffer.weight[np.array([118, 119, 140])] == 0).all()
    # The running episodes go on: 120 to 125 of the first sub-buffer and 21 of the second.
    slot, _, _, start = buffer.add(rows(126, 2, terminated=True))
    assert slot.tolist() == [118, 140]
    assert buffer.get_buffer_indices(start[0], slot[0] + 1).tolist() == list(range(112, 119))
    assert buffer.get_buffer_indices(start[1], slot[1] + 1).tolist() == [139, 140]
    assert num_synthetic(buffer) == 20


@CLASSES
def test_dropnull_of_full_sub_buffers_without_a_null_keeps_the_ring(cls):
    buffer = make_buffer(cls, 260, 2)
    count_into(buffer, 0, 140, ends=[129])  # the rings of 130 wrap: 10 to 139
    buffer.dropnull()
    assert buffer[:].obs.flatten().tolist() == [*range(10, 140), *range(1010, 1140)]
    slot, _, _, start = buffer.add(rows(140, 2, terminated=True))
    assert slot.tolist() == [0, 130]
    assert start.tolist() == [120, 250]
    slot, _, _, start = buffer.add(rows(141, 2))
    assert slot.tolist() == start.tolist() == [1, 131]
    assert buffer[:].obs.flatten().tolist() == [*range(12, 142), *range(1012, 1142)]
    assert num_synthetic(buffer) == 20


@CLASSES
def test_dropnull_of_a_full_sub_buffer_between_two_episodes(cls):
    buffer = make_buffer(cls, 130)
    count_into(buffer, 0, 130, ends=[129])
    buffer.dropnull()
    slot, _, _, start = buffer.add(rows(130))
    assert slot.tolist() == start.tolist() == [0]
    assert buffer[:].obs.flatten().tolist() == list(range(1, 131))


def test_a_refresh_after_dropnull_learns_what_is_left():
    buffer = make_buffer(size=200)
    count_into(buffer, 0, 130)
    null_into(buffer, range(0, 130, 10))
    buffer.dropnull()
    buffer.sample(2)
    train, held = buffer.synthetic.upsampler.trained[0]
    learned = sorted(train.observation.flatten().tolist() + held.observation.flatten().tolist())
    assert learned == [step for step in range(130) if step % 10]
