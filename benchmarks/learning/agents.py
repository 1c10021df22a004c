"""The agents: SAC of sbx (JAX) or of Stable-Baselines3 (PyTorch), and what the benchmark asks of either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from synther_buffers.sb3 import SynthERBuffer

from .arms import Arm, buffer_kwargs
from .tasks import Task

#: Rows that the critic is asked about at once; JAX compiles a function anew for each shape.
Q_ROWS = 256


class Agent(Protocol):
    """An agent in training."""

    model: Any

    def explore(self, observation: NDArray[Any], seed: int) -> NDArray[Any]:
        """Actions ``[n, size]`` in [-1, 1] drawn from the present policy, for observations ``[n, size]``."""
        ...

    def values(self, observation: NDArray[Any], action: NDArray[Any]) -> NDArray[Any]:
        """The smaller critic's values ``[n]`` of observations and of actions in [-1, 1]."""
        ...


class SbxAgent:
    """SAC of sbx; `policy_delay` delays the actor and the temperature together."""

    def __init__(self, task: Task, arm: Arm, seed: int) -> None:
        import jax
        from sbx import SAC

        self.model = SAC("MlpPolicy", task.make(), policy_delay=arm.policy_delay, **_common(task, arm, seed))

        @jax.jit
        def sample(state: Any, observation: Any, key: Any) -> Any:
            return state.apply_fn(state.params, observation).sample(seed=key)

        @jax.jit
        def least(state: Any, observation: Any, action: Any) -> Any:
            # The default critic has no dropout, so that no random stream is needed.
            return state.apply_fn(state.params, observation, action).min(0)[:, 0]

        self._key: Callable[[int], Any] = jax.random.PRNGKey
        self._sample, self._least = sample, least

    def explore(self, observation: NDArray[Any], seed: int) -> NDArray[Any]:
        drawn = self._sample(self.model.policy.actor_state, observation.astype(np.float32), self._key(seed))
        return np.asarray(drawn)

    def values(self, observation: NDArray[Any], action: NDArray[Any]) -> NDArray[Any]:
        state = self.model.policy.qf_state
        return np.asarray(self._least(state, observation.astype(np.float32), action.astype(np.float32)))


class Sb3Agent:
    """SAC of Stable-Baselines3, which knows no delay."""

    def __init__(self, task: Task, arm: Arm, seed: int) -> None:
        from stable_baselines3 import SAC

        if arm.policy_delay != 1:
            raise ValueError(
                f"policy_delay is {arm.policy_delay}; Stable-Baselines3's SAC updates the actor at each gradient step. "
                "Use agent='sbx'."
            )
        self.model = SAC("MlpPolicy", task.make(), device="cpu", **_common(task, arm, seed))

    def explore(self, observation: NDArray[Any], seed: int) -> NDArray[Any]:
        # The actor draws from the global stream, which belongs to the agent: put it back.
        before = torch.get_rng_state()
        torch.manual_seed(seed)
        try:
            with torch.no_grad():
                return self.model.actor(torch.as_tensor(observation, dtype=torch.float32)).numpy()
        finally:
            torch.set_rng_state(before)

    def values(self, observation: NDArray[Any], action: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            values = self.model.critic(
                torch.as_tensor(observation, dtype=torch.float32), torch.as_tensor(action, dtype=torch.float32)
            )
        return torch.cat(values, 1).min(1).values.numpy()


AGENTS: dict[str, Callable[[Task, Arm, int], Agent]] = {"sbx": SbxAgent, "sb3": Sb3Agent}


def _common(task: Task, arm: Arm, seed: int) -> dict[str, Any]:
    """The libraries' own settings, but for the update rule and the buffer."""
    tiny = {"policy_kwargs": {"net_arch": [16, 16]}, "batch_size": 32} if task.toy else {}
    return tiny | {
        "seed": seed,
        "buffer_size": 100_000,
        "learning_starts": task.learning_starts,
        "gradient_steps": arm.utd,
        "replay_buffer_class": SynthERBuffer,
        "replay_buffer_kwargs": buffer_kwargs(arm, task, seed),
    }
