"""The learning benchmark: ``python -m benchmarks.learning --help``, from the root of the repository."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

from .agents import AGENTS
from .arms import ARMS
from .prepare import HERE, prepare, prepared
from .stages import STAGES, jobs, toy_jobs, work
from .tasks import TASKS

RESULTS = Path(__file__).parents[1] / "results"
PAGE = Path(__file__).parents[2] / "docs" / "results" / "learning.md"


def main(arguments: list[str] | None = None) -> int:
    """Do what the flags say; the exit code, 1 if a run failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("--prepare", action="store_true", help="build the wheel of the last commit and its environment")
    parser.add_argument("--stage", choices=sorted(STAGES), help="make the runs of a stage that have no line yet")
    parser.add_argument(
        "--toy", action="store_true", help="every arm and agent for 300 steps with tiny nets, in this interpreter"
    )
    parser.add_argument("--report", action="store_true", help="render the page of the results")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, metavar="TASK", help="instead of the stage's")
    parser.add_argument("--arms", nargs="+", choices=ARMS, metavar="ARM", help="instead of the stage's")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of the stage's")
    parser.add_argument("--agent", choices=tuple(AGENTS), default="sbx")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on a core of its own")
    parser.add_argument("--first-core", type=int, default=min(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="instead of the stage's file in benchmarks/results, or the page")
    flags = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if not (flags.prepare or flags.stage or flags.toy or flags.report):
        parser.error("say what to do: --prepare, --stage, --toy or --report")
    cores = range(flags.first_core, flags.first_core + flags.jobs)
    if not set(cores) <= os.sched_getaffinity(0):
        parser.error(f"cores {[*cores]} are not all there: {sorted(os.sched_getaffinity(0))}")
    failed = 0
    if flags.prepare:
        prepare()
    if flags.toy:
        out = flags.out or Path("build/bench/learning.jsonl")
        # Most of a toy run is compiling what another arm compiled before.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out.resolve().parent / "jax"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        failed += work(toy_jobs(), out, HERE, cores)
    if flags.stage:
        chosen = {name: tuple(getattr(flags, name)) for name in ("tasks", "arms", "seeds") if getattr(flags, name)}
        stage = replace(STAGES[flags.stage], **chosen)
        failed += work(jobs(stage, flags.agent), flags.out or RESULTS / stage.file, prepared(), cores)
    if flags.report:
        from .report import render

        render(RESULTS, flags.out or PAGE)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
