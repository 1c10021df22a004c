"""The training loop: learning rate, moving average, progress. Nothing in it waits for the device but its reports."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from .loss import denoising_loss, draw_sigma
from .preconditioning import Preconditioner
from .step import GradientStep

#: The loss is looked at (and the progress shown) this many times; each look waits for the device.
_REPORTS = 50


class NonFiniteLossError(RuntimeError):
    """Training diverged: the loss is NaN or infinite."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a denoiser is trained.

    Attributes:
        batch_size: rows per step, drawn with replacement.
        learning_rate: peak of AdamW's learning rate; a cosine takes it to 0 (Loshchilov and Hutter 2017).
        warmup_steps: steps, a tenth of the training at most, over which the rate rises to its place on the cosine;
            large rates diverge without.
        betas, weight_decay: AdamW's.
        max_grad_norm: gradients are clipped to this norm.
        p_mean, p_std: of ln sigma (EDM, Table 1).
        ema_decay, ema_every: moving average of the weights every `ema_every` steps. The decay ramps up as
            (1 + k) / (10 + k), so that a short training is not an average of its first weights.
        bfloat16: run the network in bfloat16 (weights, optimiser and loss stay float32).
    """

    batch_size: int
    learning_rate: float
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    p_mean: float = -1.2
    p_std: float = 1.2
    ema_decay: float = 0.995
    ema_every: int = 10
    bfloat16: bool = False


@torch.inference_mode(False)
@torch.no_grad()
def train_denoiser(
    denoiser: Preconditioner,
    rows: Tensor,
    num_steps: int,
    config: TrainingConfig,
    generator: torch.Generator,
    on_progress: Callable[[int, float], None] | None = None,
) -> tuple[Preconditioner, float]:
    """Train a denoiser, whose network is a `ResidualMLP`, in place and return the moving average of its weights.

    Args:
        denoiser: D, on the device of `rows`.
        rows: ``[N, D]`` float32, resident on the device.
        num_steps: gradient steps.
        config: see `TrainingConfig`.
        generator: source of minibatches, noise levels and noise, on the device of `rows`.
        on_progress: called now and then with the number of steps done and the recent mean loss.

    Returns:
        The averaged denoiser, and the mean loss over the last tenth of the steps.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
    """
    step = GradientStep(denoiser, rows, config, generator)
    average = step.weights.clone()
    num_averaged = 0
    report_every = max(num_steps // _REPORTS, 1)
    tail_start = num_steps - max(num_steps // 10, 1)
    recent, tail = torch.zeros_like(step.loss), torch.zeros_like(step.loss)
    with torch.autocast(rows.device.type, enabled=False):
        for index in range(num_steps):
            step.learning_rate.fill_(config.learning_rate * _schedule(index, num_steps, config.warmup_steps))
            step()
            recent += step.loss
            if index >= tail_start:
                tail += step.loss
            done = index + 1
            if done % config.ema_every == 0 or done == num_steps:
                decay = min(config.ema_decay, (1.0 + num_averaged) / (10.0 + num_averaged)) if num_averaged else 0.0
                average.lerp_(step.weights, 1.0 - decay)
                num_averaged += 1
            if done % report_every == 0 or done == num_steps:
                mean = recent.item() / ((index % report_every) + 1)
                if not math.isfinite(mean):
                    raise NonFiniteLossError(f"the training loss became {mean} within the first {done} steps.")
                if on_progress is not None:
                    on_progress(done, mean)
                recent.zero_()
    averaged = copy.deepcopy(denoiser)
    vector_to_parameters(average, averaged.parameters())
    for parameter in averaged.parameters():
        # Its own memory: a view would take the whole vector along into every file.
        parameter.data = parameter.data.clone()
    return averaged.requires_grad_(False), tail.item() / (num_steps - tail_start)


@torch.no_grad()
def evaluate_denoiser(
    denoiser: Preconditioner, rows: Tensor, config: TrainingConfig, generator: torch.Generator
) -> float:
    """Mean loss on given rows at noise drawn from `generator`; the same generator state compares two denoisers."""
    repeated = rows.repeat(max(4096 // max(len(rows), 1), 1), 1)[:65_536]
    noise = torch.randn(repeated.shape, generator=generator, device=rows.device, dtype=torch.float32)
    sigma = draw_sigma(len(repeated), config.p_mean, config.p_std, generator)
    with torch.autocast(rows.device.type, enabled=False):
        return denoising_loss(denoiser, repeated, noise, sigma).item()


def _schedule(index: int, num_steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate at a step: a linear rise over the first steps, times a cosine down to 0."""
    # A short training must not end on the way up.
    rise = min((index + 1) / max(min(warmup_steps, num_steps // 10), 1), 1.0)
    return rise * 0.5 * (1.0 + math.cos(math.pi * index / num_steps))
