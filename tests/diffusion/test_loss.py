import math

import pytest
import torch
from torch import Tensor, nn

from synther_buffers.diffusion.loss import denoising_loss, draw_sigma
from synther_buffers.diffusion.preconditioning import Preconditioner


class Zero(nn.Module):
    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Exact(nn.Module):
    """The raw network of the exact denoiser of N(mean, deviation^2), where sigma_data is 1."""

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.mean, self.variance = mean, deviation**2

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        sigma = (4.0 * noise).exp()[:, None]
        noisy = x * (1 + sigma**2).sqrt()
        denoised = self.mean + self.variance / (self.variance + sigma**2) * (noisy - self.mean)
        return (denoised - noisy / (1 + sigma**2)) * (1 + sigma**2).sqrt() / sigma


# All combinations of clean and noise of +-1: mean 0, variance 1, uncorrelated, without any sampling error.
CLEAN = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
NOISE = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 10.0])
def test_an_untrained_model_has_a_loss_of_1_at_every_noise_level(sigma: float, sigma_data: float) -> None:
    loss = denoising_loss(Preconditioner(Zero(), sigma_data), sigma_data * CLEAN, NOISE, torch.full((4,), sigma))
    assert loss.item() == pytest.approx(1.0, rel=1e-3)


def test_by_hand() -> None:
    # D(x, 1) = x / 2 for a silent network; weight (1 + 1) / 1 = 2.
    clean, noise = torch.tensor([[4.0, 0.0]]), torch.tensor([[2.0, 1.0]])
    # Errors 6 / 2 - 4 = -1 and 1 / 2 - 0; 2 times the mean of 1 and 1 / 4.
    assert denoising_loss(Preconditioner(Zero()), clean, noise, torch.ones(1)).item() == pytest.approx(1.25)


def test_each_row_has_its_own_level_and_weight() -> None:
    denoiser = Preconditioner(Zero())
    sigma = torch.tensor([0.1, 1.0, 2.0, 30.0])
    rows = [denoising_loss(denoiser, CLEAN[i : i + 1], NOISE[i : i + 1], sigma[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(denoising_loss(denoiser, CLEAN, NOISE, sigma), torch.stack(rows).mean())


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_exact_denoiser_of_a_gaussian_has_the_closed_form_loss(sigma: float) -> None:
    mean, deviation = 0.8, 0.4
    loss = denoising_loss(
        Preconditioner(Exact(mean, deviation)), mean + deviation * CLEAN, NOISE, torch.full((4,), sigma)
    )
    # The posterior variance s^2 sigma^2 / (s^2 + sigma^2), weighted by (1 + sigma^2) / sigma^2.
    wanted = deviation**2 * (1 + sigma**2) / (deviation**2 + sigma**2)
    assert loss.item() == pytest.approx(wanted, rel=1e-3)


def test_sigma_is_log_normal() -> None:
    sigma = draw_sigma(100_000, -1.2, 1.2, torch.Generator().manual_seed(0))
    assert sigma.shape == (100_000,)
    assert sigma.dtype == torch.float32
    log = sigma.double().log()
    # Four standard errors of a mean and of a deviation.
    assert log.mean().item() == pytest.approx(-1.2, abs=4 * 1.2 / math.sqrt(100_000))
    assert log.std().item() == pytest.approx(1.2, abs=4 * 1.2 / math.sqrt(200_000))


def test_sigma_comes_from_the_generator() -> None:
    first, second = (draw_sigma(5, -1.2, 1.2, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
