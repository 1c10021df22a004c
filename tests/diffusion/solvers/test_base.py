"""What holds for every solver."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from solver_helpers import (
    COVARIANCE,
    DEVIATION,
    MEAN,
    MODES,
    SHARES,
    SOLVERS,
    draw,
    each_solver,
    gaussian_denoiser,
    mixture_denoiser,
    noise_like,
)
from torch import Tensor

from synther_buffers.diffusion.solvers import DPMSolver, HeunSolver, Solver


class TestSchedule:
    @pytest.mark.parametrize("num_steps", [2, 3, 20, 128])
    def test_endpoints_and_descent(self, num_steps: int) -> None:
        sigmas = DPMSolver(num_steps, 0.002, 80.0, 7.0).noise_levels()
        assert len(sigmas) == num_steps + 1
        assert sigmas[0] == pytest.approx(80.0)
        assert sigmas[-2] == pytest.approx(0.002)
        assert sigmas[-1] == 0.0
        assert all(high > low for high, low in pairwise(sigmas))

    def test_by_hand(self) -> None:
        # rho 2 makes the square roots evenly spaced: 4, 3, 2, 1.
        assert DPMSolver(4, 1.0, 16.0, 2.0).noise_levels() == pytest.approx([16.0, 9.0, 4.0, 1.0, 0.0])

    def test_one_step(self) -> None:
        assert DPMSolver(1, 0.002, 80.0, 7.0).noise_levels() == [80.0, 0.0]

    def test_another_level_to_start_from(self) -> None:
        solver = HeunSolver(4, 1.0, 16.0, 2.0)
        assert solver.noise_levels(36.0) == pytest.approx([36.0, 169 / 9, 64 / 9, 1.0, 0.0])
        assert HeunSolver(1).noise_levels(36.0) == [36.0, 0.0]


class TestDistribution:
    @each_solver
    def test_correlated_gaussian(self, solver: Solver) -> None:
        num_rows = 40_000
        rows = draw(solver, gaussian_denoiser, num_rows, 3, num_steps=150).double()
        variance = COVARIANCE.diagonal().double()
        # Five standard errors of the means and covariances of a sample.
        mean_error = (rows.mean(0) - MEAN) / (variance / num_rows).sqrt()
        assert mean_error.abs().max() < 5.0
        error_scale = ((variance[:, None] * variance + COVARIANCE.double().square()) / num_rows).sqrt()
        assert ((rows.T.cov() - COVARIANCE) / error_scale).abs().max() < 5.0

    @each_solver
    def test_mixture_keeps_its_modes_and_their_shares(self, solver: Solver) -> None:
        num_rows = 20_000
        rows = draw(solver, mixture_denoiser, num_rows, 2, num_steps=100).double()
        # The modes are more than ten deviations apart.
        nearest = (rows[:, None, :] - MODES).square().sum(2).argmin(1)
        for mode, share in enumerate(SHARES.tolist()):
            own = rows[nearest == mode]
            assert len(own) / num_rows == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / num_rows))
            assert (own.mean(0) - MODES[mode]).abs().max() < 5 * DEVIATION / math.sqrt(len(own))
            relative_error = own.T.cov() / DEVIATION**2 - torch.eye(2)
            assert relative_error.abs().max() < 5 * math.sqrt(2 / len(own))

    @pytest.mark.parametrize("name", ["deterministic heun", "sde-dpm-solver-2m"])
    def test_one_step_is_one_denoising(self, name: str) -> None:
        x = 80.0 * torch.randn((10, 3), generator=torch.Generator().manual_seed(0))
        found = SOLVERS[name].solve(gaussian_denoiser, x, [80.0, 0.0], noise_like(x, 1))
        torch.testing.assert_close(found, gaussian_denoiser(x, torch.tensor([80.0])), atol=1e-4, rtol=1e-4)


@each_solver
class TestContract:
    @pytest.mark.parametrize("num_steps", [1, 2, 17])
    def test_number_of_evaluations(self, solver: Solver, num_steps: int) -> None:
        levels = []

        def counting(x: Tensor, sigma: Tensor) -> Tensor:
            assert sigma.shape == (1,)
            levels.append(sigma.item())
            return gaussian_denoiser(x, sigma)

        draw(solver, counting, 4, 3, num_steps)
        assert len(levels) == replace(solver, num_steps=num_steps).num_function_evaluations
        assert len(levels) == (num_steps if isinstance(solver, DPMSolver) else 2 * num_steps - 1)
        assert min(levels) > 0.0

    def test_reproducible_by_its_generator(self, solver: Solver) -> None:
        first, second, other = (draw(solver, gaussian_denoiser, 50, 3, 10, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(first, second)
        assert not torch.equal(first, other)

    def test_global_random_stream_is_not_moved(self, solver: Solver) -> None:
        before = torch.get_rng_state()
        draw(solver, gaussian_denoiser, 50, 3, 10)
        assert torch.equal(torch.get_rng_state(), before)

    def test_the_start_is_not_written_to(self, solver: Solver) -> None:
        x = torch.full((4, 3), 80.0)
        solver.solve(gaussian_denoiser, x, solver.noise_levels(), noise_like(x))
        assert (x == 80.0).all()

    def test_stays_float32_under_another_default(self, solver: Solver) -> None:
        torch.set_default_dtype(torch.float64)
        try:
            x = torch.ones((4, 3), dtype=torch.float32)
            out = solver.solve(lambda x, sigma: 0.5 * x / sigma, x, [1.0, 0.5, 0.1, 0.0], noise_like(x))
        finally:
            torch.set_default_dtype(torch.float32)
        assert out.dtype == torch.float32

    def test_no_rows(self, solver: Solver) -> None:
        assert draw(solver, gaussian_denoiser, 0, 3, 5).shape == (0, 3)

    def test_watching_changes_nothing(self, solver: Solver) -> None:
        x, seen = 80.0 * torch.randn((4, 3), generator=torch.Generator().manual_seed(1)), []
        sigmas = solver.noise_levels()
        unwatched = solver.solve(gaussian_denoiser, x, sigmas, noise_like(x))
        watched = solver.solve(
            gaussian_denoiser, x, sigmas, noise_like(x), lambda sigma, rows: seen.append((sigma, rows))
        )
        assert torch.equal(unwatched, watched)
        assert [sigma for sigma, _ in seen] == sigmas
        assert torch.equal(seen[0][1], x)
        assert torch.equal(seen[-1][1], watched)


class TestSettings:
    @pytest.mark.parametrize("cls", [DPMSolver, HeunSolver])
    @pytest.mark.parametrize(("low", "high"), [(0.0, 80.0), (-1.0, 80.0), (80.0, 80.0), (2.0, 1.0)])
    def test_noise_levels(self, cls: type[Solver], low: float, high: float) -> None:
        with pytest.raises(ValueError, match=r"^sampler\.solver\.sigma_min=.* wanted 0 < sigma_min < sigma_max"):
            cls(5, sigma_min=low, sigma_max=high)

    @pytest.mark.parametrize("cls", [DPMSolver, HeunSolver])
    def test_number_of_steps_and_rho(self, cls: type[Solver]) -> None:
        with pytest.raises(ValueError, match=r"^sampler\.solver\.num_steps is 0; it must be at least 1\."):
            cls(0)
        with pytest.raises(TypeError, match=r"^sampler\.solver\.num_steps is 5\.0 \(float\); wanted a whole number"):
            cls(5.0)
        with pytest.raises(ValueError, match=r"^sampler\.solver\.rho is 0\.0; it must be positive\."):
            cls(5, rho=0.0)
