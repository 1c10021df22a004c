"""Synthetic rows that are chosen by their relevance: what of a guidance travels with a refresh, and the draw."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..evaluation.points import Units
from ..regression import Ensemble
from ..transitions import Transitions, TransitionSpec, concatenate
from ..upsampling.condition import Condition
from ..upsampling.diffusion_upsampler import DiffusionUpsampler
from ..upsampling.protocol import FitReport, Upsampler
from ..upsampling.seeds import derive_seed, generator
from .base import Mechanism
from .classes import Classes

logger = logging.getLogger(__name__)

#: Rows that are drawn for each row of the set, by resampling, and at most for quotas.
_CANDIDATES, _MOST_CANDIDATES = 4, 8
#: Gradient steps of the regression that tells the relevance of generated rows.
_REGRESSION_STEPS = 400
#: Rows that are converted to points at a time.
_ROWS_AT_ONCE = 65_536

#: Draws so many rows, under a condition or, with None, like the data.
Draw = Callable[[int, Condition | None], Transitions]


def rows_drawn(num_rows: int, by: Mechanism) -> int:
    """Rows of an unguided draw that take as long to generate as a guided set of `num_rows`."""
    # A row that is asked for is computed with the condition and without it.
    return num_rows * (_CANDIDATES if by == "resampling" else 2)


@dataclass(frozen=True)
class GuidedDraw:
    """How a refresh learns and draws rows by their relevance: plain data that travels with its job.

    Attributes:
        name: of the guidance, for reports.
        relevance: of the training rows, ``[N]`` on the CPU: the normal scores of its ranks, or the rarity of classes.
        strength: see `Guidance`.
        by: likewise.
        classes: quotas of classes, instead of relevant rows; or None.
    """

    name: str
    relevance: Tensor
    strength: float
    by: Mechanism
    classes: Classes | None = None

    def fit(self, upsampler: Upsampler, train: Transitions, held_out: Transitions) -> FitReport:
        """Fit the upsampler, with the relevance if it is to be asked for."""
        if self.by == "condition" and isinstance(upsampler, DiffusionUpsampler):
            return upsampler.fit(train, held_out=held_out, relevance=self.relevance)
        return upsampler.fit(train, held_out=held_out)

    def rows(self, draw: Draw, train: Transitions, spec: TransitionSpec, num_rows: int, seed: int) -> Transitions:
        """The synthetic set.

        Args:
            draw: of the fitted upsampler.
            train: the rows that it learned.
            spec: their fields.
            num_rows: to return.
            seed: of the choice.
        """
        draws = generator(derive_seed(seed, "guided rows"))
        if self.classes is not None:
            return self._by_quotas(self.classes, draw, num_rows, draws)
        if self.by == "condition":
            wanted = self.strength * self.relevance.double()
            weights = (wanted - wanted.max()).exp()
            return draw(num_rows, Condition(relevance=self.relevance[_weighted(weights, num_rows, draws)]))
        return self._resampled(draw, train, spec, num_rows, draws)

    def _resampled(
        self, draw: Draw, train: Transitions, spec: TransitionSpec, num_rows: int, draws: torch.Generator
    ) -> Transitions:
        units = Units.measure(train, spec)
        regression: Ensemble | None = None
        parts = []
        for number in range(_CANDIDATES):
            candidates = draw(num_rows, None)
            if regression is None:
                device = candidates.device  # the upsampler's
                own = generator(derive_seed(draws.initial_seed(), "regression"), device)
                inputs = _points(units, train).to(device)
                regression = Ensemble.fit(inputs, self.relevance[:, None].float().to(device), own, _REGRESSION_STEPS)
            expected = regression.predict(_points(units, candidates).to(candidates.device))[:, 0].cpu()
            # A regression's answers vary less than what it learned; their ranks do not.
            rank = (expected.argsort().argsort().double() + 0.5) / num_rows
            # The largest of these keys are a draw without replacement by softmax (Gumbel top-k; Vieira 2014).
            chance = torch.empty(num_rows, dtype=torch.float64, device="cpu").exponential_(generator=draws)
            wanted = num_rows * (number + 1) // _CANDIDATES - num_rows * number // _CANDIDATES
            best = (self.strength * torch.special.ndtri(rank) - chance.log()).topk(wanted).indices
            parts.append(candidates[best.to(candidates.device)])
        return concatenate(parts)

    def _by_quotas(self, classes: Classes, draw: Draw, num_rows: int, draws: torch.Generator) -> Transitions:
        lacking = classes.counts(num_rows)
        found: list[list[Transitions]] = [[] for _ in lacking]
        budget = _MOST_CANDIDATES * num_rows
        while int(lacking.sum()) > 0 and budget > 0:
            count = min(max(math.ceil(1.2 * int(lacking.sum())), num_rows // 4, 1), budget)
            condition = None
            if self.by == "condition":
                asked = _weighted(lacking.double(), count, draws)
                condition = Condition(relevance=classes.rarity[asked])
            candidates = draw(count, condition)
            budget -= count
            belongs = classes.of(candidates)
            for number in lacking.nonzero()[:, 0].tolist():
                rows = (belongs == number).nonzero()[:, 0][: int(lacking[number])]
                if len(rows):
                    found[number].append(candidates[rows.to(candidates.device)])
                    lacking[number] -= len(rows)
        parts = [concatenate(rows) for rows in found if rows]
        if not parts:
            raise ValueError(f"no generated row is of a class that the quotas of {', '.join(classes.names)} want")
        for number, generated in enumerate(found):
            if generated and (short := int(lacking[number])):
                rows = concatenate(generated)
                parts.append(_repeated(rows, short, draws))
                lacking[number] = 0
                logger.warning(
                    "%d of the synthetic rows of the class %s are repeated: the model seldom generates it.",
                    short, classes.values[number].tolist(),
                )  # fmt: skip
        if short := int(lacking.sum()):
            rows = concatenate(parts)
            parts = [rows, _repeated(rows, short, draws)]
            missing = classes.values[lacking > 0].tolist()
            logger.warning("No synthetic row is of the classes %s: the model does not generate them.", missing)
        rows = concatenate(parts)
        return rows[torch.randperm(num_rows, generator=draws, device="cpu").to(rows.device)]

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors."""
        classes = None if self.classes is None else {**vars(self.classes), "names": list(self.classes.names)}
        return {**vars(self), "classes": classes}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> GuidedDraw:
        """What `state_dict` returned."""
        classes = state["classes"]
        if classes is not None:
            classes = Classes(**{**classes, "names": tuple(classes["names"])})
        return cls(**{**state, "classes": classes})


def _weighted(weights: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """`count` indices with replacement, with probabilities in proportion to float weights ``[n]``."""
    total = weights.double().cumsum(0)
    chance = torch.rand(count, generator=draws, dtype=torch.float64, device="cpu") * total[-1]
    return torch.searchsorted(total, chance, right=True).clamp(max=len(weights) - 1)


def _repeated(rows: Transitions, count: int, draws: torch.Generator) -> Transitions:
    """`count` of the rows, drawn with replacement."""
    return rows[torch.randint(len(rows), (count,), generator=draws, device="cpu").to(rows.device)]


def _points(units: Units, rows: Transitions) -> Tensor:
    """Rows as float32 points on the CPU, in parts, because float64 takes twice the memory."""
    starts = range(0, len(rows), _ROWS_AT_ONCE)
    return torch.cat([units.points(rows[start : start + _ROWS_AT_ONCE]).float() for start in starts])
