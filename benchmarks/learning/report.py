"""The page of the results: which tasks have headroom, each arm on each task, the primary comparison, cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .arms import ARMS, FORMER_ARMS, REAL_ONLY
from .lines import Line, first_of_each, read, runs_of
from .stages import CHOSEN, STAGES, Job, Stage, jobs, missing
from .statistics import (
    Comparison,
    Scores,
    compare,
    differences,
    headroom,
    interval_with_units,
    paired,
    scores_of,
    told,
)
from .tables import Rows, table
from .tasks import TASKS
from .why import why

#: A comparison with fewer pairs a task gets no verdict (protocol.md).
LEAST_SEEDS = 5
#: Commits of the chosen arm's lines in which heavy-tailed columns had no scale of their own yet.
FORMER_SCALE = ("209ad70", "469c3b2", "6285ecc", "e5c501e")


def render(results: Path, page: Path) -> None:
    """Write the page from the lines of all stages."""
    pilot, stage = read(results / STAGES["pilot"].file), read(results / STAGES["a"].file)
    # A stage's own lines of the same arms and seeds stand before the pilot's.
    every = [*stage, *pilot]
    choosing, elsewhere, others, reporting = (
        read(results / STAGES[name].file) for name in ("choosing", "elsewhere", "c", "reporting")
    )
    all_lines = first_of_each([*every, *choosing])
    text = "\n\n".join(
        [
            *_head(stage, results),
            *_reporting(reporting, scores_of(all_lines)),
            *why([*reporting, *all_lines], STAGES["reporting"].tasks),
            *_stage(all_lines),
            *_pilot(every),
            *_other_agents(
                [*all_lines, *elsewhere, *others], scores_of([*all_lines, *reporting]), scores_of(all_lines)
            ),
            *_again(),
            *_rest(),
        ]
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text + "\n")


def _head(stage: Sequence[Line], results: Path) -> list[str]:
    wanted = jobs(STAGES["a"])
    left = len(missing(wanted, results / STAGES["a"].file))
    state = "**Complete.**" if not left else f"**Partial: {len(wanted) - left} of {len(wanted)} runs are made.**"
    hours = sum(line["cpu_seconds"] for line in stage) / 3600
    continued = (
        "These runs continue it where it stopped:\n\n```text\npython -m benchmarks.learning --prepare\n"
        "python -m benchmarks.learning --stage a --jobs 1\npython -m benchmarks.learning --report\n```"
    )
    return [
        "# Does the agent learn more?",
        "SAC on short runs, with the same environment steps in each arm. The rules were fixed before any treatment: "
        "[the protocol](learning_protocol.md). Two of them, the unit and the number of seeds of each opponent, were "
        "changed on 2026-11-28, when the arm was known to be above the control; its section of that day says why. The "
        "rule that chose the arm ended in a tie, which was decided by judgement (section of 2026-11-27). "
        "The page is rendered by `python -m benchmarks.learning --report`.",
        "The score of a run, its area, is the mean return of its evaluations after the first update; in a run of "
        "5,000 steps these come at steps 1,500 to 5,000.",
        f"Stage A (choosing seeds 0 to 4). {state} {hours:.1f} core-hours so far"
        + (
            ". Nothing here is a result while it is partial: no verdict follows from one or two seeds." if left else "."
        ),
        *([continued] if left else []),
    ]


def _reporting(lines: Sequence[Line], choosing: Scores) -> list[str]:
    """The chosen arm on the seeds that chose nothing.

    The choosing seeds' scores name the best arm of real rows alone and give the unit of each task.
    """
    stage, scores = STAGES["reporting"], scores_of(lines)
    if not lines:
        return []
    control = {task: TASKS[task].control for task in stage.tasks}
    best = {task: _best_real({arm: choosing[task][arm] for arm in REAL_ONLY}) for task in stage.tasks}
    opponents = {
        "control": control,
        "`bootstrap`": dict.fromkeys(stage.tasks, "bootstrap"),
        "`utd1`": dict.fromkeys(stage.tasks, "utd1"),
        "best real-only arm": best,
    }
    units = {task: headroom(choosing, task, control[task]) for task in stage.tasks}
    rows = []
    for name, opponent in opponents.items():
        cells = _compared(compare(scores, CHOSEN, opponent, units), tasks=len(stage.tasks), seeds=len(stage.seeds))
        # Behind the interval, that with the unit's own uncertainty.
        rows.append([name, *cells[:3], _with_units(scores, opponent, choosing), *cells[3:]])
    made = {Job(line["task"], line["arm"], line["seed"], line["agent"]) for line in lines}
    left = sum(job not in made for job in jobs(stage))
    # Opponents that are not the stage's come last.
    arms = (*stage.arms, *sorted({line["arm"] for line in lines} - set(stage.arms)))
    areas = [_areas(scores, task, arms) for task in stage.tasks]
    state = (
        f"**Partial: {len(jobs(stage)) - left} of {len(jobs(stage))} runs.** A comparison has as many seeds as its "
        "task with the fewest pairs."
        if left
        else "Complete."
    )
    return [
        "## The reporting seeds",
        f"`{CHOSEN}` and its opponents on seeds 100 to 109, which chose nothing. {state} "
        "`python -m benchmarks.learning --stage reporting` makes the runs that are missing.",
        table(["task", *(f"`{arm}`" for arm in arms)], areas),
        *_versions(lines),
        "The best real-only arm, by the choosing seeds: "
        + ", ".join(f"`{arm}` on {TASKS[task].env}" for task, arm in best.items())
        + ". It is the best of three rules. Their choosing seeds, task by task: "
        + "; ".join(f"`{arm}` " + ", ".join(str(len(choosing[task][arm])) for task in stage.tasks) for arm in REAL_ONLY)
        + ".",
        *_finals_and_costs(lines, stage.tasks, arms),
        "Paired differences of the area, task by task: the mean over the seeds that both arms have, its 95 % interval "
        "(Student's), and in how many pairs it is above 0.",
        table(["task", *(f"over `{arm}`" for arm in arms if arm != CHOSEN)], _differences(scores, stage.tasks, arms)),
        *_on_gpu(lines, stage),
        "The primary comparison: paired differences of the area in units of what `oracle` gains over the control on "
        "the choosing seeds, interquartile mean over tasks and seeds. The unit is measured on other seeds, with 10,000 "
        f"true rows every 1,000 steps where `{CHOSEN}` is refreshed every 500. Its own uncertainty is not in the first "
        "intervals, by which the protocol judges; in the second ones it is drawn anew too.",
        table(
            [
                "against",
                "tasks x seeds",
                "IQM of differences",
                "95 % interval",
                "with the unit's own uncertainty",
                "P(improvement)",
                "verdict",
            ],
            rows,
        ),
        "By the protocol the arm *helps* if it is better than the control, `bootstrap` and the best real-only arm: "
        + (
            "**it helps.**"
            if all(row[-1].startswith("better") for row in rows if row[0] != "`utd1`")
            else "**this is not shown.**"
        ),
    ]


def _with_units(scores: Scores, opponent: Mapping[str, str], choosing: Scores) -> str:
    """The interval of a comparison of the chosen arm with the uncertainty of the units in it."""
    gains = {task: _gains(choosing, task) for task in opponent}
    tasks, raw = differences(
        scores, CHOSEN, opponent, {task: 1.0 for task, values in gains.items() if np.sum(values) > 0.0}
    )
    if len(raw) < 2:
        return ""
    low, high = interval_with_units(raw, [gains[task] for task in tasks])
    return "-" if np.isnan(low) else f"[{low:.2f}, {high:.2f}]"


def _versions(lines: Sequence[Line]) -> list[str]:
    """Of which commits the chosen arm's lines are."""
    commits = sorted({line["commit"][:7] for line in lines if line["arm"] == CHOSEN})
    former = [commit for commit in commits if commit in FORMER_SCALE]
    if not commits:
        return []
    words = f"The lines of `{CHOSEN}` are of the commits {', '.join(commits)}."
    if former:
        which = "All of these" if former == commits else f"Of these, {', '.join(former)}"
        words += f" {which} come before heavy-tailed columns got a scale of their own, which concerns Hopper-v5."
    return [words]


def _finals_and_costs(lines: Sequence[Line], tasks: Sequence[str], arms: Sequence[str]) -> list[str]:
    """What a run costs, beside the return that it ends with."""
    lines = first_of_each(lines)
    rows = []
    for task in tasks:
        cells = []
        for arm in arms:
            runs = runs_of(lines, task, arm)
            seconds = [run["cpu_seconds"] for run in runs if not run["gpu"]]
            final = f"{np.mean([run['final'] for run in runs]):.4g}" if runs else ""
            cells.append(f"{final}; {np.median(seconds):.0f} ({len(seconds)})" if seconds else final or "-")
        rows.append([TASKS[task].env, *cells])
    return [
        "The mean return of the last evaluation; then the median CPU seconds of a run on one core, its refreshes in "
        "them, over the runs without a GPU (their number)." + _times_as_long(lines, tasks),
        table(["task", *(f"`{arm}`" for arm in arms)], rows),
    ]


def _times_as_long(lines: Sequence[Line], tasks: Sequence[str]) -> str:
    """The CPU seconds of the chosen arm by those of two opponents on the same seed."""
    seconds = scores_of([line for line in lines if not line["gpu"]], score=lambda line: line["cpu_seconds"])
    words = []
    for name, opponent in (("its control", None), ("`utd1`", "utd1")):
        pairs = [pair for task in tasks for pair in paired(seconds, task, CHOSEN, opponent or TASKS[task].control)]
        times = [first / second for first, second in pairs]
        if times:
            words.append(
                f"{np.median(times):.1f} times those of {name} (median of {len(times)} pairs; {min(times):.1f} to "
                f"{max(times):.1f})"
            )
    return f" Paired by seed, those of `{CHOSEN}` are {' and '.join(words)}." if words else ""


def _differences(scores: Scores, tasks: Sequence[str], arms: Sequence[str]) -> Rows:
    opponents = [arm for arm in arms if arm != CHOSEN]
    return [[TASKS[task].env, *(_gain(scores, task, CHOSEN, arm) for arm in opponents)] for task in tasks]


def _gain(scores: Scores, task: str, arm: str, opponent: str) -> str:
    return told([first - second for first, second in paired(scores, task, arm, opponent)])


def _on_gpu(lines: Sequence[Line], stage: Stage) -> list[str]:
    """What the chosen arm's runs with refreshes on a GPU gain over the control, and what those without do."""
    seeds = {line["seed"] for line in lines if line["gpu"] and line["arm"] == CHOSEN}
    if not seeds:
        return []
    rows = []
    for task in stage.tasks:
        of = {place: [line for line in lines if line["task"] == task and (line["seed"] in seeds) == (place == "gpu")]
              for place in ("gpu", "cpu")}  # fmt: skip
        gains = []
        for place in ("gpu", "cpu"):
            gains.append(_gain(scores_of(of[place]), task, CHOSEN, TASKS[task].control))
        rows.append([TASKS[task].env, *gains])
    named = ", ".join(map(str, sorted(seeds)))
    return [
        f"On seeds {named} `{CHOSEN}` refreshed on a GPU ([protocol](learning_protocol.md)). What it gains over the "
        "control on these seeds, and on the others:",
        table(["task", "refreshed on a GPU", "on a CPU"], rows),
    ]


def _stage(lines: Sequence[Line]) -> list[str]:
    stage = replace(STAGES["a"], arms=(*STAGES["a"].arms, *STAGES["choosing"].arms, *FORMER_ARMS))
    scores = scores_of(lines)
    tasks, control = stage.tasks, {task: TASKS[task].control for task in stage.tasks}
    blocks = [
        "## Stage A, and the candidates",
        "### Area under the curve",
        "Mean over the seeds ± standard deviation (number of seeds).",
    ]
    cells = [_areas(scores, task, stage.arms)[1:] for task in tasks]
    rows = [[f"`{arm}`", *row] for arm, *row in zip(stage.arms, *cells, strict=True) if set(row) != {"-"}]
    blocks.append(table(["arm", *(TASKS[task].env for task in tasks)], rows))
    judged = [task for task in tasks if _has_headroom(_gains(scores, task)) != "no"]
    blocks += ["### Against the control, and what else could explain it", _comparison(scores, judged, control)]
    blocks += ["### Curves", "Mean return of five deterministic episodes, mean over the seeds there are."]
    blocks += [block for task in tasks for block in _curves(lines, task, stage.arms)]
    blocks += [
        "### Cost, and what the critic believes",
        "CPU seconds of a run on one core, those of its refreshes, and the critic's value at the end beside the "
        "discounted return that followed, as under [Why](#why) (medians over the runs).",
        table(["task", "arm", "runs", "CPU s", "refreshes s", "value", "return that followed"], _costs(lines, stage)),
    ]
    return blocks


def _comparison(scores: Scores, tasks: Sequence[str], control: dict[str, str]) -> str:
    control = {task: control[task] for task in tasks}
    units = {task: headroom(scores, task, control[task]) for task in tasks}
    best = {task: _best_real(scores[task]) for task in tasks if set(REAL_ONLY) <= scores.get(task, {}).keys()}
    opponents = {
        "control": control,
        "`bootstrap`": dict.fromkeys(tasks, "bootstrap"),
        "`utd1`": dict.fromkeys(tasks, "utd1"),
        "best real-only arm": best,
    }
    rows = []
    ran = [arm for arm in STAGES["choosing"].arms if any(arm in scores.get(task, {}) for task in tasks)]
    for arm in ("constant-budget", *ran, "bootstrap", "oracle"):
        for name, opponent in opponents.items():
            if arm == name.strip("`"):
                continue
            found = compare(scores, arm, opponent, {task: units[task] for task in opponent})
            rows.append([f"`{arm}`", name, *_compared(found, tasks=len(tasks), seeds=len(STAGES["a"].seeds))])
    header = ["arm", "against", "tasks x seeds", "IQM of differences", "95 % interval", "P(improvement)", "verdict"]
    return (
        "Paired differences of the area in units of a task's headroom (1 is what `oracle` gains over the control), "
        "interquartile mean over the tasks with headroom and the seeds.\n\n" + table(header, rows)
    )


def _compared(found: Comparison | None, *, tasks: int, seeds: int) -> list[str]:
    """One comparison's cells; a verdict needs all tasks and five seeds, and says where it has fewer than planned."""
    if found is None:
        return ["no pairs yet", "", "", "", ""]
    # One pair a task has no spread that could be drawn anew.
    ends = f"[{found.low:.2f}, {found.high:.2f}]" if found.seeds > 1 else "one seed: none"
    verdict = found.verdict
    if found.seeds < LEAST_SEEDS or len(found.tasks) < tasks:
        verdict = "too early"
    elif found.seeds < seeds:
        verdict += f", by {found.seeds} of {seeds} seeds"
    size = f"{len(found.tasks)} x {found.seeds}"
    return [size, f"{found.mean:.2f}", ends, f"{found.improvement:.2f}", verdict]


def _best_real(scores: Mapping[str, Mapping[int, float]]) -> str:
    return max(REAL_ONLY, key=lambda arm: float(np.mean(list(scores[arm].values()))))


def _areas(scores: Scores, task: str, arms: Sequence[str]) -> list[str]:
    row = [TASKS[task].env]
    for arm in arms:
        row.append(_summary(list(scores.get(task, {}).get(arm, {}).values())))
    return row


def _summary(values: Sequence[float]) -> str:
    """Mean ± standard deviation (number of values)."""
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.4g}{spread} ({len(values)})"


def _curves(lines: Sequence[Line], task: str, arms: Sequence[str]) -> list[str]:
    by_arm = {arm: [dict(map(tuple, line["evaluations"])) for line in runs_of(lines, task, arm)] for arm in arms}
    steps = sorted({step for runs in by_arm.values() for run in runs for step in run})
    rows = [
        [f"`{arm}` ({len(runs)})", *(f"{np.mean([run[step] for run in runs]):.4g}" for step in steps)]
        for arm, runs in by_arm.items()
        if runs
    ]
    return [f"**{TASKS[task].env}**", table(["arm (runs)", *(f"{step:,}" for step in steps)], rows)] if rows else []


def _costs(lines: Sequence[Line], stage: Stage) -> Rows:
    rows = []
    for task in stage.tasks:
        for arm in stage.arms:
            runs = runs_of(lines, task, arm)
            if runs:
                # The pilot's first lines have no values.
                values = [run["values"][-1][1:] for run in runs if run["values"]]
                value, followed = np.median(values, axis=0) if values else (np.nan, np.nan)
                rows.append(
                    [
                        TASKS[task].env, f"`{arm}`", str(len(runs)),
                        f"{np.median([run['cpu_seconds'] for run in runs]):.0f}",
                        f"{np.median([run['refresh_seconds'] or 0 for run in runs]):.0f}",
                        f"{value:.4g}", f"{followed:.4g}",
                    ]
                )  # fmt: skip
    return rows


def _pilot(lines: Sequence[Line]) -> list[str]:
    scores = scores_of(lines)
    rows = []
    for task in dict.fromkeys([*STAGES["a"].tasks, *STAGES["pilot"].tasks]):
        if task in scores:
            control = TASKS[task].control
            gains = _gains(scores, task)
            rows.append(
                [
                    TASKS[task].env, f"{TASKS[task].steps:,}", *_areas(scores, task, ("utd1", control, "oracle"))[1:],
                    f"{headroom(scores, task, control):.4g}" if gains else "-",
                    ", ".join(f"{gain:.3g}" for gain in gains), _has_headroom(gains),
                ]
            )  # fmt: skip
    return [
        "## What there is to gain",
        "The pilot, with Stage A's own runs of these arms: what fresh true rows of the present policy add to the "
        "control. Mean area ± standard deviation (seeds). By the protocol a task has headroom if the mean gain is at "
        "least the standard deviation of the paired gains, over at least three seeds.",
        table(["task", "steps", "`utd1`", "control", "`oracle`", "mean gain", "gains by seed", "headroom"], rows),
    ]


#: Other agents than sbx's SAC: the title and the words of their section.
_OTHERS = {
    "sb3": ("The same in Stable-Baselines3", "Its own SAC: the same settings, other code, other initial networks."),
    "torchrl": ("The same in TorchRL", "SAC of its own parts: the same settings, other code, other networks."),
    "dqn": ("Discrete actions", "DQN of sbx."),
    "layer-norm": ("With layer norm in the critics", "sbx's SAC with `layer_norm=True`, everything else as above."),
    "crossq": ("CrossQ", "CrossQ of sbx with its own settings; its rule updates the actor every third time."),
}


def _other_agents(lines: Sequence[Line], plain: Scores, choosing: Scores) -> list[str]:
    """A section for each agent that has run but sbx's SAC, whose scores are `plain`, beside those on the same seeds.

    The choosing seeds' scores give the unit of each task.
    """
    blocks = []
    for agent, (title, words) in _OTHERS.items():
        found = scores_of(lines, agent)
        if found:
            header = ["task", "arm", "area", "sbx's SAC", "over its control", f"over `{CHOSEN}` of sbx's SAC"]
            blocks += [
                f"## {title}",
                f"{words} Area, mean ± standard deviation (seeds), that of sbx's SAC on the same seeds, and paired "
                "differences as above.",
                table(header, agent_rows(found, plain)),
                *_agent_over_tasks(found, plain, choosing),
            ]
    return blocks


def _agent_over_tasks(found: Scores, plain: Scores, choosing: Scores) -> list[str]:
    """The chosen arm of an agent over several tasks, against its control and against arms of sbx's SAC."""
    tasks = [task for task in STAGES["reporting"].tasks if CHOSEN in found.get(task, {})]
    if len(tasks) < 2:
        return []
    units = {task: headroom(choosing, task, TASKS[task].control) for task in tasks}
    scores = {
        task: {
            CHOSEN: found[task][CHOSEN],
            "control": found[task].get(TASKS[task].control, {}),
            **{f"plain {arm}": plain.get(task, {}).get(arm, {}) for arm in (CHOSEN, "utd1")},
        }
        for task in tasks
    }
    opponents = {
        "its control": "control",
        f"`{CHOSEN}` of sbx's SAC": f"plain {CHOSEN}",
        "`utd1` of sbx's SAC": "plain utd1",
    }
    rows = []
    for name, opponent in opponents.items():
        comparison = compare(scores, CHOSEN, dict.fromkeys(tasks, opponent), units)
        # The protocol wants all tasks of the primary comparison.
        rows.append([name, *_compared(comparison, tasks=len(STAGES["reporting"].tasks), seeds=LEAST_SEEDS)])
    return [
        f"`{CHOSEN}` of this agent over these tasks, in the units of the primary comparison:",
        table(["against", "tasks x seeds", "IQM of differences", "95 % interval", "P(improvement)", "verdict"], rows),
    ]


def agent_rows(found: Scores, plain: Scores) -> Rows:
    """The table of an agent: its scores, those of sbx's SAC on the same seeds, and paired differences."""
    rows = []
    for task, arms in found.items():
        control = TASKS[task].control
        for arm, scores in arms.items():
            same = {seed: score for seed, score in plain.get(task, {}).get(arm, {}).items() if seed in scores}
            both = {task: {**arms, "plain": plain.get(task, {}).get(CHOSEN, {})}}
            rows.append(
                [
                    TASKS[task].env, f"`{arm}`", _summary(list(scores.values())), _summary(list(same.values())),
                    "-" if arm == control else _gain(both, task, arm, control), _gain(both, task, arm, "plain"),
                ]
            )  # fmt: skip
    return rows


def _gains(scores: Scores, task: str) -> list[float]:
    """What oracle gains over the control, seed by seed."""
    return [first - second for first, second in paired(scores, task, "oracle", TASKS[task].control)]


def _has_headroom(gains: Sequence[float]) -> str:
    if len(gains) < 3:
        return f"open: {len(gains)} of 3 seeds"
    return "yes" if np.mean(gains) > 0.0 and np.mean(gains) >= np.std(gains, ddof=1) else "no"


def _again() -> list[str]:
    """The commands of the runs."""
    stage = "python -m benchmarks.learning --stage"
    two, five = "--tasks halfcheetah hopper", "--seeds 100 101 102 103 104"
    one = "python -m benchmarks.learning.run --task TASK --arm"
    commands = [
        "python -m benchmarks.learning --prepare",
        f"{stage} pilot",
        f"{stage} a",
        f"{stage} choosing",
        f"{stage} reporting",
        f"{stage} reporting --arms gaussian {two} {five}",
        f"{stage} choosing --arms default-utd1 policy-0.2 {two} --seeds 0 1 2",
        f"{stage} elsewhere --agent dqn --tasks cartpole",
        f"{stage} a --agent sb3 --tasks halfcheetah --arms utd10 --seeds 0",
        f"{stage} elsewhere --agent sb3 --tasks halfcheetah --arms {CHOSEN} --seeds 0",
        f"{stage} c --agent layer-norm",
        f"{stage} c --agent layer-norm --arms utd1 {two}",
        f"{stage} c --agent crossq --arms utd1 {two}",
        f"{stage} c --agent crossq --arms default-utd1 {two} --seeds 100 101 102",
        "python -m benchmarks.learning --report",
    ]
    on_gpu = [
        f"{one} {CHOSEN} --seed SEED --gpu >> benchmarks/results/{STAGES['reporting'].file}",
        f"{one} passes-wide --seed SEED --gpu >> benchmarks/results/{STAGES['choosing'].file}",
    ]
    gone = ", ".join(f"`{arm}`" for arm in FORMER_ARMS)
    return [
        "## The runs again",
        "A command makes those of its runs that have no line yet, with the present code; a line's own code is its "
        "`commit`. A stage wants more runs than there are; `--tasks`, `--arms`, `--seeds` and `--agent` choose some. "
        f"The code of {gone} is gone.",
        "```text\n" + "\n".join(commands) + "\n```",
        f"Before the stages, on a machine with a GPU: `{CHOSEN}` on each task of the reporting stage, seeds 103 to "
        "106, and `passes-wide`, seeds 0 to 2.",
        "```text\n" + "\n".join(on_gpu) + "\n```",
    ]


def _rest() -> list[str]:
    arms = ", ".join(f"`{arm}`" for arm in ARMS)
    return [f"Arms that can be run: {arms}. Rendered on {time.strftime('%Y-%m-%d')}."]
