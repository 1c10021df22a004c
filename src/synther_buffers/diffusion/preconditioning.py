"""EDM preconditioning: the denoiser D(x, sigma) around a raw network (Karras et al. 2022, section 5, Table 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Preconditioner(nn.Module):
    """``D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)``, which makes F's inputs and targets unit variance.

    Args:
        network: F, called as ``network(x [n, D], c_noise [n])``.
        sigma_data: standard deviation of the data. The only place that holds it; the loss reads it from here.
    """

    def __init__(self, network: nn.Module, sigma_data: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The expected clean rows given noisy ones.

        Args:
            x: ``[n, D]`` float32.
            sigma: ``[n]`` or ``[1]`` noise level of the rows.
        """
        sigma = sigma.reshape(-1, 1)
        variance = sigma.square() + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        c_out = sigma * self.sigma_data / variance.sqrt()
        c_in = 1.0 / variance.sqrt()
        c_noise = sigma.log() / 4.0
        output = self.network(c_in * x, c_noise.squeeze(1))
        # F may run in bfloat16; the combination with x must not.
        return c_skip * x + c_out * output.to(torch.float32)
