"""Tasks: an environment, how long an agent has, and how it is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from synther_buffers.evaluation.simulators import MujocoSimulator, Simulator

from .cartpole import EPISODE_STEPS, CartPoleSwingUp


@dataclass(frozen=True)
class Task:
    """One row of the comparison.

    Attributes:
        env: a Gymnasium id, or ``cartpole-swingup``, this benchmark's own.
        steps: environment steps of a run.
        control: the arm of real rows alone whose update rule the treatments use.
        learning_starts: random steps before the first update; also the first refresh.
        eval_every: environment steps between evaluations.
        eval_episodes: deterministic episodes per evaluation, the same for all arms and seeds.
        toy: tiny networks and a tiny model, to see that everything runs.
    """

    env: str
    steps: int = 5_000
    control: str = "utd10"
    learning_starts: int = 1_000
    eval_every: int = 500
    eval_episodes: int = 5
    toy: bool = False

    def make(self) -> gymnasium.Env:
        """A new environment."""
        if self.env == "cartpole-swingup":
            return TimeLimit(CartPoleSwingUp(), EPISODE_STEPS)
        return gymnasium.make(self.env)

    def simulator(self) -> Simulator:
        """One true step from any stored row.

        Raises:
            TypeError, ValueError: the task's observations do not tell its state.
        """
        if self.env == "cartpole-swingup":
            return StateSimulator(CartPoleSwingUp(), CartPoleSwingUp.set_observation)
        if self.env == "Pendulum-v1":
            return StateSimulator(gymnasium.make(self.env).unwrapped, _set_pendulum)
        return MujocoSimulator(self.env, scaled_actions=True)


class StateSimulator:
    """Steps an environment whose state its observation tells.

    Args:
        env: without wrappers; used by nobody else.
        set_observation: puts `env` into the state of an observation.
    """

    def __init__(self, env: Any, set_observation: Callable[[Any, NDArray[Any]], None]) -> None:
        self._env, self._set_observation = env, set_observation
        env.reset(seed=0)

    def step(self, observation: NDArray[Any], action: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Take one step from each row; actions lie in [-1, 1] and stand for the whole range."""
        low, high = self._env.action_space.low, self._env.action_space.high
        results = []
        for state, given in zip(observation, action, strict=True):
            self._set_observation(self._env, state)
            results.append(self._env.step(low + (given + 1.0) * 0.5 * (high - low))[:3])
        following, reward, terminated = zip(*results, strict=True)
        return np.array(following), np.array(reward, np.float64), np.array(terminated, np.bool_)


def _set_pendulum(env: Any, observation: NDArray[Any]) -> None:
    env.state = np.array([np.arctan2(observation[1], observation[0]), observation[2]], np.float64)


#: By the name that lines and the command line use.
TASKS: dict[str, Task] = {
    "halfcheetah": Task("HalfCheetah-v5"),
    "walker2d": Task("Walker2d-v5"),
    "pusher": Task("Pusher-v5"),
    "inverted-double-pendulum": Task("InvertedDoublePendulum-v5", steps=3_000, eval_every=300),
    "ant": Task("Ant-v5"),
    "swimmer": Task("Swimmer-v5"),
    "hopper": Task("Hopper-v5"),
    "pendulum": Task("Pendulum-v1", steps=2_500, eval_every=250),
    "cartpole-swingup": Task("cartpole-swingup", steps=3_000, eval_every=250),
    "cartpole": Task("CartPole-v1"),
    "acrobot": Task("Acrobot-v1"),
    "toy-discrete": Task("CartPole-v1", steps=300, learning_starts=100, eval_every=100, eval_episodes=2, toy=True),
    "toy": Task("Pendulum-v1", steps=300, learning_starts=100, eval_every=100, eval_episodes=2, toy=True),
}
