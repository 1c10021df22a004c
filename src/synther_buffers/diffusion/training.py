"""The training loop: minibatches, optimiser, moving average, precision. Nothing in it waits for the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel

from .loss import denoising_loss, draw_sigma
from .preconditioning import Preconditioner

#: The loss is looked at (and the progress shown) this many times; each look waits for the device.
_REPORTS = 50

_Tensors = tuple[Tensor, ...] | list[Tensor]


class NonFiniteLossError(RuntimeError):
    """Training diverged: the loss is NaN or infinite."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a denoiser is trained.

    Attributes:
        batch_size: rows per step, drawn with replacement.
        learning_rate: peak of AdamW's learning rate; a cosine takes it to 0 (Loshchilov and Hutter 2017).
        betas, weight_decay: AdamW's.
        max_grad_norm: gradients are clipped to this norm.
        p_mean, p_std: of ln sigma (EDM, Table 1).
        ema_decay, ema_every: moving average of the weights every `ema_every` steps. The decay ramps up as
            (1 + k) / (10 + k), so that a short training is not an average of its first weights.
        bfloat16: run the network in bfloat16 (weights, optimiser and loss stay float32).
    """

    batch_size: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    p_mean: float = -1.2
    p_std: float = 1.2
    ema_decay: float = 0.995
    ema_every: int = 10
    bfloat16: bool = False


@torch.inference_mode(False)
@torch.enable_grad()
def train_denoiser(
    denoiser: Preconditioner,
    rows: Tensor,
    num_steps: int,
    config: TrainingConfig,
    generator: torch.Generator,
    on_progress: Callable[[int, float], None] | None = None,
) -> tuple[Preconditioner, float]:
    """Train a denoiser in place and return the moving average of its weights.

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
    device = rows.device
    parameters = list(denoiser.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    average = AveragedModel(denoiser, multi_avg_fn=_ramped_average(config.ema_decay))
    report_every = max(num_steps // _REPORTS, 1)
    tail_start = num_steps - max(num_steps // 10, 1)
    recent = torch.zeros((), device=device, dtype=torch.float32)
    tail = torch.zeros((), device=device, dtype=torch.float32)
    # Within another autocast, a cache would keep the weights of the first step for all the others.
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bfloat16, cache_enabled=False)
    with torch.autocast(device.type, enabled=False):
        for step in range(num_steps):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / num_steps))
            index = torch.randint(len(rows), (config.batch_size,), generator=generator, device=device)
            clean = rows.index_select(0, index)
            noise = torch.randn(clean.shape, generator=generator, device=device, dtype=torch.float32)
            sigma = draw_sigma(config.batch_size, config.p_mean, config.p_std, generator)
            with autocast:
                loss = denoising_loss(denoiser, clean, noise, sigma)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            clip_grad_norm_(parameters, config.max_grad_norm)
            optimizer.step()
            recent += loss.detach()
            if step >= tail_start:
                tail += loss.detach()
            if (step + 1) % config.ema_every == 0 or step + 1 == num_steps:
                average.update_parameters(denoiser)
            if (step + 1) % report_every == 0 or step + 1 == num_steps:
                mean = recent.item() / ((step % report_every) + 1)
                if not math.isfinite(mean):
                    raise NonFiniteLossError(f"the training loss became {mean} within the first {step + 1} steps.")
                if on_progress is not None:
                    on_progress(step + 1, mean)
                recent.zero_()
    averaged = cast(Preconditioner, average.module)
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


def _ramped_average(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """The `multi_avg_fn` of an exponential moving average whose decay ramps up; counts on the host."""
    updates = 0

    def update(averaged: _Tensors, current: _Tensors, _: Tensor | int) -> None:
        nonlocal updates
        updates += 1
        torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1.0 + updates) / (10.0 + updates)))

    return update
