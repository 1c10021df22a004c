"""Training: minibatches, optimiser, moving average of the weights. The host waits for the device only in reports."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

from .conditions import ConditionDraws
from .config import TrainingConfig
from .cuda_graph import CudaGraph
from .early_stopping import EarlyStopping
from .edm import Preconditioner, denoising_loss, draw_sigma
from .network import Dropout

#: Number of reports in a training. Each reads the loss, which waits for the device.
_REPORTS = 50
#: Rows that `evaluate_denoiser` processes at a time, and in all.
_EVALUATION_BLOCK, _EVALUATION_ROWS = 4_096, 65_536


class NonFiniteLossError(RuntimeError):
    """Training diverged: the loss is NaN or infinite."""


class TrainingStep:
    """One gradient step per call: minibatch, noise, forward and backward pass, clipping, AdamW.

    Nothing in it waits for the device, so that all of it can be one CUDA graph.

    Args:
        denoiser: D, on the device of `rows`; it is copied and not changed.
        rows: ``[N, D]`` float32 training rows.
        config: batch size, optimiser, noise levels; the caller sets the learning rate and averages the weights.
        generator: source of everything random, on the device of `rows`.
        conditions: under which the rows are learned; None for none.

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
        conditions: ConditionDraws | None = None,
    ) -> None:
        self.rows, self.config, self.generator, self.conditions = rows, config, generator, conditions
        self._denoiser = copy.deepcopy(denoiser).requires_grad_(True)
        for module in self._denoiser.modules():
            if isinstance(module, Dropout):
                module.start(config.dropout, generator)
        self._parameters = list(self._denoiser.parameters())
        # One vector: clipping, AdamW, rounding and averaging are then one operation each.
        self.weights = nn.Parameter(parameters_to_vector(self._parameters).detach().clone())
        # The weights that the network computes with, and the gradient that autograd returns; rounded if bfloat16.
        self._rounded = self.weights.detach().to(torch.bfloat16 if config.bfloat16 else torch.float32)
        self._rounded_gradient = torch.zeros_like(self._rounded)
        self.weights.grad = self.gradient = self._rounded_gradient.to(torch.float32)
        vector_to_parameters(self._rounded, self._parameters)
        self.learning_rate = torch.zeros((), device=rows.device, dtype=torch.float32)
        self.loss = torch.zeros((), device=rows.device, dtype=torch.float32)
        self._optimizer = torch.optim.AdamW(
            [self.weights],
            lr=self.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=rows.is_cuda,
        )
        self._graph = CudaGraph(rows.device, "training step", (generator,))

    def __call__(self) -> None:
        """Take one step and set `loss` and `gradient` to its values."""
        self._graph(self._step)

    def _step(self) -> None:
        count, generator, device = self.config.batch_size, self.generator, self.rows.device
        index = torch.randint(len(self.rows), (count,), generator=generator, device=device)
        clean = self.rows.index_select(0, index)
        noise = torch.randn(clean.shape, generator=generator, device=device, dtype=torch.float32)
        sigma = draw_sigma(count, self.config.p_mean, self.config.p_std, generator)
        condition = None if self.conditions is None else self.conditions.draw(index, clean, generator)
        with torch.enable_grad():
            loss = denoising_loss(self._denoiser, clean, noise, sigma, condition)
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)
        # Into existing memory: allocating the whole vector takes longer than filling it.
        torch.cat([gradient.reshape(-1) for gradient in gradients], out=self._rounded_gradient)
        self.gradient.copy_(self._rounded_gradient)
        clip_grad_norm_([self.weights], self.config.max_grad_norm, error_if_nonfinite=False, foreach=True)
        self._optimizer.step()
        self._rounded.copy_(self.weights.detach())
        self.loss.copy_(loss.detach())


@torch.inference_mode(False)
@torch.no_grad()
def train_denoiser(
    denoiser: Preconditioner,
    rows: Tensor,
    num_steps: int,
    config: TrainingConfig,
    generator: torch.Generator,
    on_progress: Callable[[int, float], None] | None = None,
    stopping: EarlyStopping | None = None,
    conditions: ConditionDraws | None = None,
) -> tuple[Preconditioner, float]:
    """Train a copy of a denoiser and return the moving average of its weights.

    Args:
        denoiser: D, on the device of `rows`; it is not changed.
        rows: ``[N, D]`` float32.
        num_steps: gradient steps.
        config: see `TrainingConfig`.
        generator: source of minibatches, noise levels and noise, on the device of `rows`.
        on_progress: called at intervals with the number of steps done and the recent mean loss.
        stopping: evaluates the averaged weights during training, selects those to return, and may end the training
            early; a new object for each training.
        conditions: under which the rows are learned; None for none.

    Returns:
        The averaged denoiser, and the mean training loss over the last tenth of the steps that were taken.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
    """
    step = TrainingStep(denoiser, rows, config, generator, conditions)
    weights = step.weights.detach()
    average = weights.clone()
    averaged = copy.deepcopy(denoiser).requires_grad_(False)
    vector_to_parameters(average, averaged.parameters())  # views: changing `average` changes the denoiser
    num_averaged = 0
    report_every = max(num_steps // _REPORTS, 1)
    losses = torch.zeros(num_steps, device=rows.device, dtype=torch.float32)
    done = reported = 0
    with torch.autocast(rows.device.type, enabled=False):
        for index in range(num_steps):
            step.learning_rate.fill_(config.learning_rate * _schedule(index, num_steps, config.warmup_steps))
            step()
            losses[index] = step.loss
            done = index + 1
            if done % config.ema_every == 0 or done == num_steps:
                decay = min(config.ema_decay, (1.0 + num_averaged) / (10.0 + num_averaged)) if num_averaged else 0.0
                average.lerp_(weights, 1.0 - decay)
                num_averaged += 1
            if done % report_every == 0 or done == num_steps:
                mean = losses[reported:done].mean().item()
                reported = done
                if not math.isfinite(mean):
                    raise NonFiniteLossError(f"the training loss became {mean} within the first {done} steps.")
                if on_progress is not None:
                    on_progress(done, mean)
            if stopping is not None and stopping.due(done, num_steps) and stopping.look(averaged, done):
                break
    vector_to_parameters(average if stopping is None else stopping.best(average), averaged.parameters())
    for parameter in averaged.parameters():
        # Copied, because saving a view would write the whole vector for each parameter.
        parameter.data = parameter.data.clone()
    return averaged, losses[done - max(done // 10, 1) : done].mean().item()


@torch.no_grad()
def evaluate_denoiser(
    denoiser: Preconditioner, rows: Tensor, config: TrainingConfig, generator: torch.Generator
) -> float:
    """Mean loss on given rows at noise drawn from `generator`; use the same generator state to compare two denoisers.

    Few rows are repeated, each time with other noise; of many rows the first 65,536 are used.
    """
    repeats = max(_EVALUATION_BLOCK // max(len(rows), 1), 1)
    count = min(repeats * len(rows), _EVALUATION_ROWS)
    total = torch.zeros((), device=rows.device, dtype=torch.float64)
    with torch.autocast(rows.device.type, enabled=False):
        for start in range(0, count, _EVALUATION_BLOCK):
            index = torch.arange(start, min(start + _EVALUATION_BLOCK, count), device=rows.device) % len(rows)
            clean = rows.index_select(0, index)
            noise = torch.randn(clean.shape, generator=generator, device=rows.device, dtype=torch.float32)
            sigma = draw_sigma(len(clean), config.p_mean, config.p_std, generator)
            total += denoising_loss(denoiser, clean, noise, sigma) * len(clean)
    return total.item() / count


def _schedule(index: int, num_steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate at a step: a linear rise over the first steps, times a cosine down to 0."""
    # At most a tenth of the training, so that a short training does not end during the rise.
    rise = min((index + 1) / max(min(warmup_steps, num_steps // 10), 1), 1.0)
    return rise * 0.5 * (1.0 + math.cos(math.pi * index / num_steps))
