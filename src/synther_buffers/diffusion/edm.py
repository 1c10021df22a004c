"""EDM (Karras et al. 2022, section 5, Table 1): the denoiser D(x, sigma) around a raw network, and its loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Preconditioner(nn.Module):
    """``D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)``, which makes F's inputs and targets unit variance.

    Args:
        network: F, called as ``network(x [n, D], c_noise [n] or [1], condition)``.
        sigma_data: standard deviation of the data; the loss reads it from here.
    """

    def __init__(self, network: nn.Module, sigma_data: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """The expected clean rows given noisy ones.

        Args:
            x: ``[n, D]`` float32.
            sigma: ``[n]`` or ``[1]`` noise level of the rows.
            condition: passed to F.
        """
        sigma = sigma.reshape(-1, 1)
        variance = sigma.square() + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        c_in = variance.rsqrt()
        c_out = sigma * self.sigma_data * c_in
        c_noise = sigma.log() / 4.0
        output = self.network(c_in * x, c_noise.squeeze(1), condition)
        # F may run in bfloat16; the combination with x must not.
        return c_skip * x + c_out * output.to(torch.float32)


def draw_sigma(num_rows: int, p_mean: float, p_std: float, generator: torch.Generator) -> Tensor:
    """Log-normal noise levels for training, ``[num_rows]``: ``ln sigma ~ N(P_mean, P_std ** 2)``."""
    normal = torch.randn(num_rows, generator=generator, device=generator.device, dtype=torch.float32)
    return (normal * p_std + p_mean).exp()


def denoising_loss(
    denoiser: Preconditioner, clean: Tensor, noise: Tensor, sigma: Tensor, condition: Tensor | None = None
) -> Tensor:
    """Weighted squared error of the denoiser, averaged over rows and columns.

    The weight ``(sigma^2 + sigma_data^2) / (sigma sigma_data)^2`` is 1 / c_out^2: every noise level starts with a
    loss of 1, the variance of F's target.

    Args:
        denoiser: D.
        clean: ``[n, D]`` rows.
        noise: ``[n, D]`` standard normal.
        sigma: ``[n]``.
        condition: passed to D.
    """
    sigma_data = denoiser.sigma_data
    weight = (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()
    denoised = denoiser(clean + sigma[:, None] * noise, sigma, condition)
    return (weight[:, None] * (denoised - clean).square()).mean()
