"""Which rows of the last batch are synthetic."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .interleaving import is_synthetic_place


class LastBatch:
    """How the last batch was made. The mask is computed when it is asked for, so that a batch costs one assignment."""

    def __init__(self) -> None:
        self._made: tuple[int, int] | Callable[[], Tensor] | None = None

    def interleaved(self, num_real: int, num_synthetic: int) -> None:
        """It has so many rows of each kind, in the order of `interleaving.batch_order`."""
        self._made = num_real, num_synthetic

    def told_by(self, mask: Callable[[], Tensor]) -> None:
        """It is in another order.

        Args:
            mask: computes which rows are synthetic, ``[batch_size]`` bool on any device.
        """
        self._made = mask

    def mask(self) -> Tensor | None:
        """Which rows are synthetic, ``[batch_size]`` bool in new memory of the CPU; None before the first batch."""
        if self._made is None:
            return None
        if isinstance(self._made, tuple):
            return torch.tensor(is_synthetic_place(*self._made), device="cpu")
        return self._made().cpu()
