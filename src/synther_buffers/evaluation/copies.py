"""Detects copies: the distance of synthetic rows to the closest training row, compared with held-out real rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..transitions import Transitions, TransitionSpec
from .points import CHUNK, MAX_ROWS, Units, check_rows, thin

#: Largest number of training rows among which the closest is searched.
MAX_RECORDS = 100_000
#: Training rows that are converted to points at a time, because all of a wide set would take several times its memory.
_RECORDS_AT_ONCE = 8_192


@dataclass(frozen=True)
class ClosestRecord:
    """Distance of synthetic rows to the training rows, compared with real rows that were not trained on.

    Attributes:
        synthetic_median, held_out_median: of the distance to the closest training row.
        ratio: the first divided by the second. 1: as new as real rows; towards 0: copies; above 1: off the data.
        share_closer: share of synthetic rows that lie closer than 95 % of the held-out rows do. The expected value is
            0.05; with more, training rows are reproduced.
    """

    synthetic_median: float
    held_out_median: float
    ratio: float
    share_closer: float


def closest_distance(rows: Transitions, records: Transitions, spec: TransitionSpec, real: Transitions) -> Tensor:
    """Euclidean distance of each row to the closest of `records`, ``[N]`` float64, in the real rows' units.

    It takes a few seconds for 5,000 rows and 100,000 records.

    Raises:
        ValueError: rows that do not match the spec, are not finite, or none.
    """
    check_rows(spec, 1, rows=rows, records=records, real=real)
    units = Units.measure(real, spec)
    return _closest(units.points(rows), records, units)


def closest_record(
    real: Transitions,
    synthetic: Transitions,
    train: Transitions,
    spec: TransitionSpec,
    *,
    seed: int = 0,
    max_rows: int = MAX_ROWS,
) -> ClosestRecord:
    """Distance of synthetic rows to the closest training row, against that of held-out real rows.

    It uses at most `max_rows` synthetic and real rows and at most 100,000 training rows. The distance to the closest
    record is the usual check for copies in synthetic tables (Zhao et al. 2021); held-out rows give the reference value.

    Raises:
        ValueError: rows that do not match the spec, are not finite, or none.
    """
    check_rows(spec, 1, real=real, synthetic=synthetic, train=train)
    units = Units.measure(real, spec)
    records = thin(train, MAX_RECORDS, seed + 2)
    held = _closest(units.points(thin(real, max_rows, seed)), records, units)
    drawn = _closest(units.points(thin(synthetic, max_rows, seed + 1)), records, units)
    held_median, median = float(held.quantile(0.5)), float(drawn.quantile(0.5))
    ratio = median / held_median if held_median > 0 else math.nan if median == 0 else math.inf
    threshold = held.quantile(0.05)
    return ClosestRecord(median, held_median, ratio, float((drawn < threshold).double().mean()))


def _closest(points: Tensor, records: Transitions, units: Units) -> Tensor:
    """Distance of each point to the closest record, ``[N]`` float64."""
    least = torch.full((len(points),), math.inf, dtype=torch.float32, device="cpu")
    distance = torch.full((len(points),), math.inf, dtype=torch.float64, device="cpu")
    for start in range(0, len(records), _RECORDS_AT_ONCE):
        some = units.points(records[start : start + _RECORDS_AT_ONCE])
        # The search uses matrix products in float32, which round; the distance to the record found is exact.
        rough = some.float()
        for first in range(0, len(points), CHUNK):
            part = slice(first, first + CHUNK)
            low, where = torch.cdist(points[part].float(), rough).min(1)
            exact = (points[part] - some[where]).norm(dim=1)
            distance[part] = torch.where(low < least[part], exact, distance[part])
            least[part] = torch.minimum(low, least[part])
    return distance
