"""Which values of a field are legal, and the thresholds that restore them in generated rows.

A model blurs values that are exact in the data: flags, few values, limits, point masses. The generated rows are ranked
by the model's output and the threshold is set at the data's rate, which keeps both the rate and the order. A threshold
halfway between two values would make the rarer one too rare, because an uncertain model returns the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .layout import Block
from .special_columns import FEW_VALUES

#: The smallest or largest value of a continuous column is a limit (clipped velocities, saturated actions) if at least
#: this share of the rows, and at least this many rows, have it. Decoding restores it exactly, at the same rate.
LIMIT_SHARE, LIMIT_ROWS = 0.002, 8
#: Sizes of groups of neighbouring columns whose constant norm (unit quaternions, sine and cosine) is restored.
NORM_WIDTHS = range(2, 9)
#: The norm may vary by this share of itself, the rounding of a vector that was normalised in float32.
_NORM_TOLERANCE = 1e-5
#: The threshold of an indicator never lies beyond this. If the indicators of all rows do, a threshold at the data's
#: rate would pick some rows at random.
_SURE = 0.9
#: With fewer rows, norms may be equal by chance; and rows that are enough to rule out most columns.
_NORM_ROWS, _FIRST_NORM_ROWS = 32, 256


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of decoding, on the CPU.

    Attributes:
        binary: of a field, ``[size]``: values above it decode to one.
        few_valued: of a field's few-valued columns by element, ascending: the boundaries between the values.
        limits: of a continuous field, the values up to which a row is at the lower limit and above which it is at the
            upper one, ``[size]`` each.
        masses: of a field's point masses by element, ``[k]``: an indicator above it means that the row has the point
            mass, if it has no earlier one of the element.
    """

    binary: dict[str, Tensor] = field(default_factory=dict)
    few_valued: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    limits: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    masses: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Tensors in plain data."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Thresholds:
        """The thresholds that `state_dict` returned; version 3 has none for point masses."""
        return cls(**state)


@dataclass(frozen=True)
class ColumnStatistics:
    """The values of one field in the data; tensors on the CPU, float64.

    Attributes:
        low, high: observed range per element, ``[size]``, within the bounds of an action, without point masses.
        rate: share of ones per element, ``[size]`` (binary).
        values: element -> (its few distinct values ascending, cumulative shares of all but the last), without point
            masses.
        limits: share of rows at `low` and at `high` per element, ``[2, size]``, 0 where that is no limit (continuous);
            of the rows without a point mass.
        masses: element -> ``[k]``, share of each point mass among the rows that have no earlier one.
        norms: groups ``(first, stop, norm)`` of neighbouring elements whose Euclidean norm is the same in all rows.
    """

    low: Tensor
    high: Tensor
    rate: Tensor
    values: dict[int, tuple[Tensor, Tensor]]
    limits: Tensor
    masses: dict[int, Tensor] = field(default_factory=dict)
    norms: tuple[tuple[int, int, float], ...] = ()

    @classmethod
    def measure(cls, block: Block, tensor: Tensor) -> ColumnStatistics:
        """Statistics of a binary or continuous field, ``[N, *shape]``."""
        value = tensor.reshape(len(tensor), -1)
        if not value.is_floating_point():
            value = value.double()  # torch cannot reduce or sort some integer types, such as uint16
        rate = value.sum(0, dtype=torch.float64).cpu() / len(value)
        rests: dict[int, Tensor] = {}
        masses: dict[int, Tensor] = {}
        for element, values in block.masses.items():
            rest, shares = value[:, element].double(), []
            for mass in values:
                others = rest[rest != mass.value]
                shares.append(1.0 - len(others) / max(len(rest), 1))
                rest = others
            masses[element] = torch.tensor(shares, dtype=torch.float64, device="cpu")
            # A column that holds only point masses still needs a range.
            rests[element] = rest if len(rest) else torch.full_like(value[:1, element], values[0].fill)
        low, high = value.amin(0).double().cpu(), value.amax(0).double().cpu()
        for element, rest in rests.items():
            low[element], high[element] = float(rest.min()), float(rest.max())
        limits = torch.zeros((2, value.shape[1]), dtype=torch.float64, device="cpu")
        if block.field.kind != "continuous":
            return cls(low, high, rate, {}, limits)

        if block.field.low and block.field.name == "action":
            low = torch.maximum(low, torch.tensor(block.field.low, dtype=torch.float64, device="cpu"))
            high = torch.minimum(high, torch.tensor(block.field.high, dtype=torch.float64, device="cpu"))
        at = torch.stack(((value <= low.to(value)).sum(0), (value >= high.to(value)).sum(0))).double().cpu()
        counts = torch.full((value.shape[1],), len(value), dtype=torch.float64, device="cpu")
        for element, rest in rests.items():
            at[:, element] = at.new_tensor([int((rest <= low[element]).sum()), int((rest >= high[element]).sum())])
            counts[element] = len(rest)
        limits = torch.where((at >= LIMIT_ROWS) & (at >= LIMIT_SHARE * counts), at / counts, 0.0)
        few = {}
        for element in range(value.shape[1]):
            column = _few_values(rests.get(element, value[:, element]))
            if column is not None:
                few[element] = (column[0].clamp(low[element], high[element]), column[1])
        one_hot = [element for group in block.one_hot for element in group]
        few = {element: column for element, column in few.items() if element not in one_hot}
        limits[:, low == high] = 0.0
        limits[:, [*few, *one_hot]] = 0.0
        norms = _norms(value, {*few, *one_hot, *masses})
        # There the norm restores the limits, which are its own.
        limits[:, [element for start, stop, _ in norms for element in range(start, stop)]] = 0.0
        return cls(low, high, rate, few, limits, masses, norms)

    def add_thresholds(
        self, block: Block, value: Tensor, indicators: Mapping[int, Tensor], thresholds: Thresholds
    ) -> None:
        """Measure on generated values ``[n, size]`` the thresholds that give the data's rates.

        Args:
            block: the field.
            value: its values.
            indicators: of point masses by element, ``[n, k]``.
            thresholds: written to.
        """
        name = block.field.name
        if block.field.kind == "binary":
            thresholds.binary[name] = column_quantiles(value, 1.0 - self.rate)
            return
        rests: dict[int, Tensor] = {}
        thresholds.masses[name] = {}
        for element, shares in self.masses.items():
            rest = torch.arange(len(value), device=value.device)
            cuts = []
            for place, share in enumerate(shares.tolist()):
                answers = indicators[element][rest, place]
                cut = column_quantiles(answers[:, None], torch.tensor([1.0 - share], device="cpu"))[0]
                cuts.append(cut.clamp(-_SURE, _SURE) if 0.0 < share < 1.0 else cut)
                rest = rest[answers <= cuts[-1].to(answers)]
            thresholds.masses[name][element] = torch.stack(cuts)
            rests[element] = value[rest, element]
        thresholds.few_valued[name] = {}
        for element, (distinct, cumulative) in self.values.items():
            column = rests.get(element, value[:, element])
            between = distinct[:-1].lerp(distinct[1:], 0.5)
            if len(column):  # otherwise all rows have a point mass, and there is nothing to rank
                between = torch.quantile(column, cumulative.to(value)).cpu()
            thresholds.few_valued[name][element] = between
        at_low = torch.full_like(self.low, -math.inf)
        at_high = torch.full_like(self.high, math.inf)
        for element in self.limits.any(0).nonzero()[:, 0].tolist():
            column = rests.get(element, value[:, element]).sort().values[:, None]
            if not len(column):
                continue
            shares = self.limits[:, element]
            at_low[element] = column_quantiles(column, shares[:1], ordered=True)[0]
            at_high[element] = column_quantiles(column, 1.0 - shares[1:], ordered=True)[0]
        thresholds.limits[name] = (at_low, at_high)

    def legalize(
        self, block: Block, value: Tensor, indicators: Mapping[int, Tensor], thresholds: Thresholds
    ) -> tuple[Tensor, Tensor]:
        """Generated values of a continuous field, made legal.

        Args:
            block: the field.
            value: its values, ``[n, size]``.
            indicators: of point masses by element, ``[n, k]``.
            thresholds: of decoding.

        Returns:
            The values, and the same with each point mass replaced by its `fill`; a change is added to the latter.
        """
        name = block.field.name
        categories = [value[:, group].argmax(1) for group in block.one_hot]
        low, high = self.low.to(value), self.high.to(value)
        if bool(self.limits.any()):
            at_low, at_high = thresholds.limits[name]
            value = torch.where(value <= at_low.to(value), low, value)
            value = torch.where(value > at_high.to(value), high, value)
        # Clipping changes the norm, and restoring the norm may leave the range; after a second round little is left.
        for _ in range(2 if self.norms else 1):
            value = torch.minimum(torch.maximum(self._with_norms(value), low), high)
        for element, (distinct, _) in self.values.items():
            cuts = thresholds.few_valued[name][element].to(value)
            value[:, element] = distinct.to(value)[torch.searchsorted(cuts, value[:, element].contiguous())]
        for group, category in zip(block.one_hot, categories, strict=True):
            value[:, group] = torch.nn.functional.one_hot(category, len(group)).to(value)
        if not block.field.torch_dtype.is_floating_point:
            value = value.round()  # writing into a tensor of integers truncates
        filled = value
        if self.masses:
            value = value.clone()
        for element in self.masses:
            cuts = thresholds.masses[name][element].to(value)
            above = indicators[element] > cuts
            has_any, first = above.any(1), above.int().argmax(1)
            points = value.new_tensor([mass.value for mass in block.masses[element]])
            filled[:, element] = torch.where(has_any, block.masses[element][0].fill, filled[:, element])
            value[:, element] = torch.where(has_any, points[first], value[:, element])
        return value, filled

    def near(self, block: Block, value: Tensor) -> Tensor:
        """Which values ``[n, size]`` float64 lie within the range of the data, or outside by at most a quarter of it.

        Further out a model has learned nothing. The result has the shape of the values.
        """
        slack = 0.25 * (self.high - self.low) + 1e-6 * torch.maximum(self.low.abs(), self.high.abs())
        near = (value >= self.low - slack) & (value <= self.high + slack)
        for element, masses in block.masses.items():
            for mass in masses:
                near[:, element] |= value[:, element] == mass.value
        return near

    def check_near(self, block: Block, value: Tensor) -> None:
        """Raise an error unless all values ``[n, size]`` float64 are near the data.

        Raises:
            ValueError: they are not, or not finite.
        """
        near = self.near(block, value)
        if not bool(near.all()):
            row, element = (~near).nonzero()[0].tolist()
            low, high = float(self.low[element]), float(self.high[element])
            raise ValueError(
                f"{block.field.elements[element]} is {float(value[row, element]):g} in row {row} of the condition; the "
                f"rows that were learned have {low:g} to {high:g}. Leave out rows so far from the data."
            )

    def _with_norms(self, value: Tensor) -> Tensor:
        """Values ``[n, size]`` with the groups of constant norm scaled to it, in place."""
        for start, stop, norm in self.norms:
            group = value[:, start:stop]
            found = group.norm(dim=1, keepdim=True)
            value[:, start:stop] = torch.where(found > 0, group * (norm / found), group)
        return value

    def state_dict(self) -> dict[str, Any]:
        """Tensors in plain data."""
        return dict(vars(self))

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> ColumnStatistics:
        """The statistics that `state_dict` returned; version 3 has neither point masses nor norms."""
        norms = tuple((int(start), int(stop), float(norm)) for start, stop, norm in state.get("norms", ()))
        return cls(**{**state, "norms": norms})


def _few_values(column: Tensor) -> tuple[Tensor, Tensor] | None:
    """The distinct values of a column ``[N]`` and their cumulative shares except the last; None if there are many."""
    # In most columns the first rows already have too many values; only the others need a full sort.
    if len(torch.unique(column[: 4 * FEW_VALUES**2])) > FEW_VALUES:
        return None
    distinct, counts = torch.unique(column, return_counts=True)
    if len(distinct) > min(FEW_VALUES, len(column) // 8):
        return None
    return distinct.double().cpu(), counts.double().cpu().cumsum(0)[:-1] / len(column)


def _norms(value: Tensor, skipped: set[int]) -> tuple[tuple[int, int, float], ...]:
    """Groups ``(first, stop, norm)`` of neighbouring columns whose norm is the same in all rows ``[N, size]``.

    From each column on, the narrowest group is taken. Groups with a skipped column, or with one that varies only in its
    sign, are left out.
    """
    if len(value) < _NORM_ROWS or not value.is_floating_point():
        return ()
    first = value[:: max(len(value) // _FIRST_NORM_ROWS, 1)].double()
    usable = ((first.abs().amax(0) - first.abs().amin(0)) > 0).tolist()
    usable = [flag and element not in skipped for element, flag in enumerate(usable)]
    groups: list[tuple[int, int, float]] = []
    start = 0
    while start < value.shape[1]:
        found = None
        for width in NORM_WIDTHS:
            stop = start + width
            if stop > value.shape[1] or not all(usable[start:stop]):
                break
            if _constant(first[:, start:stop].norm(dim=1)):
                norm = value[:, start:stop].double().norm(dim=1)
                if _constant(norm):
                    found = (start, stop, float(norm.mean()))
                    break
        if found is not None:
            groups.append(found)
        start = found[1] if found is not None else start + 1
    return tuple(groups)


def _constant(norm: Tensor) -> bool:
    low, high = (float(bound) for bound in norm.aminmax())
    return high - low <= _NORM_TOLERANCE * high


def column_quantiles(value: Tensor, probability: Tensor, *, ordered: bool = False) -> Tensor:
    """For each column j of ``[n, size]`` the value that a share ``probability[j]`` of the rows does not exceed.

    Result and `probability` are on the CPU. With `ordered`, the columns are already sorted.
    """
    if not ordered:
        value = value.sort(dim=0).values
    probability = probability.to(value)
    position = (probability * len(value)).round().long() - 1
    cut = value.gather(0, position.clamp(min=0)[None])[0] if len(value) else torch.zeros_like(probability)
    cut = torch.where(position < 0, -math.inf, cut)
    # Probability 1 gives an infinite threshold: a column that is always 0 in the data stays 0 in every later row.
    return torch.where(probability == 1.0, math.inf, cut).cpu()
