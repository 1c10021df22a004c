"""Stable-Baselines3 in the words of the conformance suite."""
# ruff: noqa: NPY002  # SB3 draws from NumPy's global stream

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from adapters import Adapter, Training
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl
from synther_buffers.sb3 import SynthERBuffer, SynthERCallback

from synther_buffers import TDError

FIELDS = {
    "observation": "observations",
    "action": "actions",
    "reward": "rewards",
    "next_observation": "next_observations",
    "terminated": "dones",
}


class SB3(Adapter):
    name = "sb3"
    capacity = "buffer_size"
    ours = SynthERBuffer
    plain = ReplayBuffer

    def make(self, size, observation_space, action_space, *, n_envs=1, **kwargs):
        return self.ours(size, observation_space, action_space, "cpu", n_envs=n_envs, **kwargs)

    def make_plain(self, size, observation_space, action_space, *, n_envs=1):
        return self.plain(size, observation_space, action_space, "cpu", n_envs=n_envs)

    def add(self, buffer, rows):
        done = rows["terminated"] | rows["truncated"]
        infos = [{"TimeLimit.truncated": bool(cut)} for cut in rows["truncated"]]
        buffer.add(rows["observation"], rows["next_observation"], rows["action"], rows["reward"], done, infos)

    def sample(self, buffer, batch_size):
        return self._rows(buffer.sample(batch_size))

    def _rows(self, batch):
        rows = {name: getattr(batch, theirs).numpy() for name, theirs in FIELDS.items()}
        return rows | {"reward": rows["reward"][:, 0], "terminated": rows["terminated"][:, 0] > 0}

    def raw_sample(self, buffer, batch_size):
        return {name: tensor for name, tensor in buffer.sample(batch_size)._asdict().items() if tensor is not None}

    def stored(self, buffer):
        size = buffer.size()
        rows = {
            name: getattr(buffer, theirs)[:size].reshape(size * buffer.n_envs, *getattr(buffer, theirs).shape[2:])
            for name, theirs in FIELDS.items()
        }
        timeouts = buffer.timeouts[:size].reshape(-1) > 0
        return rows | {"terminated": (rows["terminated"] > 0) & ~timeouts}

    def size(self, buffer):
        return buffer.size() * buffer.n_envs

    def reset(self, buffer):
        buffer.reset()

    def restart(self, buffer, folder):
        save_to_pkl(folder / "buffer.pkl", buffer)
        return load_from_pkl(folder / "buffer.pkl")

    def seed(self, seed):
        np.random.seed(seed)

    def train(self, env_id, num_steps, *, plain=False, utd=1, **kwargs):
        model = SAC(
            "MlpPolicy",
            gym.make(env_id),
            policy_kwargs={"net_arch": [64, 64]},
            learning_rate=1e-3,
            buffer_size=num_steps,
            learning_starts=100,
            batch_size=64,
            gradient_steps=utd,
            replay_buffer_class=self.plain if plain else self.ours,
            replay_buffer_kwargs={} if plain else kwargs,
            seed=1,
            device="cpu",
        )
        sample, batches = model.replay_buffer.sample, []

        def recording(*args, **kwargs):
            batch = sample(*args, **kwargs)
            batches.append(self._rows(batch))
            return batch

        model.replay_buffer.sample = recording
        model.learn(num_steps, callback=SynthERCallback() if isinstance(kwargs.get("guidance"), TDError) else None)
        parameters = torch.cat([tensor.double().flatten() for tensor in model.policy.state_dict().values()])
        return Training(
            parameters.numpy(), batches, model.replay_buffer, lambda obs: model.predict(obs, deterministic=True)[0]
        )
