"""How long does a refresh take, phase by phase: normalise, train, terminals, sample?

    python benchmarks/refresh.py [--env Walker2d-v5] [--rows 50000] [--synthetic 100000] [--preset auto] [--toy]

Rows are those of a random policy: the time of a refresh does not depend on what they say. The unit beside the seconds
is one eager float32 training step of the paper's preset, timed in the same run, so that machines can be compared.
"""

from __future__ import annotations

import argparse
import threading
import time
from dataclasses import replace

import gymnasium as gym
import numpy as np
import psutil
import torch
from measuring import machine, write

from synther_buffers import PRESETS, DiffusionUpsampler, Transitions, TransitionSpec, UpsamplerConfig
from synther_buffers.config import resolve_config, resolve_device
from synther_buffers.diffusion.samplers import num_function_evaluations


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


def step_seconds(spec: TransitionSpec, rows: Transitions, config: UpsamplerConfig, device: str, steps: int) -> float:
    """Seconds of one training step of a configuration."""
    upsampler = DiffusionUpsampler(spec, replace(config, train_steps=steps, model_terminals=False), device)
    return upsampler.fit(rows, warm_start=False).phases["train"] / steps


def measure(env_id: str, num_rows: int, num_synthetic: int, preset: str, device: str, steps: int | None) -> dict:
    """One refresh from scratch and one warm; seconds by phase."""
    spec, rows = random_transitions(env_id, num_rows)
    config = resolve_config(preset, resolve_device(device))
    if steps:
        config = replace(config, train_steps=steps, warm_steps=steps)
    memory = PeakMemory()
    upsampler = DiffusionUpsampler(spec, config, device, progress_bar=True)
    out = {"env": env_id, "rows": num_rows, "synthetic": num_synthetic, "preset": preset, "config": config.to_dict()}
    out["nfe"] = num_function_evaluations(config.sampler.solver, config.sampler.num_steps)
    for name, warm in (("scratch", False), ("warm", True)):
        report = upsampler.fit(rows, warm_start=warm)
        start = time.perf_counter()
        upsampler.sample(num_synthetic)
        phases = {**report.phases, "sample": time.perf_counter() - start}
        out[name] = {"phases": phases, "seconds": sum(phases.values()), "steps": report.steps}
        print(
            f"\n{name}: {out[name]['seconds']:.1f} s, {report.steps} training steps, {out['nfe']} evaluations per row"
        )
        for phase, seconds in phases.items():
            print(f"  {phase:<12}{seconds:>8.1f} s")
    out["resident_mib"] = memory.stop()
    before, peak = out["resident_mib"].values()
    print(f"\nresident memory: {before:.0f} MiB before, {peak:.0f} MiB at the peak")
    # After the memory was looked at, which this unit would blur.
    out["paper_step_seconds"] = unit = step_seconds(spec, rows, PRESETS["paper-online"], device, 3 if steps else 20)
    print(f"one paper training step: {unit:.3f} s; a refresh takes the time of", end=" ")
    print(f"{out['scratch']['seconds'] / unit:.0f} of them, a warm one {out['warm']['seconds'] / unit:.0f}")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="Walker2d-v5")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--synthetic", type=int, default=100_000)
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--toy", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--out", help="where to write the JSON (default: benchmarks/results/refresh.json)")
    args = parser.parse_args()
    print(machine())
    if args.toy:
        args.rows, args.synthetic = 2_000, 2_000
    result = measure(args.env, args.rows, args.synthetic, args.preset, args.device, 20 if args.toy else None)
    write("refresh", result, args.out)


if __name__ == "__main__":
    main()
