"""The denoiser's raw network F: a residual MLP (SynthER, appendix B; Tolstikhin et al. 2021 for the MLP-mixer idea)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

Activation = Literal["relu", "swiglu"]
ACTIVATIONS: tuple[str, ...] = ("relu", "swiglu")


class ResidualMLP(nn.Module):
    """Rows and noise level are embedded and added, then ``depth`` residual layers follow.

    A layer is ``h + W relu(h)``, as published, or gated: ``h + W (silu(U n) * V n)`` with ``n = norm(h)`` (SwiGLU,
    Shazeer 2020, after a layer normalisation, Xiong et al. 2020). Gated layers learn the dynamics better with the same
    number of weights. Each multiplies two linear functions of its input, so without the normalisation the output of six
    layers grows as the 64th power of the input, and training at a high learning rate can diverge. The last layer's
    output goes through ``relu`` or ``silu`` and a linear map to the columns.

    Args:
        dim: columns D of a row.
        width: hidden width.
        depth: number of residual layers.
        embedding_dim: width in which the row and the noise level are added.
        fourier_dim: number of random Fourier features of the noise level.
        activation: of the layers, ``relu`` or ``swiglu``.
        condition_dim: columns C of a condition, which is embedded and added as well; 0 if there is none.
        generator: source of the initial weights (a CPU generator; the global one is not used).
        device: of the weights.
    """

    frequencies: Tensor

    @torch.inference_mode(False)  # tensors made in inference mode cannot be trained
    def __init__(
        self,
        dim: int,
        *,
        width: int,
        depth: int,
        embedding_dim: int,
        fourier_dim: int,
        activation: Activation = "relu",
        condition_dim: int = 0,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.activation = activation

        frequencies = torch.randn(fourier_dim // 2, generator=generator, dtype=torch.float32, device="cpu")
        self.register_buffer("frequencies", (2.0 * math.pi * frequencies).to(device))
        self.noise_in = linear(fourier_dim // 2 * 2 + 1, embedding_dim, generator, device)
        self.noise_out = linear(embedding_dim, embedding_dim, generator, device)
        self.row_in = linear(dim, embedding_dim, generator, device)
        self.widen = linear(embedding_dim, width, generator, device)
        self.layers = nn.ModuleList(
            GatedLayer(width, generator, device) if activation == "swiglu" else linear(width, width, generator, device)
            for _ in range(depth)
        )
        self.dropout = Dropout()  # of the layers that are not gated
        self.out = linear(width, dim, generator, device)
        # Without a bias, so that zeros are no condition. Drawn last: the other weights are those without conditions.
        self.condition_in: nn.Linear | None = None
        if condition_dim:
            self.condition_in = linear(condition_dim, embedding_dim, generator, device, bias=False)

    def forward(self, x: Tensor, c_noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """The raw output ``[n, D]``, in the dtype of the weights.

        Args:
            x: ``[n, D]``.
            c_noise: ``[n]`` noise level of each row, or ``[1]``, one for all of them.
            condition: ``[n, C]``, or None, which is the same as zeros.

        Raises:
            ValueError: a condition was given to a network without an input for one.
        """
        if condition is not None and self.condition_in is None:
            raise ValueError(
                "condition is given, but this network was made without an input for one (condition_dim=0)."
            )
        features = noise_features(c_noise, self.frequencies).to(self.noise_in.weight.dtype)
        embedded = self.noise_out(F.silu(self.noise_in(features)))
        embedded = self.row_in(x.to(self.row_in.weight.dtype)) + embedded
        if condition is not None and self.condition_in is not None:
            embedded = embedded + self.condition_in(condition.to(self.condition_in.weight.dtype))
        h = self.widen(embedded)
        gated = self.activation == "swiglu"
        for layer in self.layers:
            h = h + layer(h if gated else self.dropout(F.relu(h)))
        return self.out(F.silu(h) if gated else F.relu(h))


class GatedLayer(nn.Module):
    """``W (silu(U n) * V n)`` with biases, ``n = norm(h)``; U and V are the halves of `up`."""

    def __init__(self, width: int, generator: torch.Generator, device: torch.device | str) -> None:
        super().__init__()
        self.dropout = Dropout()
        self.up = linear(width, 2 * width, generator, device)
        self.down = linear(width, width, generator, device)

    def forward(self, h: Tensor) -> Tensor:
        """``[n, width]`` to ``[n, width]``."""
        gate, value = self.up(F.layer_norm(h, h.shape[1:])).chunk(2, dim=1)
        return self.down(self.dropout(F.silu(gate) * value))


class Dropout(nn.Module):
    """Sets a share of the values to 0 and divides the others by the remaining share (Srivastava et al., JMLR 2014).

    It passes values through unchanged until `diffusion.training` calls `start` on its own copy of a network. So the
    random numbers come from the fit's generator instead of the global one, and sampling uses no dropout.
    """

    def __init__(self) -> None:
        super().__init__()
        self._share = 0  # in 256ths
        self._generator: torch.Generator | None = None

    def start(self, share: float, generator: torch.Generator) -> None:
        """Drop from now on.

        Args:
            share: from 0 to below 1, rounded to 256ths.
            generator: source of the random numbers, on the device of the values.
        """
        self._share, self._generator = min(round(share * 256), 255), generator

    def forward(self, x: Tensor) -> Tensor:
        """Values of any shape."""
        if self._share == 0:
            return x
        # Each random 64-bit number gives eight decisions, because most of the time is spent drawing numbers.
        numbers = torch.empty(math.ceil(x.numel() / 8), dtype=torch.int64, device=x.device)
        numbers.random_(-(2**63), None, generator=self._generator)
        kept = numbers.view(torch.uint8)[: x.numel()].view(x.shape) >= self._share
        return x * (kept.to(x.dtype) * (256 / (256 - self._share)))


def noise_features(c_noise: Tensor, frequencies: Tensor) -> Tensor:
    """The noise level ``[n]`` and its random Fourier features, ``[n, 1 + 2 f]`` for f frequencies."""
    phase = c_noise[:, None] * frequencies
    return torch.cat((c_noise[:, None], phase.sin(), phase.cos()), dim=1)


@torch.inference_mode(False)
def linear(
    inputs: int, outputs: int, generator: torch.Generator, device: torch.device | str, *, bias: bool = True
) -> nn.Linear:
    """``nn.Linear`` with its usual initialisation, drawn from `generator` instead of the global one."""
    layer = skip_init(nn.Linear, inputs, outputs, bias=bias, device="cpu", dtype=torch.float32)
    bound = 1.0 / math.sqrt(inputs)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        if bias:
            layer.bias.uniform_(-bound, bound, generator=generator)
    return layer.to(device)
