"""What a batch is made of, and that the real rows, and everything that counts them, stay as they were."""
# ruff: noqa: NPY002  # Tianshou's prioritised buffer draws from NumPy's global stream

import random

import numpy as np
import pytest
import torch
from batches import assert_every_slice_is_fair, synthetic_places
from gymnasium import spaces
from synther_buffers.tianshou import SynthERPrioritizedReplayBuffer, SynthERReplayBuffer
from tianshou.data import Batch, Collector, PrioritizedReplayBuffer, ReplayBuffer, VectorReplayBuffer
from tianshou.data.collector import EpisodeRolloutHookMCReturn
from tianshou_helpers import (
    MARK,
    PLAIN,
    TINY,
    Bootstrap,
    CounterEnv,
    Marked,
    RandomEnv,
    assert_same,
    count_into,
    dqn,
    envs,
    flat,
    make_buffer,
    make_plain,
    refreshed,
    rows,
)
from toys import fails_at

CLASSES = pytest.mark.parametrize("cls", PLAIN)
DICT = spaces.Dict(
    {
        "position": spaces.Box(-1, 1, (2,), np.float32),
        "matrix": spaces.Box(-1, 1, (2, 3), np.float64),
        "mode": spaces.Discrete(3),
        "switches": spaces.MultiBinary(2),
        "inner": spaces.Dict({"gears": spaces.MultiDiscrete([3, 5])}),
    }
)


def box(*shape, dtype=np.float32):
    return spaces.Box(-1, 1, shape, dtype)


# name: (observation space, action space)
SPACES = {
    "vector": (box(3), box(2)),
    "matrix": (box(2, 3), box(2, 2)),
    "float64": (box(3, dtype=np.float64), box(2)),
    "int32": (spaces.Box(-9, 9, (3,), np.int32), box(2)),
    "uint8 vector": (spaces.Box(0, 255, (3,), np.uint8), box(2)),
    "discrete": (spaces.Discrete(5), spaces.Discrete(3)),
    "multi-discrete": (spaces.MultiDiscrete([3, 4]), spaces.MultiDiscrete([2, 3])),
    "multi-binary": (spaces.MultiBinary(4), spaces.MultiBinary(3)),
    "dict": (DICT, spaces.Discrete(4)),
}


def random_rows(observation_space, action_space, num_rows, seed=0):
    """Batches of one row each, as a collector of one environment adds them."""
    env = RandomEnv(observation_space, action_space)
    vector = envs(lambda: env)
    observation, _ = vector.reset(seed=seed)
    for _ in range(num_rows):
        action = np.array([action_space.sample()])
        following, reward, terminated, truncated, info = vector.step(action)
        yield Batch(
            obs=observation, act=action, rew=reward, terminated=terminated, truncated=truncated, obs_next=following,
            info=info,
        )  # fmt: skip
        observation = following if not terminated[0] else vector.reset()[0]


# -- exactly the plain buffer -----------------------------------------------------------------------------------------


@CLASSES
@pytest.mark.parametrize("options", [{"synthetic_fraction": 0.0}, {"retrain_every": 400}], ids=["fraction 0", "early"])
@pytest.mark.parametrize("buffer_num", [1, 3])
def test_batches_are_the_plain_buffers(cls, options, buffer_num):
    ours, plain = make_buffer(cls, 402, buffer_num, **options), make_plain(cls, 402, buffer_num)
    drawn = []
    for buffer in (ours, plain):
        np.random.seed(3)
        count_into(buffer, 0, 100, ends=range(9, 100, 10))
        drawn.append([buffer.sample(size) for size in (7, 32, 1, 0)] + [buffer.sample(None)])
    for (left, left_index), (right, right_index) in zip(*drawn, strict=True):
        np.testing.assert_array_equal(left_index, right_index)
        assert_same(left, right)


@pytest.mark.parametrize(
    ("cls", "make_single"),
    [
        (SynthERReplayBuffer, lambda: ReplayBuffer(100, random_seed=5)),
        (SynthERPrioritizedReplayBuffer, lambda: PrioritizedReplayBuffer(100, 0.6, 0.4, random_seed=5)),
    ],
)
def test_one_sub_buffer_is_a_replay_buffer(cls, make_single):
    ours, plain = make_buffer(cls, 100, synthetic_fraction=0.0, random_seed=5), make_single()
    returned, drawn = [], []
    for buffer in (ours, plain):
        np.random.seed(3)
        # One transition without a leading dimension, with a key of the user's own.
        returned.append([buffer.add(Batch(rows(step, terminated=step % 5 == 4)[0], mine=step)) for step in range(30)])
        drawn.append(buffer.sample(16))
    np.testing.assert_array_equal(np.array(returned[0]), np.array(returned[1]))
    np.testing.assert_array_equal(drawn[0][1], drawn[1][1])
    assert drawn[0][0].mine.tolist() == drawn[0][1].tolist()
    # A single buffer has the reward as an array of no dimension; its values and those of all other keys are the same.
    assert_same(drawn[0][0], drawn[1][0])


@pytest.mark.parametrize("fraction", [0.0, 0.5])
@pytest.mark.parametrize("came_by", ["update", "set_array_at_key"])
def test_a_key_of_the_users_is_stored_however_it_came_in(came_by, fraction):
    source = ReplayBuffer(30)
    source.add(rows(0, mine=np.array([0.5])), [0])
    ours, plain = make_buffer(synthetic_fraction=fraction), ReplayBuffer(400)
    for buffer in (ours, plain):
        if came_by == "update":
            buffer.update(source)
        else:
            buffer.add(rows(0), [0])
            buffer.set_array_at_key(np.array([0.5]), "mine", np.array([0]), 0.0)
        buffer.add(rows(1, mine=np.array([9.5])), [0])
    assert ours[:].mine.tolist() == plain[:].mine.tolist() == [0.5, 9.5]


@pytest.mark.parametrize("options", [{}, {"stack_num": 3, "sample_avail": True, "random_seed": 7}])
def test_one_sub_buffer_is_a_vector_replay_buffer_where_tianshous_two_differ(options):
    ours, plain = make_buffer(size=50, synthetic_fraction=0.0, **options), make_plain(size=50, **options)
    for buffer in (ours, plain):
        count_into(buffer, 0, 70, ends=range(6, 70, 7))
    for size in (5, 20, None):
        np.testing.assert_array_equal(ours.sample_indices(size), plain.sample_indices(size))


def test_fraction_0_takes_no_memory_and_refuses_nothing():
    buffer = make_buffer(size=100, synthetic_fraction=0.0, stack_num=2, ignore_obs_next=True)
    count_into(buffer, 0, 10)
    assert len(buffer.rew) == 100
    assert buffer.subbuffer_edges.tolist() == [0, 100]
    assert buffer.sample(4)[0].obs.shape == (4, 2, 1)


def test_is_what_tianshou_looks_for():
    assert isinstance(make_buffer(), VectorReplayBuffer)
    assert not hasattr(make_buffer(), "update_weight")
    assert isinstance(make_buffer(SynthERPrioritizedReplayBuffer), PrioritizedReplayBuffer)


# -- the mix ----------------------------------------------------------------------------------------------------------


@CLASSES
@pytest.mark.parametrize(("size", "num_synthetic"), [(32, 16), (33, 16), (1, 0), (2, 1)])
def test_half_of_a_batch_is_synthetic(cls, size, num_synthetic):
    buffer = refreshed(cls)
    batch, index = buffer.sample(size)
    assert len(batch) == len(index) == size
    synthetic = batch.rew == MARK
    assert synthetic.sum() == num_synthetic
    np.testing.assert_array_equal(index >= buffer.maxsize, synthetic)
    assert_same(batch, buffer[index])


@CLASSES
@pytest.mark.parametrize("buffer_num", [1, 3])
@pytest.mark.parametrize("name", ["vector", "dict"])
def test_every_slice_of_a_batch_is_a_fair_mix(cls, buffer_num, name):
    """Some clients sample for many updates at once and cut the batch."""
    buffer = make_buffer(cls, buffer_num=buffer_num)
    for number, batch in enumerate(random_rows(*SPACES[name], 150)):
        buffer.add(batch, [number % buffer_num])
    batch, indices = buffer.sample(32 * 20)
    assert_every_slice_is_fair(batch.rew == MARK)
    assert_every_slice_is_fair(indices >= buffer.maxsize)


@CLASSES
@pytest.mark.parametrize("buffer_num", [1, 2])
def test_real_rows_of_a_mixed_batch_are_drawn_as_ever(cls, buffer_num):
    drawn = []
    for buffer, share in ((make_buffer(cls, buffer_num=buffer_num), 2), (make_plain(cls, buffer_num=buffer_num), 1)):
        count_into(buffer, 0, 130)
        np.random.seed(3)
        indices = [buffer.sample_indices(size * share) for size in (16, 1, 5)]
        drawn.append([index[index < buffer.maxsize] for index in indices])
    for left, right in zip(*drawn, strict=True):
        np.testing.assert_array_equal(left, right)


def test_fraction_1_has_no_real_rows():
    buffer = refreshed(synthetic_fraction=1.0)
    batch, _ = buffer.sample(20)
    assert (batch.rew == MARK).all()


def test_a_batch_of_no_rows_or_fewer():
    buffer = refreshed()
    assert buffer.sample_indices(-1).tolist() == []
    assert len(buffer.sample_indices(0)) == 150


def test_synthetic_rows_are_drawn_evenly_and_repeatably():
    two = refreshed(), refreshed()
    drawn = [np.concatenate([buffer.sample_indices(400)[synthetic_places(400)] for _ in range(30)]) for buffer in two]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    counts = np.bincount(drawn[0] - 400, minlength=300)
    assert len(counts) == 300
    assert abs(counts.mean() - 20) < 1e-9
    # 6,000 draws of 300 rows: chi-squared with 299 degrees of freedom, its 0.1 % and 99.9 % points.
    assert 227 < ((counts - 20) ** 2 / 20).sum() < 380


@pytest.mark.parametrize("name", SPACES)
def test_synthetic_rows_are_legal(name):
    observation_space, action_space = SPACES[name]
    buffer = make_buffer(upsampler=TINY, num_synthetic=200, retrain_every=150)
    for batch in random_rows(observation_space, action_space, 160):
        buffer.add(batch)
    batch, index = buffer.sample(100)
    assert (index >= buffer.maxsize).sum() == 50
    real, synthetic = flat(batch[:50]), flat(batch[50:])
    for key, array in synthetic.items():
        assert array.dtype == real[key].dtype, key
        assert array.shape == real[key].shape, key
        assert np.isfinite(array).all(), key
    everything = flat(buffer[:])
    for key in (key for key in synthetic if key.split(".")[0] in ("obs", "obs_next", "act", "rew")):
        name = key.replace("obs_next", "obs")
        low = np.minimum(everything[key].min(0), everything[name].min(0))
        high = np.maximum(everything[key].max(0), everything[name].max(0))
        assert (synthetic[key] >= low - 1e-6).all(), key
        assert (synthetic[key] <= high + 1e-6).all(), key
    synthetic = batch[synthetic_places(len(batch))]
    assert all(observation_space.contains(_leafwise(row)) for row in synthetic.obs)
    assert all(action_space.contains(row) for row in np.asarray(synthetic.act))
    np.testing.assert_array_equal(synthetic.done, synthetic.terminated)
    np.testing.assert_array_equal(synthetic.truncated, ~synthetic.terminated)


def _leafwise(row):
    return {key: _leafwise(value) for key, value in row.items()} if isinstance(row, Batch) else row


def test_observations_stored_in_two_dtypes():
    buffer = make_buffer(upsampler=Bootstrap)
    for step in range(125):
        batch = rows(step)
        batch.obs = batch.obs.astype(np.float64)  # what `reset` gave, as opposed to `step`
        buffer.add(batch)
    batch, index = buffer.sample(40)
    assert (index >= buffer.maxsize).sum() == 20
    assert (batch.obs.dtype, batch.obs_next.dtype) == (np.float64, np.float32)
    np.testing.assert_array_equal(batch.obs_next, batch.obs + 1)


def test_time_limits_are_no_terminals():
    buffer = make_buffer(upsampler=Bootstrap)
    count_into(buffer, 0, 130, timeouts=range(9, 130, 10))
    batch, index = buffer.sample(200)
    assert not batch.terminated.any()
    assert batch.truncated[index >= buffer.maxsize].all()


# -- only real rows count ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Tianshou's own, of the weight of slots without rows
@CLASSES
def test_counts_and_whole_reads_know_the_real_rows_alone(cls):
    ours, plain = refreshed(cls), make_plain(cls, buffer_num=2)
    count_into(plain, 0, 75, ends=range(9, 75, 10), timeouts=range(14, 75, 15))
    assert len(ours) == len(plain) == 150
    assert ours.maxsize == 400
    assert ours.buffer_num == 2
    assert_same(ours[:], plain[:])
    assert_same(ours[3:9], plain[3:9])
    assert_same(ours[-4:], plain[-4:])
    np.testing.assert_array_equal(ours.sample_indices(0), plain.sample_indices(0))
    np.testing.assert_array_equal(ours.sample_indices(None), plain.sample_indices(None))
    assert ours.unfinished_index().tolist() == plain.unfinished_index().tolist() == []
    assert not ours.hasnull()
    assert len(ours.isnull()) == 150


@CLASSES
def test_the_real_rows_are_stored_as_ever(cls):
    ours, plain = make_buffer(cls, 100, 2, retrain_every=50), make_plain(cls, 100, 2)
    for start in range(0, 130, 13):  # the ring of 50 wraps twice, with refreshes in between
        for buffer in (ours, plain):
            count_into(buffer, start, start + 13, ends=range(7, 130, 11))
        ours.sample(8)
    assert ours.synthetic.num_refreshes > 2
    for key, array in flat(plain._meta).items():
        np.testing.assert_array_equal(flat(ours._meta)[key][:100], array, err_msg=key)
        assert flat(ours._meta)[key].dtype == array.dtype
    assert ours.unfinished_index().tolist() == plain.unfinished_index().tolist()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Tianshou's own, of the weight of slots without rows
@CLASSES
def test_negative_indices_count_from_the_last_real_slot(cls):
    ours = make_buffer(cls, 120, 2, retrain_every=120)
    plain = make_plain(cls, 120, 2)
    for buffer in (ours, plain):
        count_into(buffer, 0, 60, ends=range(9, 60, 10))
    ours.sample(2)
    assert ours[-1].obs == plain[-1].obs == 1059
    index = np.array([-1, -61, 3])
    if cls is SynthERReplayBuffer:  # Tianshou reads a priority that is not there
        assert_same(ours[index], plain[index])
    np.testing.assert_array_equal(ours.prev(index), plain.prev(index))
    np.testing.assert_array_equal(ours.next(index), plain.next(index))


# -- what is learned --------------------------------------------------------------------------------------------------


def learned(buffer, fit=-1):
    """Observations and terminals of the rows of a fit, held-out ones included, sorted by observation."""
    train, held = buffer.synthetic.upsampler.trained[fit]
    both = [torch.cat((train.flat()[name], held.flat()[name])) for name in ("observation", "terminated")]
    order = both[0].flatten().argsort()
    return both[0].flatten()[order].tolist(), both[1][order].tolist()


def test_unequal_sub_buffers_are_read_whole():
    buffer = make_buffer(size=300, buffer_num=3)
    count_into(buffer, 0, 100)  # sub-buffer 0 is full
    count_into(buffer, 100, 130, ids=[2])  # 2 has wrapped: its first 30 are gone
    fresh = make_buffer(size=300, buffer_num=3)
    count_into(fresh, 0, 90, ids=[2])
    count_into(fresh, 0, 40, ids=[0])
    for each in (buffer, fresh):
        each.sample(2)
    wanted = [*range(100), *range(1000, 1100), *range(2030, 2130)]
    assert learned(buffer)[0] == wanted
    assert learned(fresh)[0] == [*range(40), *range(2000, 2090)]


class Untouchable:
    """A column that must not be read."""

    def __getitem__(self, index):
        raise AssertionError("read")


def test_only_what_is_learned_is_read_for_a_refresh():
    buffer = refreshed()  # two sub-buffers that are not full, so that reading copies
    buffer._meta.__dict__["mine"] = Untouchable()
    assert len(buffer.real_transitions()) == 150


def test_effective_terminals_are_learned():
    buffer = make_buffer()
    count_into(buffer, 0, 120, ends=[4, 50], timeouts=[9, 50, 80])
    buffer.sample(2)
    observations, terminated = learned(buffer)
    assert [step for step, flag in zip(observations, terminated, strict=True) if flag] == [4, 50]


def test_a_refresh_comes_after_so_many_rows_not_adds_when_a_batch_is_drawn():
    buffer = make_buffer(buffer_num=4, retrain_every=120, start_after=160)
    count_into(buffer, 0, 39)
    buffer.sample(4)
    assert buffer.synthetic.num_observed == 156
    assert buffer.synthetic.num_refreshes == 0
    count_into(buffer, 39, 40)
    assert buffer.synthetic.num_refreshes == 0
    assert buffer.sample(4)[1].max() >= 400
    assert buffer.synthetic.num_refreshes == 1
    count_into(buffer, 40, 69)
    buffer.sample(4)
    assert buffer.synthetic.num_refreshes == 1
    count_into(buffer, 69, 200)
    buffer.sample(4)
    buffer.sample(4)
    assert buffer.synthetic.num_refreshes == 2


def test_rows_once_held_out_are_never_trained_on_although_the_ring_wraps():
    buffer = make_buffer(size=300, buffer_num=2, retrain_every=40)
    held_ever = set()
    for start in range(0, 450, 20):  # each ring of 150 wraps twice
        count_into(buffer, start, start + 20, ends=range(6, 450, 7))
        buffer.sample(2)
        if buffer.synthetic.upsampler is None or not buffer.synthetic.upsampler.trained:
            continue
        train, held = buffer.synthetic.upsampler.trained[-1]
        held_ever |= set(held.observation.flatten().tolist())
        assert not held_ever & set(train.observation.flatten().tolist())
    assert buffer.synthetic.num_refreshes > 15
    assert len(held_ever) > 20


def test_a_new_set_replaces_the_old_one_and_a_failed_refresh_keeps_it(log):
    buffer = make_buffer(upsampler=fails_at(2, Marked, FloatingPointError))
    count_into(buffer, 0, 120)
    buffer.sample(2)
    first = buffer.obs[buffer.maxsize :].copy()
    count_into(buffer, 120, 240)
    assert (buffer.sample(10)[1] >= buffer.maxsize).sum() == 5
    np.testing.assert_array_equal(buffer.obs[buffer.maxsize :], first)
    assert "planted failure" in log.text
    count_into(buffer, 240, 360)
    buffer.sample(2)
    assert buffer.obs[buffer.maxsize :].max() > first.max()


# -- other keys -------------------------------------------------------------------------------------------------------


def test_keys_that_are_not_modelled_are_blank_in_synthetic_rows():
    buffer = make_buffer(num_synthetic=200)
    for step in range(120):
        more = {"policy": Batch(hidden_state=np.full((1, 4), 3.0, np.float32))}
        batch = rows(step, **more)
        batch.info = Batch(
            number=np.array([7.5]), text=np.array(["seven"], object), nested=Batch(flag=np.array([True]))
        )
        buffer.add(batch)
    batch, index = buffer.sample(20)
    synthetic = batch[index >= buffer.maxsize]
    assert batch.info.number[index < buffer.maxsize].tolist() == [7.5] * 10
    assert synthetic.info.number.tolist() == [0.0] * 10
    assert synthetic.info.text.tolist() == [None] * 10
    assert synthetic.info.nested.flag.tolist() == [False] * 10
    assert not synthetic.policy.hidden_state.any()


def test_a_key_that_appears_after_a_refresh():
    ours, plain = make_buffer(num_synthetic=200), make_plain()
    for buffer in (ours, plain):
        count_into(buffer, 0, 125)
        buffer.sample(2)
        late = rows(125)
        late.info = Batch(episode=Batch(r=np.array([12.0])))
        buffer.add(late)
    assert_same(ours[:], plain[:])
    batch, index = ours.sample(100)
    assert len(ours.info.episode.r) == 600
    assert not batch.info.episode.r[index >= ours.maxsize].any()
    assert (batch.rew[index >= ours.maxsize] == MARK).all()
    # The sub-buffers see the storage that grew, not the one before.
    ours.add(rows(126, terminated=True))
    assert ours.unfinished_index().tolist() == []


def test_returns_of_an_episode_hook_put_no_nan_into_synthetic_rows():
    env = CounterEnv(num_actions=2)
    buffer = make_buffer(retrain_every=120)
    collector = Collector(dqn(env), envs(lambda: env), buffer, on_episode_done_hook=EpisodeRolloutHookMCReturn())
    collector.reset()
    collector.collect(n_episode=12, random=True)
    buffer.sample(2)
    collector.collect(n_episode=2, random=True)
    batch, index = buffer.sample(200)
    synthetic = index >= buffer.maxsize
    assert not batch.mc_return_to_go[synthetic].any()
    to_go = sorted({round(float(value), 6) for value in batch.mc_return_to_go[~synthetic]})
    assert to_go == [round(sum(0.99**k for k in range(n)), 6) for n in range(1, 11)]
    assert not buffer.hasnull()


# -- randomness -------------------------------------------------------------------------------------------------------


@CLASSES
def test_the_global_streams_are_left_alone(cls):
    def streams():
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()

    plain = make_plain(cls, buffer_num=2)
    count_into(plain, 0, 80)
    np.random.seed(3)
    plain.sample(16)
    plain_after = streams()
    np.random.seed(3)
    before = streams()
    buffer = make_buffer(cls, buffer_num=2, upsampler=TINY, num_synthetic=100, seed=None)
    count_into(buffer, 0, 80)
    buffer.synthetic.refresh(buffer.real_transitions, buffer.row_order)
    buffer._place()
    assert streams() == before
    buffer.sample(32)  # 16 real rows
    assert streams() == plain_after


def test_the_seed_is_torchs_unless_given():
    torch.manual_seed(11)
    assert make_buffer(seed=None).synthetic.seed == 11
    assert make_buffer(seed=5).synthetic.seed == 5
