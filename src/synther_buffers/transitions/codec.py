"""Between transitions and the float matrix that the diffusion model learns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .layout import Block, Layout, from_one_hot, has_categories
from .normalizer import Normalizer
from .special_columns import Structure
from .transitions import Transitions, TransitionSpec
from .values import ColumnStatistics, Thresholds

#: The squares of larger values overflow float64.
_LARGEST = 1e150
#: Thresholds are measured on at most this many elements of the matrix, in float64.
_THRESHOLD_ELEMENTS = 2**25


@dataclass(frozen=True)
class Codec:
    """Encodes transitions of a spec as float32 rows ``[N, D]`` and decodes such rows into legal transitions.

    Make it with `fit` or `from_state_dict`; it is immutable.

    Attributes:
        layout: which columns the matrix has.
        normalizer: how they are normalised; fixed, with the layout, when training starts from scratch.
        statistics: which values of each continuous and binary field are legal, by name; measured again at every fit.
    """

    layout: Layout
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
            transitions: at least one row.
            next_observation_change: model the next observation's float elements as the change from the observation.
                The published code models the next observation itself; the change keeps one-step dynamics sharper
                because its normalised noise is small against the step, not against the range of the observation.
            normalize_reward: z-score the reward as any other column (Gym); if False leave it as it is (DMC).
            model_terminals: have a column for `terminated` (Gym); if False no synthetic row is terminal (DMC).
            normalizer: the previous one, for a warm start; None measures it on these rows.

        Raises:
            ValueError: values that are not finite or beyond 1e150, or a category that the spec does not have.
        """
        columns = transitions.flat()
        for field in spec.fields:
            if field.kind == "continuous":
                _check_size(field.elements, columns[field.name].reshape(len(transitions), -1))
        structure = Structure.detect(spec, transitions) if normalizer is None else normalizer.structure
        layout = Layout(spec, structure, next_observation_change, normalize_reward, model_terminals)
        if normalizer is None:
            normalizer = Normalizer.measure(
                lambda: layout.raw_chunks(transitions), layout.fixed, layout.rounding(transitions), structure
            )
        statistics = {
            block.field.name: ColumnStatistics.measure(block, columns[block.field.name])
            for block in layout.blocks
            if block.field.kind != "categorical" and block.field.name != "terminated"
        }
        return cls(layout, normalizer, statistics)

    @property
    def spec(self) -> TransitionSpec:
        """The fields of a transition."""
        return self.layout.spec

    @property
    def dim(self) -> int:
        """Number of columns D of the matrix."""
        return self.layout.dim

    @property
    def clusters(self) -> list[str]:
        """Names of elements with values of very different scales, which one column of the matrix represents badly."""
        names = {field.name: field.elements for field in self.spec.fields}
        return [names[name][element] for name, element in self.normalizer.structure.clusters]

    def drift(self, transitions: Transitions) -> float:
        """How far these rows differ from those that the normalizer was measured on.

        0: not at all; above 1: training should start from scratch. Infinite if columns would get another meaning: a
        constant one varies, there is a new point mass, or a group is no longer one-hot.
        """
        if self.normalizer.structure.is_broken_by(self.spec, transitions):
            return math.inf
        return self.normalizer.drift(
            lambda: self.layout.raw_chunks(transitions), self.layout.fixed, self.layout.rounding(transitions)
        )

    def encode(self, transitions: Transitions, device: torch.device | str = "cpu") -> Tensor:
        """The rows as a normalised float32 matrix ``[N, D]`` on `device`.

        Raises:
            ValueError: a category that the spec does not have.
        """
        out = torch.empty((len(transitions), self.dim), dtype=torch.float32, device=device)
        row = 0
        for raw in self.layout.raw_chunks(transitions):
            out[row : row + len(raw)] = self.normalizer.apply(raw).to(out)
            row += len(raw)
        return out

    def encode_known(self, known: Mapping[str, Tensor], device: torch.device | str = "cpu") -> Tensor:
        """Some fields of rows as columns of the matrix, ``[n, D]`` float32 on `device`; the other columns are 0.

        Args:
            known: values ``[n, *shape]`` on the CPU by name of the field; none that is modelled as a change.
            device: of the result.

        Raises:
            ValueError: a category that the spec does not have.
        """
        raw = self.layout.raw(known)
        columns = self.layout.columns_of(known)
        return torch.where(columns, self.normalizer.apply(raw), 0.0).to(device, torch.float32)

    def check_known(self, known: Mapping[str, Tensor]) -> None:
        """Raise an error unless these fields, ``[n, *shape]`` on the CPU, are close to what was learned.

        Raises:
            ValueError: a value lies further from the data than a quarter of its range.
        """
        for block, value in self._continuous(known):
            self.statistics[block.field.name].check_near(block, value)

    def near(self, known: Mapping[str, Tensor]) -> Tensor:
        """Which rows of these fields, ``[n, *shape]`` on the CPU, a condition may have, ``[n]`` bool.

        Those that `check_known` accepts and whose categories the spec has.
        """
        near = torch.ones(len(next(iter(known.values()))), dtype=torch.bool, device="cpu")
        for block in self.layout.blocks:
            if block.field.name in known and block.field.kind == "categorical":
                near &= has_categories(block.field, known[block.field.name].reshape(len(near), -1))
        for block, value in self._continuous(known):
            near &= self.statistics[block.field.name].near(block, value).all(1)
        return near

    def _continuous(self, known: Mapping[str, Tensor]) -> Iterator[tuple[Block, Tensor]]:
        """The continuous ones of these fields, ``[n, size]`` float64."""
        for block in self.layout.blocks:
            if block.field.name in known and block.field.kind == "continuous":
                value = known[block.field.name]
                yield block, value.reshape(len(value), -1).double()

    def thresholds(self, matrix: Tensor) -> Thresholds:
        """Thresholds that give generated rows ``[n, D]`` the data's rates of ones, few values, limits, point masses.

        They are measured on a limited number of the first rows, which bounds memory.
        """
        thresholds = Thresholds()
        self._decoded(matrix[: max(_THRESHOLD_ELEMENTS // self.dim, 1)], thresholds, measure=True)
        return thresholds

    def decode(
        self, matrix: Tensor, out: Transitions, thresholds: Thresholds, known: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write the rows of a float32 matrix ``[n, D]`` into `out`, n rows of this spec, as legal transitions.

        `terminated` is set to False: the upsampler draws it from the whole decoded row. Fields in `known` have its
        values, ``[n, *shape]``, whatever the matrix has; changes are added to them.
        """
        for start in range(0, len(matrix), self.layout.chunk_rows):
            part = slice(start, start + self.layout.chunk_rows)
            given = {name: value[part].to(matrix.device) for name, value in (known or {}).items()}
            decoded = self._decoded(matrix[part], thresholds, given)
            for name, target in out[part].flat().items():
                if name == "terminated":
                    target.zero_()
                else:
                    target.copy_(decoded[name].reshape(target.shape))

    def _decoded(
        self,
        matrix: Tensor,
        thresholds: Thresholds,
        known: Mapping[str, Tensor] | None = None,
        *,
        measure: bool = False,
    ) -> dict[str, Tensor]:
        """Values by field, ``[n, size]``; with `measure`, the thresholds are first measured on these rows."""
        decoded: dict[str, Tensor] = {}
        filled: dict[str, Tensor] = {}
        for block in self.layout.blocks:
            field = block.field
            if field.name == "terminated":
                continue
            if known and field.name in known:
                decoded[field.name] = known[field.name].reshape(len(matrix), -1)
                if field.kind == "continuous":
                    filled[field.name], _ = block.fill(decoded[field.name].double())
                continue
            value = self.normalizer.invert(matrix[:, block.columns], block.columns)
            if field.kind == "categorical":
                decoded[field.name] = from_one_hot(field, value)
                continue
            if block.changes is not None:
                # The observation as decoded, so that s' - s is the change that the model generated.
                base = filled[block.previous].to(value)
                value = torch.where(block.changes.to(value.device), value + base, value)
            indicators = {element: matrix[:, columns] for element, columns in block.indicators.items()}
            statistics = self.statistics[field.name]
            if measure:
                statistics.add_thresholds(block, value, indicators, thresholds)
            if field.kind == "binary":
                decoded[field.name] = value > thresholds.binary[field.name].to(value)
            else:
                decoded[field.name], filled[field.name] = statistics.legalize(block, value, indicators, thresholds)
        return decoded

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
        """The codec that `state_dict` returned; also reads version 3, which has other names.

        The other arguments are those of `fit`.
        """
        normalizer = Normalizer.from_state_dict(state["frame" if "frame" in state else "normalizer"])
        statistics = state["support" if "support" in state else "statistics"]
        layout = Layout(spec, normalizer.structure, next_observation_change, normalize_reward, model_terminals)
        return cls(
            layout,
            normalizer,
            {name: ColumnStatistics.from_state_dict(entry) for name, entry in statistics.items()},
        )


def _check_size(elements: list[str], value: Tensor) -> None:
    """Raise a ValueError that names the first element with values that cannot be normalised, of ``[N, size]``."""
    if not value.is_floating_point():
        return
    low, high = (bound.double().cpu() for bound in value.aminmax(dim=0))
    fits = (low >= -_LARGEST) & (high <= _LARGEST)
    if not bool(fits.all()):
        element = int((~fits).nonzero()[0])
        first, last = float(low[element]), float(high[element])
        found = "NaN among its values" if math.isnan(first) else f"values from {first:g} to {last:g}"
        raise ValueError(
            f"{elements[element]} has {found}; wanted finite ones of at most {_LARGEST:g} in magnitude. Rescale it or "
            "remove these rows."
        )
