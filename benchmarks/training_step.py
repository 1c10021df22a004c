"""The library's training step and the sampler's evaluation against plain PyTorch's; on CUDA graphs against none.

    python benchmarks/training_step.py [--steps 30] [--rounds 9] [--compile] [--toy]

Both are timed in turn in one run, for the presets' sizes on 50,000 artificial rows of 42 columns (Walker2d-v5 has
those). The plain step is float32; the library's is float32 on a CPU and in the preset's precision elsewhere. On CUDA
the library's step is one graph, and is also timed without. The floor is the arithmetic alone, ``6 W B`` operations for
W weights in matrices and batches of B rows, at the measured speed of large matrix products in the same precision. An
evaluation is one of D for 16,384 rows (CUDA: 262,144) at one noise level: the module called on all of them, and the
sampler's blocks. With --compile the default's step is also timed with ``torch.compile`` on loss and network, beside the
seconds until its first steps are done; it needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from measuring import COLUMNS, alternate, denoiser_of, eager_step, machine, matmul_speed, num_weights, write
from torch import Tensor

from synther_buffers import UpsamplerConfig
from synther_buffers.diffusion.cuda_graph import eager
from synther_buffers.diffusion.edm import denoising_loss
from synther_buffers.diffusion.sampling import BlockDenoiser
from synther_buffers.diffusion.training import TrainingStep
from synther_buffers.upsampling.presets import resolve_config, resolve_device


def our_step(config: UpsamplerConfig, rows: Tensor) -> TrainingStep:
    """The library's step."""
    step = TrainingStep(denoiser_of(config, rows), rows, config.training, torch.Generator(rows.device).manual_seed(0))
    step.learning_rate.fill_(config.training.learning_rate)
    return step


def without_graphs(work: Callable[[], object]) -> Callable[[], None]:
    """The same, kernel by kernel."""

    def run() -> None:
        with eager():
            work()

    return run


def evaluations(config: UpsamplerConfig, rows: Tensor) -> tuple[Callable[[], object], Callable[[], object], int]:
    """D of many rows at one level, by the module and by the sampler's blocks, and the number of rows."""
    on_cpu = rows.device.type == "cpu"
    num_rows, block = (16_384, 2_048) if on_cpu else (262_144, 262_144)
    x = rows.repeat(num_rows // len(rows) + 1, 1)[:num_rows]
    level = torch.ones(1, device=rows.device)
    denoiser = denoiser_of(config, rows).requires_grad_(False)
    low, high = rows.aminmax(dim=0)
    blocks = BlockDenoiser(denoiser, block, low, high, bfloat16=config.sampler.bfloat16, capture=True)
    if config.sampler.bfloat16:
        frequencies = denoiser.network.frequencies
        denoiser.network.to(torch.bfloat16).frequencies = frequencies
    return lambda: denoiser(x, level), lambda: [blocks(part, level) for part in x.split(block)], num_rows


def until_done(step: Callable[[], object], device: torch.device, steps: int) -> Callable[[], None]:
    """Many steps, and the device's end of them."""

    def run() -> None:
        for _ in range(steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def graphs(
    steps: Callable[[], None], blocks: Callable[[], object], device: torch.device, count: int, rounds: int
) -> dict[str, float]:
    """What CUDA graphs gain, in a step and in an evaluation; the work without them, in turn."""
    step = [total / count for total in alternate(without_graphs(steps), steps, 1, rounds)]
    evaluate = until_done(blocks, device, 1)
    evaluation = alternate(without_graphs(evaluate), evaluate, 1, rounds)
    print(f"{'':<14}graphs: step {step[0] / step[1]:.2f}, evaluation {evaluation[0] / evaluation[1]:.2f}")
    return {
        "eager_seconds": step[0],
        "graph_ratio": step[0] / step[1],
        "graph_evaluation_ratio": evaluation[0] / evaluation[1],
    }


def compiled(config: UpsamplerConfig, rows: Tensor, steps: int, rounds: int) -> dict[str, float]:
    """What `torch.compile` makes of the plain step, and the seconds of compiling it; ours again, in turn."""
    plain = eager_step(config, rows, torch.compile(denoising_loss))
    start = time.perf_counter()
    until_done(plain, rows.device, 3)()
    compile_seconds = time.perf_counter() - start
    both = (until_done(step, rows.device, steps) for step in (plain, our_step(config, rows)))
    seconds = [total / steps for total in alternate(*both, 1, rounds)]
    return {
        "compile_seconds": compile_seconds,
        "compiled_seconds": seconds[0],
        "our_seconds": seconds[1],
        "compiled_ratio": seconds[0] / seconds[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    parser.add_argument("--toy", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--out", help="where to write the JSON (default: benchmarks/results/training_step.json)")
    args = parser.parse_args()
    device = resolve_device(args.device)
    if args.toy:
        args.steps, args.rounds = 2, 1
    rows = torch.randn((50_000, COLUMNS), generator=torch.Generator().manual_seed(0)).to(device)
    print(machine())
    results: dict[str, Any] = {}
    for name in ("paper-online", "cpu"):
        config = resolve_config(name, device)
        if device.type == "cpu":
            config = replace(
                config,
                training=replace(config.training, bfloat16=False),
                sampler=replace(config.sampler, bfloat16=False),
            )
        plain, ours = (until_done(make(config, rows), device, args.steps) for make in (eager_step, our_step))
        seconds = [total / args.steps for total in alternate(plain, ours, 1, args.rounds)]
        speed = matmul_speed(device, 8_192 if device.type == "cuda" else 2_048, bfloat16=config.training.bfloat16)
        floor = 6 * num_weights(config, rows) * config.training.batch_size / speed
        module, blocks, num_rows = evaluations(config, rows)
        module_seconds, block_seconds = alternate(
            until_done(module, device, 1), until_done(blocks, device, 1), 1, args.rounds
        )
        results[name] = {
            "module_row_seconds": module_seconds / num_rows,
            "block_row_seconds": block_seconds / num_rows,
            "evaluation_ratio": module_seconds / block_seconds,
            "plain_seconds": seconds[0],
            "our_seconds": seconds[1],
            "ratio": seconds[0] / seconds[1],
            "matmul_tflops": speed / 1e12,
            "floor_seconds": floor,
            "over_floor": seconds[1] / floor,
        }
        print(
            f"{name:<14}plain {seconds[0] * 1e3:7.2f} ms, ours {seconds[1] * 1e3:7.2f} ms, "
            f"ratio {seconds[0] / seconds[1]:.2f}, {seconds[1] / floor:.2f} times the floor; "
            f"evaluation ratio {module_seconds / block_seconds:.2f}"
        )
        if device.type == "cuda":
            results[name] |= graphs(ours, blocks, device, args.steps, args.rounds)
    if args.compile:
        config = resolve_config("auto", device)
        config = replace(config, training=replace(config.training, bfloat16=False))
        results["compiled"] = compiled(config, rows, args.steps, args.rounds)
        print("the default's step compiled:", {key: round(value, 4) for key, value in results["compiled"].items()})
    write("training_step", results, args.out)


if __name__ == "__main__":
    main()
