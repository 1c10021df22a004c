"""SDE-DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++", algorithm 4 and appendix), in sigma = exp(-lambda)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from ...public_paths import public
from .base import Denoiser, Noise, Solver, Watch, level


@public
@dataclass(frozen=True)
class DPMSolver(Solver):
    """Integrates the reverse SDE exactly between two levels, for a D that is constant there.

    The constant is D at the midpoint in lambda, extrapolated from the last two evaluations. The last evaluation, at the
    smallest noise level, is the result.
    """

    name: ClassVar[str] = "sde-dpm-solver-2m"

    @property
    def num_function_evaluations(self) -> int:
        """One for each level."""
        return self.num_steps

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
        previous: Tensor | None = None
        previous_step = 0.0
        for sigma, sigma_next in pairwise(sigmas):
            if watch is not None:
                watch(sigma, x)
            denoised = denoiser(x, level(sigma, x))
            if sigma_next == 0.0:
                if watch is not None:
                    watch(0.0, denoised)
                return denoised
            step = math.log(sigma / sigma_next)
            ratio = sigma_next / sigma
            target = denoised
            if previous is not None:
                target = denoised + (denoised - previous) * (0.5 * step / previous_step)
            # exp(-2 h) = ratio^2: the mean and variance of q(x_next | x, clean = target).
            x = ratio**2 * x + (1.0 - ratio**2) * target + sigma_next * math.sqrt(1.0 - ratio**2) * noise()
            previous, previous_step = denoised, step
        return x
