"""Between transitions and the float matrix that the diffusion model learns: flatten, one-hot, normalise, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .normalizer import Normalizer
from .transitions import Field, Transitions, TransitionSpec
from .values import ColumnStatistics, Thresholds

#: Elements of the raw matrix in memory at a time, in float64.
_CHUNK_ELEMENTS = 2**22
#: Two roundings of a float and one of their difference, in units of the larger float's precision.
_ROUNDING = 4.0


@dataclass(frozen=True)
class _Block:
    """Where one field lies in the matrix."""

    field: Field
    columns: slice


@dataclass(frozen=True)
class Codec:
    """Encodes transitions of a spec as float32 rows ``[N, D]`` and decodes such rows into legal transitions.

    The matrix has one column per element of a continuous or binary field and one per category of a categorical one.
    Make it with `fit` or `from_state_dict`.

    Attributes:
        spec: the fields.
        next_observation_change: model the next observation's float elements as the change from the observation. The
            published code models the next observation itself; the change keeps one-step dynamics sharper because
            its normalised noise is small against the step, not against the range of the observation.
        normalize_reward: z-score the reward as any other column (Gym); if False leave it as it is (DMC).
        model_terminals: have a column for `terminated` (Gym); if False no synthetic row is terminal (DMC).
        normalizer: fixed when training starts from scratch.
        statistics: of each continuous and binary field, by name; they follow the data at every fit.
    """

    spec: TransitionSpec
    next_observation_change: bool
    normalize_reward: bool
    model_terminals: bool
    normalizer: Normalizer
    statistics: Mapping[str, ColumnStatistics]

    @classmethod
    def fit(
        cls,
        spec: TransitionSpec,
        transitions: Transitions,
        *,
        next_observation_change: bool = True,
        normalize_reward: bool = True,
        model_terminals: bool = True,
        normalizer: Normalizer | None = None,
    ) -> Codec:
        """A codec for rows like these.

        Args:
            spec: the fields.
            transitions: at least one finite row.
            next_observation_change: see `Codec`.
            normalize_reward: see `Codec`.
            model_terminals: see `Codec`.
            normalizer: the one to keep for a warm start; None measures it on these rows.
        """
        columns = transitions.flat()
        statistics = {
            field.name: ColumnStatistics.measure(field, columns[field.name])
            for field in spec.fields
            if field.kind != "categorical" and field.name != "terminated"
        }
        nothing = torch.zeros(0, dtype=torch.float64, device="cpu")
        codec = cls(
            spec,
            next_observation_change,
            normalize_reward,
            model_terminals,
            normalizer or Normalizer(nothing, nothing, nothing.bool(), nothing),
            statistics,
        )
        return codec if normalizer is not None else replace(codec, normalizer=codec._measure(transitions)[0])

    @property
    def dim(self) -> int:
        """Number of columns D of the matrix."""
        return self._blocks()[-1].columns.stop

    # -- encoding ----------------------------------------------------------------------------------------------------

    def encode(self, transitions: Transitions, device: torch.device | str = "cpu") -> Tensor:
        """The rows as a normalised float32 matrix ``[N, D]`` on `device`.

        Raises:
            ValueError: a category that the spec does not have.
        """
        out = torch.empty((len(transitions), self.dim), dtype=torch.float32, device=device)
        row = 0
        for raw in self._raw_chunks(transitions):
            out[row : row + len(raw)] = self.normalizer.apply(raw).to(out)
            row += len(raw)
        return out

    def drift(self, transitions: Transitions) -> float:
        """How far these rows have moved from the normalizer: 0 not at all, beyond 1 a warm start should not follow."""
        now, rounding = self._measure(transitions)
        return self.normalizer.drift(now, rounding)

    def _measure(self, transitions: Transitions) -> tuple[Normalizer, Tensor]:
        """The normalizer of these rows, and by how much each column varies by rounding alone."""
        fixed = torch.zeros(self.dim, dtype=torch.bool, device="cpu")
        for block in self._blocks():
            if block.field.kind != "continuous" or (block.field.name == "reward" and not self.normalize_reward):
                fixed[block.columns] = True
        rounding = self._rounding(transitions)
        return Normalizer.measure(lambda: self._raw_chunks(transitions), fixed, rounding), rounding

    def _rounding(self, transitions: Transitions) -> Tensor:
        """Variation ``[D]`` that is rounding: the difference of two floats is never exactly constant."""
        out = torch.zeros(self.dim, dtype=torch.float64, device="cpu")
        columns = transitions.flat()
        for block in self._blocks():
            field = block.field
            if self._is_change(field) and field.torch_dtype.is_floating_point:
                largest = [
                    columns[name].reshape(len(transitions), -1).abs().amax(0).double().cpu()
                    for name in (field.name, _previous(field))
                ]
                out[block.columns] = _ROUNDING * torch.finfo(field.torch_dtype).eps * torch.maximum(*largest)
        return out

    def _raw_chunks(self, transitions: Transitions) -> Iterator[Tensor]:
        """The matrix before normalisation, in float64 on the CPU, a chunk of rows at a time."""
        columns, blocks = transitions.flat(), self._blocks()
        num_rows = max(_CHUNK_ELEMENTS // blocks[-1].columns.stop, 1)
        for start in range(0, len(transitions), num_rows):
            rows = {name: tensor[start : start + num_rows].cpu() for name, tensor in columns.items()}
            parts = []
            for block in blocks:
                field = block.field
                value = rows[field.name].reshape(len(rows["reward"]), -1)
                if field.kind == "categorical":
                    parts.append(_one_hot(field, value))
                elif field.kind == "binary":
                    parts.append(value.double() * 2.0 - 1.0)
                elif self._is_change(field):
                    parts.append(value.double() - rows[_previous(field)].reshape(len(value), -1).double())
                else:
                    parts.append(value.double())
            yield torch.cat(parts, dim=1)

    # -- decoding ----------------------------------------------------------------------------------------------------

    def decode(self, matrix: Tensor, out: Transitions, thresholds: Thresholds) -> None:
        """Write the rows of a float32 matrix ``[n, D]`` into `out`, n rows of this spec, as legal transitions.

        `terminated` comes out False: the upsampler draws it from the whole decoded row.
        """
        num_rows = max(_CHUNK_ELEMENTS // self.dim, 1)
        for start in range(0, len(matrix), num_rows):
            decoded = self._decoded(matrix[start : start + num_rows], thresholds)
            for name, target in out[start : start + num_rows].flat().items():
                if name == "terminated":
                    target.zero_()
                else:
                    target.copy_(decoded[name].reshape(target.shape))

    def thresholds(self, matrix: Tensor) -> Thresholds:
        """Thresholds that give these generated rows ``[n, D]`` the data's rates of ones, few values and limits."""
        thresholds = Thresholds()
        self._decoded(matrix, thresholds, measure=True)
        return thresholds

    def _decoded(self, matrix: Tensor, thresholds: Thresholds, *, measure: bool = False) -> dict[str, Tensor]:
        """Values by field, ``[n, size]``; `measure` measures the thresholds on these rows first."""
        decoded: dict[str, Tensor] = {}
        for block in self._blocks():
            field = block.field
            if field.name == "terminated":
                continue
            value = self.normalizer.invert(matrix[:, block.columns], block.columns)
            if field.kind == "categorical":
                decoded[field.name] = _from_one_hot(field, value)
                continue
            if self._is_change(field):
                # The observation as decoded, so that s' - s is what the model meant.
                value = value + decoded[_previous(field)].to(value.dtype)
            statistics = self.statistics[field.name]
            if measure:
                statistics.add_thresholds(field, value, thresholds)
            if field.kind == "binary":
                decoded[field.name] = value > thresholds.binary[field.name].to(value)
            else:
                decoded[field.name] = statistics.legalize(field, value, thresholds)
        return decoded

    # -- layout ------------------------------------------------------------------------------------------------------

    def _blocks(self) -> list[_Block]:
        """The fields that the matrix has, in the order of the spec."""
        blocks, start = [], 0
        for field in self.spec.fields:
            if field.name != "terminated" or self.model_terminals:
                width = sum(field.num_categories) if field.kind == "categorical" else field.size
                blocks.append(_Block(field, slice(start, start + width)))
                start += width
        return blocks

    def _is_change(self, field: Field) -> bool:
        return self.next_observation_change and field.kind == "continuous" and field.name.startswith("next_observation")

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Normalizer and statistics, as CPU tensors and plain data."""
        return {
            "normalizer": self.normalizer.state_dict(),
            "statistics": {name: statistics.state_dict() for name, statistics in self.statistics.items()},
        }

    @classmethod
    def from_state_dict(
        cls,
        spec: TransitionSpec,
        state: Mapping[str, Any],
        *,
        next_observation_change: bool = True,
        normalize_reward: bool = True,
        model_terminals: bool = True,
    ) -> Codec:
        """The codec that `state_dict` describes; also that of version 3, which had other names."""
        normalizer, statistics = (
            (state["frame"], state["support"]) if "frame" in state else (state["normalizer"], state["statistics"])
        )
        return cls(
            spec,
            next_observation_change,
            normalize_reward,
            model_terminals,
            Normalizer.from_state_dict(normalizer),
            {name: ColumnStatistics.from_state_dict(entry) for name, entry in statistics.items()},
        )


def _previous(field: Field) -> str:
    """The observation's field that belongs to a field of the next observation."""
    return field.name.removeprefix("next_")


def _one_hot(field: Field, value: Tensor) -> Tensor:
    """Categories ``[n, size]`` as columns of -1 and 1, ``[n, sum(num_categories)]``."""
    parts = []
    for element, count in enumerate(field.num_categories):
        if field.values:
            table = torch.tensor(field.values, dtype=torch.float64, device="cpu")
            distance = (value[:, element, None].double() - table).abs()
            index = distance.argmin(1)
            legal = bool((distance.amin(1) <= 1e-5 * table.abs().amax()).all())
        else:
            index = value[:, element].long() - field.start[element]
            legal = bool(((index >= 0) & (index < count)).all())
        if not legal:
            wanted = field.values or f"{field.start[element]} to {field.start[element] + count - 1}"
            raise ValueError(
                f"{field.name}[{element}] holds values outside its categories ({wanted}); found "
                f"{value[:, element].min().item()} to {value[:, element].max().item()}. "
                "Check that the spec matches the data."
            )
        parts.append(torch.nn.functional.one_hot(index, count).double() * 2.0 - 1.0)
    return torch.cat(parts, dim=1)


def _from_one_hot(field: Field, value: Tensor) -> Tensor:
    """The category with the largest column, ``[n, size]``, in the field's own values."""
    parts = []
    for element, scores in enumerate(torch.split(value, list(field.num_categories), dim=1)):
        index = scores.argmax(1)
        parts.append(
            torch.tensor(field.values, device=value.device)[index] if field.values else index + field.start[element]
        )
    return torch.stack(parts, dim=1)
