"""Why an arm gains: what its critic promises beyond what came, and whether the model's figures tell the gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .lines import Line, runs_of
from .stages import CHOSEN
from .statistics import Scores, paired, rank_correlation, scores_of, told
from .tables import Rows, table
from .tasks import TASKS

#: Arms whose critic is looked at.
LOOKED_AT = ("utd1", "utd10", "bootstrap", "gaussian", CHOSEN, "oracle")
#: Arms with half of each batch synthetic at the control's rule; they differ in the model and how often it is refreshed.
MODELS = (
    "few-rows",
    "few-rows-passes",
    "passes-often",
    "passes-wide",
    "passes-regressed",
    "outcomes",
    "default",
    CHOSEN,
)
#: Figures of the model in a refresh's report, and what they are.
FIGURES = {
    "copy_share": "share of copies",
    "held_out_loss": "held-out loss",
    "marginal_similarity": "marginal similarity",
    "correlation_similarity": "correlation similarity",
}


def why(lines: Sequence[Line], tasks: Sequence[str]) -> list[str]:
    """The blocks of the page, from the lines of all seeds."""
    lines = [line for line in lines if line["values"]]
    if not lines:
        return []
    promised = [[TASKS[task].env, *(_promised(runs_of(lines, task, arm)) for arm in LOOKED_AT)] for task in tasks]
    excess = scores_of(lines, score=lambda line: float(np.subtract(*_critic(line))))
    opponents = [arm for arm in LOOKED_AT if arm != "utd10"]
    return [
        "## Why",
        "**The critic.** Its value at states of the evaluation episodes, and in brackets the discounted return that "
        "followed there; means over the evaluations after the first update and over all seeds that ran (the entropy "
        "bonus is in the value alone). A value far above what follows is an overestimate.",
        table(["task", *(f"`{arm}`" for arm in LOOKED_AT)], promised),
        "The excess of the value over the return, paired by seed with that of `utd10`: mean difference, 95 % interval, "
        "pairs above 0. (A better return alone makes the excess smaller; the values above fall too.)",
        table(["task", *(f"`{arm}`" for arm in opponents)], _against_control(excess, tasks, opponents)),
        "**The model.** Rank correlation, over the runs of the arms whose batches are half synthetic under the "
        "control's rule (these differ in the model and in how often it is refreshed), of the gain over the control on "
        "the same seed with the mean of a figure over the run's refreshes (95 % interval, runs). Runs of a seed share "
        "their control, so the intervals are a little too narrow.",
        table(["task", *FIGURES.values()], [[TASKS[task].env, *_correlations(lines, task)] for task in tasks]),
    ]


def _critic(line: Line) -> NDArray[np.float64]:
    """Value and return that followed, means over the evaluations after the first update."""
    after = [row[1:] for row in line["values"] if row[0] > line["settings"]["task"]["learning_starts"]]
    return np.mean(after, axis=0)


def _promised(runs: Sequence[Line]) -> str:
    if not runs:
        return "-"
    value, followed = np.mean([_critic(run) for run in runs], axis=0)
    return f"{value:.3g} ({followed:.3g}), {len(runs)}"


def _against_control(excess: Scores, tasks: Sequence[str], arms: Sequence[str]) -> Rows:
    rows = []
    for task in tasks:
        pairs = {arm: paired(excess, task, arm, TASKS[task].control) for arm in arms}
        rows.append([TASKS[task].env, *(told([first - second for first, second in pairs[arm]]) for arm in arms)])
    return rows


def _correlations(lines: Sequence[Line], task: str) -> list[str]:
    control: Mapping[int, float] = scores_of(lines).get(task, {}).get(TASKS[task].control, {})
    runs = [
        line for arm in MODELS for line in runs_of(lines, task, arm) if line["seed"] in control and line["refreshes"]
    ]
    cells = []
    for figure in FIGURES:
        known = [run for run in runs if all(figure in refresh for refresh in run["refreshes"])]
        gains = [run["area"] - control[run["seed"]] for run in known]
        means = [float(np.mean([refresh[figure] for refresh in run["refreshes"]])) for run in known]
        cells.append(rank_correlation(means, gains))
    return cells
