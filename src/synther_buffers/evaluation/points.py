"""Rows as points: sets of transitions, subsampled, checked, and in comparable units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..transitions import Field, Transitions, TransitionSpec

#: Default for the largest number of rows of each set.
MAX_ROWS = 5_000
#: Rows of one side of a distance matrix that are in memory at a time.
CHUNK = 1_024


@dataclass(frozen=True)
class Units:
    """The unit of a difference in each field.

    For an element of a continuous field it is the standard deviation over the real rows, so that distances do not
    depend on the columns' units; a column that is constant there keeps its own unit. An element of a binary or
    categorical field that differs counts 1, however rare its value: in standard deviations, a rare flag would dominate
    all distances. Categories that the field does not have differ from all that it has.

    Attributes:
        spec: the fields.
        mean, std: per continuous field, ``[size]`` float64.
    """

    spec: TransitionSpec
    mean: Mapping[str, Tensor]
    std: Mapping[str, Tensor]

    @classmethod
    def measure(cls, real: Transitions, spec: TransitionSpec) -> Units:
        """Measure the units on real rows."""
        flat, mean, std = real.flat(), {}, {}
        for field in spec.fields:
            if field.kind == "continuous":
                value = element_columns(flat[field.name])
                mean[field.name] = value.mean(0)
                span = value.amax(0) - value.amin(0)
                # In units of the range, because the square of a very small value is 0.
                unit = torch.where(span > 0, span, 1.0)
                std[field.name] = torch.where(span > 0, (value / unit).std(0, correction=0) * unit, 1.0)
        return cls(spec, mean, std)

    def points(self, rows: Transitions) -> Tensor:
        """Rows as points ``[N, D]`` float64 on the CPU, with Euclidean distances in these units."""
        flat = rows.flat()
        parts = [self.columns(self.spec.fields, flat)]
        for field in self.spec.fields:
            if field.kind == "categorical":  # a column for all categories that an element does not have
                known = one_hot(field, element_columns(flat[field.name])).split(field.num_categories, dim=1)
                parts.append(torch.stack([1.0 - part.sum(1) for part in known], dim=1) / math.sqrt(2.0))
        return torch.cat(parts, dim=1)

    def columns(self, fields: Sequence[Field], values: Mapping[str, Tensor]) -> Tensor:
        """Some fields of the spec as points ``[N, D]`` float64 on the CPU.

        Args:
            fields: of the spec.
            values: by the field's name, ``[N, *shape]``.
        """
        parts = []
        for field in fields:
            value = element_columns(values[field.name])
            if field.kind == "continuous":
                # Centred, because distances from matrix products lose precision far from 0.
                value = (value - self.mean[field.name]) / self.std[field.name]
            elif field.kind == "categorical":
                value = one_hot(field, value) / math.sqrt(2.0)  # two categories differ in two columns
            parts.append(value)
        return torch.cat(parts, dim=1)

    def difference(self, field: Field, left: Tensor, right: Tensor) -> Tensor:
        """Difference of two tensors ``[N, *shape]`` of a field's values in these units, ``[N, size]`` float64."""
        left, right = element_columns(left), element_columns(right)
        if field.kind == "continuous":
            return (left - right) / self.std[field.name]
        return (left != right).double()


def columns(rows: Transitions, spec: TransitionSpec) -> Tensor:
    """Every element of every field in its own unit, ``[N, D]`` float64 on the CPU."""
    flat = rows.flat()
    return torch.cat([element_columns(flat[field.name]) for field in spec.fields], dim=1)


def thin(rows: Transitions, max_rows: int, seed: int) -> Transitions:
    """At most `max_rows` rows, drawn without replacement by a separate generator."""
    if max_rows < 1:
        raise ValueError(f"max_rows is {max_rows}; it must be at least 1.")
    if len(rows) <= max_rows:
        return rows
    # A seed of torch is below 2**64, and callers count on from it.
    generator = torch.Generator().manual_seed(seed % 2**63)
    return rows[torch.randperm(len(rows), generator=generator, device="cpu")[:max_rows].to(rows.device)]


def check_rows(spec: TransitionSpec, minimum: int, **sets: Transitions) -> None:
    """Check that sets of rows, given by the name of the argument, can be compared.

    Raises:
        ValueError: one does not match the spec, has fewer than `minimum` rows, or is not finite.
    """
    for name, rows in sets.items():
        try:
            spec.check(rows)
        except ValueError as error:
            raise ValueError(f"{name} does not match the spec: {error}") from error
        if len(rows) < minimum:
            raise ValueError(f"{name} has {len(rows)} rows; at least {minimum} are needed.")
        for field, tensor in rows.flat().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} holds NaN or infinity in {field}; leave such rows out.")


def element_columns(tensor: Tensor) -> Tensor:
    """``[N, *shape]`` as ``[N, size]`` float64 on the CPU."""
    return tensor.reshape(len(tensor), -1).double().cpu()


def one_hot(field: Field, value: Tensor) -> Tensor:
    """A column for each category, ``[N, sum(num_categories)]``; all 0 for one that the field does not have."""
    parts = []
    for element, (start, count) in enumerate(zip(field.start, field.num_categories, strict=True)):
        categories = torch.tensor(field.values or range(start, start + count), dtype=torch.float64, device="cpu")
        distance, index = (value[:, element, None] - categories).abs().min(1)
        # Values that categories stand for (discounts, up to 1) may have been rounded to float32.
        parts.append(torch.nn.functional.one_hot(index, count).double() * (distance < 1e-5)[:, None])
    return torch.cat(parts, dim=1)
