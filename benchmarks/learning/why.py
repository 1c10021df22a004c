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
    value = scores_of(lines, score=lambda line: float(_critic(line)[0]))
    opponents = [arm for arm in LOOKED_AT if arm != "utd10"]
    return [
        "## Why",
        "**The critic.** Its value at states of the evaluation episodes, and in brackets the discounted return that "
        "followed there; means over the evaluations after the first update and over all seeds that ran. A value far "
        "above what follows is an overestimate. The value holds the entropy bonus of the future, the rewards that "
        "followed do not; but where a time limit ends an episode, the critic's own value of the last step stands for "
        "the rest. Its mean weight in the return is 0.63 on Pusher-v5 (100 steps an episode) and 0.10 on "
        "HalfCheetah-v5 (1,000), whose episodes always end so.",
        table(["task", *(f"`{arm}`" for arm in LOOKED_AT)], promised),
        "The excess of the value over the return, paired by seed with that of `utd10`: mean difference, 95 % interval, "
        "pairs above 0.",
        table(["task", *(f"`{arm}`" for arm in opponents)], _against_control(excess, tasks, opponents)),
        "A better return alone makes the excess smaller. The value by itself, paired in the same way:",
        table(["task", *(f"`{arm}`" for arm in opponents)], _against_control(value, tasks, opponents)),
        "**The model.** Rank correlation, over the runs of "
        + ", ".join(f"`{arm}`" for arm in MODELS)
        + " (half of each batch synthetic, under the control's rule; they differ in the model and in how often it is "
        "refreshed), of the gain over the control on the same seed with the mean of a figure over the run's refreshes "
        "(95 % interval, runs). `constant-budget`, whose model copies, is left out. " + _copies(lines, tasks) + "Runs "
        "of a seed share their control, so the intervals are a little too narrow.",
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


def _against_control(figure: Scores, tasks: Sequence[str], arms: Sequence[str]) -> Rows:
    rows = []
    for task in tasks:
        pairs = {arm: paired(figure, task, arm, TASKS[task].control) for arm in arms}
        rows.append([TASKS[task].env, *(told([first - second for first, second in pairs[arm]]) for arm in arms)])
    return rows


def _copies(lines: Sequence[Line], tasks: Sequence[str]) -> str:
    """The least and the largest mean share of copies of a run whose figures are looked at."""
    shares = [mean for task in tasks for mean, _ in _of_model(lines, task, "copy_share")]
    if not shares:
        return ""
    return f"The mean share of copies of a run is {min(shares):.2f} to {max(shares):.2f} (0.05 if nothing is copied). "


def _correlations(lines: Sequence[Line], task: str) -> list[str]:
    cells = []
    for figure in FIGURES:
        found = _of_model(lines, task, figure)
        cells.append(rank_correlation([mean for mean, _ in found], [gain for _, gain in found]))
    return cells


def _of_model(lines: Sequence[Line], task: str, figure: str) -> list[tuple[float, float]]:
    """The mean of a figure over the refreshes of each run, and the run's gain over the control on its seed."""
    control: Mapping[int, float] = scores_of(lines).get(task, {}).get(TASKS[task].control, {})
    return [
        (float(np.mean([refresh[figure] for refresh in run["refreshes"]])), run["area"] - control[run["seed"]])
        for arm in MODELS
        for run in runs_of(lines, task, arm)
        if run["seed"] in control and run["refreshes"] and all(figure in refresh for refresh in run["refreshes"])
    ]
