"""What legal values of a field look like, and the thresholds that restore them in generated rows.

A model smears what is exact in the data: flags, few values, limits. Ranking the generated rows by the model's answer
and cutting at the data's rate keeps both the rate and the order. A threshold halfway between two values would starve
the rarer one, because a model that is unsure answers with the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .transitions import Field

#: A float column with at most this many distinct values gets exactly those values back.
FEW_VALUES = 16
#: A continuous column whose smallest or largest value is at least this share of the rows, and in at least so many of
#: them, has that value by a limit (clipped velocities, saturated actions), and gets it back exactly as often.
LIMIT_SHARE, LIMIT_ROWS = 0.002, 8


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of decoding, on the CPU.

    Attributes:
        binary: of a field, ``[size]``: above it is a one.
        few_valued: of a field's few-valued columns by element, ascending: between them lie the values.
        limits: of a continuous field, the values up to which a row is at the lower limit and above which it is at the
            upper one, ``[size]`` each.
    """

    binary: dict[str, Tensor] = field(default_factory=dict)
    few_valued: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    limits: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Tensors in plain data."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Thresholds:
        """The thresholds that `state_dict` describes."""
        return cls(**state)


@dataclass(frozen=True)
class ColumnStatistics:
    """What the values of one field look like in the data; tensors on the CPU, float64.

    Attributes:
        low, high: observed range per element, ``[size]``, within the bounds of an action.
        rate: share of ones per element, ``[size]`` (binary).
        values: element -> (its few distinct values ascending, cumulative shares of all but the last).
        limits: share of rows at `low` and at `high` per element, ``[2, size]``, 0 where that is no limit (continuous).
    """

    low: Tensor
    high: Tensor
    rate: Tensor
    values: dict[int, tuple[Tensor, Tensor]]
    limits: Tensor

    @classmethod
    def measure(cls, field: Field, tensor: Tensor) -> ColumnStatistics:
        """Statistics of a binary or continuous field, ``[N, *shape]``."""
        value = tensor.reshape(len(tensor), -1)
        if not value.is_floating_point():
            value = value.double()  # torch cannot reduce or sort some integers, uint16 for one
        low, high = value.amin(0).double().cpu(), value.amax(0).double().cpu()
        rate = value.sum(0, dtype=torch.float64).cpu() / len(value)
        values: dict[int, tuple[Tensor, Tensor]] = {}
        limits = torch.zeros((2, value.shape[1]), dtype=torch.float64, device="cpu")
        if field.kind == "continuous":
            if field.low and field.name == "action":
                low = torch.maximum(low, torch.tensor(field.low, dtype=torch.float64, device="cpu"))
                high = torch.minimum(high, torch.tensor(field.high, dtype=torch.float64, device="cpu"))
            first = value[: 4 * FEW_VALUES**2]
            for column in range(value.shape[1]):
                # Most columns show too many values in their first rows; only the others are worth a full sort.
                if len(torch.unique(first[:, column])) > FEW_VALUES:
                    continue
                distinct, counts = torch.unique(value[:, column], return_counts=True)
                if len(distinct) <= min(FEW_VALUES, len(value) // 8):
                    shares = counts.double().cpu().cumsum(0)[:-1] / len(value)
                    values[column] = (distinct.double().cpu().clamp(low[column], high[column]), shares)
            at = torch.stack(((value <= low.to(value)).sum(0), (value >= high.to(value)).sum(0))).double().cpu()
            limits = torch.where(at >= max(LIMIT_ROWS, LIMIT_SHARE * len(value)), at / len(value), 0.0)
            limits[:, low == high] = 0.0
            limits[:, list(values)] = 0.0
        return cls(low, high, rate, values, limits)

    def add_thresholds(self, field: Field, value: Tensor, thresholds: Thresholds) -> None:
        """Measure on generated values ``[n, size]`` of the field the thresholds that give the data's rates."""
        if field.kind == "binary":
            thresholds.binary[field.name] = column_quantiles(value, 1.0 - self.rate)
            return
        thresholds.few_valued[field.name] = {
            column: torch.quantile(value[:, column], cumulative.to(value)).cpu()
            for column, (_, cumulative) in self.values.items()
        }
        at_low, at_high = self.limits
        thresholds.limits[field.name] = (column_quantiles(value, at_low), column_quantiles(value, 1.0 - at_high))

    def legalize(self, field: Field, value: Tensor, thresholds: Thresholds) -> Tensor:
        """Generated values ``[n, size]`` of a continuous field as they can occur in the data."""
        if field.name in thresholds.limits:
            at_low, at_high = thresholds.limits[field.name]
            value = torch.where(value <= at_low.to(value), -math.inf, value)
            value = torch.where(value > at_high.to(value), math.inf, value)
        value = torch.minimum(torch.maximum(value, self.low.to(value)), self.high.to(value))
        for column, (distinct, _) in self.values.items():
            cuts = thresholds.few_valued[field.name][column].to(value)
            value[:, column] = distinct.to(value)[torch.searchsorted(cuts, value[:, column].contiguous())]
        # Writing into a tensor of integers truncates.
        return value if field.torch_dtype.is_floating_point else value.round()

    def state_dict(self) -> dict[str, Any]:
        """Tensors in plain data."""
        return dict(vars(self))

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> ColumnStatistics:
        """The statistics that `state_dict` describes."""
        return cls(**state)


def column_quantiles(value: Tensor, probability: Tensor) -> Tensor:
    """For each column j of ``[n, size]`` the value that a share ``probability[j]`` of the rows does not exceed.

    On the CPU, like `probability`.
    """
    ordered = value.sort(dim=0).values
    probability = probability.to(value)
    position = (probability * len(value)).round().long() - 1
    cut = ordered.gather(0, position.clamp(min=0)[None])[0]
    cut = torch.where(position < 0, -math.inf, cut)
    # A column that is always 0 in the data stays so in rows that exceed every one of these.
    return torch.where(probability == 1.0, math.inf, cut).cpu()
