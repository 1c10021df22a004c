"""What a batch holds: real and synthetic rows, in the buffer's own layout; and what the upsampler is given to learn."""
# ruff: noqa: NPY002  # SB3 draws from NumPy's global stream

import random

import numpy as np
import pytest
import torch
from batches import assert_every_slice_is_fair, mask, real_places, synthetic_places
from gymnasium import spaces
from sb3_helpers import (
    MARK,
    PLAIN,
    SPACES,
    TINY,
    Bootstrap,
    RandomEnv,
    assert_same,
    assert_same_rows,
    box,
    count_into,
    flat_batch,
    make_buffer,
    num_marked,
    random_into,
    vec,
)
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize
from synther_buffers.sb3 import SynthERBuffer, SynthERDictBuffer, SynthERNStepBuffer


def filled_pair(case, n_envs=1, num_steps=150, size=400, **kwargs):
    """A plain buffer and ours, with the same rows in them."""
    cls, observation_space, action_space = SPACES[case]
    plain = PLAIN[cls](size, observation_space, action_space, "cpu", n_envs=n_envs)
    ours = make_buffer(cls, size, observation_space, action_space, n_envs=n_envs, **kwargs)
    random_into([plain, ours], num_steps, observation_space, action_space)
    return plain, ours


# -- the split -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "fraction", "num_synthetic"),
    [(33, 0.5, 16), (32, 0.5, 16), (1, 0.5, 0), (10, 0.3, 3), (33, 0.25, 8), (7, 1.0, 7), (32, 0.0, 0)],
)
def test_a_batch_has_its_share_of_synthetic_rows(batch_size, fraction, num_synthetic):
    buffer = make_buffer(SynthERBuffer, synthetic_fraction=fraction)
    count_into(buffer, 0, 120)
    for _ in range(3):
        batch = buffer.sample(batch_size)
        assert [len(tensor) for tensor in flat_batch(batch).values()] == [batch_size] * 5
        assert num_marked(batch) == num_synthetic


@pytest.mark.parametrize("case", ["vector", "dict", "n-step"])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_every_slice_of_a_batch_is_a_fair_mix(case, normalized, n_envs):
    """Some clients sample for many updates at once and cut the batch."""
    _, ours = filled_pair(case, n_envs)
    env = None
    if normalized:
        keys = ["position"] if case == "dict" else None
        spaces_of = ours.observation_space, ours.action_space
        env = VecNormalize(vec(RandomEnv, *spaces_of), norm_reward=False, norm_obs_keys=keys)
    assert_every_slice_is_fair(ours.sample(32 * 20, env=env).rewards.flatten().numpy() == MARK)


def test_rows_of_a_batch_belong_together():
    buffer = make_buffer(SynthERBuffer, n_envs=3)
    count_into(buffer, 0, 50, ends=[9, 29], timeouts=[19])
    batch = buffer.sample(300)
    assert num_marked(batch) == 150
    torch.testing.assert_close(batch.next_observations, batch.observations + 1)
    # Steps 9 and 29 terminated; step 19 was only cut off.
    steps = batch.observations.flatten() % 1_000
    assert set(steps[batch.dones.flatten() == 1].tolist()) == {9.0, 29.0}
    assert 19.0 in steps[real_places(300)]
    assert 19.0 in steps[synthetic_places(300)]


@pytest.mark.parametrize("num_steps", [119, 120])
def test_the_first_refresh_comes_with_the_batch_after_retrain_every_rows(num_steps):
    buffer = make_buffer(SynthERBuffer)
    count_into(buffer, 0, num_steps)
    assert buffer.synthetic.num_refreshes == 0
    assert num_marked(buffer.sample(10)) == (5 if num_steps == 120 else 0)
    assert buffer.synthetic.num_refreshes == (1 if num_steps == 120 else 0)


class Numbered(Bootstrap):
    """`Bootstrap` whose rows have minus the number of the fit as their reward."""

    def sample(self, num_samples):
        rows = super().sample(num_samples)
        rows.reward = torch.full_like(rows.reward, -self.num_fits)
        return rows


@pytest.mark.parametrize("cls", [SynthERBuffer, SynthERNStepBuffer])
def test_each_refresh_replaces_the_rows_that_batches_are_drawn_from(cls):
    buffer = make_buffer(cls, upsampler=Numbered)
    for number in (1, 2, 3):
        count_into(buffer, 0, 120)
        for _ in range(2):
            assert buffer.sample(4).rewards[synthetic_places(4)].flatten().tolist() == [-number, -number]


def test_start_after_moves_only_the_first_refresh():
    buffer = make_buffer(SynthERBuffer, size=1_000, start_after=200, retrain_every=120)
    refreshed_at = []
    for step in range(500):
        count_into(buffer, step, step + 1)
        before = buffer.synthetic.num_refreshes
        buffer.sample(2)
        if buffer.synthetic.num_refreshes > before:
            refreshed_at.append(step + 1)
    assert refreshed_at == [200, 320, 440]


# -- the layout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("case", SPACES)
def test_the_real_rows_are_those_the_plain_buffer_would_give(case, n_envs):
    plain, ours = filled_pair(case, n_envs)
    ours.sample(1)
    assert ours.synthetic.num_refreshes == 1
    np.random.seed(5)
    batch = ours.sample(33)
    np.random.seed(5)
    assert_same(batch, plain.sample(17), rows=real_places(33))
    assert type(batch) is type(plain.sample(1))


@pytest.mark.parametrize("case", SPACES)
def test_synthetic_rows_look_like_real_ones(case):
    plain, ours = filled_pair(case, n_envs=2, upsampler=Bootstrap)
    batch, real = flat_batch(ours.sample(40)), flat_batch(plain.sample(20))
    assert ours.synthetic.num_refreshes == 1
    everything = flat_batch(plain._get_samples(np.arange(150).repeat(20)))
    for name, tensor in real.items():
        synthetic = batch[name][synthetic_places(len(batch[name]))]
        assert (synthetic.shape, synthetic.dtype, synthetic.device) == (tensor.shape, tensor.dtype, tensor.device)
        # `Bootstrap` only repeats real rows.
        stored = {tuple(row) for row in everything[name].reshape(len(everything[name]), -1).tolist()}
        assert {tuple(row) for row in synthetic.reshape(20, -1).tolist()} <= stored


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.bool_])
def test_actions_without_negative_numbers_need_nothing_at_fraction_0(dtype):
    space = box(2, low=0, high=1, dtype=dtype)
    ours = make_buffer(SynthERBuffer, action_space=space, observation_space=box(3), synthetic_fraction=0.0)
    plain = PLAIN[SynthERBuffer](400, box(3), space, "cpu")
    random_into([ours, plain], 20, box(3), space)
    drawn = []
    for buffer in (ours, plain):
        np.random.seed(5)
        drawn.append(buffer.sample(8))
    assert_same(*drawn)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # SB3 copies them with np.array
def test_flags_may_be_tensors():
    ours, plain = make_buffer(SynthERBuffer, n_envs=2), PLAIN[SynthERBuffer](400, box(1, high=1e6), box(1), "cpu", 2)
    for buffer in (ours, plain):
        for step in range(3):
            rows = torch.full((2, 1), float(step))
            buffer.add(rows, rows, torch.zeros(2, 1), torch.ones(2), torch.tensor([False, True]), [{}, {}])
    np.testing.assert_array_equal(ours.dones, plain.dones)
    assert ours.synthetic.num_observed == 6
    with pytest.raises(ValueError, match=r"1 row\(s\) came in, but this buffer was made for n_envs=2"):
        ours.add(rows, rows, torch.zeros(1, 1), torch.ones(1), torch.tensor([True]), [{}])


def test_actions_are_described_as_they_are_stored():
    """Flattened and in float32; without bounds, because not everybody scales them to [-1, 1] as SB3 does."""
    buffer = make_buffer(SynthERBuffer, action_space=box(2, 3, low=-5, high=2, dtype=np.float64))
    action = buffer.synthetic.spec.action
    assert (action.shape, action.dtype) == ((6,), "float32")
    assert (action.low, action.high) == ((-np.inf,) * 6, (np.inf,) * 6)


@pytest.mark.parametrize("case", [
        "vector", "int32", "uint8 vector", "discrete from -2", "multi-discrete", "dict", "action int16", "action uint8",
        "action bool",
    ],
)  # fmt: skip
def test_the_diffusion_model_gives_legal_rows(case):
    _, observation_space, action_space = SPACES[case]
    _, ours = filled_pair(case, upsampler=TINY)
    batch = flat_batch(ours.sample(400))
    assert ours.synthetic.num_refreshes == 1
    batch = {name: tensor[synthetic_places(len(tensor))] for name, tensor in batch.items()}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in batch.values())
    assert set(batch["dones"].flatten().tolist()) <= {0.0, 1.0}
    for side in ("observations", "next_observations"):
        for row in range(200):
            if isinstance(observation_space, spaces.Dict):
                for key, space in observation_space.spaces.items():
                    assert space.contains(as_sample(space, batch[f"{side}.{key}"][row]))
            else:
                assert observation_space.contains(as_sample(observation_space, batch[side][row]))
    assert all(action_space.contains(as_sample(action_space, row)) for row in batch["actions"])


def as_sample(space, row):
    """A batch's row as the space's own sample: a Discrete one is a number, not a vector of one."""
    array = row.numpy().astype(space.dtype)
    return array[0] if isinstance(space, spaces.Discrete) else array


# -- fraction 0, and before the first refresh ----------------------------------------------------------------------


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("case", SPACES)
@pytest.mark.parametrize("kwargs", [{"synthetic_fraction": 0.0}, {"retrain_every": 10, "start_after": 451}])
def test_without_synthetic_rows_batches_are_the_plain_buffers(case, n_envs, kwargs):
    plain, ours = filled_pair(case, n_envs, **kwargs)
    for batch_size in (1, 32):
        np.random.seed(3)
        expected = plain.sample(batch_size)
        drawn = np.random.random()
        np.random.seed(3)
        assert_same(ours.sample(batch_size), expected)
        assert np.random.random() == drawn
    assert ours.synthetic.num_refreshes == 0


def test_fraction_0_trains_nothing():
    buffer = make_buffer(SynthERBuffer, synthetic_fraction=0.0)
    count_into(buffer, 0, 300)
    buffer.sample(8)
    assert buffer.synthetic.upsampler.num_fits == 0


def test_fraction_0_takes_any_buffer_size():
    buffer = make_buffer(SynthERBuffer, size=50, synthetic_fraction=0.0)
    assert buffer.buffer_size == 50


# -- what the upsampler learns -------------------------------------------------------------------------------------


def test_real_rows_before_the_ring_is_full():
    buffer = make_buffer(SynthERBuffer, size=400)
    count_into(buffer, 0, 130)
    real, order = buffer.real_transitions(), buffer.row_order()
    assert real.observation.flatten().tolist() == list(range(130))
    assert order.write_index.tolist() == list(range(130))
    assert order.stream.tolist() == [0] * 130


def test_a_wrapped_ring_gives_all_its_rows_in_their_order():
    buffer = make_buffer(SynthERBuffer, size=200)
    count_into(buffer, 0, 250, ends=[59, 240])
    real, order = buffer.real_transitions(), buffer.row_order()
    # Slots 0 to 49 were written again with 200 to 249.
    assert real.observation.flatten().tolist() == [*range(200, 250), *range(50, 200)]
    assert order.write_index.tolist() == [*range(200, 250), *range(50, 200)]
    assert order.write_index[order.episode_end].tolist() == [240, 59]
    torch.testing.assert_close(real.next_observation, real.observation + 1)


@pytest.mark.parametrize("num_steps", [40, 67, 90])
def test_rows_of_all_environments(num_steps):
    buffer = make_buffer(SynthERBuffer, size=200, n_envs=3)
    count_into(buffer, 0, num_steps, ends=[30])
    # 200 // 3 = 66 slots of 3 rows.
    steps = range(max(num_steps - 66, 0), num_steps)
    expected = sorted(1_000.0 * env + step for env in range(3) for step in steps)
    real, order = buffer.real_transitions(), buffer.row_order()
    assert sorted(real.observation.flatten().tolist()) == expected
    assert (1_000 * order.stream + order.write_index).tolist() == real.observation.flatten().tolist()
    ends = {(int(stream), int(write)) for stream, write in zip(
        order.stream[order.episode_end], order.write_index[order.episode_end], strict=True
    )}  # fmt: skip
    assert ends == {(0, 30), (1, 30), (2, 30)}


@pytest.mark.parametrize("num_steps", [150, 1_000])
def test_the_upsampler_sees_each_row_once_but_the_held_out_ones(num_steps):
    buffer = make_buffer(SynthERBuffer, size=200, upsampler=Bootstrap, retrain_every=150)
    count_into(buffer, 0, num_steps)
    buffer.sample(2)
    report = buffer.synthetic.reports[0]
    stored = set(range(max(0, num_steps - 200), num_steps))
    seen = buffer.synthetic.upsampler.rows.observation.flatten().tolist()
    assert len(seen) == len(set(seen)) == report.num_real
    assert set(seen) <= stored
    assert report.num_real + report.num_held_out == len(stored)
    assert 0 < report.num_held_out <= 0.05 * len(stored)


def test_a_time_limit_is_not_learned_as_a_terminal():
    buffer = make_buffer(SynthERBuffer)
    count_into(buffer, 0, 40, ends=[9], timeouts=[19, 29])
    real = buffer.real_transitions()
    assert torch.nonzero(real.terminated).flatten().tolist() == [9]
    assert np.flatnonzero(buffer.row_order().episode_end).tolist() == [9, 19, 29]


def test_without_timeout_handling_every_end_is_a_terminal():
    buffer = make_buffer(SynthERBuffer, handle_timeout_termination=False)
    count_into(buffer, 0, 130, ends=[9], timeouts=[19])
    assert torch.nonzero(buffer.real_transitions().terminated).flatten().tolist() == [9, 19]
    batch = buffer.sample(600)
    assert set(batch.observations[:300][batch.dones[:300] == 1].tolist()) == {9.0, 19.0}


def test_the_real_rows_are_stored_as_they_came():
    observation_space, action_space = box(3), box(2)
    plain = ReplayBuffer(200, observation_space, action_space, "cpu")
    ours = make_buffer(SynthERBuffer, 200, observation_space, action_space)
    for start in range(5):
        random_into([plain, ours], 60, observation_space, action_space, seed=start)
        ours.sample(64)
    assert ours.synthetic.num_refreshes == 2
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(plain, name))
    assert (ours.pos, ours.full, ours.size()) == (plain.pos, plain.full, plain.size())


# -- extend and reset ----------------------------------------------------------------------------------------------


def test_extend_counts_every_row():
    buffer = make_buffer(SynthERBuffer)
    column = np.arange(130.0).reshape(130, 1, 1)
    ones = np.ones((130, 1))
    buffer.extend(column, column + 1, np.zeros((130, 1, 1)), ones, np.zeros((130, 1)), [[{}]] * 130)
    assert buffer.synthetic.num_observed == 130
    assert num_marked(buffer.sample(10)) == 5


def filled_by_hand(num_rows, size=400, cls=SynthERBuffer, **kwargs):
    """A buffer whose arrays somebody has filled: row i has observation i, the next one is i + 1, reward 1."""
    buffer = make_buffer(cls, size, **kwargs)
    step = np.arange(num_rows).reshape(num_rows, 1, 1)
    buffer.observations[:num_rows], buffer.next_observations[:num_rows] = step, step + 1
    buffer.rewards[:num_rows] = 1
    buffer.pos, buffer.full = num_rows % size, num_rows == size
    return buffer


@pytest.mark.parametrize("cls", [SynthERBuffer, SynthERNStepBuffer])
def test_rows_that_came_without_add_count_too(cls):
    buffer = filled_by_hand(119, cls=cls)
    assert num_marked(buffer.sample(10)) == 0
    buffer = filled_by_hand(120, cls=cls)
    assert num_marked(buffer.sample(10)) == 5
    assert buffer.synthetic.num_observed == 120
    assert buffer.row_order().write_index.tolist() == list(range(120))
    # From here on as ever: the next refresh is due at 240.
    count_into(buffer, 120, 239)
    buffer.sample(10)
    assert (buffer.synthetic.num_observed, buffer.synthetic.num_refreshes) == (239, 1)
    count_into(buffer, 239, 240)
    buffer.sample(10)
    assert buffer.synthetic.num_refreshes == 2


def test_a_full_ring_that_came_without_add_goes_on_being_counted():
    buffer = filled_by_hand(200, size=200)
    count_into(buffer, 200, 250)  # before anything was sampled
    assert buffer.synthetic.num_observed == 250
    buffer.sample(10)
    assert buffer.row_order().write_index.tolist() == [*range(200, 250), *range(50, 200)]


def test_a_ring_that_is_too_small_and_came_without_add_is_refused_too():
    with pytest.raises(ValueError, match="retrain_every=120 is more than buffer_size=100"):
        filled_by_hand(50, size=100).sample(10)


def test_reset_forgets_the_synthetic_rows_and_the_schedule():
    buffer = make_buffer(SynthERBuffer)
    count_into(buffer, 0, 130)
    buffer.sample(10)
    buffer.reset()
    assert (buffer.size(), buffer.synthetic.num_observed, buffer.synthetic.num_refreshes) == (0, 0, 0)
    assert buffer.synthetic.rows is None
    assert buffer.synthetic.upsampler.num_fits == 0
    assert buffer._batch_rows == {}
    count_into(buffer, 500, 619)
    assert num_marked(buffer.sample(10)) == 0
    count_into(buffer, 619, 620)
    batch = buffer.sample(10)
    assert num_marked(batch) == 5
    assert batch.observations.min() >= 500


# -- randomness and the caller's context ---------------------------------------------------------------------------


def random_states():
    name, keys, *position = np.random.get_state()
    return torch.get_rng_state().tolist(), (name, keys.tolist(), *position), random.getstate()


@pytest.mark.parametrize("cls", [SynthERBuffer, SynthERNStepBuffer])
def test_building_and_refreshing_touch_no_global_random_stream(cls):
    torch.manual_seed(11)
    np.random.seed(12)
    random.seed(13)
    before = random_states()
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    buffer = make_buffer(cls, upsampler=TINY)
    count_into(buffer, 0, 130, ends=[9, 19, 29])
    buffer.synthetic.refresh(buffer.real_transitions(), buffer.row_order())
    assert buffer.synthetic.num_refreshes == 1
    assert random_states() == before
    assert (threads, precision) == (torch.get_num_threads(), torch.get_float32_matmul_precision())
    assert torch.get_default_dtype() == torch.float32


def test_a_mixed_batch_draws_from_numpy_only_for_its_real_rows():
    buffer = make_buffer(SynthERBuffer)
    count_into(buffer, 0, 130)
    buffer.sample(10)
    torch_state = torch.get_rng_state()
    np.random.seed(3)
    buffer.sample(33)
    drawn = np.random.random()
    np.random.seed(3)
    np.random.randint(0, 130, size=17)
    np.random.randint(0, 1, size=17)
    assert np.random.random() == drawn
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize("seed", [0, 7])
def test_the_same_seed_gives_the_same_batches(seed):
    batches = []
    for _ in range(2):
        buffer = make_buffer(SynthERBuffer, upsampler=TINY, seed=seed)
        count_into(buffer, 0, 130)
        np.random.seed(1)
        batches.append(buffer.sample(64))
    assert_same(*batches)


def test_the_seed_is_by_default_the_one_torch_was_given():
    seeds = []
    for torch_seed in (21, 21, 22):
        torch.manual_seed(torch_seed)
        seeds.append(make_buffer(SynthERBuffer, seed=None).synthetic.seed)
    assert seeds == [21, 21, 22]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("cls", [SynthERBuffer, SynthERNStepBuffer])
def test_a_refresh_within_no_grad_or_inference_mode(cls, context):
    """The buffer may first be sampled by an evaluation; the training that follows must not notice."""
    ours, reference = (make_buffer(cls, upsampler=TINY) for _ in range(2))
    for buffer in (ours, reference):
        count_into(buffer, 0, 130)
    with context():
        assert len(ours.sample(32).rewards) == 32
    reference.sample(32)
    assert ours.synthetic.num_refreshes == 1
    assert_same_rows(ours.synthetic.rows, reference.synthetic.rows)
    net = torch.nn.Linear(1, 1)
    batch = ours.sample(32)
    net(batch.observations).sub(batch.rewards * (1 - batch.dones)).square().mean().backward()
    assert torch.isfinite(net.weight.grad).all()
    count_into(ours, 130, 250)
    ours.sample(32)
    assert ours.synthetic.num_refreshes == 2


def test_changing_a_batch_does_not_change_the_buffer():
    buffer = make_buffer(SynthERBuffer)
    count_into(buffer, 0, 130)
    buffer.sample(10)
    synthetic = {name: tensor.clone() for name, tensor in buffer.synthetic.rows.flat().items()}
    for tensor in buffer.sample(64):
        if tensor is not None:
            tensor.fill_(1e6)
    assert buffer.observations.max() == 129.0
    assert buffer.rewards.max() == 1.0
    for name, tensor in buffer.synthetic.rows.flat().items():
        torch.testing.assert_close(tensor, synthetic[name], rtol=0, atol=0)


# -- VecNormalize --------------------------------------------------------------------------------------------------


def normalizer(observation_space, **kwargs):
    """A VecNormalize with known statistics: mean 100 and standard deviation 20, returns of variance 4."""
    env = VecNormalize(vec(RandomEnv, observation_space, box(1)), epsilon=0.0, **kwargs)
    statistics = env.obs_rms.values() if isinstance(env.obs_rms, dict) else [env.obs_rms]
    for statistic in statistics:
        statistic.mean[...] = 100.0
        statistic.var[...] = 400.0
    env.ret_rms.var = np.array(4.0)
    env.training = False
    return env


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_vec_normalize_applies_to_synthetic_rows_as_to_real_ones(dtype):
    space = box(1, low=0, high=255, dtype=dtype)
    env = normalizer(space)
    plain, ours = ReplayBuffer(400, space, box(1), "cpu"), make_buffer(SynthERBuffer, observation_space=space)
    for buffer in (plain, ours):
        count_into(buffer, 0, 130)
    assert ours.sample(4).observations.dtype == getattr(torch, np.dtype(dtype).name)
    np.random.seed(2)
    batch = ours.sample(400, env=env)
    np.random.seed(2)
    assert_same(batch, plain.sample(200, env=env), rows=real_places(400))
    # Observations i were stored raw, (i - 100) / 20 is what the algorithm gets; rewards are divided by 2.
    raw = batch.observations * 20 + 100
    torch.testing.assert_close(raw, raw.round(), atol=1e-4, rtol=0)
    assert raw.min() >= 0
    assert raw.max() <= 129
    torch.testing.assert_close(batch.next_observations - batch.observations, torch.full((400, 1), 1 / 20))
    assert batch.rewards.flatten().tolist() == np.where(mask(400), MARK / 2, 0.5).tolist()
    assert ours.synthetic.rows.observation.max() > 100
    assert set(ours.synthetic.rows.reward.tolist()) == {MARK}


def test_vec_normalize_clips_synthetic_rewards_as_real_ones():
    env = normalizer(box(1), clip_reward=2.0)
    buffer = make_buffer(SynthERBuffer)
    count_into(buffer, 0, 130)
    # -7 / 2 is beyond the clip.
    assert buffer.sample(4, env=env).rewards.flatten().tolist() == np.where(mask(4), -2.0, 0.5).tolist()


def test_vec_normalize_without_observations_or_rewards():
    env = normalizer(box(1))
    env.norm_obs = env.norm_reward = False
    buffer = make_buffer(SynthERBuffer)
    count_into(buffer, 0, 130)
    batch = buffer.sample(40, env=env)
    assert set(batch.observations.flatten().tolist()) <= set(range(130))
    assert batch.rewards.flatten().tolist() == np.where(mask(40), MARK, 1.0).tolist()


def test_vec_normalize_of_some_keys_of_a_dict():
    space = spaces.Dict({"position": box(1, low=0, high=300), "mode": spaces.Discrete(3)})
    env = normalizer(space, norm_obs_keys=["position"])
    plain, ours = DictReplayBuffer(400, space, box(1), "cpu"), make_buffer(SynthERDictBuffer, observation_space=space)
    random_into([plain, ours], 130, space, box(1))
    ours.sample(2)
    np.random.seed(2)
    batch = ours.sample(200, env=env)
    np.random.seed(2)
    assert_same(batch, plain.sample(100, env=env), rows=real_places(200))
    places = synthetic_places(200)
    position, mode = batch.observations["position"][places], batch.observations["mode"][places]
    stored = torch.as_tensor((plain.observations["position"][:130] - 100) / 20).flatten()
    assert (position - stored).abs().amin(1).max() < 1e-5
    assert mode.dtype == torch.int64
    assert set(mode.flatten().tolist()) == {0, 1, 2}
    assert set(batch.rewards[places].flatten().tolist()) == {MARK / 2}
