"""The runs of a comparison: with and without synthetic rows."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..comparison import Comparison
from .style import COLOURS, LINES, MARKERS, PAGE, SMALL, WIDE, label, new_figure


def comparison(found: Comparison, *, width: float = PAGE) -> Figure:
    """Scores by seed, the curves if the trainings returned some, and the mean difference with its 95 % interval.

    Every line and point is one training; nothing is shaded.

    Args:
        found: what `synther_buffers.comparison.compare` returned.
        width: of the figure in inches; below 5, the panels are below each other.

    Raises:
        ValueError: no seed has both runs.
    """
    if not found.seeds:
        raise ValueError("the comparison has no seed with both runs; nothing can be drawn.")
    names = {0.0: "real rows", found.fraction: f"{found.fraction:.0%} synthetic"}
    curves = any(run.curve for run in found.runs)
    count = 2 + curves
    beside = width >= WIDE
    figure = new_figure(width, 2.6 if beside else 2.2 * count)
    panels = figure.subplots(1, count) if beside else figure.subplots(count, 1)
    if curves:
        _draw_curves(panels[0], found, names)
    _draw_scores(panels[-2], found, names)
    _draw_difference(panels[-1], found)
    return figure


def _draw_curves(axes: Axes, found: Comparison, names: dict[float, str]) -> None:
    for style, (share, name) in enumerate(names.items()):
        for number, run in enumerate(run for run in found.runs if run.synthetic_fraction == share and run.curve):
            steps, returns = np.array(run.curve).T
            axes.plot(
                steps, returns, color=COLOURS[style], linestyle=LINES[style], linewidth=0.9,
                label="_" if number else name,
            )  # fmt: skip
    label(axes, "environment steps", "return", "each training")
    axes.locator_params(axis="x", nbins=4)
    axes.legend(fontsize=SMALL, frameon=False)


def _draw_scores(axes: Axes, found: Comparison, names: dict[float, str]) -> None:
    pairs = zip(*(found.scores(share) for share in names), strict=True)
    for pair in pairs:
        axes.plot((0, 1), pair, color="0.7", linewidth=0.8)
    for place, share in enumerate(names):
        values = found.scores(share)
        axes.plot([place] * len(values), values, MARKERS[place], color=COLOURS[place], markersize=4)
    axes.set_xticks((0, 1), list(names.values()))
    axes.set_xlim(-0.4, 1.4)
    label(axes, "", "score", "a line for each seed")


def _draw_difference(axes: Axes, found: Comparison) -> None:
    axes.axhline(0.0, color="0.6", linewidth=0.8)
    axes.plot([0] * len(found.differences), found.differences, "o", color="0.6", markersize=3)
    axes.plot([0.3], [found.mean], "D", color=COLOURS[1], markersize=5)
    if not math.isnan(found.low):
        axes.plot((0.3, 0.3), (found.low, found.high), color=COLOURS[1], linewidth=1.5)
    axes.set_xticks((0, 0.3), ("seeds", "mean,\n95 % interval" if not math.isnan(found.low) else "mean"))
    axes.set_xlim(-0.25, 0.55)
    label(axes, "", "difference of scores", "synthetic minus real")
