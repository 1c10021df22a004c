"""Exact denoisers and ways to call solvers, for the solvers' tests."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

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
