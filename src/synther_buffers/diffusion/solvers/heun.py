"""EDM's stochastic sampler (Karras et al. 2022, Algorithm 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from ...public_paths import public
from ...validation import finite_number, not_negative
from .base import Denoiser, Noise, Solver, Watch, level


@public
@dataclass(frozen=True)
class HeunSolver(Solver):
    """At each level it adds noise (churn), takes an Euler step and corrects it to second order.

    With ``s_churn = 0`` it is the deterministic Heun sampler (Karras et al. 2022, Algorithm 1).

    Attributes:
        s_churn: amount of noise added over all steps; infinity for as much as a step may add.
        s_tmin: noise level below which none is added.
        s_tmax: noise level above which none is added; infinity for no such level.
        s_noise: factor of the added noise.
    """

    name: ClassVar[str] = "stochastic-heun"

    s_churn: float = 80.0
    s_tmin: float = 0.05
    s_tmax: float = 50.0
    s_noise: float = 1.003

    def __post_init__(self) -> None:
        """Reject values out of range with an error that names them."""
        super().__post_init__()
        for name in ("s_churn", "s_tmin", "s_tmax"):
            value = not_negative(f"sampler.solver.{name}", getattr(self, name), finite=False)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "s_noise", finite_number("sampler.solver.s_noise", self.s_noise))

    @property
    def num_function_evaluations(self) -> int:
        """Two for each level, one for the last."""
        return 2 * self.num_steps - 1

    def solve(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigmas: list[float],
        noise: Noise,
        watch: Watch | None = None,
        corrector: Denoiser | None = None,
    ) -> Tensor:
        """See `Solver.solve`."""
        corrector = denoiser if corrector is None else corrector
        gamma_max = min(self.s_churn / (len(sigmas) - 1), math.sqrt(2.0) - 1.0)
        for sigma, sigma_next in pairwise(sigmas):
            if watch is not None:
                watch(sigma, x)
            gamma = gamma_max if self.s_tmin <= sigma <= self.s_tmax else 0.0
            sigma_hat = sigma * (1.0 + gamma)
            if gamma > 0.0:
                x = x + math.sqrt(sigma_hat**2 - sigma**2) * self.s_noise * noise()
            slope = (x - denoiser(x, level(sigma_hat, x))) / sigma_hat
            step = sigma_next - sigma_hat
            x_next = x + step * slope
            if sigma_next > 0.0:
                slope_next = (x_next - corrector(x_next, level(sigma_next, x))) / sigma_next
                x_next = x + step * 0.5 * (slope + slope_next)
            x = x_next
        if watch is not None:
            watch(0.0, x)
        return x
