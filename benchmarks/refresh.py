"""What a refresh costs, phase by phase, in seconds and in training steps of the paper.

    python benchmarks/refresh.py [--data FILE] [--rows 50000] [--synthetic 100000] [--preset auto] [--toy] [--full]

The rows are a uniform subset of a file of `examples/collect.py`, or else those of a random policy with fixed seeds. A
refresh is the fit (normalise, train, terminals, calibrate) and the generation of the synthetic set. The unit beside the
seconds is one eager float32 training step of the paper's online preset (`measuring.eager_step`), timed in the same run
right before and right after the refreshes, so that machines can be compared and a drifting one shows. The budget is the
time of 300 such steps from scratch and of 100 for a warm refresh; ``budget`` in the results is the share of it that was
used.

With CUDA (and, tiny, with --toy) the paper's own refresh is measured too: its preset's 100,000 steps and a million
rows at 255 evaluations, in float32 as published and in bfloat16, extrapolated from a timed part, with --full in full,
beside the least time that the arithmetic takes at the measured speed P of large matrix products in that precision. With
W weights in matrices and batches of B rows,

    training:  6 W B steps / P        two operations per weight and row forward, four backward
    sampling:  2 W rows NFE / P
"""

from __future__ import annotations

import argparse
import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import torch
from measuring import eager_step_seconds, machine, matmul_speed, toy, use_settings, write

from synther_buffers import PRESETS, DiffusionUpsampler, Transitions, TransitionSpec, UpsamplerConfig
from synther_buffers.datasets import open_dataset
from synther_buffers.transitions.codec import Codec
from synther_buffers.upsampling.presets import resolve_config, resolve_device

#: Steps of the paper that a refresh may cost.
BUDGET = {"scratch": 300, "warm": 100}
PAPER = PRESETS["paper-online"]


def random_transitions(env_id: str, num_rows: int) -> tuple[TransitionSpec, Transitions]:
    """Rows of a uniformly random policy, and their spec."""
    env = gym.make(env_id)
    env.action_space.seed(0)
    rows = []
    observation, _ = env.reset(seed=0)
    for _ in range(num_rows):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        rows.append((observation, action, np.float32(reward), following, terminated))
        observation = env.reset()[0] if terminated or truncated else following
    columns = [torch.from_numpy(np.array(column)) for column in zip(*rows, strict=True)]
    return TransitionSpec.from_spaces(env.observation_space, env.action_space), Transitions(*columns)


class PeakMemory:
    """Polls the resident memory of the process in a thread."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.before = self.peak = self.process.memory_info().rss
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._poll, daemon=True)
        self.thread.start()

    def _poll(self) -> None:
        while not self.done.wait(0.02):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def stop(self) -> dict[str, float]:
        """MiB at the start and at the peak."""
        self.done.set()
        self.thread.join()
        return {"before": self.before / 2**20, "peak": self.peak / 2**20}


def cheap_to_fit(config: UpsamplerConfig, train_steps: int) -> UpsamplerConfig:
    """A short training, and one noise level for the rows that every fit generates to measure thresholds on."""
    return replace(
        config,
        train_steps=train_steps,
        terminal_steps=1,
        sampler=replace(config.sampler, solver=replace(config.sampler.solver, num_steps=1)),
    )


def step_seconds(
    spec: TransitionSpec, rows: Transitions, config: UpsamplerConfig, device: torch.device, steps: int
) -> float:
    """Seconds of one training step of a configuration; a first, short training warms up."""
    for num_steps in (2, steps):
        report = DiffusionUpsampler(spec, cheap_to_fit(config, num_steps), device).fit(rows)
    return report.phases["train"] / steps


def unit_seconds(spec: TransitionSpec, rows: Transitions, device: torch.device, steps: int) -> float:
    """Seconds of one plain training step of the paper's preset."""
    codec = Codec.fit(spec, rows, next_observation_change=PAPER.next_observation_change)
    return eager_step_seconds(PAPER, codec.encode(rows, device), steps)


def in_another_process(function: Callable[..., float], *arguments: object) -> float:
    """What a function returns; the memory that it took is not left with this process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def sample_seconds(upsampler: DiffusionUpsampler, num_samples: int) -> float:
    """Seconds of generating a synthetic set, until the device is done with it."""
    start = time.perf_counter()
    rows = upsampler.sample(num_samples)
    float(rows.reward[-1])
    return time.perf_counter() - start


def refreshes(
    spec: TransitionSpec, rows: Transitions, config: UpsamplerConfig, num_synthetic: int, device: torch.device
) -> dict[str, Any]:
    """One refresh from scratch and one warm; seconds by phase."""
    out = {}
    upsampler = DiffusionUpsampler(spec, config, device, progress_bar=True)
    for name, warm in (("scratch", False), ("warm", True)):
        report = upsampler.fit(rows, warm_start=warm)
        phases = {**report.phases, "sample": sample_seconds(upsampler, num_synthetic)}
        out[name] = {"phases": phases, "seconds": sum(phases.values()), "steps": report.steps}
    return out


def measure(
    spec: TransitionSpec,
    rows: Transitions,
    config: UpsamplerConfig,
    num_synthetic: int,
    device: torch.device,
    unit_steps: int,
) -> dict[str, Any]:
    """Refreshes in seconds, in training steps of the paper, and as a share of their budget."""
    before = in_another_process(unit_seconds, spec, rows, device, unit_steps)
    memory = PeakMemory()
    out = refreshes(spec, rows, config, num_synthetic, device)
    out["resident_mib"] = memory.stop()
    after = in_another_process(unit_seconds, spec, rows, device, unit_steps)
    unit = (before + after) / 2
    nfe = config.sampler.solver.num_function_evaluations
    print(f"\none training step of the paper: {before:.4f} s before the refreshes, {after:.4f} s after")
    for name, steps in BUDGET.items():
        refresh = out[name]
        refresh["paper_steps"] = refresh["seconds"] / unit
        refresh["budget"] = refresh["paper_steps"] / steps
        print(f"\n{name}: {refresh['seconds']:.1f} s, {refresh['steps']} training steps, {nfe} evaluations per row")
        for phase, seconds in refresh["phases"].items():
            print(f"  {phase:<12}{seconds:>8.1f} s")
        print(
            f"  in steps of the paper: {refresh['paper_steps']:.0f}, {refresh['budget']:.2f} of the budget of {steps}"
        )
    resident = out["resident_mib"]
    print(f"\nresident memory: {resident['before']:.0f} MiB before, {resident['peak']:.0f} MiB at the peak")
    out["nfe"] = nfe
    out["paper_step_seconds"] = {"before": before, "after": after, "mean": unit}
    return out


def paper_refresh(
    spec: TransitionSpec,
    rows: Transitions,
    paper: UpsamplerConfig,
    device: torch.device,
    steps: int,
    num_samples: int,
    *,
    bfloat16: bool,
    full: bool,
) -> dict[str, Any]:
    """The paper's 100,000 training steps and million rows: from a timed part, the floors, and in full."""
    paper = replace(
        paper,
        training=replace(paper.training, bfloat16=bfloat16),
        sampler=replace(paper.sampler, bfloat16=bfloat16),
    )
    upsampler = DiffusionUpsampler(spec, cheap_to_fit(paper, 1), device)
    upsampler.fit(rows)
    use_settings(upsampler, paper)
    sample_seconds(upsampler, num_samples // 10)  # warms up
    tensors = upsampler.state_dict()["model"]["denoiser"]
    # Sampling embeds a noise level once for all rows; a floor must not count more than is done.
    weights = sum(tensor.numel() for name, tensor in tensors.items() if tensor.dim() == 2 and "noise" not in name)
    nfe = paper.sampler.solver.num_function_evaluations
    # A CPU without instructions for bfloat16 takes minutes for a large product.
    speed = matmul_speed(device, 8_192 if device.type == "cuda" else 256, bfloat16=bfloat16)
    step = step_seconds(spec, rows, paper, device, steps)
    row = sample_seconds(upsampler, num_samples) / num_samples
    out: dict[str, Any] = {
        "timed": {"steps": steps, "rows": num_samples, "step_seconds": step, "row_seconds": row},
        "extrapolated": {"train": step * paper.train_steps, "sample": row * paper.num_synthetic},
        "floor": {
            "train": 6 * weights * paper.training.batch_size * paper.train_steps / speed,
            "sample": 2 * weights * paper.num_synthetic * nfe / speed,
        },
        "matmul_tflops": speed / 1e12,
        "weights": weights,
        "nfe": nfe,
    }
    if full:
        upsampler = DiffusionUpsampler(spec, paper, device, progress_bar=True)
        report = upsampler.fit(rows)
        out["full"] = {**report.phases, "sample": sample_seconds(upsampler, paper.num_synthetic)}
    precision = "bfloat16" if bfloat16 else "float32"
    sizes = f"{paper.train_steps:,} steps, {paper.num_synthetic:,} rows at {nfe} evaluations"
    print(f"\nthe paper's refresh in {precision}: {sizes}")
    for name in ("floor", "extrapolated", "full"):
        if name in out:
            print(f"  {name:<14}{out[name]['train']:>12,.0f} s training{out[name]['sample']:>12,.0f} s sampling")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a file of examples/collect.py (default: rows of a random policy)")
    parser.add_argument("--env", default="Walker2d-v5", help="whose random policy gives the rows")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--synthetic", type=int, default=100_000)
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--full", action="store_true", help="the paper's refresh in full too; needs CUDA")
    parser.add_argument("--toy", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--out", help="where to write the JSON (default: benchmarks/results/refresh.json)")
    args = parser.parse_args()
    device = resolve_device(args.device)
    if args.full and device.type != "cuda":
        parser.error(f"--full trains the paper's 100,000 steps, which takes hours on {device}; give it a CUDA device.")
    config = resolve_config(args.preset, device)
    if args.toy:
        args.rows, args.synthetic = 2_000, 2_000
        config = toy(config)
    if args.data:
        dataset = open_dataset(args.data)
        spec, rows = dataset.spec, dataset.subset(args.rows)
        if len(rows) < args.rows:
            parser.error(f"--rows is {args.rows}, but {args.data} has {len(rows)}; give as many or fewer.")
    else:
        spec, rows = random_transitions(args.env, args.rows)
    print(machine())
    result = {
        "data": str(args.data or f"random policy in {args.env}"),
        "rows": args.rows,
        "synthetic": args.synthetic,
        "preset": args.preset,
        "config": config.to_dict(),
        **measure(spec, rows, config, args.synthetic, device, 3 if args.toy else 20),
    }
    if device.type == "cuda" or args.toy:
        steps, num_samples = (2, 20) if args.toy else (1_000, 100_000)
        paper = toy(PAPER) if args.toy else PAPER
        for precision, bfloat16 in {"float32": False, "bfloat16": True}.items():
            result[f"paper_{precision}"] = paper_refresh(
                spec, rows, paper, device, steps, num_samples, bfloat16=bfloat16, full=args.full
            )
    write("refresh", result, args.out)


if __name__ == "__main__":
    main()
