"""Structure of the data that gets columns of its own in the matrix: point masses and one-hot groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .fields import Field
from .transitions import Transitions, TransitionSpec

#: A float column with at most this many distinct values is decoded to exactly these values.
FEW_VALUES = 16
#: A value is a point mass if at least this share of the rows, and at least this many rows, have it, and if its
#: frequency is this many times the median frequency of the column's values. If it lies among the other values it does
#: less harm, and must have the larger share.
MASS_SHARE, MASS_ROWS, MASS_FREQUENCY, MASS_SHARE_AMONG_OTHERS = 0.001, 8, 10, 0.02
#: With more frequent values than this, those among the others are treated as discrete, not as point masses.
MAX_MASSES = 4
#: A column with values at more standard deviations from its mean than this is heavy-tailed.
HEAVY_TAIL = 8.0
#: Share of the values at either end of a heavy-tailed column that do not count for its centre and scale.
_TAIL_SHARE = 0.01
#: A frequent value at the end of a column is a limit (clipped velocities, saturated actions) unless its distance to the
#: other values is at least this share of their central range (from the 5 % to the 95 % quantile).
_LIMIT_GAP = 0.1
#: A new point mass at this many central ranges from the other values changes the column's scale.
_DRIFT_GAP = 1.0
#: Two groups of values have different scales if they are further apart than this many central ranges of the larger one.
_CLUSTER_GAP = 20.0
#: Size of the sample in which candidates are searched; they are checked on all rows.
_SAMPLE_ROWS = 16_384
#: With fewer rows, columns may be one-hot by chance.
_GROUP_ROWS = 32


@dataclass(frozen=True)
class PointMass:
    """A value that occurs far more often than the others of a continuous column: 999 for "no return", a crash penalty.

    Attributes:
        field: name of the field.
        element: index in the field's row, in row-major order.
        value: the frequent value.
        fill: mean of the other values, of the central ones if they are heavy-tailed; it replaces the point mass in the
            continuous column.
    """

    field: str
    element: int
    value: float
    fill: float


@dataclass(frozen=True)
class Structure:
    """Structure that the spec does not describe; fixed when training starts from scratch.

    Observation and next observation have the same point masses and one-hot groups.

    Attributes:
        masses: point masses; each has an indicator column.
        one_hot: groups ``(field, elements)`` of a continuous field that are one-hot in every row; each is modelled as
            one categorical element.
        clusters: elements ``(field, element)`` whose values lie in groups of very different scales that are not point
            masses. Each is modelled as one column, with low accuracy.
    """

    masses: tuple[PointMass, ...] = ()
    one_hot: tuple[tuple[str, tuple[int, ...]], ...] = ()
    clusters: tuple[tuple[str, int], ...] = ()

    @classmethod
    def detect(cls, spec: TransitionSpec, transitions: Transitions, *, strict: bool = False) -> Structure:
        """Find the structure of these rows.

        Args:
            spec: the fields.
            transitions: at least one finite row.
            strict: find only point masses that have twice the required share and are far from the other values; none
                that is not found otherwise.
        """
        columns = transitions.flat()
        masses: list[PointMass] = []
        one_hot: list[tuple[str, tuple[int, ...]]] = []
        clusters: list[tuple[str, int]] = []
        for field in spec.fields:
            if field.kind != "continuous" or field.name.startswith("next_observation"):
                continue
            parts = [columns[field.name].reshape(len(transitions), -1)]
            names = [field.name]
            if field.name.startswith("observation"):
                names.append(f"next_{field.name}")
                parts.append(columns[names[1]].reshape(len(transitions), -1))
            groups = _one_hot_groups(parts)
            one_hot += [(name, group) for name in names for group in groups]
            found, mixed = _frequent_values(parts, {element for group in groups for element in group}, strict)
            clusters += [(field.name, element) for element in mixed]
            for element, values in found.items():
                for name, part in zip(names, parts, strict=True):
                    rest = _without(part[:, element].double().cpu(), values)
                    fill = _centre(rest) if len(rest) else values[0]
                    masses += [PointMass(name, element, value, fill) for value in values]
        return cls(tuple(masses), tuple(one_hot), tuple(clusters))

    def is_broken_by(self, spec: TransitionSpec, transitions: Transitions) -> bool:
        """Whether these rows have a new point mass far from the other values, or break a one-hot group.

        A new point mass among the other values does not count: columns of contact forces, which are mostly 0, have too
        few other values at first and would each trigger a training from scratch at a different refresh.
        """
        columns = transitions.flat()
        for name, elements in self.one_hot:
            value = columns[name].reshape(len(transitions), -1)[:, list(elements)]
            if not bool(_is_one_hot(value)):
                return True
        known = {(mass.field, mass.element, mass.value) for mass in self.masses}
        now = Structure.detect(spec, transitions, strict=True)
        return any((mass.field, mass.element, mass.value) not in known for mass in now.masses)

    def masses_of(self, field: Field) -> dict[int, list[PointMass]]:
        """The point masses of a field, by element."""
        out: dict[int, list[PointMass]] = {}
        for mass in self.masses:
            if mass.field == field.name:
                out.setdefault(mass.element, []).append(mass)
        return out

    def one_hot_of(self, field: Field) -> list[list[int]]:
        """The one-hot groups of a field."""
        return [list(elements) for name, elements in self.one_hot if name == field.name]

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "masses": [list(vars(mass).values()) for mass in self.masses],
            "one_hot": [[name, list(elements)] for name, elements in self.one_hot],
            "clusters": [list(entry) for entry in self.clusters],
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Structure:
        """The structure that `state_dict` describes."""
        return cls(
            tuple(PointMass(*entry) for entry in state["masses"]),
            tuple((name, tuple(elements)) for name, elements in state["one_hot"]),
            tuple((name, element) for name, element in state["clusters"]),
        )


def _sample(parts: list[Tensor]) -> Tensor:
    """Some rows of all parts at a fixed stride, ``[m, size]`` float64 on the CPU."""
    stride = max(math.ceil(len(parts) * len(parts[0]) / _SAMPLE_ROWS), 1)
    return torch.cat([part[::stride].cpu().double() for part in parts])


def _is_one_hot(value: Tensor) -> Tensor:
    return ((value == 0) | (value == 1)).all() & (value.sum(1) == 1).all()


def _one_hot_groups(parts: list[Tensor]) -> list[tuple[int, ...]]:
    """Groups of columns that are one-hot in every row, consecutive except for constant columns between them."""
    sample = _sample(parts)
    if len(sample) < _GROUP_ROWS:
        return []
    flags = ((sample == 0) | (sample == 1)).all(0) & (sample != sample[0]).any(0)
    runs: list[list[int]] = [[]]
    for element, is_flag in enumerate(flags.tolist()):
        if is_flag:
            runs[-1].append(element)
        elif bool((sample[:, element] != sample[0, element]).any()):
            runs.append([])
    groups = []
    for run in runs:
        start = 0
        while start < len(run) - 1:
            sums = sample[:, run[start:]].cumsum(1)
            complete = (sums == 1).all(0).nonzero()
            width = int(complete[0]) + 1 if len(complete) else 1
            group = run[start : start + width]
            if width > 1 and all(bool(_is_one_hot(part[:, group])) for part in parts):
                groups.append(tuple(group))
                start += width
            else:
                start += 1
    return groups


def _frequent_values(
    parts: list[Tensor], skipped: Iterable[int], strict: bool
) -> tuple[dict[int, list[float]], list[int]]:
    """The point masses by element, and the elements with groups of very different scales."""
    sample = _sample(parts)
    count = len(sample)
    need = max(MASS_ROWS, math.ceil(MASS_SHARE * count))
    masses: dict[int, list[float]] = {}
    clusters: list[int] = []
    if need >= count:
        return masses, clusters
    skipped = set(skipped)
    ordered = sample.sort(0).values
    # Sorted values that are equal `need` rows apart: only these columns have a value that is frequent enough.
    repeated = (ordered[need - 1 :] == ordered[: count - need + 1]).any(0).tolist()
    for element in range(ordered.shape[1]):
        if element in skipped:
            continue
        column = ordered[:, element]
        if repeated[element]:
            distinct, counts = torch.unique_consecutive(column, return_counts=True)
            if len(distinct) <= FEW_VALUES:
                continue
            far, among = _masses(distinct, counts, need, _LIMIT_GAP)
            values = sorted(far + among)
            if len(values) > MAX_MASSES:
                values = far if len(far) <= MAX_MASSES else []
            if strict:
                # A value that is not recorded when training starts from scratch would start it again at every refresh.
                certain, _ = _masses(distinct, counts, 2 * need, _DRIFT_GAP)
                values = [value for value in values if value in certain]
            if values:
                masses[element] = values
                column = _without(column, values)
        if _has_clusters(column, need):
            clusters.append(element)
    return masses, clusters


def _masses(distinct: Tensor, counts: Tensor, need: int, gap: float) -> tuple[list[float], list[float]]:
    """The point masses at least so many central ranges from the other values, and those among them; both ascending."""
    often = counts >= max(need, MASS_FREQUENCY * int(counts.median()))
    rest = distinct.repeat_interleave(torch.where(often, 0, counts))
    far: list[float] = []
    among: list[float] = []
    if len(rest):
        gap *= _central_range(rest)
        low, high = float(rest[0]), float(rest[-1])
        for value, rows in zip(distinct[often].tolist(), counts[often].tolist(), strict=True):
            if value < low - gap or value > high + gap:
                far.append(value)
            elif low < value < high and rows >= MASS_SHARE_AMONG_OTHERS * int(counts.sum()):
                among.append(value)
    return far, among


def _without(column: Tensor, values: list[float]) -> Tensor:
    """The rows of a float64 CPU column without these values."""
    return column[~torch.isin(column, torch.tensor(values, dtype=torch.float64, device="cpu"))]


def central(column: Tensor) -> Tensor:
    """The values of a column ``[n]`` without 1 % at either end, in ascending order.

    It is 1 % of those that differ from the median, so that where most rows have one value the others remain. Of fewer
    than 52 such values none is left out.
    """
    ordered = column.sort().values
    usual = ordered == ordered[len(ordered) // 2]
    others = ordered[~usual]
    last = len(others) - 1
    skip = round(_TAIL_SHARE * last)
    if skip <= 0:
        return ordered
    return ordered[usual | ((ordered >= others[skip]) & (ordered <= others[last - skip]))]


def _centre(column: Tensor) -> float:
    """Mean of the values ``[n]`` float64; of the central ones if they are heavy-tailed."""
    mean = column.mean()
    distance = (column - mean).abs()
    furthest = distance.max()
    relative = distance / furthest  # its squares neither overflow nor underflow
    if float(furthest) > 0.0 and float(relative.square().mean().sqrt()) < 1.0 / HEAVY_TAIL:
        mean = central(column).mean()
    return float(mean)


def _central_range(ordered: Tensor) -> float:
    """Distance from the 5 % to the 95 % quantile of sorted values."""
    last = len(ordered) - 1
    return float(ordered[round(0.95 * last)] - ordered[round(0.05 * last)])


def _has_clusters(ordered: Tensor, need: int) -> bool:
    """Whether two groups of at least `need` sorted values lie very far apart."""
    if len(ordered) < 2 * need:
        return False
    gaps = torch.diff(ordered)[need - 1 : len(ordered) - need]
    at = int(gaps.argmax()) + need
    larger = ordered[:at] if at > len(ordered) - at else ordered[at:]
    return float(gaps.max()) > _CLUSTER_GAP * _central_range(larger) > 0.0
