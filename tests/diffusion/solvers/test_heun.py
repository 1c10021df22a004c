"""EDM's stochastic sampler: churn, and its order of convergence without."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from solver_helpers import draw, gaussian_denoiser, heun, noise_like
from torch import Tensor

from synther_buffers.diffusion.solvers import HeunSolver


def test_inflated_churn_widens() -> None:
    """S_noise above 1 adds variance, which shows that the churn is there."""
    plain, inflated = (draw(heun(80.0, s_noise), gaussian_denoiser, 20_000, 3, 100) for s_noise in (1.0, 1.05))
    assert (inflated.var(0) / plain.var(0)).min() > 1.05


def test_one_step_with_churn() -> None:
    """Below S_tmax the noise is raised to sqrt(2) sigma at most, and the step starts from there."""
    x = 10.0 * torch.randn((10, 3), generator=torch.Generator().manual_seed(0))
    found = heun(80.0).solve(gaussian_denoiser, x, [10.0, 0.0], noise_like(x, 1))
    raised = 10.0 * math.sqrt(2.0)
    added = math.sqrt(raised**2 - 10.0**2) * torch.randn((10, 3), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, gaussian_denoiser(x + added, torch.tensor([raised])), atol=1e-4, rtol=1e-4)


def test_deterministic_heun_converges_with_order_2() -> None:
    variance, high, low = 0.6, 80.0, 0.01
    x = torch.tensor([[-100.0], [30.0], [80.0]], dtype=torch.float64)

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return variance / (variance + sigma.square()) * x

    # Along the probability flow rows scale with the deviation of the noisy data. The last step is Euler's in any
    # case, and ends in D.
    lowest = x * math.sqrt((variance + low**2) / (variance + high**2))
    wanted = denoiser(lowest, torch.tensor(low, dtype=torch.float64))
    steps = np.array([32, 64, 128, 256])
    errors = []
    for num_steps in steps:
        solver = HeunSolver(int(num_steps), low, high, 7.0, s_churn=0.0)
        found = solver.solve(denoiser, x, solver.noise_levels(), noise_like(x))
        errors.append(float((found - wanted).abs().max()))
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert -slope == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("churn", [-5.0, math.nan])
def test_churn(churn: float) -> None:
    with pytest.raises(ValueError, match=rf"^sampler\.solver\.s_churn is {churn}; it must be at least 0\."):
        HeunSolver(5, s_churn=churn)
