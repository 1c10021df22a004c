"""What the benchmarks share: the machine's description, timings, a plain training step as their unit, results."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from synther_buffers import DiffusionUpsampler, UpsamplerConfig
from synther_buffers.diffusion.edm import Preconditioner, denoising_loss, draw_sigma
from synther_buffers.diffusion.network import ResidualMLP

RESULTS = Path(__file__).parent / "results"
#: Of a row of Walker2d-v5 as the model sees it: two observations of 17, 6 of the action, reward, terminal flag.
COLUMNS = 42


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "cpu": model,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def alternate(first: Callable[[], Any], second: Callable[[], Any], repeats: int, rounds: int) -> tuple[float, float]:
    """Median seconds of one call of each, measured in turn so that a drifting machine hits both alike."""
    times: tuple[list[float], list[float]] = ([], [])
    for function in (first, second):
        function()
    for _ in range(rounds):
        for function, seconds in zip((first, second), times, strict=True):
            start = time.perf_counter()
            for _ in range(repeats):
                function()
            seconds.append((time.perf_counter() - start) / repeats)
    return median(times[0]), median(times[1])


def toy(config: UpsamplerConfig) -> UpsamplerConfig:
    """A tiny configuration with all the parts of another, to see that a benchmark runs."""
    sampler = replace(config.sampler, solver=replace(config.sampler.solver, num_steps=3))
    return replace(
        config,
        network=replace(config.network, width=16, depth=1),
        sampler=sampler,
        train_steps=20,
        warm_steps=20,
        terminal_steps=20,
        outcome_steps=min(config.outcome_steps, 20),
        budget=None,
    )


def use_settings(upsampler: DiffusionUpsampler, config: UpsamplerConfig) -> None:
    """Let later fits and draws of an upsampler follow another configuration of the same network."""
    upsampler.settings = config
    if upsampler.model is not None:
        upsampler.model = replace(upsampler.model, denoising=replace(upsampler.model.denoising, config=config))


def denoiser_of(config: UpsamplerConfig, rows: Tensor) -> Preconditioner:
    """A new denoiser of a configuration for encoded rows, on their device."""
    network = ResidualMLP(
        rows.shape[1], **vars(config.network), generator=torch.Generator().manual_seed(0), device=rows.device
    )
    return Preconditioner(network, config.sigma_data)


def num_weights(config: UpsamplerConfig, rows: Tensor) -> int:
    """Weights in matrices of a configuration's net: each is two operations per row and evaluation."""
    return sum(parameter.numel() for parameter in denoiser_of(config, rows).parameters() if parameter.dim() == 2)


def eager_step(
    config: UpsamplerConfig, rows: Tensor, loss: Callable[..., Tensor] = denoising_loss
) -> Callable[[], None]:
    """A training step of a configuration as anyone would write it: float32, autograd, clipping, fused AdamW, average.

    The unit that costs are given in: it does not change when this library's own training gets faster.
    """
    denoiser = denoiser_of(config, rows)
    training = config.training
    parameters = list(denoiser.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=training.learning_rate, betas=training.betas, weight_decay=training.weight_decay, fused=True
    )
    average = torch.optim.swa_utils.AveragedModel(
        denoiser, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(training.ema_decay)
    )
    generator = torch.Generator(rows.device).manual_seed(0)
    count = 0

    def step() -> None:
        nonlocal count
        index = torch.randint(len(rows), (training.batch_size,), generator=generator, device=rows.device)
        noise = torch.randn((training.batch_size, rows.shape[1]), generator=generator, device=rows.device)
        sigma = draw_sigma(training.batch_size, training.p_mean, training.p_std, generator)
        optimizer.zero_grad(set_to_none=True)
        loss(denoiser, rows[index], noise, sigma).backward()
        torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        optimizer.step()
        count += 1
        if count % training.ema_every == 0:
            average.update_parameters(denoiser)

    return step


def eager_step_seconds(config: UpsamplerConfig, rows: Tensor, steps: int) -> float:
    """Mean seconds of such a step over `steps`, after two that warm up, until the device is done."""
    step = eager_step(config, rows)
    for _ in range(2):
        step()
    _wait(rows.device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(rows.device)
    return (time.perf_counter() - start) / steps


def matmul_speed(device: torch.device, size: int, *, bfloat16: bool = False) -> float:
    """Operations per second of a product of square matrices, in float32 unless told otherwise, the best of five."""
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16 if bfloat16 else torch.float32)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def write(name: str, results: dict[str, Any], out: str | None) -> None:
    """Write results as JSON, to `out` or under the results folder, and say where."""
    path = Path(out) if out else RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n")
    print(f"\nwritten to {path}")
