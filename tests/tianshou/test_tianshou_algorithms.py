"""Tianshou's algorithms train through Collector and OffPolicyTrainer, on batches of which half is synthetic."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from batches import synthetic_places
from gymnasium import spaces
from synther_buffers.tianshou import SynthERPrioritizedReplayBuffer, SynthERReplayBuffer
from tianshou.data import Batch, Collector
from tianshou_helpers import (
    MARK,
    PLAIN,
    TINY,
    CounterEnv,
    RandomEnv,
    count_into,
    dqn,
    envs,
    make_buffer,
    make_plain,
    parameters,
    redq,
    sac,
    td3,
    train,
)

ALGORITHMS = {"SAC": sac, "TD3": td3, "REDQ": redq, "DQN": dqn}


def counter(name):
    return lambda: CounterEnv(num_actions=2 if name == "DQN" else 0)


def num_synthetic(buffer, indices):
    return [int((index >= buffer.maxsize).sum()) for index in indices]


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_trains(name, num_envs, n_step):
    buffer = make_buffer(buffer_num=num_envs)
    algorithm, indices = train(ALGORITHMS[name], buffer, counter(name), num_envs=num_envs, n_step=n_step)
    assert torch.isfinite(parameters(algorithm)).all()
    # 5 gradient steps after every 20 of the environment, from 80 on; the first refresh comes with the batch at 120.
    assert num_synthetic(buffer, indices) == [0] * 10 + [16] * 40
    assert buffer.synthetic.num_refreshes == 2
    assert len(buffer) == buffer.synthetic.num_observed == 260
    assert (buffer.rew[: buffer.maxsize] != MARK).all()


@pytest.mark.parametrize("name", ["DQN", "TD3"])
def test_trains_by_priority(name):
    buffer = make_buffer(SynthERPrioritizedReplayBuffer, buffer_num=2)
    algorithm, indices = train(ALGORITHMS[name], buffer, counter(name), num_envs=2, n_step=3)
    assert torch.isfinite(parameters(algorithm)).all()
    assert num_synthetic(buffer, indices) == [0] * 10 + [16] * 40
    weight = buffer.weight[np.arange(400)]
    assert len(np.unique(weight[weight > 0])) > 50  # TD errors came back
    assert np.isfinite(weight).all()
    assert (weight[130:200] == 0).all()  # of rows that were never written


@pytest.mark.parametrize("cls", PLAIN)
@pytest.mark.parametrize("name", ["DQN", "TD3"])
def test_at_fraction_0_an_agent_is_the_plain_buffers_bit_for_bit(cls, name):
    ours, plain = make_buffer(cls, buffer_num=2, synthetic_fraction=0.0), make_plain(cls, buffer_num=2)
    left, right = (parameters(train(ALGORITHMS[name], each, counter(name), num_envs=2)[0]) for each in (ours, plain))
    assert torch.equal(left, right)


def test_a_real_diffusion_model_leaves_the_agents_randomness_alone():
    """Up to the first synthetic batch the agent is the plain one, although a model has been trained before it."""
    agents = []
    for buffer in (make_buffer(upsampler=TINY, seed=None, num_synthetic=200, start_after=260), make_plain()):
        agents.append(parameters(train(sac, buffer, CounterEnv, num_steps=240)[0]))
        if isinstance(buffer, SynthERReplayBuffer):
            buffer.synthetic.refresh(buffer.real_transitions, buffer.row_order)
            assert buffer.synthetic.num_refreshes == 1
    assert torch.equal(*agents)


def test_pendulum_with_the_diffusion_model():
    trained = replace(TINY, train_steps=1_500, warm_steps=1_500)
    buffer = make_buffer(size=1_000, upsampler=trained, num_synthetic=300, retrain_every=200)
    algorithm, indices = train(sac, buffer, lambda: gym.make("Pendulum-v1"), num_steps=460)
    assert buffer.synthetic.num_refreshes == 2
    assert set(num_synthetic(buffer, indices)) == {0, 16}
    assert torch.isfinite(parameters(algorithm)).all()
    batch, _ = buffer.sample(200)
    synthetic = batch[synthetic_places(200)]
    # A random action is stored as it was before Tianshou scaled it to the torque of 2.
    assert np.abs(synthetic.act).max() <= np.abs(buffer[:].act).max() <= 1.0 + 1e-6
    assert not synthetic.terminated.any()  # Pendulum has time limits alone
    assert synthetic.truncated.all()
    np.testing.assert_allclose(buffer[:].obs.std(0), synthetic.obs.std(0), rtol=0.5)


def test_dict_observations_and_multi_discrete_actions_through_a_collector():
    space = spaces.Dict({"near": spaces.Box(-1, 1, (2,), np.float32), "mode": spaces.Discrete(3)})

    env = RandomEnv(space, spaces.MultiDiscrete([2, 3]))
    vector = envs(lambda: RandomEnv(space, spaces.MultiDiscrete([2, 3])), 2)
    buffer = make_buffer(buffer_num=2)
    policy = dqn(CounterEnv(num_actions=2)).policy  # is not asked: the actions are random
    policy.map_action_inverse = lambda action: action
    collector = Collector(policy, vector, buffer)
    collector.reset()
    collector.collect(n_step=200, random=True)
    batch, index = buffer.sample(40)
    synthetic = index >= 400
    assert synthetic.sum() == 20
    assert isinstance(batch.obs, Batch)
    assert batch.obs.near.shape == (40, 2)
    assert batch.obs.mode.dtype == buffer[:].obs.mode.dtype
    assert all(env.action_space.contains(action) for action in batch.act[synthetic])
    assert all(space.contains({"near": row.near, "mode": row.mode}) for row in batch.obs_next[synthetic])
    assert (batch.rew[synthetic] == MARK).all()


def test_the_high_level_api_takes_the_buffer_through_a_collector_factory(tmp_path):
    pytest.importorskip("tianshou.highlevel.experiment", exc_type=ImportError, reason="needs tianshou[eval]")
    from tianshou.highlevel.config import OffPolicyTrainingConfig
    from tianshou.highlevel.env import EnvFactoryRegistered, VectorEnvType
    from tianshou.highlevel.experiment import DQNExperimentBuilder, ExperimentConfig
    from tianshou.highlevel.params.collector import CollectorFactory

    class SynthERCollectorFactory(CollectorFactory):
        def create_collector(self, algorithm, vector_env, buffer=None, exploration_noise=False):
            if buffer is not None:  # the training collector's
                buffer = make_buffer(size=buffer.maxsize, buffer_num=len(vector_env))
            self.buffer = getattr(self, "buffer", buffer)
            return Collector(algorithm.policy, vector_env, buffer, exploration_noise=exploration_noise)

    factory = SynthERCollectorFactory()
    experiment = (
        DQNExperimentBuilder(
            EnvFactoryRegistered(task="CartPole-v1", venv_type=VectorEnvType.DUMMY),
            ExperimentConfig(persistence_enabled=False, train=True, watch=False),
            OffPolicyTrainingConfig(
                buffer_size=400, num_training_envs=2, num_test_envs=1, max_epochs=1, epoch_num_steps=200, batch_size=16,
                collection_step_num_env_steps=20, update_step_num_gradient_steps_per_sample=0.25, start_timesteps=0,
            ),
        )
        .with_collector_factory(factory)
        .with_model_factory_default(hidden_sizes=[16])
        .build()
    )  # fmt: skip
    experiment.run(run_name=str(tmp_path / "run"))
    assert isinstance(factory.buffer, SynthERReplayBuffer)
    assert factory.buffer.synthetic.num_refreshes == 1


def test_a_user_sees_the_refreshes():
    buffer = make_buffer()
    count_into(buffer, 0, 130)
    buffer.sample(2)
    (report,) = buffer.synthetic.reports
    assert report.num_observed == 130
    assert report.num_real + report.num_held_out == 130
