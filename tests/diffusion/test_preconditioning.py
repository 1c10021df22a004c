import math

import pytest
import torch
from torch import Tensor, nn

from synther_buffers.diffusion.preconditioning import Preconditioner


class Zero(nn.Module):
    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return torch.zeros_like(x)


class One(nn.Module):
    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return torch.ones_like(x)


class Input(nn.Module):
    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return x


class Noise(nn.Module):
    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
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
        def forward(self, x: Tensor, noise: Tensor) -> Tensor:
            return torch.zeros_like(x, dtype=torch.bfloat16)

    x = torch.tensor([[1.2345678]])
    out = Preconditioner(Coarse())(x, torch.tensor([1e-4]))
    assert out.dtype == torch.float32
    assert out.item() == pytest.approx(1.2345678, rel=1e-6)
