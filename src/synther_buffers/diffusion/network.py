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
#: Root mean square to which the input of a gated layer is scaled down where it is larger. On rows like the data it
#: stays below 0.7. On others each layer would square what it gets, and six raise it to the power of 64: at a high
#: learning rate one such row now and then took the training to infinity.
GATED_INPUT_LIMIT = 1.0


class ResidualMLP(nn.Module):
    """Rows and noise level are embedded and added, then ``depth`` residual layers follow.

    A layer is ``h + W relu(h)``, as published, or ``h + W (silu(U h') * V h')``, a gated one (SwiGLU, Shazeer 2020),
    which learns the dynamics better for as many weights; h' is h, scaled down where it exceeds `GATED_INPUT_LIMIT`.
    What comes out of the last goes through ``relu`` or ``silu`` and a linear map to the columns.

    Args:
        dim: columns D of a row.
        width: hidden width.
        depth: number of residual layers.
        embedding_dim: width in which the row and the noise level are added.
        fourier_dim: number of random Fourier features of the noise level.
        activation: of the layers, ``relu`` or ``swiglu``.
        generator: source of the initial weights (a CPU generator; the global one is never touched).
        device: where the weights live.
    """

    frequencies: Tensor

    @torch.inference_mode(False)  # what is made in inference mode can never be trained
    def __init__(
        self,
        dim: int,
        *,
        width: int,
        depth: int,
        embedding_dim: int,
        fourier_dim: int,
        activation: Activation = "relu",
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
        self.out = linear(width, dim, generator, device)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """``x`` is ``[n, D]``; ``noise`` is ``[n]`` or ``[1]``, one level for every row."""
        features = noise_features(noise, self.frequencies).to(self.noise_in.weight.dtype)
        embedded = self.noise_out(F.silu(self.noise_in(features)))
        h = self.widen(self.row_in(x.to(self.row_in.weight.dtype)) + embedded)
        gated = self.activation == "swiglu"
        for layer in self.layers:
            h = h + layer(h if gated else F.relu(h))
        return self.out(F.silu(h) if gated else F.relu(h))


class GatedLayer(nn.Module):
    """``W (silu(U h') * V h')`` with biases, h' is h within `GATED_INPUT_LIMIT`; U and V are the halves of `up`."""

    def __init__(self, width: int, generator: torch.Generator, device: torch.device | str) -> None:
        super().__init__()
        self.up = linear(width, 2 * width, generator, device)
        self.down = linear(width, width, generator, device)

    def forward(self, h: Tensor) -> Tensor:
        """``[n, width]`` to ``[n, width]``."""
        # No gradient by the scale: it would only turn rows that are too large already.
        gate, value = self.up(h * scale_within_limit(h.detach())).chunk(2, dim=1)
        return self.down(F.silu(gate) * value)


def scale_within_limit(h: Tensor) -> Tensor:
    """What brings rows ``[n, width]`` within `GATED_INPUT_LIMIT`, ``[n, 1]``; 1 where they are."""
    limit = GATED_INPUT_LIMIT * math.sqrt(h.shape[1])
    return (limit / torch.linalg.vector_norm(h, dim=1, keepdim=True)).clamp_(max=1.0)


def noise_features(noise: Tensor, frequencies: Tensor) -> Tensor:
    """The noise level ``[n]`` and its random Fourier features, ``[n, 1 + 2 f]`` for f frequencies."""
    phase = noise[:, None] * frequencies
    return torch.cat((noise[:, None], phase.sin(), phase.cos()), dim=1)


@torch.inference_mode(False)
def linear(inputs: int, outputs: int, generator: torch.Generator, device: torch.device | str) -> nn.Linear:
    """``nn.Linear`` with its usual initialisation, drawn from `generator` instead of the global one."""
    layer = skip_init(nn.Linear, inputs, outputs, device="cpu", dtype=torch.float32)
    bound = 1.0 / math.sqrt(inputs)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer.to(device)
