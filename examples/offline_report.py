"""The table and the picture of `offline_upsampling.py`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rliable import library, metrics

from synther_buffers.plots.style import COLOURS, LINES, MARKERS, PAGE, SMALL, label, legend, new_figure

#: Resamples of a bootstrap; there are but ten different ones of three seeds.
RESAMPLES = 2_000
NAMES = {"iql": "IQL", "td3bc": "TD3+BC"}

Line = dict[str, Any]
#: Interquartile mean, and the lower and upper end of its 95 % interval.
Estimate = tuple[float, float, float]


def estimate(scores: np.ndarray) -> Estimate:
    """Interquartile mean of scores ``[seeds, learners]`` and its 95 % interval, stratified by learner.

    Rliable's (Agarwal et al. 2021). Of fewer than four scores the interquartile mean is the mean.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "random_state is deprecated", FutureWarning)
        points, intervals = library.get_interval_estimates(
            {"": scores},
            lambda drawn: np.array([metrics.aggregate_iqm(drawn)]),
            reps=RESAMPLES,
            random_state=np.random.RandomState(0),
        )
    return float(points[""][0]), float(intervals[""][0, 0]), float(intervals[""][1, 0])


def scores_of(lines: list[Line], learner: str, arm: str) -> dict[int, float]:
    """Scores by seed."""
    return {line["seed"]: line["score"] for line in lines if (line["learner"], line["arm"]) == (learner, arm)}


def in_order(lines: list[Line], key: str) -> list[str]:
    """The values of a key in the order of their first line."""
    return list(dict.fromkeys(line[key] for line in lines))


def table(lines: list[Line]) -> str:
    """Markdown: a row per learner and arm, and per arm over all learners, as shares of the full data's mean score."""
    learners, arms = in_order(lines, "learner"), in_order(lines, "arm")
    out = [
        "| learner | arm | rows | seeds | return: IQM (95 % interval) | of full's mean |",
        "|---|---|--:|--:|--:|--:|",
    ]
    rows = {line["arm"]: line["num_rows"] for line in lines}
    full = {learner: full_score(lines, learner) for learner in learners}
    for learner in learners:
        for arm in arms:
            scores = np.array([*scores_of(lines, learner, arm).values()])[:, None]
            if len(scores):
                cells = [NAMES[learner], arm, f"{rows[arm]:,}", str(len(scores)), interval(estimate(scores), "{:.0f}")]
                out.append(row([*cells, share(scores / full[learner])]))
    for arm in arms if len(learners) > 1 else []:
        by_learner = [scores_of(lines, learner, arm) for learner in learners]
        seeds = sorted(set.intersection(*(set(scores) for scores in by_learner)))
        if seeds:
            scores = np.array([[scores[seed] for scores in by_learner] for seed in seeds])
            shares = scores / np.array([full[learner] for learner in learners])
            out.append(row(["both", arm, f"{rows[arm]:,}", str(len(seeds)), "", share(shares)]))
    return "\n".join(out)


def full_score(lines: list[Line], learner: str) -> float:
    """Mean score of the full data; NaN where it is not positive, of which a share says nothing, or not there."""
    scores = [*scores_of(lines, learner, "full").values()]
    return float(np.mean(scores)) if scores and np.mean(scores) > 0 else np.nan


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def interval(values: Estimate, form: str) -> str:
    middle, low, high = (form.format(value) for value in values)
    return f"{middle} ({low} to {high})"


def share(shares: np.ndarray) -> str:
    """Nothing where there is no score of the full data to be a share of."""
    return interval(estimate(shares), "{:.0%}") if np.isfinite(shares).all() else ""


def caption(settings: Mapping[str, Any]) -> str:
    return (
        f"{settings['env']}: a subset of {settings['num_subset']:,} of {settings['num_rows']:,} rows, upsampled to "
        f"{settings['num_samples']:,}; {settings['gradient_steps']:,} gradient steps. The episodes of the data have "
        f"a mean return of {settings['behaviour_return']:.0f}."
    )


def wall_time(lines: list[Line]) -> str:
    """What the runs took together; rows were upsampled once for all learners, and for `mixed` with `synther`."""
    learning = sum(line["learn_seconds"] for line in lines)
    upsampling = sum(
        {(line["arm"].replace("mixed", "synther"), line["seed"]): line["upsample_seconds"] for line in lines}.values()
    )
    return f"{learning / 60:.0f} minutes of learning and evaluating, {upsampling / 60:.0f} of upsampling, on one core."


def draw(lines: list[Line]) -> Figure:
    """Per learner, scores by arm with intervals as bars and seeds as open points; and mean learning curves."""
    learners, arms = in_order(lines, "learner"), in_order(lines, "arm")
    figure = new_figure(PAGE, 0.6 + 2.3 * len(learners))
    grid = figure.subplots(len(learners), 2, squeeze=False)
    for (scores, curves), learner in zip(grid, learners, strict=True):
        own = [line for line in lines if line["learner"] == learner]
        draw_scores(scores, own, learner, arms)
        draw_curves(curves, own, arms)
        behaviour = own[0]["settings"]["behaviour_return"]
        scores.axvline(behaviour, color="0.6", linewidth=0.8, zorder=0)
        curves.axhline(behaviour, color="0.6", linewidth=0.8, zorder=0)
        seeds = len({line["seed"] for line in own})
        label(scores, "return", title=f"{NAMES[learner]}: {seeds} seeds, mean and 95 % bootstrap interval")
        label(curves, "gradient steps", "return", f"{NAMES[learner]}: mean over seeds")
    entries = {arm: Line2D([], [], **style(index), markersize=4) for index, arm in enumerate(arms)}
    legend(figure, {**entries, "episodes of the data": Line2D([], [], color="0.6", linewidth=0.8)}, 4)
    return figure


def style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index], "linestyle": LINES[index], "marker": MARKERS[index], "linewidth": 1.1}


def draw_scores(axes: Axes, lines: list[Line], learner: str, arms: list[str]) -> None:
    """A line per arm, the first on top."""
    for index, arm in enumerate(arms):
        scores = np.array([*scores_of(lines, learner, arm).values()])
        if len(scores):
            middle, low, high = estimate(scores[:, None])
            colour, marker = COLOURS[index], MARKERS[index]
            axes.plot([low, high], [index, index], color=colour, linewidth=2.5, alpha=0.5, solid_capstyle="butt")
            axes.plot(middle, index, marker, color=colour, markersize=5)
            axes.plot(scores, [index - 0.25] * len(scores), "o", color="0.35", markersize=2.5, markerfacecolor="none")
    axes.set_yticks(range(len(arms)), arms, fontsize=SMALL)
    axes.set_ylim(len(arms) - 0.5, -0.6)


def draw_curves(axes: Axes, lines: list[Line], arms: list[str]) -> None:
    for index, arm in enumerate(arms):
        own = [line for line in lines if line["arm"] == arm]
        if own:
            mean = np.mean([line["returns"] for line in own], axis=0)
            axes.plot(own[0]["steps"], mean, **style(index), markersize=2.5)


def write_report(lines: list[Line], folder: Path) -> None:
    """The table and the picture, from all lines there are."""
    text, picture = folder / "results" / "offline_table.md", folder / "images" / "offline_upsampling.png"
    text.parent.mkdir(parents=True, exist_ok=True)
    picture.parent.mkdir(parents=True, exist_ok=True)
    text.write_text(f"{caption(lines[0]['settings'])} {wall_time(lines)}\n\n{table(lines)}\n")
    draw(lines).savefig(picture, dpi=150)
    print(f"{text.read_text()}\nwritten to {text} and {picture}")
