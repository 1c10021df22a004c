"""SAC with and without synthetic transitions at the same UTD, side by side, and a picture of what came out.

    python examples/demo.py [--steps 5000] [--logdir runs/demo]

Two processes with one thread each run `examples/sbx_sac.py` on HalfCheetah-v5; about ten minutes on two cores.
One run is no evidence, so the picture also shows the recorded runs of the same task and settings with other seeds
(`benchmarks/results/learning_reporting.jsonl`), as thin lines.
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

import numpy as np
from experiment import draw, read_refreshes

RECORDED = Path(__file__).parents[1] / "benchmarks" / "results" / "learning_reporting.jsonl"
#: Arm of the recorded runs by the name of the run here.
ARMS = {"with synthetic": "default-often", "without": "utd10"}
RUNS = {"with synthetic": [], "without": ["--no-synthetic"]}


def run_both(args: argparse.Namespace) -> None:
    """Start both runs, print their lines as they come, and wait."""
    script = Path(__file__).with_name("sbx_sac.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MUJOCO_GL": "disable", "PYTHONUNBUFFERED": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # the demo is about a CPU
    children, readers = {}, []
    for name, flags in RUNS.items():
        command = [
            sys.executable, str(script), *flags, "--env", args.env, "--steps", str(args.steps), "--utd", str(args.utd),
            "--seed", str(args.seed), "--retrain-every", str(args.retrain_every),
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


def recorded(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Evaluations of the recorded runs of this task and settings: ``[runs, evaluations, (step, return)]`` by name."""
    if not RECORDED.exists():
        return {}
    lines = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    found = {}
    for name, arm in ARMS.items():
        curves = []
        for line in lines:
            task, settings = line["settings"]["task"], line["settings"]["arm"]
            same = (task["env"], task["steps"], settings["utd"]) == (args.env, args.steps, args.utd)
            refreshed = name == "without" or settings["retrain_every"] == args.retrain_every
            if line["arm"] == arm and line["agent"] == "sbx" and same and refreshed and settings["policy_delay"] == 1:
                curves.append(line["evaluations"])
        if curves:
            found[name] = np.array(curves)
    return found


def of_the_recorded(curves: dict[str, np.ndarray]) -> str:
    """How the recorded runs ended."""
    if len(curves) < len(ARMS):
        return ""
    parts = []
    for name, runs in curves.items():
        last = runs[:, -1, 1]
        parts.append(f"{np.median(last):.0f} {name} ({last.min():.0f} to {last.max():.0f}, {len(last)} runs)")
    return f"Recorded runs ended at a median of {' and '.join(parts)}."


def verdict(finals: dict[str, np.ndarray]) -> str:
    """What the two curves say, and what they do not."""
    ours, plain = finals["with synthetic"], finals["without"]
    margin = 0.01 * max(abs(ours.mean()), abs(plain.mean()))
    apart = ours.min() > plain.max() + margin or plain.min() > ours.max() + margin
    first = "These two runs differ at the end" if apart else "These two runs do not differ at the end"
    return f"{first} ({ours.mean():.0f} with, {plain.mean():.0f} without). One run each is no evidence."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--utd", type=int, default=10)
    parser.add_argument("--retrain-every", type=int, default=500, help="environment steps between refreshes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logdir", type=Path, default=Path("runs/demo"))
    args = parser.parse_args()
    print(
        f"SAC on {args.env} for {args.steps:,} steps at UTD {args.utd}, with and without synthetic transitions, "
        "in two processes.\nAbout ten minutes for 5,000 steps on two cores; each run says how far it is.",
        flush=True,
    )
    if args.steps < 400:
        parser.error(f"--steps is {args.steps}; at least 400, so that there is something to learn for two refreshes.")
    args.retrain_every = min(args.retrain_every, args.steps // 4)
    folders = {name: folder(args, name) for name in RUNS}
    for directory in folders.values():
        for output in ("refreshes.jsonl", "marginals.npz", "evaluations.npz"):
            (directory / output).unlink(missing_ok=True)
    start = time.perf_counter()
    run_both(args)
    minutes = (time.perf_counter() - start) / 60
    refreshes = len(read_refreshes(folders["with synthetic"]))
    if refreshes < 2:
        sys.exit(f"{refreshes} refreshes in {args.steps} steps; give more --steps.")
    finals = {}
    for name, directory in folders.items():
        with np.load(directory / "evaluations.npz") as evaluations:
            finals[name] = evaluations["results"][-1]
    curves = recorded(args)
    words = "\n".join(filter(None, (verdict(finals), of_the_recorded(curves))))
    path = draw(folders, args, args.logdir / "demo.png", words, curves)
    print(f"\n{words}\nThe picture is {path.resolve()} ({minutes:.1f} minutes).")


if __name__ == "__main__":
    main()
