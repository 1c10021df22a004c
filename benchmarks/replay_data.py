"""Replay data of `examples/collect.py`, as the benchmarks that judge upsamplers see them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from synther_buffers import Transitions, TransitionSpec
from synther_buffers.datasets import open_dataset
from synther_buffers.evaluation.simulators import MujocoSimulator


@dataclass(frozen=True)
class ReplayData:
    """Replay rows of an environment, in the order of writing, and its simulator; `name` is the file's."""

    name: str
    env: str
    spec: TransitionSpec
    rows: Transitions
    simulator: MujocoSimulator

    @classmethod
    def read(cls, path: Path) -> ReplayData:
        """A file of `examples/collect.py`.

        Raises:
            ValueError: another file.
            TypeError: rows of an environment that is not MuJoCo's.
            OSError: it cannot be read.
        """
        dataset = open_dataset(path)
        rows = dataset.subset(len(dataset))
        about = np.load(path).get("about") if path.suffix == ".npz" else None
        if about is None:
            raise ValueError("it does not say its environment; wanted an .npz of examples/collect.py.")
        env = json.loads(str(about))["env"]
        return cls(path.stem, env, dataset.spec, rows, MujocoSimulator(env))

    @classmethod
    def toy(cls) -> ReplayData:
        """A thousand rows of a random policy."""
        env = gym.make("HalfCheetah-v5")
        env.action_space.seed(0)
        observation, _ = env.reset(seed=0)
        rows: list[tuple[Any, ...]] = []
        for _ in range(1_000):
            action = env.action_space.sample()
            following, reward, terminated, _, _ = env.step(action)
            rows.append((observation, action, np.float32(reward), following, terminated))
            observation = following
        columns = (torch.from_numpy(np.array(column)) for column in zip(*rows, strict=True))
        spec = TransitionSpec.from_spaces(env.observation_space, env.action_space)
        return cls("toy", "HalfCheetah-v5", spec, Transitions(*columns), MujocoSimulator("HalfCheetah-v5"))

    @property
    def digest(self) -> str:
        """Of the rows themselves: a collection repeated on another machine has the same name and other rows."""
        found = hashlib.sha256()
        for _, tensor in sorted(self.rows.flat().items()):
            found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()[:12]

    def split(self, num_rows: int | None = None) -> tuple[Transitions, Transitions]:
        """Training rows, and every tenth row, which no model sees: real rows of the same distribution.

        Of the first `num_rows` rows written, or of all.

        Held-out runs of consecutive rows would be a distribution of their own, which a classifier tells from the
        training rows and next to which no model could look right.
        """
        rows = self.rows[:num_rows]
        held_out = torch.arange(len(rows)) % 10 == 9
        return rows[~held_out], rows[held_out]
