"""Which runs each stage wants, and the queue that makes them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from .arms import ARMS
from .lines import append, read, repair
from .prepare import Runner
from .run import ONE_THREAD, settings
from .tasks import TASKS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """Tasks x arms x seeds and the file of their lines, in ``benchmarks/results``.

    Attributes:
        only: tasks and seeds of an arm that does not run on all of the stage's.
    """

    tasks: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    file: str
    only: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]] = field(default_factory=dict)

    def wants(self, task: str, arm: str, seed: int) -> bool:
        """Whether an arm of the stage runs there."""
        tasks, seeds = self.only.get(arm, (self.tasks, self.seeds))
        return task in tasks and seed in seeds


@dataclass(frozen=True)
class Job:
    """One run."""

    task: str
    arm: str
    seed: int
    agent: str = "sbx"


#: Seeds that choose, and seeds that report (protocol.md).
CHOOSING, REPORTING = tuple(range(5)), tuple(range(100, 110))
#: The arm that the reporting seeds judge (protocol.md).
CHOSEN = "default-often"

STAGES: dict[str, Stage] = {
    "pilot": Stage(
        (
            "inverted-double-pendulum",
            "halfcheetah",
            "walker2d",
            "pusher",
            "cartpole-swingup",
            "swimmer",
            "hopper",
            "ant",
            "pendulum",
        ),
        ("utd1", "utd10", "oracle"),
        CHOOSING,
        "learning_pilot.jsonl",
    ),
    "a": Stage(
        ("halfcheetah", "walker2d", "pusher", "hopper"),
        ("utd10", "oracle", "bootstrap", "constant-budget", "utd1", "utd20-delay"),
        CHOOSING,
        "learning_stage_a.jsonl",
    ),
    # Candidates for the default and for the one arm that the reporting seeds judge.
    "choosing": Stage(
        ("halfcheetah", "walker2d", "pusher", "hopper"),
        (
            "few-rows",
            "few-rows-passes",
            "passes-delay",
            "passes-quarter",
            "passes-three-quarters",
            "passes-often",
            "passes-utd4",
            "utd4",
            "passes-wide",
            "default",
            "default-often",
            "default-utd1",
            "default-three-quarters",
            "default-delay",
            "oracle-delay",
            "policy-0.05",
            "policy-0.2",
            "policy-0.5",
            "guided-curiosity",
            "guided-novelty",
            "guided-return",
            "guided-td-error",
            "resampled-curiosity",
            "resampled-td-error",
        ),
        CHOOSING,
        "learning_choosing.jsonl",
    ),
    # The one chosen arm and its opponents, on seeds that chose nothing.
    "reporting": Stage(
        ("halfcheetah", "walker2d", "pusher", "hopper"),
        ("utd1", "utd10", CHOSEN, "bootstrap", "utd20-delay"),
        REPORTING,
        "learning_reporting.jsonl",
        only={
            "bootstrap": (("halfcheetah", "walker2d", "pusher", "hopper"), REPORTING[:5]),
            "utd20-delay": (("hopper",), REPORTING[:5]),
        },
    ),
    # Discrete actions (`--agent dqn`) and another framework (`--agent torchrl`).
    "elsewhere": Stage(
        ("cartpole", "halfcheetah"),
        ("utd1", "utd10", "bootstrap", "oracle", CHOSEN),
        CHOOSING,
        "learning_elsewhere.jsonl",
    ),
    # What else is known to make many updates per step safe, with rows of ours and without: `--agent layer-norm`, with
    # `--arms utd1` on the first two tasks as well, and `--agent crossq --arms utd1` on these.
    "c": Stage(
        ("halfcheetah", "hopper", "walker2d", "pusher"),
        ("utd10", CHOSEN),
        REPORTING[:5],
        "learning_stage_c.jsonl",
    ),
}


def jobs(stage: Stage, agent: str = "sbx") -> list[Job]:
    """All runs, seed by seed, so that what is complete first can be compared."""
    return [
        Job(task, arm, seed, agent)
        for seed in stage.seeds
        for task in stage.tasks
        for arm in stage.arms
        if stage.wants(task, arm, seed)
    ]


def toy_jobs() -> list[Job]:
    """A tiny run of every agent and kind of arm; arms that differ in numbers, or in the tiny model alone, share one."""
    told_apart = {}
    for name in ARMS:
        arm = ARMS[name].for_task(TASKS["toy"])
        kind = (arm.upsampler, arm.policy_delay > 1, arm.policy_share > 0, arm.guidance is not None, arm.guided_by)
        told_apart.setdefault(kind, Job("toy", name, 0))
    others = [Job("toy", "oracle", 0, agent) for agent in ("sb3", "torchrl", "layer-norm", "crossq")]
    discrete = [Job("toy-discrete", arm, 0, "dqn") for arm in ("oracle", "few-rows-passes")]
    return [*told_apart.values(), *others, *discrete]


def missing(wanted: Sequence[Job], path: Path) -> list[Job]:
    """The runs that have no line yet.

    Raises:
        ValueError: a line was made with other settings than the same names stand for now.
    """
    done = {}
    for line in read(path):
        done[Job(line["task"], line["arm"], line["seed"], line["agent"])] = line["settings"]
    for job in wanted:
        # Through JSON, as the line went: it knows no tuples.
        present = json.loads(json.dumps(settings(job.task, job.arm)))
        if job in done and done[job] != present:
            raise ValueError(
                f"{path} has a line of {job} with settings {done[job]}; now these names stand for {present}. "
                "Give the new settings a name of their own, or write to another file."
            )
    return [job for job in wanted if job not in done]


def work(wanted: Sequence[Job], path: Path, runner: Runner, cores: Sequence[int]) -> int:
    """Make the runs that are missing, one at a time on each core; the number that failed."""
    repair(path)
    todo = missing(wanted, path)
    logger.info("%d of %d runs to make, on cores %s.", len(todo), len(wanted), list(cores))
    free: SimpleQueue[int] = SimpleQueue()
    for core in cores:
        free.put(core)

    def make(job: Job) -> bool:
        core = free.get()
        try:
            return _run(job, path, runner, core)
        finally:
            free.put(core)

    with ThreadPoolExecutor(len(cores)) as pool:
        return sum(not made for made in pool.map(make, todo))


def _run(job: Job, path: Path, runner: Runner, core: int) -> bool:
    command = [str(runner.python), "-m", "benchmarks.learning.run", "--task", job.task, "--arm", job.arm]
    command += ["--seed", str(job.seed), "--agent", job.agent, "--core", str(core)]
    done = subprocess.run(command, cwd=runner.folder, env=os.environ | ONE_THREAD, capture_output=True, text=True)
    if done.returncode:
        logger.error("%s failed:\n%s", job, done.stderr[-4_000:])
        return False
    line = json.loads(done.stdout.splitlines()[-1])
    append(path, line)
    logger.info(
        "%s: final %.1f, area %.1f, %.0f CPU seconds, %.0f s.",
        job, line["final"], line["area"], line["cpu_seconds"], line["wall_seconds"],
    )  # fmt: skip
    return True
