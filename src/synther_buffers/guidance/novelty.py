"""Relevance by novelty: rows with few others near them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..evaluation.points import CHUNK, Units
from ..public_paths import public
from ..transitions import RowOrder, Transitions
from ..upsampling.seeds import derive_seed, generator
from ..validation import whole_number
from .base import FieldGuidance

#: Rows among which neighbours are searched.
_RECORDS = 4_096


@public
@dataclass(frozen=True, kw_only=True)
class Novelty(FieldGuidance):
    """The distance to the nearest other real rows, in observation and action.

    Each element counts in its standard deviation over the real rows. The neighbours are searched among at most 4,096
    of them.

    Attributes:
        neighbours: how many of the nearest rows the mean distance is taken to.
    """

    neighbours: int = 5

    def __post_init__(self) -> None:
        """Reject values out of range with an error that names them."""
        super().__post_init__()
        object.__setattr__(self, "neighbours", whole_number("guidance.neighbours", self.neighbours, 1))

    def relevance(self, transitions: Transitions, order: RowOrder) -> Tensor:
        """The mean distance, ``[N]``."""
        spec = self.spec_of(transitions)
        units = Units.measure(transitions, spec)
        points = units.columns((*spec.observation, spec.action), transitions.flat()).float()
        draws = generator(derive_seed(0, "novelty"))
        chosen = torch.randperm(len(points), generator=draws, device="cpu")[:_RECORDS]
        place = torch.full((len(points),), -1, device="cpu")
        place[chosen] = torch.arange(len(chosen), device="cpu")
        count = min(self.neighbours, len(chosen) - 1)
        found = []
        for part, own in zip(points.split(CHUNK), place.split(CHUNK), strict=True):
            distance = torch.cdist(part, points[chosen])
            itself = own >= 0
            distance[itself.nonzero()[:, 0], own[itself]] = torch.inf
            found.append(distance.topk(count, dim=1, largest=False).values.mean(1))
        return torch.cat(found)
