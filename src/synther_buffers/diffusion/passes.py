"""`ResidualMLP` written out: its forward and backward pass for batches of one size, into buffers made once.

Autograd and modules allocate every intermediate value anew and keep all of them apart. Here a pass touches the same
memory each time, which a CPU's caches like, and launches the same kernels on the same addresses, which is what CUDA
needs to replay it as one graph. What both passes compute is the network's own; the tests compare them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .network import ResidualMLP

#: What `torch.nn.functional.layer_norm` adds to a variance.
_EPSILON = 1e-5


class Passes:
    """Forward passes of a network and, where gradients are wanted, backward ones.

    Args:
        network: gives the sizes, and the weights unless there are `weights`.
        batch_size: rows of every pass.
        weights: by name, as ``network.named_parameters()``; all of one dtype, in which the passes run.
        gradients: likewise, where `backward` writes; None if there will be none, which takes less memory.
    """

    def __init__(
        self,
        network: ResidualMLP,
        batch_size: int,
        weights: dict[str, Tensor],
        gradients: dict[str, Tensor] | None = None,
    ) -> None:
        self.weights, self.gradients = weights, gradients
        self.depth = len(network.layers)
        self.gated = network.activation == "swiglu"
        width, embedding_dim = weights["widen.weight"].shape
        out = weights["out.weight"]

        def buffer(columns: int) -> Tensor:
            return torch.empty((batch_size, columns), device=out.device, dtype=out.dtype)

        def one_each(count: int, columns: int) -> list[Tensor]:
            """A buffer for each layer where the backward pass needs them all, the same one otherwise."""
            return [buffer(columns) for _ in range(count)] if gradients is not None else [buffer(columns)] * count

        self._embedded, self._output = buffer(embedding_dim), buffer(len(out))
        self._h = one_each(self.depth + 1, width)
        self._active = one_each(self.depth + 1, width)
        # Of a gated layer: its normalised input with mean and scale, both halves of the wide product, and silu of the
        # first.
        self._normalized: list[tuple[Tensor, Tensor, Tensor]] = []
        self._wide = one_each(self.depth, 2 * width) if self.gated else []
        self._gate = one_each(self.depth, width) if self.gated else []
        if gradients is not None:
            self._d_h, self._d_active = buffer(width), buffer(width)
            self._d_wide = buffer(2 * width if self.gated else 0)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """What the network makes of rows and noise features.

        Args:
            x: ``[batch_size, D]``, in the dtype of the weights.
            features: ``[batch_size, 1 + 2 f]`` or, one level for every row, ``[1, 1 + 2 f]``, likewise.

        Returns:
            ``[batch_size, D]``, a buffer that the next pass overwrites.
        """
        w = self.weights
        self._x, self._features = x, features
        self._noise = torch.addmm(w["noise_in.bias"], features, w["noise_in.weight"].t())
        self._noise_active = nn.functional.silu(self._noise)
        level = torch.addmm(w["noise_out.bias"], self._noise_active, w["noise_out.weight"].t())
        torch.mm(x, w["row_in.weight"].t(), out=self._embedded).add_(level).add_(w["row_in.bias"])
        self._normalized.clear()
        h = torch.addmm(w["widen.bias"], self._embedded, w["widen.weight"].t(), out=self._h[0])
        for layer in range(self.depth):
            name, active = f"layers.{layer}", self._active[layer]
            if self.gated:
                wide, gate = self._wide[layer], self._gate[layer]
                # New tensors: its variant that takes buffers makes these too, and copies them.
                normalized = torch.native_layer_norm(h, h.shape[1:], None, None, _EPSILON)
                if self.gradients is not None:
                    self._normalized.append(normalized)
                torch.addmm(w[f"{name}.up.bias"], normalized[0], w[f"{name}.up.weight"].t(), out=wide)
                before, value = wide.chunk(2, dim=1)
                torch.ops.aten.silu.out(before, out=gate)
                torch.mul(gate, value, out=active)
                name = f"{name}.down"
            else:
                torch.clamp(h, min=0.0, out=active)
            h = torch.addmm(h, active, w[f"{name}.weight"].t(), out=self._h[layer + 1]).add_(w[f"{name}.bias"])
        if self.gated:
            torch.ops.aten.silu.out(h, out=self._active[-1])
        else:
            torch.clamp(h, min=0.0, out=self._active[-1])
        return torch.addmm(w["out.bias"], self._active[-1], w["out.weight"].t(), out=self._output)

    def backward(self, d_output: Tensor) -> None:
        """The gradient of every weight, given that of the last forward pass's output ``[batch_size, D]``."""
        w = self.weights
        self._linear_gradient("out", d_output, self._active[-1])
        d_h = torch.mm(d_output, w["out.weight"], out=self._d_h)
        if self.gated:
            torch.ops.aten.silu_backward.grad_input(d_h, self._h[-1], grad_input=d_h)
        else:
            torch.ops.aten.threshold_backward.grad_input(d_h, self._h[-1], 0.0, grad_input=d_h)
        for layer in reversed(range(self.depth)):
            (self._gated_layer_backward if self.gated else self._plain_layer_backward)(layer, d_h)
        self._linear_gradient("widen", d_h, self._embedded)
        d_embedded = torch.mm(d_h, w["widen.weight"])
        self._linear_gradient("row_in", d_embedded, self._x)
        self._linear_gradient("noise_out", d_embedded, self._noise_active)
        d_noise = torch.mm(d_embedded, w["noise_out.weight"])
        self._linear_gradient("noise_in", torch.ops.aten.silu_backward(d_noise, self._noise), self._features)

    def _plain_layer_backward(self, layer: int, d_h: Tensor) -> None:
        """Turn the gradient of ``h + W relu(h)`` into that of h, in place."""
        name = f"layers.{layer}"
        self._linear_gradient(name, d_h, self._active[layer])
        d_active = torch.mm(d_h, self.weights[f"{name}.weight"], out=self._d_active)
        torch.ops.aten.threshold_backward.grad_input(d_active, self._h[layer], 0.0, grad_input=d_active)
        d_h.add_(d_active)

    def _gated_layer_backward(self, layer: int, d_h: Tensor) -> None:
        """Turn the gradient of ``h + W (silu(U norm(h)) * V norm(h))`` into that of h, in place."""
        name = f"layers.{layer}"
        before, value = self._wide[layer].chunk(2, dim=1)
        d_before, d_value = self._d_wide.chunk(2, dim=1)
        self._linear_gradient(f"{name}.down", d_h, self._active[layer])
        d_active = torch.mm(d_h, self.weights[f"{name}.down.weight"], out=self._d_active)
        torch.mul(d_active, self._gate[layer], out=d_value)
        torch.ops.aten.silu_backward.grad_input(d_active.mul_(value), before, grad_input=d_before)
        normed, mean, scale = self._normalized[layer]
        self._linear_gradient(f"{name}.up", self._d_wide, normed)
        d_normed = torch.mm(self._d_wide, self.weights[f"{name}.up.weight"], out=d_active)
        h = self._h[layer]
        d_h += torch.ops.aten.native_layer_norm_backward(
            d_normed, h, h.shape[1:], mean, scale, None, None, (True, False, False)
        )[0]

    def _linear_gradient(self, name: str, d_output: Tensor, inputs: Tensor) -> None:
        assert self.gradients is not None
        torch.mm(d_output.t(), inputs, out=self.gradients[f"{name}.weight"])
        torch.sum(d_output, 0, out=self.gradients[f"{name}.bias"])
