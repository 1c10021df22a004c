"""Explicit augmentations: real rows, resampled and perturbed, behind the same protocol as the diffusion model.

They are baselines for the rows of a model, and an alternative if a model is too expensive. Each is a factory that a
buffer's ``upsampler`` argument takes, with parameters through `functools.partial`::

    SynthERBuffer(..., upsampler=GaussianNoise)
    SynthERBuffer(..., upsampler=partial(GaussianNoise, scale=0.05))

All perturb observations only, as published (RAD: Laskin et al. 2020; S4RL: Sinha et al. 2021): action, reward,
terminal flag, discount and extra fields are those of the real row, even where they are wrong for the perturbed one. A
perturbed row stays legal: values are clipped to the bounds of the space and integers are rounded; binary and
categorical fields, and elements with few distinct values (constants, contact flags), are not changed.

Noise is in standardised units, multiples of an element's standard deviation over the fitted rows. S4RL's and RAD's own
figures are in the units of the environment's observations, so a scale is not comparable with theirs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..transitions import Field, Transitions, TransitionSpec
from ..transitions.special_columns import FEW_VALUES
from .presets import resolve_device
from .protocol import FitReport
from .seeds import derive_seed, generator

#: Rows whose distinct values are counted before the whole column is.
_FIRST_ROWS = 4 * FEW_VALUES**2


class Bootstrap:
    """Real rows drawn uniformly with replacement, unchanged: the control of every comparison.

    Memory: one copy of the fitted rows; while fitting, one field of them in float64; while sampling, the drawn rows and
    one field's noise. `state_dict` holds the rows, so they are part of a saved buffer.

    Args:
        spec: the fields of a transition.
        device: where the rows are kept and drawn; ``auto`` is CUDA where there is one.
        seed: of everything random in it; the global random streams are neither read nor moved.
        progress_bar: ignored; every upsampler takes it.

    Raises:
        ValueError: unusable device.
    """

    #: Names of the attributes that hold the parameters.
    _parameters: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        spec: TransitionSpec,
        *,
        device: str | torch.device = "auto",
        seed: int = 0,
        progress_bar: bool = False,
    ) -> None:
        self.spec = spec
        self.device = resolve_device(device)
        self.seed = seed
        self._rows: Transitions | None = None
        self._stds: dict[str, Tensor] = {}
        self._num_fits = 0
        self._num_draws = 0

    @property
    def config(self) -> dict[str, Any]:
        """Name and parameters."""
        return {"augmentation": type(self).__name__, **{name: getattr(self, name) for name in self._parameters}}

    def fit(self, transitions: Transitions, *, held_out: Transitions | None = None) -> FitReport:
        """Copy the rows and measure their standard deviations.

        Args:
            transitions: finite rows of the spec, on any device.
            held_out: ignored.

        Raises:
            ValueError: rows that do not match the spec, or none.
        """
        start = time.perf_counter()
        self.spec.check(transitions)
        if len(transitions) == 0:
            raise ValueError("transitions has no rows; at least one is needed to draw from.")
        # Copies: a ring buffer overwrites its own rows.
        self._rows = Transitions.from_flat(
            {name: tensor.to(self.device, copy=True) for name, tensor in transitions.flat().items()}
        )
        self._measure(self._rows)
        self._num_fits += 1
        self._num_draws = 0
        return FitReport(math.nan, math.nan, 0, time.perf_counter() - start, False, "nothing is trained")

    def sample(self, num_samples: int) -> Transitions:
        """Draw real rows and perturb them, on the augmentation's device.

        Raises:
            RuntimeError: nothing was fitted yet.
            ValueError: a negative number.
        """
        if self._rows is None:
            raise RuntimeError("this augmentation has not been fitted yet: call fit(transitions) first.")
        if num_samples < 0:
            raise ValueError(f"num_samples is {num_samples}; it must be at least 0.")
        draws = generator(derive_seed(self.seed, "", self._num_fits, self._num_draws), self.device)
        self._num_draws += 1
        drawn = self._rows[torch.randint(len(self._rows), (num_samples,), generator=draws, device=self.device)]
        self._perturb(drawn.flat(), draws)
        return drawn

    def _perturb(self, columns: dict[str, Tensor], generator: torch.Generator) -> None:
        """Perturb drawn rows in place; here not at all."""

    def _measure(self, rows: Transitions) -> None:
        """Standard deviation per element of each continuous observation field, 0 for elements that are not changed."""
        columns = rows.flat()
        for field in self.spec.observation:
            if field.kind == "continuous":
                value = columns[field.name].reshape(len(rows), field.size).double()
                self._stds[field.name] = value.std(0, correction=0) * _has_many_values(value)

    def state_dict(self) -> dict[str, Any]:
        """Rows, scales and counters: CPU tensors and plain data."""
        return {
            "num_fits": self._num_fits,
            "num_draws": self._num_draws,
            "rows": None if self._rows is None else self._rows.to("cpu").flat(),
            "stds": {name: std.cpu() for name, std in self._stds.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the rows are of another spec.
        """
        rows = None if state["rows"] is None else Transitions.from_flat(state["rows"])
        if rows is not None:
            self.spec.check(rows)
        self._rows = None if rows is None else rows.to(self.device)
        self._stds = {name: std.to(self.device) for name, std in state["stds"].items()}
        self._num_fits, self._num_draws = state["num_fits"], state["num_draws"]


class GaussianNoise(Bootstrap):
    """Adds Gaussian noise to the observation and, independently, to the next one.

    Each element gets ``scale * std * N(0, 1)``, where std is the observation's over the fitted rows. S4RL (Sinha et al.
    2021) found this augmentation best, with noise in the units of the observation.

    Args:
        spec, device, seed, progress_bar: as for `Bootstrap`.
        scale: standard deviation of the noise, in standardised units.

    Raises:
        ValueError: a scale that is negative or not finite.
        TypeError: a scale that is not a number.
    """

    _parameters = ("scale",)

    def __init__(self, spec: TransitionSpec, *, scale: float = 0.1, **kwargs: Any) -> None:
        self.scale = _number("scale", scale)
        if self.scale < 0:
            raise ValueError(f"scale is {scale}; it must be at least 0.")
        super().__init__(spec, **kwargs)

    def _perturb(self, columns: dict[str, Tensor], generator: torch.Generator) -> None:
        for field in (*self.spec.observation, *self.spec.next_observation):
            self._add_noise(field, columns, generator)

    def _add_noise(self, field: Field, columns: dict[str, Tensor], generator: torch.Generator) -> None:
        if field.kind == "continuous":
            amplitude = self.scale * self._stds[field.name.removeprefix("next_")]

            def noisy(value: Tensor) -> Tensor:
                noise = torch.randn(value.shape, generator=generator, device=value.device, dtype=value.dtype)
                return value + noise * amplitude.to(value)

            _apply(field, columns[field.name], amplitude > 0, noisy)


class DynamicsNoise(GaussianNoise):
    """Adds Gaussian noise to the next observation only, which perturbs the dynamics.

    Each element gets ``scale * std * N(0, 1)``, where std is the observation's (not its change's) over the fitted rows.
    Perturbed dynamics are the idea of augmented world models (Ball et al. 2021), which scale the change instead.
    """

    def _perturb(self, columns: dict[str, Tensor], generator: torch.Generator) -> None:
        for field in self.spec.next_observation:
            self._add_noise(field, columns, generator)


class AmplitudeScaling(Bootstrap):
    """Multiplies each row's observation and next observation by one factor, uniform in [low, high].

    The random amplitude scaling of RAD (Laskin et al. 2020), which keeps signs and the proportions within a row. It
    acts on raw values, so elements far from 0 change most.

    Args:
        spec, device, seed, progress_bar: as for `Bootstrap`.
        low, high: range of the factor.

    Raises:
        ValueError: a range that is not ``0 < low <= high``.
        TypeError: a bound that is not a number.
    """

    _parameters = ("low", "high")

    def __init__(self, spec: TransitionSpec, *, low: float = 0.8, high: float = 1.2, **kwargs: Any) -> None:
        self.low, self.high = _number("low", low), _number("high", high)
        if not 0.0 < self.low <= self.high:
            raise ValueError(f"low is {low} and high is {high}; wanted 0 < low <= high, around 1.")
        super().__init__(spec, **kwargs)

    def _perturb(self, columns: dict[str, Tensor], generator: torch.Generator) -> None:
        num_rows = len(columns["reward"])
        uniform = torch.rand((num_rows, 1), generator=generator, device=self.device, dtype=torch.float64)
        factor = self.low + (self.high - self.low) * uniform
        for field in (*self.spec.observation, *self.spec.next_observation):
            if field.kind == "continuous":
                varied = self._stds[field.name.removeprefix("next_")] > 0
                _apply(field, columns[field.name], varied, lambda value: value * factor.to(value))


#: By name on the command line.
AUGMENTATIONS: dict[str, type[Bootstrap]] = {
    "bootstrap": Bootstrap,
    "gaussian": GaussianNoise,
    "amplitude": AmplitudeScaling,
    "dynamics": DynamicsNoise,
}


def _apply(field: Field, tensor: Tensor, varied: Tensor, perturb: Callable[[Tensor], Tensor]) -> None:
    """Perturb the elements ``varied [size]`` of a field's rows in place, to legal values."""
    value = tensor.reshape(len(tensor), field.size)
    low, high = (torch.tensor(bounds, dtype=torch.float64, device=tensor.device) for bounds in (field.low, field.high))
    if tensor.is_floating_point():
        perturbed = torch.clamp(perturb(value), low.to(value), high.to(value))
    else:
        value = value.double()
        # A number beyond the range of the dtype would wrap around.
        limits = torch.iinfo(tensor.dtype)
        perturbed = torch.clamp(perturb(value), low, high).clamp(limits.min, limits.max).round()
    tensor.copy_(torch.where(varied, perturbed, value).reshape(tensor.shape))


def _has_many_values(value: Tensor) -> Tensor:
    """Whether each column of ``[n, size]`` has more than a few distinct values (as in `Codec`), ``[size]``."""
    few = max(1, min(FEW_VALUES, len(value) // 8))
    # For most columns the first rows are enough to tell; only the others need a full sort.
    many = [len(torch.unique(column[:_FIRST_ROWS])) > few or len(torch.unique(column)) > few for column in value.T]
    return torch.tensor(many, dtype=torch.bool, device=value.device)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); wanted a number.")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}; wanted a finite number.")
    return float(value)
