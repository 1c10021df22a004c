"""The buffer classes: Tianshou's vectorised and prioritised buffers with synthetic transitions mixed in."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from tianshou.data import PrioritizedVectorReplayBuffer, VectorReplayBuffer, to_numpy

from ..replay.options import lists_options
from .mixing import BufferKeywords, SynthERMixin
from .slots import Indices


class SynthERReplayBuffer(SynthERMixin, VectorReplayBuffer):
    """`ReplayBuffer` (``buffer_num=1``) and `VectorReplayBuffer` with synthetic transitions mixed into each batch.

    ``Collector(policy, envs, SynthERReplayBuffer(1_000_000, len(envs)))``

    Branching DQN (BDQN) and Calibrated CQL do not work with synthetic rows: the first reads ends of episodes from the
    raw storage and never bootstraps from them, the second reads 0 as their Monte Carlo return. Use
    `synthetic_fraction=0` with both.

    Where Tianshou's two classes differ although there is one sub-buffer (``sample(None)``, and the random stream with
    ``sample_avail`` and stacked frames), it is as `VectorReplayBuffer`.

    Args: see `SynthERMixin`; everything else is Tianshou's.
    """

    def _real_indices(self, num_rows: int) -> NDArray[Any]:
        # The manager first draws a sub-buffer for each row, which takes half of the time even if there is only one.
        return self.buffers[0].sample_indices(num_rows) if self.buffer_num == 1 else super()._real_indices(num_rows)


class SynthERPrioritizedReplayBuffer(SynthERMixin, PrioritizedVectorReplayBuffer):
    """`PrioritizedVectorReplayBuffer` with synthetic transitions mixed into each batch.

    Only real rows have priorities: synthetic rows are drawn uniformly, and TD errors reported for them are dropped.
    In a batch a synthetic row has the importance weight of a real row of mean priority, which is drawn as often as
    under uniform sampling and so needs no correction.

    With one sub-buffer, ``weight_norm`` and `set_beta` do what they do in `PrioritizedReplayBuffer`; with several they
    are without effect on batches, as in `PrioritizedVectorReplayBuffer`.

    Args: see `SynthERMixin`; ``alpha``, ``beta`` and everything else are Tianshou's.
    """

    @lists_options
    def __init__(self, total_size: int, buffer_num: int = 1, **options: Unpack[BufferKeywords]) -> None:
        super().__init__(total_size, buffer_num, **options)
        if self.buffer_num == 1:
            # Tianshou gives it to the sub-buffers only.
            self._weight_norm = self.buffers[0]._weight_norm

    def set_beta(self, beta: float) -> None:
        """Set the exponent of importance weights; see above."""
        super().set_beta(beta)
        if self.buffer_num == 1:
            self._beta = beta

    def get_weight(self, index: Indices) -> Any:
        """Importance weights, of real and synthetic rows; see Tianshou's own."""
        index = np.asarray(index)
        synthetic = index >= self.maxsize
        if not synthetic.any():
            return super().get_weight(index)
        mean = self.weight.reduce() / len(self)
        weight = np.where(synthetic, mean, self.weight[np.minimum(index, self.maxsize - 1)])
        return (weight / self._min_prio) ** -self._beta

    def update_weight(self, index: NDArray[Any], new_weight: NDArray[Any] | torch.Tensor) -> None:
        """Set the priorities of the real rows among `index` to their TD errors."""
        index, new_weight = np.asarray(index), to_numpy(new_weight)
        if self._keeps_td_errors:
            self._record_td_errors(index, new_weight)
        real = index < self.maxsize
        if real.any():
            super().update_weight(index[real], new_weight[real])

    def reset(self, keep_statistics: bool = False) -> None:
        """Empty the buffer and clear the priorities of its rows, which Tianshou's own buffer keeps."""
        super().reset(keep_statistics)
        if self._num_slots:
            self.weight[np.arange(self.maxsize)] = np.zeros(self.maxsize)

    def _rows_stored(self, slots: NDArray[Any]) -> None:
        self.init_weight(slots)

    def _rows_moved(self, source: NDArray[Any], target: NDArray[Any], before: NDArray[Any]) -> None:
        super()._rows_moved(source, target, before)
        weight = self.weight[source]
        self.weight[before] = np.zeros(len(before))
        if len(target):
            self.weight[target] = weight
