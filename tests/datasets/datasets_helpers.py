"""Readable rows for the tests of the readers: observation = index, reward = 1."""

from dataclasses import replace

import gymnasium as gym
import h5py
import numpy as np
import torch
from gymnasium import spaces

from synther_buffers import PRESETS, NetworkConfig, SamplerConfig, Transitions

TINY = replace(
    PRESETS["cpu"],
    network=NetworkConfig(width=16, depth=1, embedding_dim=8),
    training=replace(PRESETS["cpu"].training, batch_size=32, bfloat16=False),
    sampler=SamplerConfig(replace(PRESETS["cpu"].sampler.solver, num_steps=4)),
    train_steps=20,
    warm_steps=10,
    num_synthetic=200,
    terminal_steps=20,
    outcome_steps=0,
)


def rows(num_rows, first=0):
    """Row i: observation (i, i), action i / 1000, reward 1, next observation (i + 1, i + 1), terminal every 10th."""
    index = torch.arange(first, first + num_rows, dtype=torch.float64)
    observation = torch.stack((index, index), 1)
    return Transitions(
        observation, (index / 1000)[:, None].float(), torch.ones(num_rows), observation + 1, index.long() % 10 == 9
    )


def columns(num_rows):
    """`rows` as D4RL's keys, NumPy."""
    flat = rows(num_rows).flat()
    return {
        "observations": flat["observation"].numpy(),
        "actions": flat["action"].numpy(),
        "rewards": flat["reward"].numpy(),
        "next_observations": flat["next_observation"].numpy(),
        "terminals": flat["terminated"].numpy(),
    }


def equal(left, right):
    """Bit for bit, dtypes and shapes included."""
    ours, theirs = left.flat(), right.flat()
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours
    )


class Counter(gym.Env):
    """Observation = steps since the reset; the first episode terminates after 3 steps, the second is cut after 5."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self):
        self.episode = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.steps = 100 * self.episode
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        done = self.steps - 100 * self.episode
        return self._observe(), 1.0, self.episode % 2 == 1 and done == 3, self.episode % 2 == 0 and done == 5, {}

    def _observe(self):
        return np.full(2, self.steps, np.float32)


def save(path, data):
    """Columns by name in the format that the suffix says."""
    if path.suffix == ".npz":
        np.savez(path, **data)
        return
    with h5py.File(path, "w") as file:
        for key, value in data.items():
            file[key] = value
