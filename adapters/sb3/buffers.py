"""The buffer classes: SB3's flat, Dict and n-step buffers with synthetic transitions mixed in."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from ..replay.interleaving import batch_order_on
from ..replay.options import SyntheticKeywords, lists_options
from ..transitions import SEPARATOR, Transitions
from ..validation import whole_number
from .mixing import Samples, SynthERMixin


def _reject_dict(name: str, space: spaces.Space, instead: str) -> None:
    if isinstance(space, spaces.Dict):
        raise TypeError(f"{name} does not take Dict observations (got {space}); {instead}")


class SynthERBuffer(SynthERMixin, ReplayBuffer):
    """`ReplayBuffer` for Box and discrete observations, with synthetic transitions mixed into each batch.

    ``SAC("MlpPolicy", env, replay_buffer_class=SynthERBuffer, replay_buffer_kwargs={...}, gradient_steps=10)``

    Args: see `SynthERMixin`; everything else is Stable-Baselines3's.
    """

    @lists_options
    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        **options: Unpack[SyntheticKeywords],
    ) -> None:
        _reject_dict("SynthERBuffer", observation_space, "use replay_buffer_class=SynthERDictBuffer.")
        if "n_steps" in options:
            raise TypeError(
                "SynthERBuffer stores one-step transitions; for n_steps use replay_buffer_class=SynthERNStepBuffer."
            )
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device,
            n_envs,
            optimize_memory_usage,
            handle_timeout_termination,
            **options,
        )


class SynthERDictBuffer(SynthERMixin, DictReplayBuffer):
    """`DictReplayBuffer` with synthetic transitions mixed into each batch.

    Args: see `SynthERMixin`; everything else is Stable-Baselines3's.
    """

    @lists_options
    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        **options: Unpack[SyntheticKeywords],
    ) -> None:
        if not isinstance(observation_space, spaces.Dict):
            raise TypeError(
                f"SynthERDictBuffer wants Dict observations (got {observation_space}); "
                "use replay_buffer_class=SynthERBuffer."
            )
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device,
            n_envs,
            optimize_memory_usage,
            handle_timeout_termination,
            **options,
        )

    def _real_arrays(self) -> dict[str, NDArray[Any]]:
        arrays = {f"observation{SEPARATOR}{key}": self._flat(array) for key, array in self.observations.items()}
        arrays["action"] = self._flat(self.actions)
        arrays["reward"] = self.rewards.reshape(-1, 1)
        arrays |= {
            f"next_observation{SEPARATOR}{key}": self._flat(array) for key, array in self.next_observations.items()
        }
        return arrays

    def _pack(self, batch: dict[str, Tensor], dones: Tensor, env: VecNormalize | None) -> Samples:
        keys = self.observation_space.spaces
        sides = []
        for side in ("observation", "next_observation"):
            observation: dict[str, Any] = {key: batch[f"{side}{SEPARATOR}{key}"] for key in keys}
            if env is not None:
                arrays = {key: tensor.cpu().numpy() for key, tensor in observation.items()}
                normalized: Any = self._normalize_obs(arrays, env)
                observation = {key: self._to_device(array) for key, array in normalized.items()}
            sides.append(observation)
        reward = batch["reward"]
        if env is not None:
            reward = self._to_device(self._normalize_reward(reward.cpu().numpy(), env))
        return DictReplayBufferSamples(sides[0], batch["action"], sides[1], dones, reward)


class SynthERNStepBuffer(SynthERMixin, NStepReplayBuffer):
    """`NStepReplayBuffer` with synthetic n-step transitions mixed into each batch.

    Real rows are the buffer's own n-step rows; the upsampler learns the same n-step form of every stored row and
    generates ``(s, a, sum of discounted rewards, s k steps later, terminated, gamma ** k)``. With `VecNormalize` the
    synthetic sum is divided by the reward's scale but not clipped, whereas the buffer clips each real reward before
    summing: the two agree as long as no single reward is clipped.

    Args: see `SynthERMixin`; `n_steps`, `gamma` and everything else are Stable-Baselines3's. SB3 does not pass the
        algorithm's `n_steps` to a custom buffer class: pass both in `replay_buffer_kwargs`.
    """

    _framework_keywords = ("n_steps", "gamma")

    @lists_options
    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        n_steps: int = 3,
        gamma: float = 0.99,
        **options: Unpack[SyntheticKeywords],
    ) -> None:
        _reject_dict("SynthERNStepBuffer", observation_space, "Stable-Baselines3 has no n-step buffer for them.")
        n_steps = whole_number("n_steps", n_steps, 1)
        if not 0.0 < gamma <= 1.0:
            raise ValueError(f"gamma is {gamma!r}; it must lie above 0 and be at most 1.")
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device,
            n_envs,
            optimize_memory_usage,
            handle_timeout_termination,
            n_steps=n_steps,  # type: ignore[call-arg]  # passed on to the class to the right
            gamma=gamma,
            **options,
        )

    def _discounts(self) -> tuple[float, ...]:
        return tuple(float(np.float32(self.gamma) ** np.float32(k)) for k in range(1, self.n_steps + 1))

    def _mixed(self, num_real: int, num_synthetic: int, env: VecNormalize | None) -> Samples:
        real: Any = NStepReplayBuffer.sample(self, num_real, env)
        rows, index = self._synthetic_batch_rows(), self.synthetic.draw_indices(num_synthetic)
        drawn = {name: tensor.index_select(0, index) for name, tensor in rows.items()}
        synthetic: Any = self._pack(drawn, drawn["terminated"], env)
        order = batch_order_on(num_real, num_synthetic, real.rewards.device)
        return ReplayBufferSamples(
            *(
                torch.cat((ours, theirs.to(ours.dtype))).index_select(0, order)
                for ours, theirs in zip(real, synthetic, strict=True)
            )
        )

    def _pack(self, batch: dict[str, Tensor], dones: Tensor, env: VecNormalize | None) -> Samples:
        observation, next_observation, reward = batch["observation"], batch["next_observation"], batch["reward"]
        if env is not None:
            observation, next_observation = self._normalized(observation, env), self._normalized(next_observation, env)
            if env.norm_reward:
                reward = reward / float(np.sqrt(env.ret_rms.var + env.epsilon))
        return ReplayBufferSamples(observation, batch["action"], next_observation, dones, reward, batch["discount"])

    def real_transitions(self) -> Transitions:
        """The n-step form of every stored row, of all environments, without drawing or writing anything."""
        size, shape = self.size(), (self.size(), self.n_envs)
        last_written = (self.pos - 1) % self.buffer_size
        stops = (self.dones[:size] > 0) | (self.timeouts[:size] > 0)
        # In the ring, the newest row is followed by the oldest one, which does not continue its trajectory.
        stops[last_written] = True
        slots = np.broadcast_to(np.arange(size)[:, None], shape)
        envs = np.broadcast_to(np.arange(self.n_envs), shape)
        reward = np.zeros(shape, np.float32)
        going, last, steps = np.ones(shape, np.bool_), slots.copy(), np.zeros(shape, np.int64)
        for step in range(self.n_steps):
            now = (slots + step) % self.buffer_size
            now = np.where(going, now, 0)
            reward += np.where(
                going, np.float32(self.gamma) ** np.float32(step) * self.rewards[now, envs], np.float32(0)
            )
            last = np.where(going, now, last)
            steps += going
            going &= ~stops[now, envs]
        observation, action = self._flat(self.observations[:size]), self._flat(self.actions[:size])
        terminated = (self.dones[last, envs] > 0) & (self.timeouts[last, envs] == 0)
        discounts = np.array(self._discounts(), np.float32)
        columns = {
            "observation": observation,
            "action": action,
            "reward": reward,
            "next_observation": self._flat(self.next_observations[last, envs]),
            "terminated": terminated,
            "discount": discounts[steps - 1],
        }
        return Transitions.from_flat(
            {
                field.name: torch.from_numpy(columns[field.name].reshape(size * self.n_envs, *field.shape))
                for field in self._make_spec().fields
            }
        )
