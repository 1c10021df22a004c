"""SAC with and without synthetic transitions at the same UTD, side by side, and a picture of what came out.

    python examples/demo.py [--steps 3000] [--logdir runs/demo]

Two processes with one thread each run `examples/sb3_sac.py`; five to seven minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from experiment import draw, read_refreshes

RUNS = {"with synthetic": [], "without": ["--no-synthetic"]}


def run_both(args: argparse.Namespace) -> None:
    """Start both runs, print their lines as they come, and wait."""
    script = Path(__file__).with_name("sb3_sac.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MUJOCO_GL": "disable", "PYTHONUNBUFFERED": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # the demo is about a CPU
    children, readers = {}, []
    for name, flags in RUNS.items():
        command = [
            sys.executable, str(script), *flags, "--env", args.env, "--steps", str(args.steps), "--utd", str(args.utd),
            "--seed", str(args.seed), "--retrain-every", str(args.steps // 4),
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
        "in two processes.\nFive to seven minutes for 3,000 steps on two cores; each run says how far it is.",
        flush=True,
    )
    if args.steps < 400:
        parser.error(f"--steps is {args.steps}; at least 400, so that there is something to learn for two refreshes.")
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
    path = draw(folders, args, args.logdir / "demo.png", verdict(finals))
    print(f"\nThe picture is {path.resolve()} ({minutes:.1f} minutes).")


if __name__ == "__main__":
    main()
