"""Which columns the matrix has, and the matrix before normalisation."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .fields import Field
from .special_columns import PointMass, Structure
from .transitions import Transitions, TransitionSpec

#: Elements of the matrix that are in memory in float64 at a time, in encoding and decoding.
CHUNK_ELEMENTS = 2**22
#: Bound on the rounding of two floats and of their difference, in units of the larger float's precision.
_ROUNDING = 4.0


@dataclass(frozen=True)
class Block:
    """Where one field lies in the matrix.

    Attributes:
        field: the field.
        columns: one per element, or one per category.
        indicators: element -> column of the first of its point masses' indicators.
        masses: element -> its point masses.
        one_hot: groups of elements that are modelled as one categorical element.
        changes: elements that are modelled as the change from the observation, ``[size]`` bool; None for none.
    """

    field: Field
    columns: slice
    indicators: dict[int, slice]
    masses: dict[int, list[PointMass]]
    one_hot: list[list[int]]
    changes: Tensor | None

    @property
    def previous(self) -> str:
        """Name of the observation's field that corresponds to this field of the next observation."""
        return self.field.name.removeprefix("next_")

    def fill(self, value: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """A copy of values ``[n, size]`` with the point masses filled, and which of them each row has.

        The latter is element -> ``[n, k]`` bool, one column for each point mass.
        """
        value, masks = value.clone(), {}
        for element, masses in self.masses.items():
            column = value[:, element]
            masks[element] = torch.stack([column == mass.value for mass in masses], dim=1)
            value[:, element] = torch.where(masks[element].any(1), masses[0].fill, column)
        return value, masks


@dataclass(frozen=True)
class Layout:
    """The columns of the matrix: the spec's fields in their order, then the indicators of point masses.

    A continuous or binary field has one column per element, a categorical one has one per category.
    """

    spec: TransitionSpec
    structure: Structure
    next_observation_change: bool
    normalize_reward: bool
    model_terminals: bool

    @cached_property
    def blocks(self) -> list[Block]:
        """One block for each field in the matrix, in the order of the spec."""
        fields = [field for field in self.spec.fields if field.name != "terminated" or self.model_terminals]
        blocks, start, indicator = [], 0, sum(field.width for field in fields)
        for field in fields:
            indicators = {}
            masses, one_hot = self.structure.masses_of(field), self.structure.one_hot_of(field)
            for element, values in masses.items():
                indicators[element] = slice(indicator, indicator + len(values))
                indicator += len(values)
            changes = None
            if (
                self.next_observation_change
                and field.kind == "continuous"
                and field.name.startswith("next_observation")
            ):
                changes = torch.ones(field.size, dtype=torch.bool, device="cpu")
                changes[[element for group in one_hot for element in group]] = False
            blocks.append(Block(field, slice(start, start + field.width), indicators, masses, one_hot, changes))
            start += field.width
        return blocks

    @property
    def first_indicator(self) -> int:
        """The first of the indicators' columns; D if there are none."""
        return self.blocks[-1].columns.stop

    @property
    def dim(self) -> int:
        """Number of columns D."""
        return self.first_indicator + len(self.structure.masses)

    @property
    def chunk_rows(self) -> int:
        """Rows of the matrix that are in memory in float64 at a time."""
        return max(CHUNK_ELEMENTS // self.dim, 1)

    @property
    def fixed(self) -> Tensor:
        """Columns of fixed scale, ``[D]`` bool: flags, categories, indicators, and a reward that is not normalised."""
        out = torch.zeros(self.dim, dtype=torch.bool, device="cpu")
        for block in self.blocks:
            if block.field.kind != "continuous" or (block.field.name == "reward" and not self.normalize_reward):
                out[block.columns] = True
            for group in block.one_hot:
                out[[block.columns.start + element for element in group]] = True
        out[self.first_indicator :] = True
        return out

    def rounding(self, transitions: Transitions) -> Tensor:
        """Standard deviation ``[D]`` up to which a column varies by rounding only.

        The difference of two floats is not exactly constant: the step of a clock varies by the rounding of its time.
        """
        out = torch.zeros(self.dim, dtype=torch.float64, device="cpu")
        columns, blocks = transitions.flat(), {block.field.name: block for block in self.blocks}
        for block in self.blocks:
            if block.changes is None or not block.field.torch_dtype.is_floating_point:
                continue
            largest = []
            for name in (block.field.name, block.previous):
                value = columns[name].reshape(len(transitions), -1)
                if blocks[name].masses:
                    value, _ = blocks[name].fill(value)
                largest.append(value.abs().amax(0).double().cpu())
            out[block.columns] = _ROUNDING * torch.finfo(block.field.torch_dtype).eps * torch.maximum(*largest)
        return out

    def raw_chunks(self, transitions: Transitions) -> Iterator[Tensor]:
        """The matrix before normalisation, in float64 on the CPU, some rows at a time.

        Flags, categories and indicators are -1 or 1.

        Raises:
            ValueError: a category that the spec does not have.
        """
        columns = transitions.flat()
        for start in range(0, len(transitions), self.chunk_rows):
            rows = {name: tensor[start : start + self.chunk_rows].cpu() for name, tensor in columns.items()}
            yield self.raw(rows)

    def raw(self, rows: Mapping[str, Tensor]) -> Tensor:
        """The matrix before normalisation, ``[n, D]`` float64 on the CPU.

        Args:
            rows: tensors ``[n, *shape]`` on the CPU by name of the field. Columns of a field that is left out are 0; a
                field that is modelled as a change needs the one it changes.

        Raises:
            ValueError: a category that the spec does not have.
        """
        count = len(next(iter(rows.values())))
        matrix = torch.zeros((count, self.dim), dtype=torch.float64, device="cpu")
        filled: dict[str, Tensor] = {}
        for block in self.blocks:
            field = block.field
            if field.name not in rows:
                continue
            value = rows[field.name].reshape(count, -1)
            if field.kind == "categorical":
                matrix[:, block.columns] = one_hot(field, value)
                continue
            if field.kind == "binary":
                matrix[:, block.columns] = value.double() * 2.0 - 1.0
                continue
            value, masks = block.fill(value.double())
            filled[field.name] = value
            if block.changes is not None:
                value = torch.where(block.changes, value - filled[block.previous], value)
                for element, mask in masks.items():
                    value[:, element] = torch.where(mask.any(1), 0.0, value[:, element])
            for group in block.one_hot:
                value[:, group] = value[:, group] * 2.0 - 1.0
            matrix[:, block.columns] = value
            for element, mask in masks.items():
                matrix[:, block.indicators[element]] = mask.double() * 2.0 - 1.0
        return matrix

    def columns_of(self, names: Collection[str]) -> Tensor:
        """Which columns belong to these fields, ``[D]`` bool."""
        out = torch.zeros(self.dim, dtype=torch.bool, device="cpu")
        for block in self.blocks:
            if block.field.name in names:
                for columns in (block.columns, *block.indicators.values()):
                    out[columns] = True
        return out


def one_hot(field: Field, value: Tensor) -> Tensor:
    """Categories ``[n, size]`` as columns of -1 and 1, ``[n, sum(num_categories)]``.

    Raises:
        ValueError: a category that the field does not have.
    """
    index, legal = _categories(field, value)
    parts = []
    for element, count in enumerate(field.num_categories):
        if not bool(legal[:, element].all()):
            wanted = field.values or f"{field.start[element]} to {field.start[element] + count - 1}"
            raise ValueError(
                f"{field.name}[{element}] holds values outside its categories ({wanted}); found "
                f"{value[:, element].min().item()} to {value[:, element].max().item()}. "
                "Check that the spec matches the data."
            )
        parts.append(torch.nn.functional.one_hot(index[:, element], count).double() * 2.0 - 1.0)
    return torch.cat(parts, dim=1)


def has_categories(field: Field, value: Tensor) -> Tensor:
    """Which rows of categories ``[n, size]`` the field has, ``[n]`` bool."""
    return _categories(field, value)[1].all(1)


def _categories(field: Field, value: Tensor) -> tuple[Tensor, Tensor]:
    """The index of each category, ``[n, size]``, and whether the field has it."""
    if field.values:
        table = torch.tensor(field.values, dtype=torch.float64, device="cpu")
        distance = (value[:, :, None].double() - table).abs()
        return distance.argmin(2), distance.amin(2) <= 1e-5 * table.abs().amax()
    index = value.long() - torch.tensor(field.start, device="cpu")
    return index, (index >= 0) & (index < torch.tensor(field.num_categories, device="cpu"))


def from_one_hot(field: Field, value: Tensor) -> Tensor:
    """The category with the largest column, ``[n, size]``, in the field's own values."""
    parts = []
    for element, scores in enumerate(torch.split(value, list(field.num_categories), dim=1)):
        index = scores.argmax(1)
        parts.append(
            torch.tensor(field.values, device=value.device)[index] if field.values else index + field.start[element]
        )
    return torch.stack(parts, dim=1)
