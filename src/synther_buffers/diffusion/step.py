"""One gradient step of the residual MLP, written out: minibatch, noise, forward, backward, clipping and AdamW.

Autograd would record a graph, allocate every activation and visit every weight on its own; for nets of this size that
is a good part of a step. Here the weights lie in one vector and so do their gradients, the activations in buffers made
once, and nothing waits for the device, so that CUDA can replay the whole step as one graph. The loss is
`synther_buffers.diffusion.loss.denoising_loss`, whose gradients by autograd are what the tests compare with.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from .loss import draw_sigma
from .network import ResidualMLP
from .preconditioning import Preconditioner

if TYPE_CHECKING:
    from .training import TrainingConfig

logger = logging.getLogger(__name__)

#: Steps that CUDA takes one kernel at a time before it records them: its libraries set themselves up meanwhile.
_STEPS_BEFORE_GRAPH = 3


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
        self.depth = len(network.layers)
        self.activation = network.activation
        self.frequencies = network.frequencies

        self.weights = parameters_to_vector(network.parameters()).detach().clone()
        vector_to_parameters(self.weights, network.parameters())
        self.gradient = torch.zeros_like(self.weights)
        self.loss = torch.zeros((), device=device, dtype=torch.float32)
        # The network's arithmetic runs on these: the same memory in float32, rounded copies in bfloat16.
        self._dtype = torch.bfloat16 if config.bfloat16 else torch.float32
        self._weights = self.weights.to(self._dtype)
        self._gradient = self.gradient.to(self._dtype)
        self._w = _views(self._weights, network)
        self._g = _views(self._gradient, network)

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

        def buffer(columns: int) -> Tensor:
            return torch.empty((config.batch_size, columns), device=device, dtype=self._dtype)

        width, embedding_dim = self._w["widen.weight"].shape
        dim = rows.shape[1]
        self._noise = torch.empty((config.batch_size, dim), device=device, dtype=torch.float32)
        self._gate, self._embedded = buffer(embedding_dim), buffer(embedding_dim)
        self._h = [buffer(width) for _ in range(self.depth + 1)]
        self._active = [buffer(width) for _ in range(self.depth + 1)]
        self._d_h, self._d_layer = buffer(width), buffer(width)
        self._output = buffer(dim)
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Take one step; afterwards `loss` and `gradient` are that step's."""
        if self._graph is not None:
            self._graph.replay()
            return
        if self.rows.device.type == "cuda" and self._calls == _STEPS_BEFORE_GRAPH:
            self._capture()
        else:
            self._step()
        self._calls += 1

    def _capture(self) -> None:
        """Record the step as a CUDA graph and take it."""
        graph = torch.cuda.CUDAGraph()
        try:
            graph.register_generator_state(self.generator)
            with torch.cuda.graph(graph):
                self._step()
        except RuntimeError as error:
            logger.warning("CUDA cannot record the training step as a graph (%s); it runs kernel by kernel.", error)
            self._step()
            return
        self._graph = graph
        graph.replay()

    def _step(self) -> None:
        self._draw()
        self._forward()
        self._backward()
        if self._dtype is not torch.float32:
            self.gradient.copy_(self._gradient)
        norm = torch.linalg.vector_norm(self.gradient)
        self.gradient.mul_((self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
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
        c_noise = sigma.log() / 4.0
        phase = c_noise * self.frequencies
        self._features = torch.cat((c_noise, phase.sin(), phase.cos()), dim=1).to(self._dtype)

    def _forward(self) -> None:
        """`ResidualMLP.forward`, keeping what the gradients need."""
        w = self._w
        self._before_gate = torch.addmm(w["noise_in.bias"], self._features, w["noise_in.weight"].t())
        torch.ops.aten.silu.out(self._before_gate, out=self._gate)
        torch.addmm(w["noise_out.bias"], self._gate, w["noise_out.weight"].t(), out=self._embedded)
        self._embedded.addmm_(self._x, w["row_in.weight"].t()).add_(w["row_in.bias"])
        torch.addmm(w["widen.bias"], self._embedded, w["widen.weight"].t(), out=self._h[0])
        for layer in range(self.depth):
            h, h_next = self._h[layer], self._h[layer + 1]
            active = self._activate(h, self._active[layer])
            torch.addmm(h, active, w[f"layers.{layer}.weight"].t(), out=h_next).add_(w[f"layers.{layer}.bias"])
        self._activate(self._h[-1], self._active[-1])
        torch.addmm(w["out.bias"], self._active[-1], w["out.weight"].t(), out=self._output)

    def _backward(self) -> None:
        """The loss, and the gradient of every weight, from the last layer to the first."""
        w = self._w
        error = self._output.to(torch.float32) - self._target
        self.loss.copy_(error.square().mean())
        d_output = error.mul_(2.0 / error.numel()).to(self._dtype)
        self._linear_gradient("out", d_output, self._active[-1])
        d_h = torch.mm(d_output, w["out.weight"], out=self._d_h)
        self._activation_gradient(d_h, self._h[-1])
        for layer in reversed(range(self.depth)):
            self._linear_gradient(f"layers.{layer}", d_h, self._active[layer])
            d_layer = torch.mm(d_h, w[f"layers.{layer}.weight"], out=self._d_layer)
            self._activation_gradient(d_layer, self._h[layer])
            d_h.add_(d_layer)
        self._linear_gradient("widen", d_h, self._embedded)
        d_embedded = torch.mm(d_h, w["widen.weight"])
        self._linear_gradient("row_in", d_embedded, self._x)
        self._linear_gradient("noise_out", d_embedded, self._gate)
        d_gate = torch.mm(d_embedded, w["noise_out.weight"])
        self._linear_gradient("noise_in", torch.ops.aten.silu_backward(d_gate, self._before_gate), self._features)

    def _activate(self, h: Tensor, out: Tensor) -> Tensor:
        if self.activation == "silu":
            return torch.ops.aten.silu.out(h, out=out)
        return torch.clamp(h, min=0.0, out=out)

    def _activation_gradient(self, gradient: Tensor, h: Tensor) -> None:
        """Multiply the gradient in place by the activation's derivative at h."""
        if self.activation == "silu":
            torch.ops.aten.silu_backward.grad_input(gradient, h, grad_input=gradient)
        else:
            torch.ops.aten.threshold_backward.grad_input(gradient, h, 0.0, grad_input=gradient)

    def _linear_gradient(self, name: str, d_output: Tensor, inputs: Tensor) -> None:
        torch.mm(d_output.t(), inputs, out=self._g[f"{name}.weight"])
        torch.sum(d_output, 0, out=self._g[f"{name}.bias"])


def _views(vector: Tensor, network: nn.Module) -> dict[str, Tensor]:
    """The parts of a vector of all parameters by name, in their shapes."""
    views, start = {}, 0
    for name, parameter in network.named_parameters():
        views[name] = vector[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    return views
