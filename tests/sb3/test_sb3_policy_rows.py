"""Rows with the policy's actions in real algorithms: bound by the callback, and nothing of the agent's is moved."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_helpers import TINY
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from synther_buffers.sb3 import SynthERBuffer, SynthERCallback, SynthERDictBuffer, policy_of


class DictPendulum(gym.ObservationWrapper):
    """Pendulum with its angle and its speed apart."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = spaces.Dict(
            {"angle": spaces.Box(-1, 1, (2,), np.float32), "speed": spaces.Box(-8, 8, (1,), np.float32)}
        )

    def observation(self, observation):
        return {"angle": observation[:2], "speed": observation[2:]}


def make_model(algorithm=SAC, env="Pendulum-v1", buffer=SynthERBuffer, policy="MlpPolicy", net=(16, 16), **ours):
    kwargs = {"upsampler": TINY, "retrain_every": 100, "redraw_every": 30, "seed": 0, "progress_bar": False}
    return algorithm(
        policy,
        env,
        learning_starts=50,
        batch_size=32,
        seed=0,
        device="cpu",
        policy_kwargs={"net_arch": list(net)},
        replay_buffer_class=buffer,
        replay_buffer_kwargs=kwargs | ours,
    )


def test_the_callback_binds_the_algorithms_policy():
    model = make_model(policy_share=0.5)
    model.learn(160, callback=SynthERCallback())
    replay = model.replay_buffer.synthetic
    assert replay._set.num_policy > 0
    # A policy of one's own is not replaced.
    own = lambda observation: torch.zeros(len(observation), 1)  # noqa: E731
    replay.bind_policy(own)
    model.learn(10, callback=SynthERCallback(), reset_num_timesteps=False)
    assert replay._policy is own


def parameters(model):
    return torch.cat([value.reshape(-1) for value in model.policy.state_dict().values()])


def test_a_run_that_draws_them_and_serves_none_is_the_plain_run():
    plain = SAC(
        "MlpPolicy", "Pendulum-v1", learning_starts=50, batch_size=32, seed=0, policy_kwargs={"net_arch": [16, 16]}
    )
    plain.learn(200)
    model = make_model(policy_share=0.5, synthetic_fraction=0.01)  # of 32 rows: none
    model.learn(200, callback=SynthERCallback())
    assert model.replay_buffer.synthetic._set.num_policy > 0
    assert torch.equal(parameters(model), parameters(plain))


def observations(model, count=50):
    space = model.observation_space
    space.seed(0)
    drawn = [space.sample() for _ in range(count)]
    if isinstance(space, spaces.Dict):
        return {name: torch.as_tensor(np.stack([each[name] for each in drawn])) for name in space.spaces}
    return torch.as_tensor(np.stack(drawn))


class TestPolicyOf:
    def test_td3_acts_as_it_is(self):
        model = make_model(TD3)
        observation = observations(model)
        expected = model.actor(observation).detach()
        found = torch.as_tensor(policy_of(model)(observation)).detach()
        assert torch.equal(found, expected)
        assert float(found.abs().max()) <= 1.0  # as stored, not the environment's -2 to 2

    def test_sac_draws_its_actions(self):
        model = make_model()
        observation = observations(model)
        torch.manual_seed(0)
        first = policy_of(model)(observation)
        torch.manual_seed(0)
        assert torch.equal(first, policy_of(model)(observation))
        assert not torch.equal(first, policy_of(model)(observation))

    def test_dqn_returns_indices(self):
        model = make_model(DQN, "CartPole-v1")
        found = policy_of(model)(observations(model))
        assert found.shape == (50,)
        assert set(found.tolist()) <= {0, 1}

    def test_dict_observations(self):
        model = make_model(
            env=DictPendulum(gym.make("Pendulum-v1")), buffer=SynthERDictBuffer, policy="MultiInputPolicy"
        )
        assert policy_of(model)(observations(model)).shape == (50, 1)

    def test_observations_are_normalised_as_the_agent_sees_them(self):
        env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
        env.obs_rms.mean = np.array([0.1, 0.2, 3.0])
        model = make_model(TD3, env)
        observation = observations(model)
        expected = model.actor(torch.as_tensor(env.normalize_obs(observation.numpy()), dtype=torch.float32)).detach()
        assert torch.equal(torch.as_tensor(policy_of(model)(observation)).detach(), expected)

    @pytest.mark.parametrize("training", [True, False])
    def test_the_mode_stays(self, training):
        model = make_model()
        model.policy.set_training_mode(training)
        policy_of(model)(observations(model))
        assert model.policy.training == training

    def test_it_keeps_no_algorithm_alive(self):
        model = make_model()
        act, observation = policy_of(model), observations(model)
        model = None
        import gc

        gc.collect()
        with pytest.raises(RuntimeError, match="the algorithm whose policy was bound is gone"):
            act(observation)

    def test_sbx_gives_its_keys_back(self):
        sbx = pytest.importorskip("sbx")
        kwargs = {"upsampler": TINY, "retrain_every": 100, "redraw_every": 30, "policy_share": 0.5, "seed": 0}
        model = sbx.SAC(
            "MlpPolicy",
            "Pendulum-v1",
            learning_starts=50,
            batch_size=32,
            seed=0,
            policy_kwargs={"net_arch": [16, 16]},
            replay_buffer_class=SynthERBuffer,
            replay_buffer_kwargs=kwargs | {"progress_bar": False},
        )
        keys = np.asarray(model.policy.key), np.asarray(model.policy.noise_key)
        found = np.asarray(policy_of(model)(observations(model)))
        assert found.shape == (50, 1)
        assert np.array_equal(np.asarray(model.policy.key), keys[0])
        assert np.array_equal(np.asarray(model.policy.noise_key), keys[1])
        model.learn(110, callback=SynthERCallback())
        assert model.replay_buffer.synthetic._set.num_policy > 0
