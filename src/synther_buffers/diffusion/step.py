"""One gradient step of the residual MLP, written out: minibatch, noise, both passes, clipping and AdamW.

Autograd would record a graph, allocate every activation and visit every weight on its own; for nets of this size that
is a good part of a step. Here the weights lie in one vector and so do their gradients, and nothing waits for the
device, so that CUDA can replay the whole step as one graph. The loss is that of
`synther_buffers.diffusion.loss.denoising_loss`, whose gradients by autograd are what the tests compare with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from .graphs import Recorded
from .loss import draw_sigma
from .network import ResidualMLP, noise_features
from .passes import Passes
from .preconditioning import Preconditioner

if TYPE_CHECKING:
    from .training import TrainingConfig


class GradientStep:
    """Trains a denoiser whose network is a `ResidualMLP`, in place, a step at a call.

    Args:
        denoiser: D, on the device of `rows`; its parameters become views of `weights`.
        rows: ``[N, D]`` float32 training rows.
        config: the learning rate and its course are the caller's (`learning_rate`), as is the moving average.
        generator: source of everything random, on the device of `rows`.

    Attributes:
        weights: every parameter, in the order of ``denoiser.parameters()``, one float32 vector.
        gradient: of the last step's loss, clipped, likewise.
        learning_rate: of the next step, a tensor on the device: `fill_` it.
        loss: of the last step, a float32 scalar on the device.
    """

    def __init__(
        self,
        denoiser: Preconditioner,
        rows: Tensor,
        config: TrainingConfig,
        generator: torch.Generator,
    ) -> None:
        network = cast(ResidualMLP, denoiser.network)
        device = rows.device
        self.rows = rows
        self.config = config
        self.sigma_data = denoiser.sigma_data
        self.generator = generator
        self.frequencies = network.frequencies

        self.weights = parameters_to_vector(network.parameters()).detach().clone()
        vector_to_parameters(self.weights, network.parameters())
        self.gradient = torch.zeros_like(self.weights)
        self.loss = torch.zeros((), device=device, dtype=torch.float32)
        # The network's arithmetic runs on these: the same memory in float32, rounded copies in bfloat16.
        self._dtype = torch.bfloat16 if config.bfloat16 else torch.float32
        self._weights = self.weights.to(self._dtype)
        self._gradient = self.gradient.to(self._dtype)
        self._passes = Passes(
            network, config.batch_size, _views(self._weights, network), _views(self._gradient, network)
        )

        parameter = nn.Parameter(self.weights)  # shares its memory
        parameter.grad = self.gradient
        self.learning_rate = torch.zeros((), device=device, dtype=torch.float32)
        self._optimizer = torch.optim.AdamW(
            [parameter],
            lr=self.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )

        self._noise = torch.empty((config.batch_size, rows.shape[1]), device=device, dtype=torch.float32)
        self._take = Recorded(device, "training step", generator)

    def __call__(self) -> None:
        """Take one step; afterwards `loss` and `gradient` are that step's."""
        self._take(self._step)

    def _step(self) -> None:
        self._draw()
        error = self._passes.forward(self._x, self._features).to(torch.float32) - self._target
        self.loss.copy_(error.square().mean())
        self._passes.backward(error.mul_(2.0 / error.numel()).to(self._dtype))
        # Of one dimension, not of none, so that the product is float32's.
        norm = torch.linalg.vector_norm(self._gradient, dtype=torch.float32).reshape(1)
        torch.mul(self._gradient, (self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0), out=self.gradient)
        self._optimizer.step()
        if self._dtype is not torch.float32:
            self._weights.copy_(self.weights)

    def _draw(self) -> None:
        """A minibatch and its noise, as the network's inputs and its target."""
        count, generator, device = self.config.batch_size, self.generator, self.rows.device
        index = torch.randint(len(self.rows), (count,), generator=generator, device=device)
        clean = self.rows.index_select(0, index)
        noise = self._noise.normal_(generator=generator)
        sigma = draw_sigma(count, self.config.p_mean, self.config.p_std, generator)[:, None]
        c_in = (sigma.square() + self.sigma_data**2).rsqrt()
        self._x = torch.addcmul(clean, sigma, noise).mul_(c_in).to(self._dtype)
        # (clean - c_skip noisy) / c_out, simplified.
        self._target = (clean.mul_(sigma / self.sigma_data)).sub_(noise, alpha=self.sigma_data).mul_(c_in)
        self._features = noise_features(sigma[:, 0].log() / 4.0, self.frequencies).to(self._dtype)


def _views(vector: Tensor, network: nn.Module) -> dict[str, Tensor]:
    """The parts of a vector of all parameters by name, in their shapes."""
    views, start = {}, 0
    for name, parameter in network.named_parameters():
        views[name] = vector[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    return views
