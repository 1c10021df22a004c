"""How much of each batch a synthetic set deserves, by the figures of its refresh."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .reports import RefreshReport


@dataclass(frozen=True)
class _Bound:
    """A figure of a report: up to `good` the set has its full share, from `bad` on none."""

    words: str
    good: float
    bad: float


#: The good ends are beyond 98 % of the refreshes of the default in the learning benchmark, but for `outcomes`, which
#: was measured on three tasks; the bad ends are what shuffled, collapsed and wrong rows exceed.
_BOUNDS = {
    "held_out_loss": _Bound("loss on held-out rows, where a model that learned nothing has 1", 0.85, 1.0),
    "copies": _Bound("share of the rows that are nearly copies, where 0.05 are to be expected", 0.4, 0.8),
    "off_the_data": _Bound("distance to the closest training row, in that of real rows", 1.5, 3.0),
    "marginal": _Bound("loss of similarity of single columns against real rows", 0.2, 0.4),
    "correlation": _Bound("loss of similarity of correlations against real rows", 0.12, 0.25),
    "outcomes": _Bound("share of the outcomes that do not belong to their observations and actions", 0.35, 0.7),
}


@dataclass(frozen=True)
class Verdict:
    """What a synthetic set deserves.

    Attributes:
        share: of `synthetic_fraction`, from 0 to 1.
        reason: the figure that lowers it most, in words; empty at 1.
    """

    share: float
    reason: str


def judge(report: RefreshReport) -> Verdict:
    """The share of a refresh's rows: the least over its figures; those that were not measured are left out."""
    closest = report.closest
    # Rows that a guidance chose are meant to differ from the data.
    is_like_data = not report.guidance
    figures = {
        "held_out_loss": report.fit.held_out_loss,
        "copies": math.nan if closest is None else closest.share_closer,
        "off_the_data": math.nan if closest is None or not is_like_data else closest.ratio,
        "marginal": report.fidelity_real.marginal - report.fidelity.marginal if is_like_data else math.nan,
        "correlation": report.fidelity_real.correlation - report.fidelity.correlation if is_like_data else math.nan,
        "outcomes": report.outcome_gap,
    }
    lowest = Verdict(1.0, "")
    for name, figure in figures.items():
        bound = _BOUNDS[name]
        if math.isnan(figure):
            continue
        share = min(max((bound.bad - figure) / (bound.bad - bound.good), 0.0), 1.0)
        if share < lowest.share:
            lowest = Verdict(
                share, f"{bound.words}: {figure:.2f}; full share up to {bound.good:g}, none from {bound.bad:g}"
            )
    return lowest
