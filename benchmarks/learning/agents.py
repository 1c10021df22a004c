"""The agents: SAC of sbx (JAX), Stable-Baselines3 and TorchRL (PyTorch), CrossQ and DQN of sbx; what each must do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from synther_buffers.sb3 import SynthERBuffer, policy_of, td_error_of

from synther_buffers import TDError
from synther_buffers.replay.synthetic_replay import SyntheticReplay

from .arms import Arm, buffer_kwargs
from .tasks import Task

#: Rows that the critic is asked about at once; JAX compiles a function anew for each shape.
Q_ROWS = 256


class Agent(Protocol):
    """An agent in training."""

    @property
    def gamma(self) -> float:
        """Discount per step."""
        ...

    @property
    def synthetic(self) -> SyntheticReplay:
        """Of its buffer."""
        ...

    def train(self, steps: int, on_step: Callable[[int], None]) -> None:
        """Collect so many environment steps and learn from them; `on_step` gets the number done, after each."""
        ...

    def act(self, observation: NDArray[Any]) -> NDArray[Any]:
        """The environment's actions for observations ``[n, size]``, without exploration."""
        ...

    def stored(self, action: NDArray[Any]) -> NDArray[Any]:
        """An environment's action as the buffer and `values` have it: scaled to [-1, 1], or an index."""
        ...

    def explore(self, observation: NDArray[Any], seed: int) -> NDArray[Any]:
        """Stored actions ``[n, size]`` drawn from the present policy, for observations ``[n, size]``."""
        ...

    def values(self, observation: NDArray[Any], action: NDArray[Any]) -> NDArray[Any]:
        """The smaller critic's values ``[n]`` of observations and stored actions."""
        ...


class _Sb3Interface:
    """What every agent with Stable-Baselines3's interface does alike; `model` is the algorithm."""

    model: Any

    @property
    def gamma(self) -> float:
        return self.model.gamma

    @property
    def synthetic(self) -> SyntheticReplay:
        return self.model.replay_buffer.synthetic

    def train(self, steps: int, on_step: Callable[[int], None]) -> None:
        if self.synthetic.options.policy_share > 0:
            self.synthetic.bind_policy(policy_of(self.model))
        if isinstance(self.synthetic.options.guidance, TDError):
            self.synthetic.bind_td_error(td_error_of(self.model))

        class Tell(BaseCallback):
            def _on_step(self) -> bool:
                on_step(self.num_timesteps)
                return True

        self.model.learn(steps, callback=Tell())

    def act(self, observation: NDArray[Any]) -> NDArray[Any]:
        return self.model.predict(observation, deterministic=True)[0]

    def stored(self, action: NDArray[Any]) -> NDArray[Any]:
        return self.model.policy.scale_action(action)


class SbxAgent(_Sb3Interface):
    """SAC of sbx; `policy_delay` delays the actor and the temperature together.

    Args:
        task, arm, seed: of the run.
        layer_norm: of the critics, after each hidden layer.
    """

    def __init__(self, task: Task, arm: Arm, seed: int, layer_norm: bool = False) -> None:
        from sbx import SAC

        settings = _common(task, arm, seed)
        settings["policy_kwargs"] = settings.get("policy_kwargs", {}) | {"layer_norm": layer_norm}
        self.model = SAC("MlpPolicy", task.make(), policy_delay=arm.policy_delay, **settings)
        self._compile()

    def _compile(self) -> None:
        import jax

        @jax.jit
        def sample(state: Any, observation: Any, key: Any) -> Any:
            return state.apply_fn(self._weights(state), observation).sample(seed=key)

        @jax.jit
        def least(state: Any, observation: Any, action: Any) -> Any:
            # The critics have no dropout, so that no random stream is needed.
            return state.apply_fn(self._weights(state), observation, action).min(0)[:, 0]

        self._key: Callable[[int], Any] = jax.random.PRNGKey
        self._sample, self._least = sample, least

    def _weights(self, state: Any) -> Any:
        """What a network's function takes first."""
        return state.params

    def explore(self, observation: NDArray[Any], seed: int) -> NDArray[Any]:
        drawn = self._sample(self.model.policy.actor_state, observation.astype(np.float32), self._key(seed))
        return np.asarray(drawn)

    def values(self, observation: NDArray[Any], action: NDArray[Any]) -> NDArray[Any]:
        state = self.model.policy.qf_state
        return np.asarray(self._least(state, observation.astype(np.float32), action.astype(np.float32)))


class CrossQAgent(SbxAgent):
    """CrossQ of sbx with its own settings: batch-normalised critics 1,024 wide, an actor update every third step."""

    def __init__(self, task: Task, arm: Arm, seed: int) -> None:
        from sbx import CrossQ

        _refuse_delay(arm, "CrossQ has a delay of its own")
        self.model = CrossQ("MlpPolicy", task.make(), **_common(task, arm, seed))
        self._compile()

    def _weights(self, state: Any) -> Any:
        return {"params": state.params, "batch_stats": state.batch_stats}


class Sb3Agent(_Sb3Interface):
    """SAC of Stable-Baselines3, which knows no delay."""

    def __init__(self, task: Task, arm: Arm, seed: int) -> None:
        from stable_baselines3 import SAC

        _refuse_delay(arm, "Stable-Baselines3's SAC updates the actor at each gradient step")
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


class DqnAgent(_Sb3Interface):
    """DQN of sbx, which knows no delay."""

    def __init__(self, task: Task, arm: Arm, seed: int) -> None:
        import jax
        from sbx import DQN

        _refuse_delay(arm, "DQN has no actor")
        # The learning rate, the target's interval and the exploration are those of a short run.
        own = {
            "learning_rate": 1e-3,
            "train_freq": 1,
            "target_update_interval": 50,
            "exploration_fraction": 0.4,
            "policy_kwargs": {"net_arch": [256, 256]},
            "batch_size": 64,
        }
        self.model = DQN("MlpPolicy", task.make(), **(own | _common(task, arm, seed)))

        @jax.jit
        def all_values(state: Any, observation: Any) -> Any:
            return state.apply_fn(state.params, observation)

        self._all_values = all_values

    def stored(self, action: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(action).reshape(1)

    def explore(self, observation: NDArray[Any], seed: int) -> NDArray[Any]:
        draws = np.random.default_rng(seed)
        best = self.act(observation)
        random = draws.integers(self.model.action_space.n, size=best.shape)
        return np.where(draws.random(best.shape) < self.model.exploration_rate, random, best)[:, None]

    def values(self, observation: NDArray[Any], action: NDArray[Any]) -> NDArray[Any]:
        values = self._all_values(self.model.policy.qf_state, observation.astype(np.float32))
        return np.take_along_axis(np.asarray(values), action.reshape(-1, 1).astype(np.int64), 1)[:, 0]


def _torchrl(task: Task, arm: Arm, seed: int) -> Agent:
    from .torchrl_agent import TorchRLAgent

    return TorchRLAgent(task, arm, seed)


AGENTS: dict[str, Callable[[Task, Arm, int], Agent]] = {
    "sbx": SbxAgent,
    "layer-norm": partial(SbxAgent, layer_norm=True),
    "crossq": CrossQAgent,
    "sb3": Sb3Agent,
    "dqn": DqnAgent,
    "torchrl": _torchrl,
}


def _refuse_delay(arm: Arm, why: str) -> None:
    if arm.policy_delay != 1:
        raise ValueError(f"policy_delay is {arm.policy_delay}; {why}. Use agent='sbx' or 'layer-norm'.")


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
