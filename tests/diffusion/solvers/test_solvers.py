import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from synther_buffers import PRESETS
from synther_buffers.diffusion.solvers import Denoiser, DPMSolver, HeunSolver, Noise, Solver

# Small means: the samplers start from N(0, sigma_max^2), not from N(MEAN, sigma_max^2 + COVARIANCE).
MEAN = torch.tensor([0.5, -0.3, 0.1])
COVARIANCE = torch.tensor([[2.0, 0.9, 0.0], [0.9, 0.5, 0.05], [0.0, 0.05, 0.05]])


def gaussian_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """E[clean | x] for clean rows from N(MEAN, COVARIANCE)."""
    noisy = COVARIANCE + sigma.square() * torch.eye(3)
    return MEAN + (x - MEAN) @ torch.linalg.solve(noisy, COVARIANCE)


SHARES = torch.tensor([0.3, 0.7])
MODES = torch.tensor([[-2.0, 1.0], [1.5, 0.0]])
DEVIATION = 0.3


def mixture_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """E[clean | x] for a mixture of two round Gaussians: the posterior mean of each, by its responsibility."""
    variance = DEVIATION**2 + sigma.square()
    squares = (x[:, None, :] - MODES).square().sum(2)
    responsibility = (SHARES.log() - 0.5 * squares / variance).softmax(1)
    posterior = MODES + DEVIATION**2 / variance * (x[:, None, :] - MODES)
    return (responsibility[:, :, None] * posterior).sum(1)


def heun(s_churn: float, s_noise: float = 1.0, num_steps: int = 10) -> HeunSolver:
    return HeunSolver(num_steps, s_churn=s_churn, s_noise=s_noise)


SOLVERS = {"deterministic heun": heun(0.0), "stochastic heun": heun(80.0), "sde-dpm-solver-2m": DPMSolver(10)}
each_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def noise_like(x: Tensor, seed: int | torch.Generator = 0) -> Noise:
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    return lambda: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def draw(solver: Solver, denoiser: Denoiser, num_rows: int, dim: int, num_steps: int, seed: int = 0) -> Tensor:
    solver = replace(solver, num_steps=num_steps)
    noise, sigmas = noise_like(torch.empty(num_rows, dim), seed), solver.noise_levels()
    return solver.solve(denoiser, sigmas[0] * noise(), sigmas, noise)


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

    def test_inflated_churn_widens(self) -> None:
        """S_noise above 1 adds variance, which shows that the churn is there."""
        plain, inflated = (draw(heun(80.0, s_noise), gaussian_denoiser, 20_000, 3, 100) for s_noise in (1.0, 1.05))
        assert (inflated.var(0) / plain.var(0)).min() > 1.05

    @pytest.mark.parametrize("name", ["deterministic heun", "sde-dpm-solver-2m"])
    def test_one_step_is_one_denoising(self, name: str) -> None:
        x = 80.0 * torch.randn((10, 3), generator=torch.Generator().manual_seed(0))
        found = SOLVERS[name].solve(gaussian_denoiser, x, [80.0, 0.0], noise_like(x, 1))
        torch.testing.assert_close(found, gaussian_denoiser(x, torch.tensor([80.0])), atol=1e-4, rtol=1e-4)

    def test_one_step_with_churn(self) -> None:
        """Below S_tmax the noise is raised to sqrt(2) sigma at most, and the step starts from there."""
        x = 10.0 * torch.randn((10, 3), generator=torch.Generator().manual_seed(0))
        found = heun(80.0).solve(gaussian_denoiser, x, [10.0, 0.0], noise_like(x, 1))
        raised = 10.0 * math.sqrt(2.0)
        added = math.sqrt(raised**2 - 10.0**2) * torch.randn((10, 3), generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(found, gaussian_denoiser(x + added, torch.tensor([raised])), atol=1e-4, rtol=1e-4)

    def test_one_stochastic_step_has_the_posterior_of_the_forward_process(self) -> None:
        """From level 5 to 1 with a clean value that is known: N(x / 25 + 24 / 25 clean, 24 / 25)."""
        clean = 3.0
        x = torch.full((40_000, 1), 8.0)
        found = DPMSolver(1).solve(lambda x, sigma: torch.full_like(x, clean), x, [5.0, 1.0], noise_like(x))
        assert found.mean().item() == pytest.approx((8.0 + 24 * clean) / 25, abs=5 * math.sqrt(0.96 / 40_000))
        assert found.var().item() == pytest.approx(0.96, rel=5 * math.sqrt(2 / 40_000))


class TestOrder:
    def test_deterministic_heun_converges_with_order_2(self) -> None:
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


class TestSettings:
    @pytest.mark.parametrize("cls", [DPMSolver, HeunSolver])
    @pytest.mark.parametrize(("low", "high"), [(0.0, 80.0), (-1.0, 80.0), (80.0, 80.0), (2.0, 1.0), (math.nan, 80.0)])
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

    @pytest.mark.parametrize("churn", [-5.0, math.nan])
    def test_churn(self, churn: float) -> None:
        with pytest.raises(ValueError, match=rf"^sampler\.solver\.s_churn is {churn}; it must be at least 0\."):
            HeunSolver(5, s_churn=churn)

    def test_no_solver_has_settings_of_another(self) -> None:
        with pytest.raises(TypeError, match="s_churn"):
            DPMSolver(5, s_churn=80.0)
