"""SAC with and without synthetic transitions at the same UTD, side by side, and a picture of what came out.

    python examples/demo.py [--steps 3000] [--logdir runs/demo]

Two processes with one thread each run `examples/sb3_sac.py`; six to seven minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

RUNS = {"with synthetic": [], "without": ["--no-synthetic"]}
COLOURS = {"with synthetic": "#0072B2", "without": "#D55E00"}  # colour-blind safe (Okabe and Ito)
STYLES = {"with synthetic": "-", "without": "--"}


def run_both(args: argparse.Namespace) -> None:
    """Start both runs, print their lines as they come, and wait."""
    script = Path(__file__).with_name("sb3_sac.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MUJOCO_GL": "disable", "PYTHONUNBUFFERED": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # the demo is about a CPU
    children, readers = {}, []
    for name, flags in RUNS.items():
        command = [
            sys.executable, str(script), *flags, "--env", args.env, "--steps", str(args.steps), "--utd", str(args.utd),
            "--seed", str(args.seed), "--retrain-every", str(args.steps // 4), "--num-synthetic", "20000",
            "--train-steps", "1500",
            "--logdir", str(folder(args, name)),
        ]  # fmt: skip
        child = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        children[name] = child

        def read(name: str = name, child: subprocess.Popen = child) -> None:
            for line in child.stdout:
                print(f"[{name:>14}] {line.rstrip()}", flush=True)

        readers.append(threading.Thread(target=read))
        readers[-1].start()
    for reader in readers:
        reader.join()
    for name, child in children.items():
        if child.wait():
            sys.exit(f"the run {name!r} failed with exit code {child.returncode}; its output is above.")


def folder(args: argparse.Namespace, name: str) -> Path:
    return args.logdir / name.replace(" ", "-")


def draw(args: argparse.Namespace, seconds: float) -> Path:
    """The picture: returns of both runs over environment steps, and real against synthetic marginals."""
    log = folder(args, "with synthetic") / "refreshes.jsonl"
    refreshes = [json.loads(line) for line in log.open()] if log.exists() else []
    if len(refreshes) < 2:
        sys.exit(f"{len(refreshes)} refreshes in {args.steps} steps; give more --steps.")
    rows = np.load(folder(args, "with synthetic") / "marginals.npz")
    figure, axes = plt.subplots(2, 4, figsize=(12, 6.2), layout="constrained")
    grid = axes[0, 0].get_gridspec()
    for axis in axes[:, :2].ravel():
        axis.remove()
    returns = figure.add_subplot(grid[:, :2])
    finals = {}
    for name in RUNS:
        evaluations = np.load(folder(args, name) / "evaluations.npz")
        steps, results = evaluations["timesteps"], evaluations["results"]
        finals[name] = results[-1]
        returns.plot(steps, results.mean(1), STYLES[name], color=COLOURS[name], label=name, linewidth=2)
        returns.fill_between(steps, results.min(1), results.max(1), color=COLOURS[name], alpha=0.15)
    for number, refresh in enumerate(refreshes):
        label = "refresh" if number == 0 else None
        returns.axvline(refresh["num_observed"], color="0.6", linewidth=0.8, linestyle=":", label=label)
    returns.set_ylabel("return (mean and range of 3 evaluation episodes)")
    returns.set_title(f"SAC on {args.env}, UTD {args.utd}, seed {args.seed}", fontsize=11)
    returns.legend(frameon=False, loc="best")
    returns.set_xlabel(f"environment steps\n\n{verdict(finals)}")

    columns = [("observation", 0), ("observation", 5), ("reward", None), ("action", 0)]
    for axis, (field, index) in zip(axes[:, 2:].ravel(), columns, strict=True):
        real, synthetic = (np.atleast_2d(rows[f"{kind}_{field}"].T).T for kind in ("real", "synthetic"))
        index = None if index is None else min(index, real.shape[1] - 1)
        real, synthetic = real[:, index or 0], synthetic[:, index or 0]
        bins = np.linspace(*np.quantile(real, [0.005, 0.995]), 41) if np.ptp(real) else np.array([-1.0, 0.0, 1.0])
        axis.hist(real, bins, density=True, color="0.75", label="real")
        axis.hist(
            synthetic,
            bins,
            density=True,
            histtype="step",
            linewidth=1.6,
            color=COLOURS["with synthetic"],
            label="synthetic",
        )
        axis.set_title(field if index is None else f"{field}[{index}]", fontsize=10)
        axis.set_yticks([])
    axes[0, 2].legend(frameon=False, fontsize=8)
    figure.suptitle(f"Real and synthetic replay: {len(refreshes)} refreshes, {seconds / 60:.1f} minutes", fontsize=12)
    path = args.logdir / "demo.png"
    figure.savefig(path, dpi=150)
    return path


def verdict(finals: dict[str, np.ndarray]) -> str:
    """What the two curves say, and what they do not."""
    ours, plain = finals["with synthetic"], finals["without"]
    margin = 0.01 * max(abs(ours.mean()), abs(plain.mean()))
    apart = ours.min() > plain.max() + margin or plain.min() > ours.max() + margin
    first = "The last evaluations do not overlap" if apart else "The two curves do not differ at the end"
    return f"{first} ({ours.mean():.0f} with, {plain.mean():.0f} without). One seed is no evidence."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="InvertedDoublePendulum-v5")
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--utd", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logdir", type=Path, default=Path("runs/demo"))
    args = parser.parse_args()
    print(
        f"SAC on {args.env} for {args.steps:,} steps at UTD {args.utd}, with and without synthetic transitions, "
        "in two processes.\nSix to seven minutes for 3,000 steps on two cores; each run says how far it is.",
        flush=True,
    )
    if args.steps < 400:
        parser.error(f"--steps is {args.steps}; at least 400, so that there is something to learn for two refreshes.")
    for name in RUNS:
        for output in ("refreshes.jsonl", "marginals.npz", "evaluations.npz"):
            (folder(args, name) / output).unlink(missing_ok=True)
    start = time.perf_counter()
    run_both(args)
    path = draw(args, time.perf_counter() - start)
    print(f"\nThe picture is {path.resolve()}")


if __name__ == "__main__":
    main()
