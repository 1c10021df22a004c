"""Pictures of the benchmarks: upsamplers and presets next to each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import ArrayLike

from synther_buffers.plots.density import measure_density
from synther_buffers.plots.style import (
    COLOURS,
    LINES,
    MARKERS,
    PAGE,
    SMALL,
    TEXT,
    WIDE,
    label,
    legend,
    new_figure,
    split,
)

#: A set whose median is this far below the largest one has only rounding errors, and counts as 0.
_ROUNDING = 1e-6
#: What the figures of `synther_buffers.evaluation.metrics` are called on an axis, and where their best value is.
_FIGURES = {
    "marginal": "marginal similarity (best: 1)",
    "correlation": "correlation similarity (best: 1)",
    "worst_marginal": "worst column's similarity (best: 1)",
    "auc": "two-sample AUC (best: 0.5)",
    "precision": "precision (best: 1)",
    "recall": "recall (best: 1)",
    "density": "density (best: 1)",
    "coverage": "coverage (best: 1)",
    "dynamics_mean": "mean dynamics error (best: 0)",
    "dynamics_median": "median dynamics error (best: 0)",
    "reward_mean": "mean reward error (best: 0)",
    "reward_median": "median reward error (best: 0)",
}


def strength_sweeps(
    environments: Mapping[str, tuple[Mapping[str, tuple[ArrayLike, ArrayLike]], Mapping[str, ArrayLike]]],
    *,
    width: float = PAGE,
) -> Figure:
    """Distance from the data against dynamics error in several environments, and what a strength does to both.

    On the left, figure 5 of SynthER (Lu et al. 2023): the areas hold 50 % of an upsampler's rows, the lines 90 %; the
    markers are medians. Beside the axes are the marginal densities, each scaled to its own peak. Both axes are
    logarithmic; values below their lower end, such as the exact zeros of resampled rows, are drawn there, and its tick
    says "≤".

    An augmentation has a strength to choose, so its one cloud of rows says little: a weaker one is always closer to the
    truth, and to the data. To the right, each line is an augmentation, each open marker the medians at one strength;
    the large marker is the strength of the cloud. What has one strength only, such as a model, is a marker with a
    dotted line at its distance: where it crosses the others, they are as far from the data. Distances are in standard
    deviations of the real rows, errors in their squares.

    Args:
        environments: by name, two mappings from an upsampler's name. The first has the distance to the closest real
            row (`metrics.closest_distance`) and the dynamics error (`metrics.simulate`) of the same rows, ``[N]`` each;
            rows where one of them is NaN, because they cannot be simulated, are left out. The second has the median
            distance and median error at each strength, ``[K, 2]`` in order of the strengths; K = 1 for what has none.
            A set without an entry there, such as real rows, is a cloud only.
        width: of the figure in inches, at least 5.

    Raises:
        TypeError: not such a mapping.
        ValueError: no entry or too many; arrays of different lengths, with negative values, or with none that is
            finite; environments with other sets, or in another order; medians of another shape, of no set, or not
            positive; a width below 5.
    """
    check_sets("environments", environments)
    if width < WIDE:
        raise ValueError(f"width is {width}; wanted at least {WIDE:g} inches, for panels beside each other.")
    first = list(next(iter(environments.values()))[0])
    figure = new_figure(width, 2.6 * len(environments) + 0.45)
    grid = figure.add_gridspec(
        2 * len(environments), 3, width_ratios=(4, 1, 3.4), height_ratios=(1, 4) * len(environments)
    )
    names: dict[str, Any] = {}
    for row, (environment, (results, curves)) in enumerate(environments.items()):
        if list(results) != first:
            raise ValueError(f"{environment} has the sets {list(results)}; wanted those of the first, {first}.")
        check_sets(f"results of {environment}", results)
        sets = {name: _pairs(name, pair) for name, pair in results.items()}
        names = _draw_sets(figure, grid[2 * row + 1, 0], grid[2 * row, 0], grid[2 * row + 1, 1], sets)
        top = figure.axes[-2]
        top.set_title(environment, fontsize=TEXT, loc="left", fontweight="bold")
        sweep = figure.add_subplot(grid[2 * row : 2 * row + 2, 2])
        for name, curve in curves.items():
            if name not in sets:
                raise ValueError(f"{environment} has medians of {name!r}, but no such set; its sets are {first}.")
            _draw_curve(sweep, first.index(name), _medians(name, curve), np.median(sets[name], axis=0))
        sweep.set(xscale="log", yscale="log")
        label(sweep, "median distance", "median dynamics error", "at each strength")
        # Little more than a decade wide: its powers of ten alone would be one tick.
        sweep.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        sweep.xaxis.set_major_formatter("{x:g}")
        for axis in (sweep.xaxis, sweep.yaxis):
            axis.set_minor_formatter(NullFormatter())
    legend(figure, names, 3)
    return figure


def _draw_curve(axes: Axes, index: int, curve: np.ndarray, chosen: np.ndarray) -> None:
    """Draw medians ``[K, 2]``, the one nearest to the `chosen` ones large."""
    colour, line, marker = COLOURS[index], LINES[index], MARKERS[index]
    if len(curve) == 1:
        axes.axvline(curve[0, 0], color=colour, linestyle=":", linewidth=0.9)
    else:
        axes.plot(
            curve[:, 0], curve[:, 1], color=colour, linestyle=line, linewidth=1.1,
            marker=marker, markersize=3.5, markerfacecolor="white", markeredgewidth=0.8,
        )  # fmt: skip
    nearest = np.abs(np.log(curve) - np.log(np.maximum(chosen, 1e-300))).sum(1).argmin()
    axes.plot(
        *curve[nearest], marker, color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.8, zorder=3
    )


def _draw_sets(
    figure: Figure, centre: SubplotSpec, above: SubplotSpec, beside: SubplotSpec, sets: Mapping[str, np.ndarray]
) -> dict[str, Line2D]:
    """Draw sets of points ``[N, 2]`` and their marginal densities into three places; for the legend, name -> line."""
    x_axis, y_axis = (_LogAxis.fit([points[:, axis] for points in sets.values()]) for axis in range(2))
    joint = figure.add_subplot(centre)
    top = figure.add_subplot(above, sharex=joint)
    side = figure.add_subplot(beside, sharey=joint)
    names: dict[str, Line2D] = {}
    for index, (name, points) in enumerate(sets.items()):
        colour, line, marker = COLOURS[index], LINES[index], MARKERS[index]
        x, y = x_axis.log(points[:, 0]), y_axis.log(points[:, 1])
        density = measure_density(x, y, x_axis.limits, y_axis.limits)
        levels = density.levels(0.9, 0.5)
        where = (10.0**density.x, 10.0**density.y, density.share)
        joint.contourf(*where, [levels[-1], math.inf], colors=[colour], alpha=0.3)
        joint.contour(*where, levels[:1], colors=[colour], linewidths=1.1, linestyles=[line])
        joint.plot(
            10.0 ** np.median(x), 10.0 ** np.median(y), marker, color=colour, markersize=6,
            markeredgecolor="white", markeredgewidth=0.8,
        )  # fmt: skip
        across, along = density.share.sum(0), density.share.sum(1)
        top.plot(where[0], across / across.max(), color=colour, linestyle=line, linewidth=1.1)
        side.plot(along / along.max(), where[1], color=colour, linestyle=line, linewidth=1.1)
        names[name] = Line2D([], [], color=colour, linestyle=line, linewidth=1.1, marker=marker, markersize=5)
    joint.set(xscale="log", yscale="log", xlim=x_axis.ends, ylim=y_axis.ends)
    label(joint, "distance to the closest real row", "dynamics error (squared)")
    label(top, y="density")
    label(side, "density")
    x_axis.mark(joint.xaxis)
    y_axis.mark(joint.yaxis)
    top.tick_params(which="both", labelbottom=False, bottom=False)
    side.tick_params(which="both", labelleft=False, left=False)
    top.set_yticks([])
    side.set_xticks([])
    return names


@dataclass(frozen=True)
class _LogAxis:
    """A logarithmic axis for sets of values that may hold zeros.

    Attributes:
        floor: values below are drawn here.
        high: the largest value.
        cut: there are such values.
    """

    floor: float
    high: float
    cut: bool

    @classmethod
    def fit(cls, sets: Sequence[np.ndarray]) -> _LogAxis:
        largest, high = max(float(np.median(values)) for values in sets), max(float(values.max()) for values in sets)
        if largest == 0.0:
            return cls(1e-3, max(high, 1.0), True)
        zero = _ROUNDING * largest
        lowest = min(float(values.min()) for values in sets)
        # The tails of squared errors reach down for decades in which there is nothing to see.
        low = max(zero, min(float(np.quantile(values, 0.025)) for values in sets if np.median(values) > zero))
        if lowest > 0.3 * low:
            return cls(lowest, high, False)
        # Some room, in which a set of zeros is seen to be apart.
        return cls(float(f"{0.3 * low:.0e}"), high, True)

    def log(self, values: np.ndarray) -> np.ndarray:
        return np.log10(np.maximum(values, self.floor))

    @property
    def limits(self) -> tuple[float, float]:
        """The ends of the axis as decimal logarithms."""
        low, high = math.log10(self.floor), math.log10(self.high)
        margin = 0.05 * (high - low) or 0.5
        return low - margin, high + margin

    @property
    def ends(self) -> tuple[float, float]:
        return 10.0 ** self.limits[0], 10.0 ** self.limits[1]

    def mark(self, axis: Axis) -> None:
        """Give ticks to the axis; the one at the floor says that lower values are drawn there."""
        axis.set_tick_params(which="both", labelsize=SMALL)
        if self.cut:
            decades = range(math.ceil(math.log10(2.0 * self.floor)), math.floor(math.log10(self.high)) + 1)
            factor, exponent = f"{self.floor:.0e}".split("e")
            ticks = {self.floor: rf"$\leq {factor} \cdot 10^{{{int(exponent)}}}$"}
            ticks |= {10.0**decade: f"$10^{{{decade}}}$" for decade in decades}
            axis.set_ticks(list(ticks), list(ticks.values()))
            axis.set_minor_formatter(NullFormatter())


def _pairs(name: str, pair: tuple[ArrayLike, ArrayLike]) -> np.ndarray:
    """Distances and errors as ``[N, 2]``, without the rows where one of them is not finite."""
    if len(pair) != 2:
        raise ValueError(f"results[{name!r}] has {len(pair)} entries; wanted (distances, errors).")
    distances, errors = (np.asarray(values, np.float64) for values in pair)
    if distances.ndim != 1 or distances.shape != errors.shape:
        raise ValueError(
            f"results[{name!r}] has distances of shape {distances.shape} and errors of shape {errors.shape}; "
            "wanted two arrays [N] about the same rows."
        )
    points = np.stack((distances, errors), axis=1)
    points = points[np.isfinite(points).all(1)]
    if len(points) == 0:
        raise ValueError(f"results[{name!r}] has no row whose distance and error are both finite.")
    if points.min() < 0:
        raise ValueError(f"results[{name!r}] has negative values; distances and squared errors are at least 0.")
    return points


def _medians(name: str, curve: ArrayLike) -> np.ndarray:
    """Median distances and errors by strength as ``[K, 2]``."""
    medians = np.asarray(curve, np.float64)
    if medians.ndim != 2 or medians.shape[1] != 2 or len(medians) == 0:
        raise ValueError(f"the medians of {name!r} have shape {medians.shape}; wanted [K, 2]: (distance, error).")
    if not (np.isfinite(medians).all() and medians.min() > 0):
        raise ValueError(f"the medians of {name!r} must be positive and finite, for the logarithmic axes.")
    return medians


def fidelity_cost(results: Mapping[str, Sequence[Mapping[str, float | None]]], *, width: float = PAGE) -> Figure:
    """Seconds against each fidelity figure, a line and a marker per preset.

    Args:
        results: by the preset's name, its measurements: plain dicts with ``seconds`` and any figures, for example
            ``{"seconds": 61.0, "marginal": 0.95, "auc": 0.71}``. Each figure gets a panel. None and NaN are left out.
        width: of the figure in inches.

    Raises:
        TypeError: not such a mapping.
        ValueError: no entry or too many; a measurement without positive seconds; no figures.
    """
    check_sets("results", results)
    figures: list[str] = []
    for name, measurements in results.items():
        for number, measurement in enumerate(measurements):
            seconds = measurement.get("seconds")
            if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
                raise ValueError(f"results[{name!r}][{number}] has seconds={seconds!r}; wanted a positive number.")
            figures += [key for key in measurement if key != "seconds" and key not in figures]
    if not figures:
        raise ValueError("results has no figures besides seconds; wanted at least one, such as 'marginal'.")
    lines, per_line = split(len(figures), int(width / 2.2))
    figure = new_figure(width, 1.8 * lines + 0.5)
    grid = figure.subplots(lines, per_line, squeeze=False).ravel()
    names: dict[str, Line2D] = {}
    for axes, key in zip(grid, figures, strict=False):
        for index, (name, measurements) in enumerate(results.items()):
            points = sorted(
                (measurement["seconds"], value)
                for measurement in measurements
                if (value := measurement.get(key)) is not None and math.isfinite(value)
            )
            (names[name],) = axes.plot(
                [seconds for seconds, _ in points], [value for _, value in points],
                color=COLOURS[index], linestyle=LINES[index], marker=MARKERS[index], linewidth=1.2, markersize=4.5,
            )  # fmt: skip
        axes.set_xscale("log")
        label(axes, "seconds", _FIGURES.get(key, key.replace("_", " ")))
        axes.yaxis.label.set_fontsize(SMALL)
    for axes in grid[len(figures) :]:
        axes.remove()
    figure.align_ylabels()
    legend(figure, names, 4 if width >= WIDE else 2)
    return figure


def check_sets(argument: str, sets: Mapping[str, Any]) -> None:
    """See that sets of results, by name, are few enough to be told apart.

    Raises:
        TypeError: not a mapping.
        ValueError: none, or too many.
    """
    if not isinstance(sets, Mapping):
        raise TypeError(f"{argument} is a {type(sets).__name__}; wanted a mapping from name to results.")
    if not 1 <= len(sets) <= len(COLOURS):
        raise ValueError(f"{argument} has {len(sets)} entries; wanted 1 to {len(COLOURS)}, more cannot be told apart.")
