"""From noise to rows, given a denoiser D(x, sigma).

Every sampler walks down a schedule of noise levels ``sigma_0 > ... > sigma_{N-1} > sigma_N = 0`` from ``x ~
N(0, sigma_0^2)``. They know nothing of networks: any callable D with an exact answer tests them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
#: Called with each noise level of the schedule and the rows that a sampler has there; it must not change them.
Watch = Callable[[float, Tensor], None]


def karras_schedule(num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """The ``num_steps + 1`` noise levels of Karras et al. 2022, equation 5, the last one 0."""
    if num_steps == 1:
        return [sigma_max, 0.0]
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    levels = [(high + step / (num_steps - 1) * (low - high)) ** rho for step in range(num_steps)]
    return [*levels, 0.0]


def stochastic_heun(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: list[float],
    generator: torch.Generator,
    *,
    s_churn: float,
    s_tmin: float,
    s_tmax: float,
    s_noise: float,
    watch: Watch | None = None,
) -> Tensor:
    """EDM's stochastic sampler (Karras et al. 2022, Algorithm 2): churn, Euler step, second-order correction.

    ``2 N - 1`` evaluations of D. With ``s_churn = 0`` it is the deterministic Heun sampler (Algorithm 1).

    Args:
        denoiser: D, called with ``[n, D]`` rows and a ``[1]`` noise level.
        x: ``[n, D]``, drawn from N(0, sigmas[0]^2).
        sigmas: descending noise levels that end with 0.
        generator: source of the churn's noise, on the device of `x`.
        s_churn: amount of noise added over all steps.
        s_tmin: noise level below which none is added.
        s_tmax: noise level above which none is added.
        s_noise: inflation of the added noise.
        watch: sees the rows at every level, the result at level 0 included.
    """
    num_steps = len(sigmas) - 1
    gamma_max = min(s_churn / num_steps, math.sqrt(2.0) - 1.0)
    for sigma, sigma_next in pairwise(sigmas):
        if watch is not None:
            watch(sigma, x)
        gamma = gamma_max if s_tmin <= sigma <= s_tmax else 0.0
        sigma_hat = sigma * (1.0 + gamma)
        if gamma > 0.0:
            noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = x + math.sqrt(sigma_hat**2 - sigma**2) * s_noise * noise
        slope = (x - denoiser(x, _level(sigma_hat, x))) / sigma_hat
        step = sigma_next - sigma_hat
        x_next = x + step * slope
        if sigma_next > 0.0:
            slope_next = (x_next - denoiser(x_next, _level(sigma_next, x))) / sigma_next
            x_next = x + step * 0.5 * (slope + slope_next)
        x = x_next
    if watch is not None:
        watch(0.0, x)
    return x


def sde_dpm_solver_2m(
    denoiser: Denoiser, x: Tensor, sigmas: list[float], generator: torch.Generator, watch: Watch | None = None
) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++", algorithm 4 and appendix), in sigma = exp(-lambda).

    Between two levels it integrates the reverse SDE exactly for a constant D: its value halfway in lambda, extrapolated
    from the last two evaluations. ``N`` evaluations of D; the last one, at the smallest noise level, is the result.

    Args:
        denoiser: D, called with ``[n, D]`` rows and a ``[1]`` noise level.
        x: ``[n, D]``, drawn from N(0, sigmas[0]^2).
        sigmas: descending noise levels that end with 0.
        generator: source of the SDE's noise, on the device of `x`.
        watch: sees the rows at every level, the result at level 0 included.
    """
    previous: Tensor | None = None
    previous_step = 0.0
    for sigma, sigma_next in pairwise(sigmas):
        if watch is not None:
            watch(sigma, x)
        denoised = denoiser(x, _level(sigma, x))
        if sigma_next == 0.0:
            if watch is not None:
                watch(0.0, denoised)
            return denoised
        step = math.log(sigma / sigma_next)
        ratio = sigma_next / sigma
        target = denoised
        if previous is not None:
            target = denoised + (denoised - previous) * (0.5 * step / previous_step)
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        # exp(-2 h) = ratio^2: the mean and variance of q(x_next | x, clean = target).
        x = ratio**2 * x + (1.0 - ratio**2) * target + sigma_next * math.sqrt(1.0 - ratio**2) * noise
        previous, previous_step = denoised, step
    return x


def num_function_evaluations(solver: str, num_steps: int) -> int:
    """Evaluations of D (NFE) that a solver takes for `num_steps` noise levels."""
    return 2 * num_steps - 1 if solver == "stochastic-heun" else num_steps


def _level(sigma: float, x: Tensor) -> Tensor:
    """A noise level as the ``[1]`` tensor that D takes, made on the device without a copy from the host."""
    return torch.full((1,), sigma, device=x.device, dtype=x.dtype)
