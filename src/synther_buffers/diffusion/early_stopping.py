"""Early stopping: the weights at the least loss on held-out rows, and an end to training that makes it worse.

With few rows a denoiser first learns what they have in common and then, after a number of steps in proportion to the
rows, the rows themselves (Bonnaire et al., NeurIPS 2025; for tables Fang et al., ICML 2025). The held-out loss turns
where the second begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn.utils import parameters_to_vector

from .edm import Preconditioner


class EarlyStopping:
    """Looks at the averaged weights now and then and keeps those at the least loss.

    Args:
        judge: the loss on held-out rows, always with the same noise, so that two looks can be compared.
        look_every: steps between looks.
        patience: looks in a row without a new least loss after which training ends.

    Attributes:
        least: loss of the kept weights, infinite before the first look.
        least_step: after which step they were taken.
        stopped_at: step at which training ended before its budget, or None.
    """

    def __init__(self, judge: Callable[[Preconditioner], float], look_every: int, patience: int) -> None:
        self._judge, self._look_every, self._patience = judge, look_every, patience
        self.least, self.least_step = math.inf, 0
        self.stopped_at: int | None = None
        self._weights: Tensor | None = None

    def due(self, step: int, num_steps: int) -> bool:
        """Whether to look after a step, counted from 1; always after the last."""
        return step % self._look_every == 0 or step == num_steps

    def look(self, averaged: Preconditioner, step: int) -> bool:
        """Judge the averaged weights after a step; True if training is to end here."""
        loss = self._judge(averaged)
        # A loss that is NaN is never the least.
        if loss < self.least:
            self.least, self.least_step = loss, step
            self._weights = parameters_to_vector(averaged.parameters()).detach().clone()
        elif step - self.least_step >= self._patience * self._look_every:
            self.stopped_at = step
            return True
        return False

    def best(self, last: Tensor) -> Tensor:
        """The kept weights; `last` if no look gave a loss."""
        return last if self._weights is None else self._weights
