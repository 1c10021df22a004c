"""Small configurations and readable rows for the tests of the upsampler and of the replay."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import torch
from gymnasium import spaces

from synther_buffers import PRESETS, FitReport, NetworkConfig, SamplerConfig, Transitions, TransitionSpec

TINY = replace(
    PRESETS["cpu"],
    network=NetworkConfig(width=32, depth=1, embedding_dim=16),
    training=replace(PRESETS["cpu"].training, batch_size=64, bfloat16=False),
    sampler=SamplerConfig(replace(PRESETS["cpu"].sampler.solver, num_steps=8)),
    train_steps=30,
    warm_steps=10,
    num_synthetic=200,
    terminal_steps=50,
    outcome_steps=0,
    budget=None,
)
SPEC = TransitionSpec.from_spaces(
    spaces.Box(-np.inf, np.inf, (2,), np.float64), spaces.Box(-1.0, 1.0, (1,), np.float32)
)


def walk(num_rows: int, first: int = 0) -> Transitions:
    """Row i: observation (i, -i), the next one a step further, reward 1, terminal every 20th, action in [-1, 1]."""
    index = torch.arange(first, first + num_rows, dtype=torch.float64)
    observation = torch.stack((index, -index), dim=1)
    return Transitions(
        observation=observation,
        action=torch.sin(index)[:, None].float(),
        reward=torch.ones(num_rows),
        next_observation=observation + torch.tensor([1.0, -1.0], dtype=torch.float64),
        terminated=index.long() % 20 == 19,
    )


def gaussian(num_rows: int, seed: int = 0) -> Transitions:
    """s ~ N(0, 1), a uniform, s' = 0.9 s + 0.1 a + noise, r = s0, terminal iff s'0 < -1.2."""
    generator = torch.Generator().manual_seed(seed)
    observation = torch.randn(num_rows, 2, generator=generator, dtype=torch.float64)
    action = torch.rand(num_rows, 1, generator=generator, dtype=torch.float32) * 2 - 1
    noise = 0.1 * torch.randn(num_rows, 2, generator=generator, dtype=torch.float64)
    following = 0.9 * observation + 0.1 * action + noise
    return Transitions(observation, action, observation[:, 0].float(), following, following[:, 0] < -1.2)


class Resampler:
    """An upsampler that hands out rows it has seen."""

    def __init__(self, spec, *, device, seed, progress_bar):
        self.seed, self.num_fits, self.rows, self.held_out = seed, 0, None, None

    @property
    def config(self):
        return {"upsampler": type(self).__name__}

    def fit(self, transitions, *, held_out=None):
        self.num_fits += 1
        self.rows, self.held_out = transitions, held_out
        return FitReport(loss=0.5, held_out_loss=0.5, steps=1, seconds=0.0, warm=False)

    def sample(self, num_samples):
        generator = torch.Generator().manual_seed(self.seed + self.num_fits)
        return self.rows[torch.randint(len(self.rows), (num_samples,), generator=generator)]

    def state_dict(self):
        return {"num_fits": self.num_fits, "rows": self.rows, "held_out": self.held_out}

    def load_state_dict(self, state):
        self.num_fits, self.rows, self.held_out = state["num_fits"], state["rows"], state["held_out"]


def fails_at(number, base, error=RuntimeError):
    """An upsampler class whose fit of that number raises, counted over all upsamplers of the class."""

    class Fails(base):
        attempts = 0

        def fit(self, transitions, *, held_out=None):
            type(self).attempts += 1
            if type(self).attempts == number:
                raise error("planted failure")
            return super().fit(transitions, held_out=held_out)

    return Fails


def equal(left: Transitions, right: Transitions) -> bool:
    """Bit for bit, dtypes and shapes included."""
    ours, theirs = left.flat(), right.flat()
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours
    )


def global_state() -> tuple:
    """Everything process-wide that a refresh must leave as it was."""
    return (
        torch.get_rng_state().tolist(),
        str(np.random.get_state()),  # noqa: NPY002
        random.getstate(),
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.get_default_dtype(),
        str(torch.get_default_device()),
        torch.is_grad_enabled(),
    )
