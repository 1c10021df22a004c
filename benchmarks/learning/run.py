"""One run: an agent of one arm on one task with one seed, in a process of its own; a JSON line on standard output."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

#: Set before any library counts the cores.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
    "MUJOCO_GL": "disable",
}
PACKAGES = ("synther-buffers", "torch", "numpy", "gymnasium", "mujoco", "stable-baselines3", "sbx-rl", "jax", "jaxlib",
            "flax", "optax", "torchrl", "tensordict")  # fmt: skip
ROOT = Path(__file__).parents[2]


def run(task_name: str, arm_name: str, seed: int, agent_name: str = "sbx") -> dict[str, Any]:
    """Train one agent and evaluate it on the way.

    Returns:
        The line: what ran, `evaluations` as ``[[step, mean return], ...]``, `values` as ``[[step, critic's value,
        discounted return that followed], ...]``, `final` (the last return), `area` (the mean return of the evaluations
        after `learning_starts`), `q_bias` (the last one), `refreshes`, `shares_simulated` (of
        `oracle-dynamics`), and what it cost.
    """
    import torch

    from .agents import AGENTS
    from .arms import ARMS
    from .evaluation import evaluate
    from .tasks import TASKS
    from .upsamplers import bind_policy

    torch.set_num_threads(1)
    task, arm = TASKS[task_name], ARMS[arm_name].for_task(TASKS[task_name])
    wall, cpu = time.perf_counter(), time.process_time()
    agent = AGENTS[agent_name](task, arm, seed)
    bind_policy(agent.explore)
    looks = []

    def look(step: int) -> None:
        if step >= task.learning_starts and step % task.eval_every == 0:
            looks.append((step, evaluate(agent, task)))

    agent.train(task.steps, look)
    reports = agent.synthetic.reports
    if arm.upsampler is not None and not reports:
        # The agent goes on with real rows alone, which would make this a run of the control.
        raise RuntimeError("no refresh of this run succeeded; the log says why.")
    line = {
        "task": task_name,
        "arm": arm_name,
        "seed": seed,
        "agent": agent_name,
        "settings": settings(task_name, arm_name),
        "evaluations": [[step, look.mean_return] for step, look in looks],
        "values": [[step, look.value, look.discounted_return] for step, look in looks],
        "final": looks[-1][1].mean_return,
        "area": area([[step, look.mean_return] for step, look in looks], task.learning_starts),
        "q_bias": looks[-1][1].q_bias,
        "refreshes": [report.metrics() for report in reports],
        "shares_simulated": getattr(agent.synthetic.upsampler, "shares_simulated", None),
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
        "refresh_seconds": sum(report.seconds for report in reports),
        "commit": commit(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "date": time.strftime("%Y-%m-%d"),
    }
    return without_nan(line)


def settings(task_name: str, arm_name: str) -> dict[str, Any]:
    """Everything that a result depends on besides the code and the seed, as plain data."""
    from .arms import ARMS
    from .tasks import TASKS

    task = TASKS[task_name]
    return {"task": asdict(task), "arm": ARMS[arm_name].for_task(task).settings()}


def area(evaluations: list[list[float]], learning_starts: int) -> float:
    """The mean return of the evaluations after the first update: the area under the curve over its length."""
    returns = [value for step, value in evaluations if step > learning_starts]
    return sum(returns) / len(returns)


def commit() -> str:
    """The commit of the code that runs: of the prepared tree, or of the checkout, marked if it has changes."""
    told = ROOT / "COMMIT"
    if told.exists():
        return told.read_text().strip()
    try:
        head, changes = (
            subprocess.run(["git", *flags], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for flags in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changes else "")


def without_nan(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {key: without_nan(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", required=True)
    parser.add_argument("--arm", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--agent", default="sbx")
    parser.add_argument("--core", type=int, help="the core that it is pinned to")
    parser.add_argument("--gpu", action="store_true", help="let it refresh on the GPU; the agent stays on the CPU")
    flags = parser.parse_args()
    if flags.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {flags.core})
    os.environ.update(ONE_THREAD)
    if not flags.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    json.dump(run(flags.task, flags.arm, flags.seed, flags.agent), sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
