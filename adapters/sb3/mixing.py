"""What the Stable-Baselines3 buffers share: counting writes, refreshing, and gathering mixed batches."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from torch import Tensor

from ..replay.interleaving import batch_order_on, gather
from ..replay.options import SyntheticKeywords, lists_options, split_keywords
from ..replay.synthetic_replay import SyntheticReplay
from ..transitions import RowOrder, Transitions, TransitionSpec

Samples = ReplayBufferSamples | DictReplayBufferSamples


class SynthERMixin(ReplayBuffer):
    """Adds synthetic transitions to the Stable-Baselines3 buffer class to its right in the bases.

    Args:
        buffer_size, observation_space, action_space, device, n_envs, optimize_memory_usage, handle_timeout_termination:
            Stable-Baselines3's.
        **options: those of `synther_buffers.SyntheticOptions`; the default of `seed` is the one that the algorithm has
            set.

    Attributes:
        synthetic: the `SyntheticReplay`, with the schedule, the synthetic rows and the reports of the refreshes.

    Raises:
        ValueError: an argument out of range, or `optimize_memory_usage`; at the first `add`, a buffer smaller than
            `retrain_every`.
        TypeError: an argument of the wrong type, or an observation space that needs another class.
    """

    synthetic: SyntheticReplay
    #: Further keywords of the class to the right.
    _framework_keywords: tuple[str, ...] = ()

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
        if isinstance(self, HerReplayBuffer) or {"n_sampled_goal", "goal_selection_strategy"} & set(options):
            raise TypeError(
                f"{type(self).__name__} does not support hindsight experience replay: synthetic rows would have to be "
                "relabelled before they are learned. Use HerReplayBuffer alone, or SynthERDictBuffer without HER."
            )
        if optimize_memory_usage:
            raise ValueError(
                "optimize_memory_usage=True is not supported: it does not store next observations, so the rows at "
                "episode ends are wrong. Leave it False."
            )
        chosen, others = split_keywords(type(self).__name__, options, self._framework_keywords)
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device,
            n_envs,
            optimize_memory_usage,
            handle_timeout_termination,
            **others,
        )
        advice = f"Pass gradient_steps={10 * n_envs}, which with train_freq=1 are ten."
        self.synthetic = SyntheticReplay(self._make_spec(), device=self.device, update_advice=advice, **chosen)
        self.synthetic.limit_capacity("buffer_size", buffer_size, self.buffer_size * self.n_envs)
        self._num_adds = 0
        self._batch_rows: dict[str, Tensor] = {}
        self._batch_rows_of: Transitions | None = None

    def _make_spec(self) -> TransitionSpec:
        """The fields of this buffer's transitions."""
        action_space, bounds = self.action_space, None
        if isinstance(action_space, spaces.Box):
            # As they are stored: flattened, and never in float64. SB3's algorithms scale them to [-1, 1], but other
            # training loops may not, so the range is taken from the rows.
            action_space = spaces.Box(0, 1, (self.action_dim,), self.actions.dtype.type)
            bounds = (-np.inf, np.inf)
        return TransitionSpec.from_spaces(
            self.observation_space, action_space, action_bounds=bounds, discounts=self._discounts()
        )

    def _discounts(self) -> tuple[float, ...]:
        """The discount of each number of steps a row can span; none for one-step rows."""
        return ()

    # -- writing -----------------------------------------------------------------------------------------------------

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one transition of each environment; see the buffer's own `add`.

        Raises:
            ValueError: rows of another number of environments, or a buffer smaller than `retrain_every`.
        """
        self.synthetic.check_capacity()
        num_rows = np.asarray(done).size
        if num_rows != self.n_envs:
            raise ValueError(
                f"{num_rows} row(s) came in, but this buffer was made for n_envs={self.n_envs}: it may have been "
                f"loaded from the file of a run with {self.n_envs} environment(s). Go on with as many "
                f"(make_vec_env(..., n_envs={self.n_envs})), or leave load_replay_buffer out."
            )
        num_slots = self._num_slots_written()
        super().add(obs, next_obs, action, reward, done, infos)
        self._num_adds = num_slots + 1
        self.synthetic.observe_total(self._num_adds * self.n_envs)

    def _num_slots_written(self) -> int:
        """Slots ever written by `add`; at least those with rows, because the arrays may be filled directly."""
        return max(self._num_adds, self.size())

    def reset(self) -> None:
        """Empty the buffer and forget the synthetic set, the model and the counters."""
        super().reset()
        self._num_adds = 0
        self.synthetic.reset()
        self._batch_rows, self._batch_rows_of = {}, None

    # -- reading -----------------------------------------------------------------------------------------------------

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        """A batch in the format of SB3's buffer, partly synthetic after the first refresh.

        Args:
            batch_size: rows in all.
            env: normalises observations and rewards of real and synthetic rows.
        """
        synthetic = self.synthetic
        synthetic.observe_total(self._num_slots_written() * self.n_envs)
        if synthetic.refresh_due:
            synthetic.refresh(self.real_transitions, self.row_order)
        if synthetic.redraw_due:
            synthetic.redraw_policy_rows(self.real_transitions)
        num_real, num_synthetic = synthetic.split(batch_size)
        if num_synthetic == 0:
            return super().sample(batch_size, env)
        return self._mixed(num_real, num_synthetic, env)

    def _mixed(self, num_real: int, num_synthetic: int, env: VecNormalize | None) -> Samples:
        """Real rows are drawn as the buffer's own `sample` draws them, from NumPy's global stream."""
        upper = self.buffer_size if self.full else self.pos
        steps = np.random.randint(0, upper, size=num_real)  # noqa: NPY002
        envs = np.random.randint(0, high=self.n_envs, size=num_real)  # noqa: NPY002
        real_rows = steps * self.n_envs + envs
        synthetic = self._synthetic_batch_rows()
        synthetic_rows = self.synthetic.draw_indices(num_synthetic)
        batch = {
            name: _gather(array, real_rows, synthetic[name], synthetic_rows)
            for name, array in self._real_arrays().items()
        }
        # As in SB3's buffer, a time limit does not stop bootstrapping.
        ended = self.dones.reshape(-1, 1)[real_rows] * (1 - self.timeouts.reshape(-1, 1)[real_rows])
        dones = _gather(ended, np.arange(num_real), synthetic["terminated"], synthetic_rows)
        return self._pack(batch, dones, env)

    def _pack(self, batch: dict[str, Tensor], dones: Tensor, env: VecNormalize | None) -> Samples:
        """The framework's tuple from gathered fields, normalised by `env` if there is one."""
        observation, next_observation, reward = batch["observation"], batch["next_observation"], batch["reward"]
        if env is not None:
            observation = self._normalized(observation, env)
            next_observation = self._normalized(next_observation, env)
            reward = self._to_device(self._normalize_reward(reward.cpu().numpy(), env))
        return ReplayBufferSamples(observation, batch["action"], next_observation, dones, reward)

    def _normalized(self, observation: Tensor, env: VecNormalize) -> Tensor:
        normalized = self._normalize_obs(observation.cpu().numpy(), env)
        return self._to_device(normalized)

    def _to_device(self, array: Any) -> Tensor:
        return torch.as_tensor(array, device=self.device)

    def as_batch(self, rows: Transitions, algorithm: Any) -> Any:
        """Rows of this buffer as a batch of the algorithm that samples it, normalised as it has them."""
        layout = {name: tensor.to(self.device) for name, tensor in self._batch_layout(rows).items()}
        return self._pack(layout, layout["terminated"], algorithm._vec_normalize_env)

    def _synthetic_batch_rows(self) -> dict[str, Tensor]:
        """The synthetic set in the shapes and dtypes of this buffer's batches; made once per refresh."""
        synthetic = self.synthetic
        device = torch.device(self.device)
        if synthetic.device != device:
            synthetic.to(device)
        rows = synthetic.served()
        if self._batch_rows_of is not rows:
            self._batch_rows, self._batch_rows_of = self._batch_layout(rows), rows
        return self._batch_rows

    def _batch_layout(self, rows: Transitions) -> dict[str, Tensor]:
        """Fields as in the buffer's batches: scalars as columns, flags as float32."""
        layout = {name: tensor.unsqueeze(1) if tensor.ndim == 1 else tensor for name, tensor in rows.flat().items()}
        layout["terminated"] = layout["terminated"].to(torch.float32)
        return layout

    # -- the real rows -----------------------------------------------------------------------------------------------

    def _flat(self, array: NDArray[Any]) -> NDArray[Any]:
        """``[steps, n_envs, ...]`` as ``[steps * n_envs, ...]``, a view."""
        return array.reshape(-1, *array.shape[2:])

    def _real_arrays(self) -> dict[str, NDArray[Any]]:
        """The stored fields of a batch except the flags, ``[steps * n_envs, ...]`` views of the whole storage."""
        return {
            "observation": self._flat(self.observations),
            "action": self._flat(self.actions),
            "reward": self.rewards.reshape(-1, 1),
            "next_observation": self._flat(self.next_observations),
        }

    def real_transitions(self) -> Transitions:
        """Every stored row, not normalised and without time limits as terminals; views where dtype and shape allow."""
        num_rows = self.size() * self.n_envs
        columns = {name: torch.from_numpy(array[:num_rows]) for name, array in self._real_arrays().items()}
        ended, timed_out = self._flat(self.dones)[:num_rows], self._flat(self.timeouts)[:num_rows]
        columns["terminated"] = torch.from_numpy((ended * (1 - timed_out)) > 0)
        return Transitions.from_flat(
            {field.name: columns[field.name].reshape(num_rows, *field.shape) for field in self._make_spec().fields}
        )

    def row_order(self) -> RowOrder:
        """When each row was written, in the order of `real_transitions`."""
        return RowOrder.of_ring(self.dones[: self.size()] > 0, self.pos, self._num_slots_written())

    # -- persistence -------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is derived from the synthetic set."""
        return {**self.__dict__, "_batch_rows": {}, "_batch_rows_of": None}


def _gather(real: NDArray[Any], real_rows: NDArray[np.int64], synthetic: Tensor, synthetic_rows: Tensor) -> Tensor:
    """Rows of both, interleaved, in one new tensor on the synthetic set's device."""
    if synthetic.device.type != "cpu":
        stored = torch.from_numpy(real[real_rows]).to(synthetic.device)
        both = torch.cat((stored, synthetic.index_select(0, synthetic_rows)))
        return both.index_select(0, batch_order_on(len(real_rows), len(synthetic_rows), synthetic.device))
    return torch.from_numpy(gather(real, real_rows, synthetic.numpy(), synthetic_rows.numpy()))
