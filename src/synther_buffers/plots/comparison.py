"""Upsamplers and presets next to each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from numpy.typing import ArrayLike

from .density import measure_density
from .style import COLOURS, LINES, MARKERS, PAGE, SMALL, WIDE, check_sets, label, legend, new_figure, split

#: A set whose median is this far below the largest one has only rounding errors, and counts as 0.
_ROUNDING = 1e-6
#: What the figures of `synther_buffers.metrics` are called on an axis, and where their best value is.
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


def distance_dynamics(results: Mapping[str, tuple[ArrayLike, ArrayLike]], *, width: float = PAGE) -> Figure:
    """Distance from the data against dynamics error, per upsampler: figure 5 of SynthER (Lu et al. 2023).

    The areas hold 50 % of an upsampler's rows, the lines 90 %; the markers are medians. Beside the axes are the
    marginal densities, each scaled to its own peak. Both axes are logarithmic; what is below their lower end, such as
    the exact zeros of resampled rows, is drawn there, and its tick says "≤".

    Args:
        results: by the upsampler's name, the distance to the closest real row (`metrics.closest_distance`) and the
            dynamics error (`metrics.simulate`) of the same rows, ``[N]`` each. Rows where one of them is NaN, because
            they cannot be simulated, are left out.
        width: of the figure in inches.

    Raises:
        TypeError: not such a mapping.
        ValueError: no entry or too many; arrays of different lengths, with negative values, or with none that is
            finite.
    """
    check_sets("results", results)
    sets = {name: _pairs(name, pair) for name, pair in results.items()}
    x_axis, y_axis = (_LogAxis.fit([points[:, axis] for points in sets.values()]) for axis in range(2))

    figure = new_figure(width, (0.72 if width >= WIDE else 1.0) * width + 0.3)
    grid = figure.add_gridspec(2, 2, width_ratios=(4, 1), height_ratios=(1, 4))
    joint = figure.add_subplot(grid[1, 0])
    top = figure.add_subplot(grid[0, 0], sharex=joint)
    side = figure.add_subplot(grid[1, 1], sharey=joint)
    names: dict[str, Any] = {}
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
    label(joint, "distance to the closest real row (standard deviations)", "dynamics error (squared, standardised)")
    label(top, y="density")
    label(side, "density")
    x_axis.mark(joint.xaxis)
    y_axis.mark(joint.yaxis)
    top.tick_params(which="both", labelbottom=False, bottom=False)
    side.tick_params(which="both", labelleft=False, left=False)
    top.set_yticks([])
    side.set_xticks([])
    legend(figure, names, 4 if width >= WIDE else 2)
    return figure


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
