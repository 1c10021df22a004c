"""The training loss: the distribution of noise levels and the weight of each (Karras et al. 2022, section 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from .preconditioning import Preconditioner


def draw_sigma(num_rows: int, p_mean: float, p_std: float, generator: torch.Generator) -> Tensor:
    """Log-normal noise levels for training, ``[num_rows]``: ``ln sigma ~ N(P_mean, P_std ** 2)``."""
    normal = torch.randn(num_rows, generator=generator, device=generator.device, dtype=torch.float32)
    return (normal * p_std + p_mean).exp()


def denoising_loss(denoiser: Preconditioner, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Weighted squared error of the denoiser, averaged over rows and columns.

    The weight ``(sigma^2 + sigma_data^2) / (sigma sigma_data)^2`` is 1 / c_out^2: every noise level starts with a
    loss of 1, the variance of F's target.

    Args:
        denoiser: D.
        clean: ``[n, D]`` rows.
        noise: ``[n, D]`` standard normal.
        sigma: ``[n]``.
    """
    sigma_data = denoiser.sigma_data
    weight = (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()
    denoised = denoiser(clean + sigma[:, None] * noise, sigma)
    return (weight[:, None] * (denoised - clean).square()).mean()
