"""The denoiser as samplers call it: many rows at one noise level, again and again."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from .graphs import Recorded
from .network import ResidualMLP, noise_features
from .passes import Passes
from .preconditioning import Preconditioner


class Evaluation:
    """``D(x, sigma)`` of a `Preconditioner` around a `ResidualMLP`, for blocks of `num_rows` rows at one level.

    An expected clean row lies between the smallest and the largest rows there are. A net may answer otherwise where it
    has seen nothing, and a sampler that follows it once goes there again: one row in many thousands would run away to
    infinity. So D is clipped to the range of the data, a little widened: ties at its ends would spoil ranks.

    Args:
        denoiser: D; its weights are read once, now.
        num_rows: of every block.
        low, high: range of the data's columns, ``[D]``; D may leave it by a quarter of its width.
        bfloat16: run the network in bfloat16; everything outside it stays float32.
        record: as a CUDA graph, on CUDA. Recording waits for the device and gives the memory back that PyTorch has put
            aside, which a handful of calls is not worth.
    """

    def __init__(
        self,
        denoiser: Preconditioner,
        num_rows: int,
        low: Tensor,
        high: Tensor,
        *,
        bfloat16: bool,
        record: bool = True,
    ) -> None:
        network = cast(ResidualMLP, denoiser.network)
        weights = {
            name: parameter.detach().to(torch.bfloat16 if bfloat16 else torch.float32)
            for name, parameter in network.named_parameters()
        }
        dim, device = network.out.out_features, network.frequencies.device
        self.num_rows = num_rows
        self.sigma_data = denoiser.sigma_data
        self.frequencies = network.frequencies
        slack = 0.25 * (high - low)
        self.low, self.high = low - slack, high + slack
        self._dtype = weights["out.weight"].dtype
        self._passes = Passes(network, num_rows, weights)
        self._x = torch.empty((num_rows, dim), device=device, dtype=torch.float32)
        self._sigma = torch.empty(1, device=device, dtype=torch.float32)
        self._denoised = torch.empty_like(self._x)
        self._evaluate = Recorded(device, "sampler's step") if record else None

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The expected clean rows, ``[num_rows, D]``, given noisy ones ``[num_rows, D]`` at a level ``[1]``."""
        self._x.copy_(x)
        self._sigma.copy_(sigma)
        if self._evaluate is not None:
            self._evaluate(self._evaluate_block)
        else:
            self._evaluate_block()
        return self._denoised.clone()

    def _evaluate_block(self) -> None:
        sigma, sigma_data = self._sigma, self.sigma_data
        variance = sigma.square() + sigma_data**2
        c_in = variance.rsqrt()
        features = noise_features(sigma.log() / 4.0, self.frequencies).to(self._dtype)
        output = self._passes.forward((self._x * c_in).to(self._dtype), features)
        torch.mul(output, c_in * sigma * sigma_data, out=self._denoised)
        self._denoised.addcmul_(self._x, sigma_data**2 / variance).clamp_(self.low, self.high)
