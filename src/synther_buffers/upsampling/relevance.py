"""The relevance of rows on the scale that the denoiser learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Points of the table of quantiles.
_POINTS = 1_001


@dataclass(frozen=True)
class RelevanceScale:
    """Turns a relevance in any unit into the normal score of its rank among the training rows.

    Ranks make any unit and any outlier harmless; the score of a normal distribution with that rank is a scale on which
    the differences among the highest ranks, which are asked for, are not the smallest.

    Attributes:
        quantiles: of the training rows' relevance, at equal steps of the rank, ``[k]`` float64 ascending.
    """

    quantiles: Tensor

    @classmethod
    def measure(cls, relevance: Tensor) -> RelevanceScale:
        """The scale of these rows, ``[N]``.

        Raises:
            ValueError: values that are not finite, or all the same.
        """
        ordered = relevance.detach().double().cpu().sort().values
        if not bool(torch.isfinite(ordered).all()):
            raise ValueError("relevance has values that are not finite; wanted one number for each row.")
        if float(ordered[0]) == float(ordered[-1]):
            raise ValueError(
                f"relevance is {float(ordered[0]):g} in all rows, so there is nothing to tell them apart by."
            )
        position = torch.linspace(0, len(ordered) - 1, _POINTS, dtype=torch.float64, device="cpu")
        below = position.floor().long()
        above = (below + 1).clamp(max=len(ordered) - 1)
        return cls(torch.lerp(ordered[below], ordered[above], position - below))

    def scores(self, relevance: Tensor) -> Tensor:
        """Normal scores, ``[n]`` float32 on the CPU; equal values have the score of their middle rank.

        Args:
            relevance: ``[n]`` in the unit of the training rows.

        Raises:
            ValueError: outside the range of the training rows, or not finite.
        """
        value, table = relevance.detach().double().cpu().contiguous(), self.quantiles
        low, high = float(table[0]), float(table[-1])
        inside = (value >= low) & (value <= high)
        if not bool(inside.all()):
            row = int((~inside).nonzero()[0])
            raise ValueError(
                f"relevance is {float(value[row]):g} in row {row} of the condition; the rows that were learned have "
                f"{low:g} to {high:g}."
            )
        first = torch.searchsorted(table, value, right=False)
        last = torch.searchsorted(table, value, right=True) - 1
        # Between two points of the table `last` is the lower and `first` the upper one.
        width = (table[first] - table[last]).clamp(min=torch.finfo(torch.float64).tiny)
        between = last + (value - table[last]) / width
        rank = torch.where(last < first, between, (first + last) / 2) / (len(table) - 1)
        least = 0.5 / len(table)
        return torch.special.ndtri(rank.clamp(least, 1.0 - least)).float()

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name."""
        return {"quantiles": self.quantiles}
