"""SDE-DPM-Solver++(2M): the posterior of a step, the order of convergence, the default levels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from solver_helpers import noise_like

from synther_buffers import PRESETS
from synther_buffers.diffusion.solvers import Denoiser, DPMSolver, Solver


def test_one_stochastic_step_has_the_posterior_of_the_forward_process() -> None:
    """From level 5 to 1 with a clean value that is known: N(x / 25 + 24 / 25 clean, 24 / 25)."""
    clean = 3.0
    x = torch.full((40_000, 1), 8.0)
    found = DPMSolver(1).solve(lambda x, sigma: torch.full_like(x, clean), x, [5.0, 1.0], noise_like(x))
    assert found.mean().item() == pytest.approx((8.0 + 24 * clean) / 25, abs=5 * math.sqrt(0.96 / 40_000))
    assert found.var().item() == pytest.approx(0.96, rel=5 * math.sqrt(2 / 40_000))


class TestOrder:
    def test_solver_2m_converges_with_order_2(self) -> None:
        """For D(x, sigma) = lambda = -ln sigma the reverse SDE's mean has a closed form."""
        low = 0.01
        # The integral of 2 exp(-2 (end - lambda)) lambda from 0 to the end.
        end = -math.log(low)
        wanted = end - 0.5 + 0.5 * low**2
        steps = np.array([20, 40, 80, 160])
        errors = []
        for num_steps in steps:
            sigmas = DPMSolver(int(num_steps), low, 1.0, 7.0).noise_levels()[:-1]
            errors.append(abs(self.drift_alone(lambda x, sigma: -sigma.log() + 0 * x, sigmas) - wanted))
        slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
        assert -slope == pytest.approx(2.0, abs=0.2)

    def test_solver_2m_extrapolates_to_the_middle_of_the_step(self) -> None:
        # Levels lambda = 0, 1, 3: the second step sees D = lambda at 1 + 2 / 2 = 2, the first has only D = 0.
        found = self.drift_alone(lambda x, sigma: -sigma.log() + 0 * x, [1.0, math.exp(-1.0), math.exp(-3.0)])
        assert found == pytest.approx((1 - math.exp(-4.0)) * 2.0)

    @staticmethod
    def drift_alone(denoiser: Denoiser, sigmas: list[float]) -> float:
        """What D adds to a row, as the difference of two runs with the same noise."""
        x = torch.zeros((1, 1), dtype=torch.float64)
        ends = [
            DPMSolver(1).solve(answer, x, sigmas, noise_like(x)).item() for answer in (denoiser, lambda x, _: 0 * x)
        ]
        return ends[0] - ends[1]

    @pytest.mark.parametrize("num_steps", [2, 5, 50])
    def test_solver_2m_keeps_the_posterior_mean_at_any_number_of_steps(self, num_steps: int) -> None:
        """With a linear D and the same noise two runs differ by E[clean | x], which the reverse SDE leaves as it is."""
        variance, high = 0.6, 20.0
        solver, ends = DPMSolver(num_steps, 0.01, high, 7.0), []
        for start in (60.0, -40.0):
            x = torch.full((1, 1), start, dtype=torch.float64)
            denoiser = lambda x, sigma: variance / (variance + sigma.square()) * x  # noqa: E731
            ends.append(solver.solve(denoiser, x, solver.noise_levels(), noise_like(x)).item())
        assert ends[0] - ends[1] == pytest.approx(100.0 * variance / (variance + high**2))


class TestDefaultSchedule:
    @staticmethod
    def variance(solver: Solver) -> float:
        """Variance of what a unit Gaussian's exact denoiser gives from sigma_max 20."""
        assert solver.sigma_max == 20.0
        noise, sigmas = noise_like(torch.empty(200_000, 1)), solver.noise_levels()
        return float(solver.solve(lambda y, sigma: y / (1 + sigma.square()), 20.0 * noise(), sigmas, noise).var())

    def test_the_cpu_presets_levels_keep_the_variance(self) -> None:
        assert self.variance(PRESETS["cpu"].sampler.solver) == pytest.approx(1.0, abs=0.05)

    def test_as_many_levels_at_rho_7_widen_it(self) -> None:
        assert self.variance(DPMSolver(20, 0.002, 20.0, 7.0)) > 1.1


def test_no_solver_has_settings_of_another() -> None:
    with pytest.raises(TypeError, match="s_churn"):
        DPMSolver(5, s_churn=80.0)
