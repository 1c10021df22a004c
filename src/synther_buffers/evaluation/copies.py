"""Detects copies: the distance of synthetic rows to the closest training row, compared with held-out real rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..transitions import Transitions, TransitionSpec
from .points import CHUNK, MAX_ROWS, Units, check_rows, thin

#: Largest number of training rows among which the closest is searched, unless they come in chunks.
MAX_RECORDS = 100_000
#: Share of held-out rows that are the closest ones.
_CLOSEST = 0.05
#: Equal distances of other rows may differ by so much, relatively, in rounding.
_ROUNDING = 1e-9
#: Training rows that are converted to points at a time, because all of a wide set would take several times its memory.
_RECORDS_AT_ONCE = 8_192


@dataclass(frozen=True)
class ClosestRecord:
    """Distance of synthetic rows to the training rows, compared with real rows that were not trained on.

    Attributes:
        synthetic_median, held_out_median: of the distance to the closest training row.
        ratio: the first divided by the second. 1: as new as real rows; towards 0: copies; above 1: off the data.
        share_closer: share of synthetic rows that lie closer than 95 % of the held-out rows do. The expected value is
            0.05; with more, training rows are reproduced. Of synthetic rows exactly at the threshold ``t``, as where
            5 % of the held-out rows are training rows, the share counts that keeps this value:
            ``P(d < t) + P(d = t) (0.05 - P(held < t)) / P(held = t)``.
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
    return _closest(units.points(rows), [records], units)


def closest_record(
    real: Transitions,
    synthetic: Transitions,
    train: Transitions | Iterable[Transitions],
    spec: TransitionSpec,
    *,
    seed: int = 0,
    max_rows: int = MAX_ROWS,
    units: Transitions | None = None,
) -> ClosestRecord:
    """Distance of synthetic rows to the closest training row, against that of held-out real rows.

    The distance to the closest record is the usual check for copies in synthetic tables (Zhao et al. 2021); held-out
    rows give the reference value. A copy is found only if its original is among the rows that are searched. A million
    training rows take a minute or two on one core.

    Args:
        real: rows that were not trained on.
        synthetic: rows to evaluate.
        train: rows that were trained on, of which at most 100,000 are searched; or chunks of them, of which all are.
        spec: the fields of all of them.
        seed: of the choice of rows.
        max_rows: largest number of real and of synthetic rows.
        units: real rows, of which at most 100,000 are used, whose standard deviations are the units of a distance;
            `real` if None. Few real rows may have none of a column's rare large values, and then all distances are
            those of that column.

    Raises:
        ValueError: rows that do not match the spec, are not finite, or none.
    """
    chunks = [thin(train, MAX_RECORDS, seed + 2)] if isinstance(train, Transitions) else train
    check_rows(spec, 1, real=real, synthetic=synthetic)
    if units is not None:
        units = thin(units, MAX_RECORDS, seed + 2)
        check_rows(spec, 1, units=units)
    measured = Units.measure(real if units is None else units, spec)
    few_real, few_synthetic = thin(real, max_rows, seed), thin(synthetic, max_rows, seed + 1)
    points = torch.cat((measured.points(few_real), measured.points(few_synthetic)))
    held, drawn = _closest(points, _checked(chunks, spec), measured).split([len(few_real), len(few_synthetic)])
    held_median, median = float(held.quantile(0.5)), float(drawn.quantile(0.5))
    ratio = median / held_median if held_median > 0 else math.nan if median == 0 else math.inf
    return ClosestRecord(median, held_median, ratio, _share_closer(held, drawn))


def _checked(chunks: Iterable[Transitions], spec: TransitionSpec) -> Iterator[Transitions]:
    """The training rows, one chunk after the other."""
    empty = True
    for rows in chunks:
        check_rows(spec, 1, train=rows)
        empty = False
        yield rows
    if empty:
        raise ValueError("train has no rows; at least 1 is needed.")


def _share_closer(held: Tensor, drawn: Tensor) -> float:
    threshold = held.quantile(_CLOSEST)

    def shares(distance: Tensor) -> tuple[float, float]:
        """Of the distances below and at the threshold."""
        at = torch.isclose(distance, threshold, rtol=_ROUNDING, atol=0.0)
        return float(((distance < threshold) & ~at).double().mean()), float(at.double().mean())

    (held_below, held_at), (below, at) = shares(held), shares(drawn)
    # The quantile mostly lies between two distances, at none.
    return below + at * (_CLOSEST - held_below) / held_at if held_at > 0 else below


def _closest(points: Tensor, chunks: Iterable[Transitions], units: Units) -> Tensor:
    """Distance of each point to the closest record of any chunk, ``[N]`` float64."""
    least = torch.full((len(points),), math.inf, dtype=torch.float32, device="cpu")
    distance = torch.full((len(points),), math.inf, dtype=torch.float64, device="cpu")
    parts = (
        chunk[start : start + _RECORDS_AT_ONCE] for chunk in chunks for start in range(0, len(chunk), _RECORDS_AT_ONCE)
    )
    for records in parts:
        some = units.points(records)
        # The search uses matrix products in float32, which round; the distance to the record found is exact.
        rough = some.float()
        for first in range(0, len(points), CHUNK):
            part = slice(first, first + CHUNK)
            low, where = torch.cdist(points[part].float(), rough).min(1)
            exact = (points[part] - some[where]).norm(dim=1)
            distance[part] = torch.where(low < least[part], exact, distance[part])
            least[part] = torch.minimum(low, least[part])
    return distance
