"""How the columns of the matrix are normalised, and how far data have moved from that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .structure import Structure

#: A normalised column with values beyond this is heavy-tailed: asinh compresses it to values within it.
HEAVY_TAIL = 8.0


@dataclass(frozen=True)
class Normalizer:
    """``x = f((raw - mean) / scale) / spread``: ``[D]`` each, on the CPU, float64 but for `heavy`.

    ``f`` is asinh in heavy-tailed columns and the identity elsewhere. `spread` brings the compressed columns back to
    unit variance, or to less where a few rare values would lie beyond `HEAVY_TAIL`. Constant columns have scale 0 and
    are 0 in the matrix. Columns of fixed scale have mean 0, scale 1 and no compression.

    The weights of a denoiser only have a meaning under one normalizer, so it is measured when training starts from
    scratch and kept as long as training continues. So is the `structure`, which says what the columns are.
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
        """Take the normalisation from data, in float64.

        Args:
            chunks: each call goes through the raw rows again, ``[n, D]`` float64 on the CPU at a time.
            fixed: columns whose scale is fixed, ``[D]`` bool.
            rounding: standard deviation up to which a column only varies by rounding, ``[D]``: it counts as constant.
            structure: what the columns are.
        """
        count, total, low, high = 0, torch.zeros_like(rounding), torch.full_like(rounding, math.inf), None
        for raw in chunks():
            count += len(raw)
            total += raw.sum(0)
            low = torch.minimum(low, raw.amin(0))
            high = raw.amax(0) if high is None else torch.maximum(high, raw.amax(0))
        assert high is not None
        mean = total / count
        extent = _nonzero(high - low)  # squares of what is divided by it neither overflow nor vanish
        squares = torch.zeros_like(mean)
        for raw in chunks():
            squares += ((raw - mean) / extent).square().sum(0)
        scale = (squares / count).sqrt() * extent
        constant = (low == high) | (scale <= rounding)
        mean = torch.where(fixed, 0.0, torch.where(low == high, low, mean))
        scale = torch.where(fixed, 1.0, torch.where(constant, 0.0, scale))

        extreme = torch.maximum((low - mean).abs(), (high - mean).abs()) / _nonzero(scale)
        heavy = (extreme > HEAVY_TAIL) & ~fixed & (scale > 0)
        spread = torch.ones_like(mean)
        if bool(heavy.any()):
            # The compressed column is not centred exactly; its root mean square is what should be 1. One flag in
            # 50,000 rows would still lie 220 of them out.
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
            # Generated values may lie far out: sinh of a large one would overflow before the range clips it.
            value = torch.where(heavy, torch.sinh(value.clamp(-40.0, 40.0)), value)
        return value * scale + mean

    def drift(self, chunks: Callable[[], Iterator[Tensor]], fixed: Tensor, rounding: Tensor) -> float:
        """How far data have moved: 0 not at all, 1 about as far as a warm start should follow.

        The largest over columns of the mean's shift in standard deviations, and of the log-ratios to base 3 of the
        scales and of the largest normalised value to `HEAVY_TAIL`, which a new normalizer would compress. Infinite
        where a column that was constant now varies.

        Args:
            chunks: the data of today, as in `measure`.
            fixed: as in `measure`.
            rounding: as in `measure`, of the data of today; means that differ by less are the same.
        """
        now = Normalizer.measure(chunks, fixed, rounding, self.structure)
        constant = self.scale == 0
        moved = (now.mean - self.mean).abs() > rounding
        if bool((constant & ((now.scale > 0) | moved)).any()):
            return math.inf
        scale = _nonzero(self.scale)
        shift = (now.mean - self.mean).abs() / scale
        ratio = torch.where(now.scale > 0, (_nonzero(now.scale) / scale).log().abs() / math.log(3.0), 0.0)
        extreme = torch.zeros_like(shift)
        for raw in chunks():
            extreme = torch.maximum(extreme, self.apply(raw).abs().amax(0))
        drift = torch.stack([shift, ratio, (extreme / HEAVY_TAIL).log() / math.log(3.0)]).amax(0)
        return float(torch.where(constant | fixed, 0.0, drift).max().clamp(min=0.0))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data by name."""
        return {**vars(self), "structure": self.structure.state_dict()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Normalizer:
        """The normalizer that `state_dict` describes; without a structure that of version 3."""
        structure = Structure.from_state_dict(state["structure"]) if "structure" in state else Structure()
        return cls(**{**state, "structure": structure})


def _nonzero(divisor: Tensor) -> Tensor:
    """1 in place of each 0."""
    return torch.where(divisor == 0, 1.0, divisor)
