"""Oracles, which ask the simulator and so tell what there is to gain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from synther_buffers import DiffusionUpsampler, FitReport, Transitions, TransitionSpec, UpsamplerConfig

from .tasks import Task

#: ``(observations [n, *shape], seed) -> actions [n, size]`` in [-1, 1], drawn from the agent's present policy.
Policy = Callable[[NDArray[Any], int], NDArray[Any]]

_live: list[Policy] = []


def bind_policy(policy: Policy) -> None:
    """Tell the oracles of this process whose policy collects. A factory cannot hold it: the agent is made after it."""
    _live[:] = [policy]


class Oracle:
    """Fresh true rows, collected by the agent's present policy in an environment of the oracle's own.

    Args:
        spec, device, seed, progress_bar: as every upsampler takes them.
        task: whose environment collects.
    """

    def __init__(self, spec: TransitionSpec, *, device: Any, seed: int, progress_bar: bool, task: Task) -> None:
        self.spec, self.seed, self.task = spec, seed, task
        self._num_fits = self._num_draws = 0

    @property
    def config(self) -> dict[str, Any]:
        return {"upsampler": "oracle", "env": self.task.env}

    def fit(self, transitions: Transitions, *, held_out: Transitions | None = None) -> FitReport:
        """Count the refresh; nothing is learned."""
        self._num_fits += 1
        self._num_draws = 0
        return FitReport(math.nan, math.nan, 0, 0.0, False, "nothing is trained")

    def sample(self, num_samples: int) -> Transitions:
        """Collect so many steps, from a reset on.

        Raises:
            RuntimeError: no policy was bound.
        """
        if not _live:
            raise RuntimeError("no policy collects yet: call bind_policy(policy) before the first refresh.")
        policy = _live[0]
        draws = np.random.default_rng([self.seed, self._num_fits, self._num_draws])
        self._num_draws += 1
        env = self.task.make()
        observation, _ = env.reset(seed=int(draws.integers(2**31)))
        rows = []
        for _ in range(num_samples):
            action = policy(observation[None], int(draws.integers(2**31)))[0]
            following, reward, terminated, truncated, _ = env.step(_for_env(action, env.action_space))
            rows.append((observation, action, reward, following, terminated))
            observation = env.reset()[0] if terminated or truncated else following
        env.close()
        return _filled(self.spec, *(np.array(column) for column in zip(*rows, strict=True)))

    def state_dict(self) -> dict[str, Any]:
        """The counters that seeds are made of."""
        return {"num_fits": self._num_fits, "num_draws": self._num_draws}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._num_fits, self._num_draws = state["num_fits"], state["num_draws"]


class OracleDynamics(DiffusionUpsampler):
    """A diffusion model's observations and actions with the simulator's reward, next observation and terminal flag.

    Rows that the simulator cannot step (see `MujocoSimulator`) keep the model's outcome; `shares_simulated` holds the
    share of the others, draw by draw.

    Args:
        spec, device, seed, progress_bar: as every upsampler takes them.
        task: whose simulator steps.
        config: of the model.
    """

    def __init__(
        self,
        spec: TransitionSpec,
        *,
        device: Any,
        seed: int,
        progress_bar: bool,
        task: Task,
        config: str | UpsamplerConfig = "auto",
    ) -> None:
        super().__init__(spec, config, device=device, seed=seed, progress_bar=progress_bar)
        self._simulator = task.simulator()
        self.shares_simulated: list[float] = []

    def sample(self, num_samples: int) -> Transitions:
        """Draw from the model and take one true step from each row."""
        rows = super().sample(num_samples)
        observation, action = rows.observation.cpu().numpy(), rows.action.cpu().numpy()
        following, reward, terminated = self._simulator.step(observation, action)
        known = torch.as_tensor(np.isfinite(reward) & np.isfinite(following).all(1))
        self.shares_simulated.append(float(known.double().mean()))
        for name, values in (("next_observation", following), ("reward", reward), ("terminated", terminated)):
            column = getattr(rows, name)
            true = torch.as_tensor(values).to(column).reshape(column.shape)
            column[known] = true[known]
        return rows

    def state_dict(self) -> dict[str, Any]:
        """The model's state and `shares_simulated`."""
        return super().state_dict() | {"shares_simulated": list(self.shares_simulated)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.shares_simulated = list(state["shares_simulated"])


def _for_env(action: NDArray[Any], space: gymnasium.Space) -> Any:
    """The environment's action for a stored one: an index, or scaled to [-1, 1]."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return int(action[0])
    assert isinstance(space, gymnasium.spaces.Box)
    return space.low + (action + 1.0) * 0.5 * (space.high - space.low)


def _filled(
    spec: TransitionSpec,
    observation: NDArray[Any],
    action: NDArray[Any],
    reward: NDArray[Any],
    following: NDArray[Any],
    terminated: NDArray[Any],
) -> Transitions:
    rows = spec.empty(len(reward))
    columns = {
        "observation": observation,
        "action": action,
        "reward": reward,
        "next_observation": following,
        "terminated": terminated,
    }
    for name, values in columns.items():
        column = getattr(rows, name)
        column.copy_(torch.as_tensor(values).reshape(column.shape))
    return rows
