"""Tianshou in the words of the conformance suite."""
# ruff: noqa: NPY002  # Tianshou draws from NumPy's global stream

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from adapters import Adapter, Training
from synther_buffers.tianshou import SynthERPrioritizedReplayBuffer, SynthERReplayBuffer
from tianshou.algorithm import SAC
from tianshou.algorithm.algorithm_base import policy_within_training_step
from tianshou.algorithm.modelfree.sac import AutoAlpha, SACPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector, PrioritizedVectorReplayBuffer, VectorReplayBuffer
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic

FIELDS = {
    "observation": "obs",
    "action": "act",
    "reward": "rew",
    "next_observation": "obs_next",
    "terminated": "terminated",
}


class Tianshou(Adapter):
    name = "tianshou"
    capacity = "total_size"
    ours = SynthERReplayBuffer
    plain = VectorReplayBuffer
    options: dict = {}  # noqa: RUF012

    def make(self, size, observation_space, action_space, *, n_envs=1, **kwargs):
        return self.ours(size, n_envs, **self.options, **kwargs)

    def make_plain(self, size, observation_space, action_space, *, n_envs=1):
        return self.plain(size, n_envs, **self.options)

    def add(self, buffer, rows):
        buffer.add(
            Batch(
                obs=rows["observation"],
                act=rows["action"],
                rew=rows["reward"].astype(np.float64),
                terminated=rows["terminated"],
                truncated=rows["truncated"],
                obs_next=rows["next_observation"],
                info=Batch(),
            ),
            buffer_ids=np.arange(buffer.buffer_num),
        )

    def sample(self, buffer, batch_size):
        return self._rows(buffer.sample(batch_size)[0])

    def _rows(self, batch):
        rows = {name: np.asarray(getattr(batch, theirs)) for name, theirs in FIELDS.items()}
        return rows | {"reward": rows["reward"].astype(np.float32)}

    def raw_sample(self, buffer, batch_size):
        batch, _ = buffer.sample(batch_size)
        return {name: value for name, value in batch.items() if isinstance(value, np.ndarray)}

    def stored(self, buffer):
        return self._rows(buffer[:])

    def size(self, buffer):
        return len(buffer)

    def reset(self, buffer):
        buffer.reset()

    def restart(self, buffer, folder):
        buffer.save_hdf5(str(folder / "buffer.hdf5"))
        return type(buffer).load_hdf5(str(folder / "buffer.hdf5"))

    def seed(self, seed):
        np.random.seed(seed)

    def train(self, env_id, num_steps, *, plain=False, utd=1, **kwargs):
        np.random.seed(1)
        torch.manual_seed(1)
        env = gym.make(env_id)
        env.action_space.seed(1)
        buffer = (
            self.plain(num_steps, 1, **self.options) if plain else self.ours(num_steps, 1, **self.options, **kwargs)
        )
        algorithm = _sac(env)
        sample, batches = buffer.sample, []

        def recording(batch_size):
            batch, indices = sample(batch_size)
            if batch_size:
                batches.append(self._rows(batch))
            return batch, indices

        buffer.sample = recording
        collector = Collector(algorithm, env, buffer, exploration_noise=True)
        collector.reset(gym_reset_kwargs={"seed": 1})
        collector.collect(n_step=100, random=True)
        algorithm.run_training(
            OffPolicyTrainerParams(
                training_collector=collector,
                test_collector=None,
                max_epochs=1,
                epoch_num_steps=num_steps - 100,
                collection_step_num_env_steps=1,
                update_step_num_gradient_steps_per_sample=float(utd),
                batch_size=64,
                show_progress=False,
            )
        )
        del buffer.sample

        def act(observation):
            with torch.no_grad(), policy_within_training_step(algorithm.policy, enabled=False):
                action = algorithm.policy(Batch(obs=observation[None], info=Batch())).act[0]
            return algorithm.policy.map_action(action.numpy())

        nets = [value for value in algorithm.state_dict().values() if isinstance(value, torch.Tensor)]
        parameters = torch.cat([tensor.double().flatten() for tensor in nets])
        return Training(parameters.numpy(), batches, buffer, act)


class TianshouPrioritized(Tianshou):
    name = "tianshou-prioritized"
    variant = True
    ours = SynthERPrioritizedReplayBuffer
    plain = PrioritizedVectorReplayBuffer
    options = {"alpha": 0.6, "beta": 0.4}  # noqa: RUF012


def _sac(env):
    """SAC with two hidden layers of 64."""
    shape, action_shape, hidden = env.observation_space.shape, env.action_space.shape, [64, 64]
    actor = ContinuousActorProbabilistic(
        preprocess_net=Net(state_shape=shape, hidden_sizes=hidden),
        action_shape=action_shape,
        unbounded=True,
        conditioned_sigma=True,
    )
    critics = [
        ContinuousCritic(
            preprocess_net=Net(state_shape=shape, action_shape=action_shape, hidden_sizes=hidden, concat=True)
        )
        for _ in range(2)
    ]
    adam = AdamOptimizerFactory(lr=1e-3)
    return SAC(
        policy=SACPolicy(actor=actor, action_space=env.action_space),
        policy_optim=adam,
        critic=critics[0],
        critic_optim=adam,
        critic2=critics[1],
        critic2_optim=adam,
        alpha=AutoAlpha(-1.0, 0.0, adam),
    )
