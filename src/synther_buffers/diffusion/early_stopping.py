"""Early stopping: keeps the weights with the lowest loss on held-out rows, and ends training once the loss rises.

With few rows a denoiser first learns what they have in common and then, after a number of steps in proportion to the
rows, memorises the rows (Bonnaire et al., NeurIPS 2025; for tables Fang et al., ICML 2025). The held-out loss begins to
rise where memorisation begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn.utils import parameters_to_vector

from .edm import Preconditioner


class EarlyStopping:
    """Evaluates the averaged weights at intervals and keeps those with the lowest loss.

    Args:
        judge: the loss on held-out rows, always with the same noise, so that its values can be compared.
        look_every: steps between two evaluations.
        patience: consecutive evaluations without a new lowest loss after which training ends.

    Attributes:
        least: loss of the kept weights, infinite before the first evaluation.
        least_step: after which step they were taken.
        stopped_at: step at which training ended before its budget, or None.
    """

    def __init__(self, judge: Callable[[Preconditioner], float], look_every: int, patience: int) -> None:
        self._judge, self._look_every, self._patience = judge, look_every, patience
        self.least, self.least_step = math.inf, 0
        self.stopped_at: int | None = None
        self._weights: Tensor | None = None

    def due(self, step: int, num_steps: int) -> bool:
        """Whether to evaluate after a step, counted from 1; always after the last."""
        return step % self._look_every == 0 or step == num_steps

    def look(self, averaged: Preconditioner, step: int) -> bool:
        """Evaluate the averaged weights after a step; True if training should end here."""
        loss = self._judge(averaged)
        # False for a loss that is NaN.
        if loss < self.least:
            self.least, self.least_step = loss, step
            self._weights = parameters_to_vector(averaged.parameters()).detach().clone()
        elif step - self.least_step >= self._patience * self._look_every:
            self.stopped_at = step
            return True
        return False

    def best(self, last: Tensor) -> Tensor:
        """The kept weights; `last` if there are none."""
        return last if self._weights is None else self._weights
