"""Prioritised replay: real rows by their priority, synthetic rows uniformly and without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchrl.data import PrioritizedSampler

from ..replay.interleaving import batch_order_on
from .addresses import is_synthetic

if TYPE_CHECKING:
    from .mixing import SynthERStorageMixin


class SynthERPrioritizedSampler(PrioritizedSampler):  # type: ignore[misc]  # TorchRL ships no types
    """`PrioritizedSampler` whose batches are partly synthetic where the storage is a `SynthERStorage`.

    Real rows are drawn by their priority, as in `PrioritizedSampler`. Synthetic rows are drawn uniformly and have no
    priority; updates of it are ignored. Their importance weight is that of a real row of mean priority: a uniform draw
    needs no correction, so it is 1 before all weights are divided by the largest possible one.

    A plain `PrioritizedSampler` becomes one as soon as its buffer writes or reads, so users do not need to name this
    class.

    Args: `PrioritizedSampler`'s.
    """

    def sample(self, storage: SynthERStorageMixin, batch_size: int) -> tuple[Any, dict[str, Any]]:
        """Addresses of a batch, real and synthetic rows interleaved, and ``priority_weight`` ``[N]``."""
        if not hasattr(storage, "split_batch"):
            return super().sample(storage, batch_size)
        num_real, num_synthetic = storage.split_batch(batch_size)
        if num_synthetic == 0:
            return super().sample(storage, batch_size)
        # The trees cannot draw 0 rows, and return the weight of a single row without a dimension.
        index, info = super().sample(storage, max(num_real, 1))
        weight = info["priority_weight"].reshape(-1)[:num_real]
        weight = torch.cat((weight, self._uniform_weight(storage, weight).expand(num_synthetic)))
        info["priority_weight"] = weight[batch_order_on(num_real, num_synthetic, weight.device)]
        index = tuple(part[:num_real] for part in index) if isinstance(index, tuple) else index[:num_real]
        return storage.add_synthetic(index, num_synthetic), info

    def _uniform_weight(self, storage: SynthERStorageMixin, like: Tensor) -> Tensor:
        """The weight that `PrioritizedSampler` gives a row of mean priority, ``[]``."""
        first: Any = 0
        last: Any = len(storage)
        if self.device.type == "cuda":
            first, last = (torch.tensor(bound, device=self.device) for bound in (first, last))
        lowest, total = self._min_tree.query(first, last), self._sum_tree.query(first, last)
        mean = torch.as_tensor(total, dtype=like.dtype, device=like.device) / len(storage)
        return torch.pow(mean / lowest, -self._beta)

    def update_priority(self, index: Any, priority: Any, *, storage: Any = None) -> None:
        """Set the priorities of the real rows; those of synthetic rows are ignored.

        Args:
            index: ``[N]`` addresses, or ``[N, ndim]`` ones; a tensor, an array or a list.
            priority: ``[N]``, or one for all.
            storage: where the rows are.
        """
        if isinstance(index, np.ndarray | list):
            index = torch.as_tensor(index)
        if hasattr(storage, "record_td_errors") and isinstance(index, Tensor) and index.ndim > 0:
            self._record(index, torch.as_tensor(priority), storage)
        if isinstance(index, Tensor) and index.ndim > 0:
            real = ~is_synthetic(index)
            if not bool(real.all()):
                index, priority = index[real], torch.as_tensor(priority)
                if len(index) == 0:
                    return
                if priority.numel() > 1:
                    priority = priority.reshape(len(real))[real.to(priority.device)]
        super().update_priority(index, priority, storage=storage)

    def _record(self, index: Tensor, priority: Tensor, storage: SynthERStorageMixin) -> None:
        """Tell the storage the TD errors that priorities are made of; new rows have the default one, which is none."""
        if priority.numel() != len(index):
            return
        default = torch.as_tensor(self.default_priority, dtype=priority.dtype, device=priority.device)
        if not bool(torch.isclose(priority, default).all()):
            storage.record_td_errors(index, priority)


def adopt(sampler: Any) -> bool:
    """Whether this sampler's batches can hold synthetic rows; turns a plain prioritised sampler into one that mixes.

    The sampler's class is changed instead of replacing the object, because others (a scheduler of its beta) may hold a
    reference to it.
    """
    if type(sampler) is PrioritizedSampler:
        sampler.__class__ = SynthERPrioritizedSampler
    return isinstance(sampler, SynthERPrioritizedSampler)
