"""Whole algorithms on mixed batches: what they learn from, when it is refreshed, and that nothing else changes."""
# ruff: noqa: NPY002  # SB3 draws from NumPy's global stream

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from batches import real_places, synthetic_places
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, CrossQ
from sb3_helpers import (
    TINY,
    Bootstrap,
    CounterEnv,
    RandomEnv,
    box,
    flat_batch,
    kwargs_for,
    num_marked,
    parameters,
    record_batches,
    small,
    vec,
)
from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecNormalize
from synther_buffers.sb3 import SynthERBuffer, SynthERDictBuffer

DISCRETE = {DQN, QRDQN}
DICT = spaces.Dict({"position": box(2), "mode": spaces.Discrete(3), "switches": spaces.MultiBinary(2)})


def env_of(algorithm):
    return "CartPole-v1" if algorithm in DISCRETE else "Pendulum-v1"


def losses(model):
    return {name: value for name, value in model.logger.name_to_value.items() if "loss" in name}


# -- nothing changes without synthetic rows ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "replay", [{"synthetic_fraction": 0.0}, {"retrain_every": 201}], ids=["fraction 0", "before the first refresh"]
)
@pytest.mark.parametrize("algorithm", [SAC, TD3, DQN])
def test_without_synthetic_rows_the_agent_is_the_one_the_plain_buffer_trains(algorithm, replay):
    plain = algorithm("MlpPolicy", env_of(algorithm), **small(buffer_size=1_000))
    ours = algorithm("MlpPolicy", env_of(algorithm), **kwargs_for(SynthERBuffer, upsampler=TINY, **replay))
    assert torch.equal(parameters(ours), parameters(plain))
    initial = parameters(ours)
    for model in (plain, ours):
        # The training draws from the global streams, so one is finished before the other is seeded again.
        model.set_random_seed(4)
        model.learn(200)
    assert torch.equal(parameters(ours), parameters(plain))
    assert not torch.equal(parameters(ours), initial)
    np.testing.assert_array_equal(ours.replay_buffer.observations, plain.replay_buffer.observations)
    assert ours.replay_buffer.synthetic.num_refreshes == 0


@pytest.mark.parametrize("upsampler", ["auto", "cpu", "paper-online", TINY])
def test_building_the_buffer_leaves_the_policy_alone(upsampler):
    plain = SAC("MlpPolicy", "Pendulum-v1", **small(buffer_size=1_000))
    ours = SAC("MlpPolicy", "Pendulum-v1", **kwargs_for(SynthERBuffer, upsampler=upsampler))
    assert torch.equal(parameters(ours), parameters(plain))


def test_a_refresh_does_not_move_the_agents_randomness():
    """Refreshed or not, the rollout's next random numbers are the same."""
    drawn = []
    for fraction in (0.0, 0.5):
        model = SAC(
            "MlpPolicy",
            "Pendulum-v1",
            **kwargs_for(SynthERBuffer, upsampler=TINY, synthetic_fraction=fraction) | {"learning_starts": 500},
        )
        model.learn(150)
        buffer = model.replay_buffer
        if buffer.synthetic.refresh_due:
            buffer.synthetic.refresh(buffer.real_transitions(), buffer.row_order())
        drawn.append((torch.rand(3).tolist(), np.random.random(3).tolist(), model.action_space.sample().tolist()))
    assert buffer.synthetic.num_refreshes == 1
    assert drawn[0] == drawn[1]


# -- every algorithm trains on mixed batches -----------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [SAC, TD3, DDPG, TQC, CrossQ, DQN, QRDQN])
def test_an_algorithm_trains_on_mixed_batches(algorithm):
    kwargs = kwargs_for(SynthERBuffer) | {"batch_size": 33, "train_freq": 2}
    model = algorithm("MlpPolicy", env_of(algorithm), **kwargs)
    initial = parameters(model)
    batches = record_batches(model)
    model.learn(300)
    assert [report.num_observed for report in model.replay_buffer.synthetic.reports] == [120, 240]
    # Trained every second step after step 50: before and from step 120 on.
    assert [num_marked(batch) for batch in batches] == [0] * 34 + [16] * 91
    assert {len(batch.rewards) for batch in batches} == {33}
    found = losses(model)
    assert found
    assert all(np.isfinite(value) for value in found.values())
    assert torch.isfinite(parameters(model)).all()
    assert not torch.equal(parameters(model), initial)


@pytest.mark.parametrize("observation_space", [spaces.Discrete(5), spaces.MultiDiscrete([3, 4]), spaces.MultiBinary(4)])
@pytest.mark.parametrize("algorithm", [SAC, DQN])
def test_discrete_observations(algorithm, observation_space):
    action_space = spaces.Discrete(3) if algorithm is DQN else box(2)
    model = algorithm("MlpPolicy", vec(RandomEnv, observation_space, action_space), **kwargs_for(SynthERBuffer))
    batches = record_batches(model)
    model.learn(150)
    assert num_marked(batches[-1]) == 16
    assert torch.isfinite(parameters(model)).all()


@pytest.mark.parametrize(
    "action_space", [box(2, dtype=np.float64), box(2, 3, low=-2, high=2)], ids=["float64", "matrix"]
)
def test_box_actions_of_any_dtype_and_shape(action_space):
    model = SAC("MlpPolicy", vec(RandomEnv, box(3), action_space), **kwargs_for(SynthERBuffer))
    batches = record_batches(model)
    model.learn(150)
    assert num_marked(batches[-1]) == 16
    assert batches[-1].actions.dtype == torch.float32
    assert batches[-1].actions.shape == (32, int(np.prod(action_space.shape)))


def test_dict_observations():
    model = SAC("MultiInputPolicy", vec(RandomEnv, DICT, box(2), n_envs=2), **kwargs_for(SynthERDictBuffer))
    batches = record_batches(model)
    model.learn(300)
    assert model.replay_buffer.synthetic.num_refreshes == 2
    assert num_marked(batches[-1]) == 16
    mode = batches[-1].observations["mode"]
    assert (mode.shape, mode.dtype) == ((32, 1), torch.int64)
    assert torch.isfinite(parameters(model)).all()


def test_dict_observations_with_vec_normalize_and_the_diffusion_model():
    space = spaces.Dict({"position": box(2, low=100, high=200), "mode": spaces.Discrete(3)})
    env = VecNormalize(vec(RandomEnv, space, box(2)), norm_obs_keys=["position"])
    model = SAC("MultiInputPolicy", env, **kwargs_for(SynthERDictBuffer, upsampler=TINY))
    batches = record_batches(model)
    model.learn(200)
    buffer = model.replay_buffer
    assert buffer.synthetic.num_refreshes == 1
    assert buffer.synthetic.rows.observation["position"].min() >= 100
    assert buffer.synthetic.rows.observation["position"].max() <= 200
    places, last = synthetic_places(32), batches[-1].observations
    position, mode = last["position"][places], last["mode"][places]
    assert position.abs().max() < 5
    assert set(mode.flatten().tolist()) <= {0, 1, 2}
    assert torch.isfinite(parameters(model)).all()


def test_vec_normalize_stores_raw_and_trains_on_normalised_rows():
    env = VecNormalize(vec(RandomEnv, box(3, low=100, high=200), box(2)))
    model = SAC("MlpPolicy", env, **kwargs_for(SynthERBuffer, upsampler=Bootstrap) | {"batch_size": 200})
    batches = record_batches(model)
    model.learn(300)
    buffer = model.replay_buffer
    for stored in (torch.as_tensor(buffer.observations[: buffer.size()]), buffer.synthetic.rows.observation):
        assert stored.min() >= 100
        assert stored.max() <= 200
        assert stored.std() > 20
    observations = batches[-1].observations
    real, synthetic = observations[real_places(200)], observations[synthetic_places(200)]
    for part in (real, synthetic):
        assert part.mean().abs() < 0.2
        assert 0.8 < part.std() < 1.2
    assert batches[-1].rewards.unique().numel() == 1  # reward 1 throughout, divided by the same scale
    assert batches[-1].rewards[0] == pytest.approx(float(env.normalize_reward(np.ones(1))[0]))


# -- legal rows ----------------------------------------------------------------------------------------------------


def test_synthetic_actions_of_pendulum_lie_in_the_stored_range():
    model = SAC("MlpPolicy", "Pendulum-v1", **kwargs_for(SynthERBuffer, upsampler=TINY))
    model.learn(150)
    stored, synthetic = model.replay_buffer.actions[:150], model.replay_buffer.synthetic.rows.action
    # The environment's own range is [-2, 2].
    assert np.abs(stored).max() <= 1.0
    assert synthetic.abs().max() <= 1.0
    assert synthetic.std() > 0.2


def test_synthetic_actions_of_dqn_are_columns_of_whole_numbers():
    model = DQN("MlpPolicy", "CartPole-v1", **kwargs_for(SynthERBuffer, upsampler=TINY))
    batches = record_batches(model)
    model.learn(150)
    actions = batches[-1].actions
    assert (actions.dtype, actions.shape) == (torch.int64, (32, 1))
    assert set(model.replay_buffer.synthetic.rows.action.tolist()) == {0, 1}
    assert set(actions[synthetic_places(32)].flatten().tolist()) <= {0, 1}


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("upsampler", [Bootstrap, TINY])
def test_no_synthetic_row_crosses_a_reset(upsampler, truncate):
    """In the counter environment the next observation is the observation plus 1, also in an episode's last row."""
    model = SAC("MlpPolicy", CounterEnv(truncate=truncate), **kwargs_for(SynthERBuffer, upsampler=upsampler))
    batches = record_batches(model)
    model.learn(150)
    rows = model.replay_buffer.synthetic.rows
    torch.testing.assert_close(rows.next_observation - rows.observation, torch.ones(len(rows), 1), atol=1e-3, rtol=0)
    batch = batches[-1]
    torch.testing.assert_close(batch.next_observations - batch.observations, torch.ones(32, 1), atol=1e-3, rtol=0)


def test_a_time_limit_makes_no_synthetic_terminals():
    env = gym.make("Pendulum-v1", max_episode_steps=20)
    upsampler = replace(TINY, model_terminals=True)
    model = SAC("MlpPolicy", env, **kwargs_for(SynthERBuffer, upsampler=upsampler))
    batches = record_batches(model)
    model.learn(150)
    assert model.replay_buffer.dones.sum() == 7
    assert not model.replay_buffer.synthetic.rows.terminated.any()
    assert batches[-1].dones.sum() == 0


def test_synthetic_terminals_come_at_the_datas_rate():
    upsampler = replace(TINY, model_terminals=True)
    model = DQN("MlpPolicy", "CartPole-v1", **kwargs_for(SynthERBuffer, upsampler=upsampler, num_synthetic=5_000))
    model.learn(150)
    buffer = model.replay_buffer
    terminated = buffer.synthetic.rows.terminated
    assert terminated.dtype == torch.bool
    learned = buffer.synthetic.upsampler.model.terminals.rate
    assert 0.01 < learned < 0.2
    assert float(terminated.double().mean()) == pytest.approx(learned, abs=0.002)


# -- the schedule --------------------------------------------------------------------------------------------------


def test_transitions_of_all_environments_count():
    model = SAC("MlpPolicy", vec(CounterEnv, n_envs=4), **kwargs_for(SynthERBuffer))
    batches = record_batches(model)
    model.learn(200)
    # 30 adds of 4 transitions each, not 120 adds.
    assert [report.num_observed for report in model.replay_buffer.synthetic.reports] == [120]
    assert num_marked(batches[-1]) == 16
    assert model.replay_buffer.synthetic.num_observed == 200


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_training_once_per_episode_makes_up_for_missed_refreshes_with_one(algorithm):
    replay = {"retrain_every": 110, "upsampler": Bootstrap}
    kwargs = kwargs_for(SynthERBuffer, **replay) | {"train_freq": (1, "episode"), "gradient_steps": 3}
    model = algorithm("MlpPolicy", CounterEnv(length=250), **kwargs)
    model.learn(750)
    # Due at 110, 220, ...; asked at 250, 500 and 750.
    assert [report.num_observed for report in model.replay_buffer.synthetic.reports] == [250, 500, 750]


def test_many_gradient_steps_refresh_once():
    model = SAC("MlpPolicy", CounterEnv(), **kwargs_for(SynthERBuffer) | {"gradient_steps": 3})
    batches = record_batches(model)
    model.learn(130)
    assert model.replay_buffer.synthetic.num_refreshes == 1
    assert [num_marked(batch) for batch in batches[-34:]] == [0] + [16] * 33


def test_action_noise_and_rollout_are_left_alone():
    """No synthetic row enters the real store: what it holds is what the environment gave."""
    noise = NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))
    model = TD3("MlpPolicy", CounterEnv(), action_noise=noise, **kwargs_for(SynthERBuffer))
    model.learn(300)
    buffer = model.replay_buffer
    counter = np.array([100.0 * (step // 10) + step % 10 for step in range(300)])
    np.testing.assert_array_equal(buffer.observations[:300].ravel(), counter)
    np.testing.assert_array_equal(buffer.next_observations[:300].ravel(), counter + 1)
    assert (buffer.rewards[:300] == 1).all()
    assert buffer.size() == 300
    assert not buffer.observations[300:].any()


def test_the_ring_wraps_while_training():
    kwargs = kwargs_for(SynthERBuffer, upsampler=Bootstrap) | {"buffer_size": 150}
    model = SAC("MlpPolicy", CounterEnv(), **kwargs)
    model.learn(400)
    # The third refresh, at 360, may know steps 210 to 359.
    counter = {100.0 * (step // 10) + step % 10 for step in range(210, 360)}
    rows = model.replay_buffer.synthetic.rows.observation.flatten().tolist()
    assert [report.num_observed for report in model.replay_buffer.synthetic.reports] == [120, 240, 360]
    assert set(rows) <= counter
    assert len(set(rows)) > 100


def test_a_user_may_leave_everything_at_its_default():
    """`replay_buffer_class=SynthERBuffer` alone is a valid run."""
    model = SAC("MlpPolicy", "Pendulum-v1", replay_buffer_class=SynthERBuffer, **small(buffer_size=20_000))
    plain = SAC("MlpPolicy", "Pendulum-v1", replay_buffer_class=ReplayBuffer, **small(buffer_size=20_000))
    for each in (plain, model):
        each.set_random_seed(0)
        each.learn(70)
    assert torch.equal(parameters(model), parameters(plain))
    assert model.replay_buffer.synthetic.start_after == 1_000
    assert all(len(tensor) == 4 for tensor in flat_batch(model.replay_buffer.sample(4)).values())
