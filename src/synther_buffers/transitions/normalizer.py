"""How the columns of the matrix are normalised, and how far new data differ from that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .special_columns import HEAVY_TAIL, Structure, central

#: Rows, drawn at random, from which the centre and scale of heavy-tailed columns are measured.
_SAMPLE_ROWS = 16_384


@dataclass(frozen=True)
class Normalizer:
    """``x = f((raw - mean) / scale) / spread``: ``[D]`` each, on the CPU, float64 except `heavy`.

    ``f`` is asinh in heavy-tailed columns and the identity elsewhere. There `mean` and `scale` are those of the central
    rows, so that a single extreme value does not press all others together, and `spread` brings the compressed columns
    back to unit variance, or to less where a few rare values would lie beyond `HEAVY_TAIL`. Constant columns have scale
    0 and are 0 in the matrix. Columns of fixed scale have mean 0, scale 1 and no compression.

    The weights of a denoiser are valid only for one normalizer, so it is measured when training starts from scratch and
    kept as long as training continues; so is the `structure`, which determines the columns.
    """

    mean: Tensor
    scale: Tensor
    heavy: Tensor
    spread: Tensor
    structure: Structure = field(default_factory=Structure)

    @classmethod
    def measure(
        cls, chunks: Callable[[], Iterator[Tensor]], fixed: Tensor, rounding: Tensor, structure: Structure
    ) -> Normalizer:
        """Measure the normalisation on data, in float64.

        Args:
            chunks: each call iterates over the raw rows, ``[n, D]`` float64 on the CPU at a time.
            fixed: columns whose scale is fixed, ``[D]`` bool.
            rounding: standard deviation, ``[D]``, up to which a column varies by rounding only and counts as constant.
            structure: of the data.
        """
        count, mean, scale, low, high = _moments(chunks, fixed, rounding)
        extreme = torch.maximum((low - mean).abs(), (high - mean).abs()) / _nonzero(scale)
        heavy = (extreme > HEAVY_TAIL) & ~fixed & (scale > 0)
        spread = torch.ones_like(mean)
        if bool(heavy.any()):
            sample = _sample(chunks, count, heavy)
            for column, rows in zip(heavy.nonzero()[:, 0].tolist(), sample.unbind(1), strict=True):
                within = central(rows)
                centre, extent = within.mean(), _nonzero(within[-1] - within[0])
                deviation = ((within - centre) / extent).square().mean().sqrt() * extent
                # Otherwise nothing was left out, or what remains is constant but for rounding.
                if len(within) < len(rows) and deviation > rounding[column]:
                    mean[column], scale[column] = centre, deviation
            extreme = torch.maximum((low - mean).abs(), (high - mean).abs()) / _nonzero(scale)
            # The compressed column is not centred exactly, so its root mean square is scaled to 1. A flag that is set
            # in one of 50,000 rows would still lie at 220 times that; the maximum below prevents this.
            moment = torch.zeros_like(mean)
            for raw in chunks():
                moment += torch.asinh((raw - mean) / _nonzero(scale)).square().sum(0)
            bounded = torch.maximum((moment / count).sqrt(), torch.asinh(extreme) / HEAVY_TAIL)
            spread = torch.where(heavy, bounded, spread)
        return cls(mean, scale, heavy, spread, structure)

    def apply(self, raw: Tensor) -> Tensor:
        """Raw rows ``[n, D]`` float64 on the CPU, normalised."""
        x = (raw - self.mean) / _nonzero(self.scale)
        x = torch.where(self.heavy, torch.asinh(x), x) / self.spread
        return torch.where(self.scale == 0, 0.0, x)

    def invert(self, x: Tensor, columns: slice) -> Tensor:
        """Some columns of normalised rows, ``[n, d]``, in the units of the data: float64 on their own device."""
        mean, scale, spread, heavy = (
            tensor[columns].to(x.device) for tensor in (self.mean, self.scale, self.spread, self.heavy)
        )
        value = x.double() * spread
        if bool(self.heavy[columns].any()):
            # Generated values may be very large: their sinh would overflow before it is clipped to the range.
            furthest = HEAVY_TAIL * spread + 40.0
            value = torch.where(heavy, torch.sinh(torch.clamp(value, -furthest, furthest)), value)
        return value * scale + mean

    def drift(self, chunks: Callable[[], Iterator[Tensor]], fixed: Tensor, rounding: Tensor) -> float:
        """How far new data differ: 0 not at all; above 1, training should start from scratch.

        It is the largest of these values over all columns: the shift of the mean in standard deviations; the log-ratio
        (to base 3) of the scales; and that of the largest normalised value to `HEAVY_TAIL`, beyond which a new
        normalizer would compress. Of heavy-tailed columns, whose mean and scale change with the number of extremes, the
        log of the root mean square counts instead of the first two: it is at most 1 where they were measured. Infinite
        if a column that was constant now varies.

        Args:
            chunks: the new data, as in `measure`.
            fixed: as in `measure`.
            rounding: as in `measure`, of the new data; means that differ by less count as equal.
        """
        count, mean, new_scale, *_ = _moments(chunks, fixed, rounding)
        constant = self.scale == 0
        moved = (mean - self.mean).abs() > rounding
        if bool((constant & ((new_scale > 0) | moved)).any()):
            return math.inf
        scale = _nonzero(self.scale)
        shift = (mean - self.mean).abs() / scale
        ratio = torch.where(new_scale > 0, (_nonzero(new_scale) / scale).log().abs(), 0.0)
        extreme, moment = torch.zeros_like(shift), torch.zeros_like(shift)
        for raw in chunks():
            x = self.apply(raw)
            extreme = torch.maximum(extreme, x.abs().amax(0))
            moment += x.square().sum(0)
        shift = torch.where(self.heavy, 0.0, shift)
        ratio = torch.where(self.heavy, (moment / count).sqrt().log(), ratio)
        drift = torch.stack([shift, ratio / math.log(3.0), (extreme / HEAVY_TAIL).log() / math.log(3.0)]).amax(0)
        return float(torch.where(constant | fixed, 0.0, drift).max().clamp(min=0.0))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data by name."""
        return {**vars(self), "structure": self.structure.state_dict()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Normalizer:
        """The normalizer that `state_dict` returned; version 3 has no structure."""
        structure = Structure.from_state_dict(state["structure"]) if "structure" in state else Structure()
        return cls(**{**state, "structure": structure})


def _moments(
    chunks: Callable[[], Iterator[Tensor]], fixed: Tensor, rounding: Tensor
) -> tuple[int, Tensor, Tensor, Tensor, Tensor]:
    """The number of rows, and mean, scale, least and largest value of the columns, as in `Normalizer.measure`."""
    count, total, low = 0, torch.zeros_like(rounding), torch.full_like(rounding, math.inf)
    high = -low
    for raw in chunks():
        count += len(raw)
        total += raw.sum(0)
        low = torch.minimum(low, raw.amin(0))
        high = torch.maximum(high, raw.amax(0))
    mean = total / count
    extent = _nonzero(high - low)  # dividing by it keeps squares from overflow and underflow
    squares = torch.zeros_like(mean)
    for raw in chunks():
        squares += ((raw - mean) / extent).square().sum(0)
    scale = (squares / count).sqrt() * extent
    constant = (low == high) | (scale <= rounding)
    mean = torch.where(fixed, 0.0, torch.where(low == high, low, mean))
    return count, mean, torch.where(fixed, 1.0, torch.where(constant, 0.0, scale)), low, high


def _sample(chunks: Callable[[], Iterator[Tensor]], count: int, columns: Tensor) -> Tensor:
    """Some columns ``[D]`` bool of at most `_SAMPLE_ROWS` of the rows, ``[m, d]`` float64 on the CPU.

    They are drawn at random, because rows at a fixed stride may all be of the same environment.
    """
    draws = torch.Generator(device="cpu").manual_seed(0)
    chosen = torch.randperm(count, generator=draws, device="cpu")[:_SAMPLE_ROWS].sort().values
    parts, start = [], 0
    for raw in chunks():
        rows = chosen[(chosen >= start) & (chosen < start + len(raw))] - start
        parts.append(raw[rows][:, columns])
        start += len(raw)
    return torch.cat(parts)


def _nonzero(divisor: Tensor) -> Tensor:
    """The divisor with each 0 replaced by 1."""
    return torch.where(divisor == 0, 1.0, divisor)
