import math

import pytest
import torch
from torch import Tensor, nn

from synther_buffers.diffusion.edm import Preconditioner, denoising_loss, draw_sigma


class Zero(nn.Module):
    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)


class One(nn.Module):
    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.ones_like(x)


class Input(nn.Module):
    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        return x


class Noise(nn.Module):
    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        return noise[:, None].expand(len(x), x.shape[1])


X = torch.tensor([[1.0, -2.0], [0.5, 4.0], [3.0, 0.0]])
SIGMA = torch.tensor([0.01, 1.0, 40.0])


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
class TestTableOne:
    """The coefficients of Karras et al. 2022, Table 1, read off with networks whose answer is known."""

    def test_c_skip(self, sigma_data: float) -> None:
        wanted = [[sigma_data**2 / (s**2 + sigma_data**2) * x for x in row] for row, s in zip(X, SIGMA, strict=True)]
        torch.testing.assert_close(Preconditioner(Zero(), sigma_data)(X, SIGMA), torch.tensor(wanted))

    def test_c_out(self, sigma_data: float) -> None:
        found = Preconditioner(One(), sigma_data)(torch.zeros_like(X), SIGMA)[:, 0]
        wanted = [s * sigma_data / math.sqrt(s**2 + sigma_data**2) for s in SIGMA.tolist()]
        torch.testing.assert_close(found, torch.tensor(wanted))

    def test_c_in(self, sigma_data: float) -> None:
        found = Preconditioner(Input(), sigma_data)(X, SIGMA) - Preconditioner(Zero(), sigma_data)(X, SIGMA)
        c_out = Preconditioner(One(), sigma_data)(torch.zeros_like(X), SIGMA)
        wanted = c_out * X / (SIGMA[:, None] ** 2 + sigma_data**2).sqrt()
        torch.testing.assert_close(found, wanted)

    def test_c_noise(self, sigma_data: float) -> None:
        zeros = torch.zeros_like(X)
        found = Preconditioner(Noise(), sigma_data)(zeros, SIGMA) / Preconditioner(One(), sigma_data)(zeros, SIGMA)
        torch.testing.assert_close(found, (SIGMA.log() / 4.0)[:, None].expand(3, 2))


def test_network_gets_unit_variance_and_has_unit_variance_to_answer() -> None:
    """What the coefficients are for: both variances are 1 at every noise level (their equations 114 to 117)."""
    sigma_data = 0.7
    for sigma in (0.01, 0.5, 20.0):
        level = torch.tensor([sigma])
        one = torch.ones(1, 1)
        c_skip = float(Preconditioner(Zero(), sigma_data)(one, level))
        c_out = float(Preconditioner(One(), sigma_data)(0 * one, level))
        c_in = (float(Preconditioner(Input(), sigma_data)(one, level)) - c_skip) / c_out
        assert c_in**2 * (sigma_data**2 + sigma**2) == pytest.approx(1.0, rel=1e-3)
        # F's target is (clean - c_skip noisy) / c_out.
        variance = ((1 - c_skip) ** 2 * sigma_data**2 + c_skip**2 * sigma**2) / c_out**2
        assert variance == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("sigma", [0.002, 0.3, 1.0, 80.0])
def test_silent_network_is_the_exact_denoiser_of_a_centred_gaussian(sigma: float) -> None:
    sigma_data = 1.5
    posterior_mean = sigma_data**2 / (sigma_data**2 + sigma**2) * X
    torch.testing.assert_close(Preconditioner(Zero(), sigma_data)(X, torch.tensor([sigma])), posterior_mean)


def test_one_level_for_all_rows_or_one_for_each() -> None:
    denoiser = Preconditioner(Input())
    torch.testing.assert_close(denoiser(X, torch.tensor([0.3])), denoiser(X, torch.full((3,), 0.3)))


def test_combination_is_float32_though_the_network_is_bfloat16() -> None:
    class Coarse(nn.Module):
        def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
            return torch.zeros_like(x, dtype=torch.bfloat16)

    x = torch.tensor([[1.2345678]])
    out = Preconditioner(Coarse())(x, torch.tensor([1e-4]))
    assert out.dtype == torch.float32
    assert out.item() == pytest.approx(1.2345678, rel=1e-6)


# -- loss -------------------------------------------------------------------------------------------------------------


class Exact(nn.Module):
    """The raw network of the exact denoiser of N(mean, deviation^2), where sigma_data is 1."""

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.mean, self.variance = mean, deviation**2

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
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


def test_a_condition_reaches_the_network() -> None:
    class Condition(nn.Module):
        def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
            return torch.zeros_like(x) if condition is None else condition.expand_as(x)

    denoiser, one = Preconditioner(Condition()), torch.ones(1)
    # D(x, 1) = x / 2 + F / sqrt(2).
    torch.testing.assert_close(denoiser(X, one), X / 2)
    torch.testing.assert_close(denoiser(X, one, condition=torch.tensor([[3.0]])), X / 2 + 3 / math.sqrt(2))
