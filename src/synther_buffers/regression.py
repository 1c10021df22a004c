"""An ensemble of small networks that predict some columns from others, by the mean squared error."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Networks of an ensemble, their hidden width, and how they are trained. For each network another fifth of the rows, in
#: runs, is held out: its weights are those that were best there, and the training ends after `_PATIENCE` looks without
#: a better one. A training of up to `_PATIENCE` x `_LOOK_EVERY` steps is therefore never cut short.
_NETWORKS, _WIDTH, _BATCH, _RATE, _LOOK_EVERY, _PATIENCE, _RUN = 5, 256, 128, 3e-3, 100, 8, 25
#: With fewer rows no network has rows that it did not learn.
FEWEST_ROWS = _NETWORKS
#: Rows that are predicted at a time: few on a CPU, where more take memory and save no time.
_CPU_ROWS, _GPU_ROWS = 2_048, 16_384

#: What is known of an ensemble beside its weights.
_JUDGED = ("error", "explained", "share", "recall")

#: Weight ``[networks, in, out]`` and bias ``[networks, 1, out]`` of each layer.
Layers = list[tuple[Tensor, Tensor]]


class Ensemble:
    """The mean of five networks with two hidden layers of 256.

    Args:
        layers: of all networks.
        error: ``[out]`` mean squared error of each target, of the networks on the rows that each of them did not learn;
            with fewer than five rows, on those that they learned.
        explained: ``[out]`` share of each target's variance that they explain there; below 0 if they are worse than the
            mean, and 0 for a constant target.
        share: ``[out]`` of all rows, those with a target's largest value.
        recall: ``[out]`` of these, those among as many rows with the largest predictions; for targets of two values.
    """

    def __init__(self, layers: Layers, error: Tensor, explained: Tensor, share: Tensor, recall: Tensor) -> None:
        self._layers = layers
        self.error = error
        self.explained = explained
        self.share = share
        self.recall = recall

    @classmethod
    @torch.inference_mode(False)
    def fit(cls, inputs: Tensor, targets: Tensor, generator: torch.Generator, num_steps: int) -> Ensemble:
        """Learn columns from standardised ones.

        Args:
            inputs: ``[N, in]`` float32, each environment's in the order of writing: runs of 25 consecutive
                rows are held out together, and shorter ones of up to 100 rows.
            targets: ``[N, out]`` float32, of any scale: each counts alike.
            generator: source of weights and minibatches, on the device of both.
            num_steps: gradient steps, at most; training ends earlier after 800 in which no network improves.
        """
        device = inputs.device
        # A constant target is known without learning. Its gradients would shrink to denormal numbers, which are slow.
        varies = targets.amin(0) < targets.amax(0)
        constants, everything, targets = targets[:1].clone(), targets, targets[:, varies]
        centre = targets.mean(0)
        scale = (targets - centre).square().mean(0).sqrt()
        targets = (targets - centre) / scale
        sizes = (inputs.shape[1], _WIDTH, _WIDTH, targets.shape[1])
        layers = [
            tuple(
                (torch.rand(_NETWORKS, rows, to, generator=generator, dtype=torch.float32, device=device) * 2 - 1)
                .div_(math.sqrt(fan_in))
                .requires_grad_()
                for rows in (fan_in, 1)
            )
            for fan_in, to in pairwise(sizes)
        ]
        # The held-out fifths differ, so that together the networks learn every row.
        run = _RUN if len(inputs) > _RUN * (_NETWORKS - 1) else max(len(inputs) // (2 * _NETWORKS), 1)
        fold = torch.arange(len(inputs), device=device) // run % _NETWORKS
        learned = [torch.nonzero(fold != network).flatten() for network in range(_NETWORKS)]
        judged = [torch.nonzero(fold == network).flatten() for network in range(_NETWORKS)]
        if len(inputs) < FEWEST_ROWS:
            learned = judged = [torch.arange(len(inputs), device=device)] * _NETWORKS
        parameters = [tensor for layer in layers for tensor in layer]
        optimizer = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=1e-2)
        least, improved = [math.inf] * _NETWORKS, 0
        best = [tensor.detach().clone() for tensor in parameters]
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            for step in range(1, num_steps + 1 if bool(varies.any()) else 1):
                index = torch.stack(
                    [rows[torch.randint(len(rows), (_BATCH,), generator=generator, device=device)] for rows in learned]
                )
                loss = F.mse_loss(_forward(layers, inputs[index]), targets[index]) * _NETWORKS
                optimizer.param_groups[0]["lr"] = _RATE * (1.0 - (step - 1) / num_steps)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if step % _LOOK_EVERY == 0 or step == num_steps:
                    with torch.no_grad():
                        for network, rows in enumerate(judged):
                            answer = _forward(_of(layers, network), inputs[rows][None])[0]
                            error = float(F.mse_loss(answer, targets[rows]))
                            if error < least[network]:
                                least[network], improved = error, step
                                for kept, now in zip(best, parameters, strict=True):
                                    kept[network] = now.detach()[network]
                    if step - improved >= _PATIENCE * _LOOK_EVERY:
                        break
        pairs = iter(best)
        kept_layers = [(weight, next(pairs)) for weight in pairs]
        weight, bias = kept_layers[-1][0] * scale, kept_layers[-1][1] * scale + centre
        kept_layers[-1] = (
            weight.new_zeros(_NETWORKS, _WIDTH, len(varies)).index_copy_(2, varies.nonzero()[:, 0], weight),
            constants.repeat(_NETWORKS, 1, 1).index_copy_(2, varies.nonzero()[:, 0], bias),
        )
        return cls(kept_layers, *_judge(kept_layers, inputs, everything, judged))

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> Tensor:
        """The networks' mean ``[n, out]`` for inputs ``[n, in]``."""
        rows = _CPU_ROWS if inputs.device.type == "cpu" else _GPU_ROWS
        with torch.autocast(inputs.device.type, enabled=False):
            return torch.cat([_forward(self._layers, part[None]).mean(0) for part in inputs.split(rows)])

    def state_dict(self) -> dict[str, Any]:
        """Weights, and how good they are, as CPU tensors."""
        return {
            "layers": [[tensor.cpu() for tensor in layer] for layer in self._layers],
            **{name: getattr(self, name).cpu() for name in _JUDGED},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], num_inputs: int, num_targets: int, device: torch.device) -> Ensemble:
        """What `state_dict` returned, of an ensemble with so many columns.

        Raises:
            ValueError: tensors of other shapes.
        """
        layers = [(weight.to(device), bias.to(device)) for weight, bias in state["layers"]]
        judged = [state[name].to(device) for name in _JUDGED]
        sizes = [tuple(tensor.shape) for tensor in (*(part for layer in layers for part in layer), *judged)]
        widths = pairwise((num_inputs, _WIDTH, _WIDTH, num_targets))
        wanted = [shape for rows, to in widths for shape in ((_NETWORKS, rows, to), (_NETWORKS, 1, to))] + [
            (num_targets,)
        ] * len(judged)
        if sizes != wanted:
            raise ValueError(f"the regression's tensors have shapes {sizes}; wanted {wanted}.")
        return cls(layers, *judged)


def _forward(layers: Any, x: Tensor) -> Tensor:
    """``[networks or 1, n, in]`` to ``[networks, n, out]``."""
    for number, (weight, bias) in enumerate(layers):
        x = (x if number == 0 else F.silu(x)).expand(len(weight), -1, -1)
        x = torch.baddbmm(bias, x, weight)
    return x


def _of(layers: Any, network: int) -> Layers:
    return [(weight[network : network + 1], bias[network : network + 1]) for weight, bias in layers]


@torch.no_grad()
def _judge(layers: Layers, inputs: Tensor, targets: Tensor, judged: list[Tensor]) -> tuple[Tensor, ...]:
    """`error`, `explained`, `share` and `recall`, by each row's answer of a network that did not learn it."""
    rows = torch.cat(judged)
    answers = torch.cat([_forward(_of(layers, network), inputs[part][None])[0] for network, part in enumerate(judged)])
    targets = targets[rows]
    error = (answers - targets).double().square().mean(0)
    variance = targets.double().var(0, correction=0)
    explained = torch.where(variance > 0, 1.0 - error / variance, torch.zeros_like(error))
    largest = targets == targets.amax(0)
    recall = torch.stack([recall_of(*pair) for pair in zip(answers.unbind(1), largest.unbind(1), strict=True)])
    return error, explained, largest.double().mean(0), recall


def recall_of(prediction: Tensor, wanted: Tensor) -> Tensor:
    """Of the rows ``[n]`` that are wanted, the share among as many rows with the largest predictions; 0 for none."""
    count = int(wanted.sum())
    top = prediction.topk(count).indices
    return wanted[top].double().sum() / max(count, 1)
