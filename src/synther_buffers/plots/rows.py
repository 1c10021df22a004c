"""Real against synthetic rows: marginals, correlations, a projection to two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..evaluation.fidelity import ks_complement
from ..evaluation.points import Units, check_rows, columns, thin
from ..transitions import Transitions, TransitionSpec
from .density import measure_density
from .style import PAGE, REAL, SMALL, SYNTHETIC, TEXT, WIDE, label, legend, new_figure, split

#: Largest number of rows of each set.
MAX_ROWS = 50_000
#: The same for a projection, where categories take a column each.
MAX_PROJECTED = 10_000
#: A column with at most this many distinct values is drawn as bars.
_FEW_VALUES = 16
#: Up to this many correlated columns are labelled one by one; of more columns, only the fields are labelled.
_NAMED_COLUMNS = 12


def marginals(
    real: Transitions,
    synthetic: Transitions,
    spec: TransitionSpec,
    *,
    columns: Sequence[str] | None = None,
    num_columns: int = 8,
    width: float = PAGE,
) -> Figure:
    """Histograms of real and synthetic columns, the least similar first.

    An element of the observation and the same element of the next observation have almost the same distribution, so
    without `columns` only the less similar of the two is drawn.

    The similarity over each panel is that of `synther_buffers.evaluation.fidelity`: one minus the Kolmogorov-Smirnov
    statistic, or the total variation distance of a binary or categorical column. Continuous columns are drawn from the
    0.1 % to the 99.9 % quantile of both sets together. At most 50,000 rows of each set are used.

    Args:
        real: rows, preferably ones that the model was not trained on.
        synthetic: rows to evaluate.
        spec: the fields of both.
        columns: names like ``reward`` or ``observation[3]``, to draw these in this order.
        num_columns: number of columns to draw without `columns`.
        width: of the figure in inches.

    Raises:
        ValueError: rows that do not match the spec, are not finite, or none; an unknown column.
    """
    if num_columns < 1:
        raise ValueError(f"num_columns is {num_columns}; it must be at least 1.")
    sides = _Sides.read(real, synthetic, spec)
    similarity = sides.similarity()
    if columns is None:
        chosen = sides.worst(similarity, num_columns)
    else:
        chosen = [sides.index(name) for name in columns]
        if not chosen:
            raise ValueError("columns is empty; name at least one, or leave it out for the least similar.")
    lines, per_line = split(len(chosen), int(width / 1.6))
    figure = new_figure(width, 1.35 * lines + 0.55)
    grid = figure.subplots(lines, per_line, squeeze=False).ravel()
    for axes, column in zip(grid, chosen, strict=False):
        drawn = _marginal(axes, sides.real[:, column], sides.synthetic[:, column])
        label(axes, title=f"{sides.names[column]}\nsimilarity {similarity[column]:.2f}")
        axes.title.set_fontsize(SMALL)
        axes.set_yticks([])
    for axes in grid[len(chosen) :]:
        axes.remove()
    figure.supxlabel("value (units of the environment)", fontsize=TEXT)
    bars = any(axes.containers for axes in grid)
    figure.supylabel("density (bars: share)" if bars else "density", fontsize=TEXT)
    legend(figure, drawn, 2)
    return figure


def correlations(real: Transitions, synthetic: Transitions, spec: TransitionSpec, *, width: float = PAGE) -> Figure:
    """Pearson's correlations of real and of synthetic columns, and how far they differ.

    They use the continuous columns that vary in both sets, and at most 50,000 rows of each set. The shade of the
    correlations runs from dark (-1) to bright (1), so that their sign is visible in greyscale.

    Args:
        real: rows, preferably ones that the model was not trained on.
        synthetic: rows to evaluate.
        spec: the fields of both.
        width: of the figure in inches; the matrices are below each other where it is less than 5.

    Raises:
        ValueError: rows that do not match the spec, are not finite, or none; fewer than two columns take part.
    """
    sides = _Sides.read(real, synthetic, spec)
    varies = ~sides.discrete & (np.ptp(sides.real, axis=0) > 0) & (np.ptp(sides.synthetic, axis=0) > 0)
    if varies.sum() < 2:
        raise ValueError(f"{int(varies.sum())} continuous columns vary in both sets; correlations need at least 2.")
    left, right = (np.corrcoef(rows[:, varies], rowvar=False) for rows in (sides.real, sides.synthetic))
    difference = np.abs(left - right)
    names = [name for name, used in zip(sides.names, varies, strict=True) if used]
    side_by_side = width >= WIDE
    # Below each other, the matrices are as wide as the names leave room for.
    stacked = (1.7 if len(names) <= _NAMED_COLUMNS else 2.05) * width
    figure = new_figure(width, 0.3 * width + 0.7 if side_by_side else stacked, "compressed")
    panels = figure.subplots(1, 3) if side_by_side else figure.subplots(3, 1)
    scale = {"cmap": "cividis", "vmin": -1.0, "vmax": 1.0, "interpolation": "nearest"}
    # A difference of rounding size should not fill the scale.
    far = {"cmap": "Greys", "vmin": 0.0, "vmax": max(0.1, float(difference.max())), "interpolation": "nearest"}
    images = []
    for axes, matrix, title, how in zip(
        panels,
        (left, right, difference),
        ("real", "synthetic", "difference"),
        (scale, scale, far),
        strict=True,
    ):
        images.append(axes.imshow(matrix, **how))
        label(axes, title=title)
        axes.spines[:].set_visible(False)
        _name_columns(axes, names, with_rows=axes is panels[0] or not side_by_side)
        _mark_fields(axes, names, "0.6" if title == "difference" else "white")
    place: dict[str, Any] = {"location": "bottom"} if side_by_side else {"location": "right"}
    for image, axes, text in (
        (images[0], list(panels[:2]), "correlation"),
        (images[2], panels[2], "absolute difference"),
    ):
        bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=24, **place)
        bar.set_label(text, fontsize=TEXT)
        bar.ax.tick_params(labelsize=SMALL, width=0.6, length=2.5)
        bar.outline.set_linewidth(0.6)
        bar.ax.locator_params(nbins=4)
    return figure


def projection(
    real: Transitions,
    synthetic: Transitions,
    spec: TransitionSpec,
    *,
    num_points: int = 1_500,
    seed: int = 0,
    width: float = PAGE,
) -> Figure:
    """Both sets on the first two principal components of the standardised real rows.

    The components are those of the real rows only, so synthetic rows that lie elsewhere are visible. The lines, the
    same in both panels, enclose 50 % and 90 % of the real rows. At most 10,000 rows of each set are used.

    Args:
        real: rows, preferably ones that the model was not trained on.
        synthetic: rows to evaluate.
        spec: the fields of both.
        num_points: rows of each set that are drawn as points.
        seed: of the choice of the points.
        width: of the figure in inches.

    Raises:
        ValueError: rows that do not match the spec or are not finite, fewer than two real rows or no synthetic one, or
            real rows that are all equal.
    """
    if num_points < 1:
        raise ValueError(f"num_points is {num_points}; it must be at least 1.")
    check_rows(spec, 2, real=real)
    check_rows(spec, 1, synthetic=synthetic)
    few_real, few_synthetic = thin(real, MAX_PROJECTED, 0), thin(synthetic, MAX_PROJECTED, 1)
    units = Units.measure(few_real, spec)
    points = units.points(few_real)
    centre = points.mean(0)
    _, singular, directions = torch.linalg.svd(points - centre, full_matrices=False)
    if float(singular[0]) == 0.0:
        raise ValueError("real has rows that are all the same; there is nothing to project on.")
    axes_of = directions[:2]
    # The sign of a component is arbitrary: its largest entry is positive.
    axes_of = axes_of * axes_of.gather(1, axes_of.abs().argmax(1, keepdim=True)).sign()
    variance = (singular.square() / singular.square().sum()).tolist()
    left = ((points - centre) @ axes_of.T).numpy()
    right = ((units.points(few_synthetic) - centre) @ axes_of.T).numpy()
    limits = [_limits(np.concatenate((left[:, axis], right[:, axis]))) for axis in range(2)]
    contours = measure_density(left[:, 0], left[:, 1], limits[0], limits[1])

    figure = new_figure(width, 0.5 * width + 0.65)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    shades = {"real": "0.45", "synthetic": SYNTHETIC}
    for index, (axes, (name, colour), coordinates) in enumerate(
        zip(panels, shades.items(), (left, right), strict=True)
    ):
        shown = np.random.default_rng([seed, index]).permutation(len(coordinates))[:num_points]
        axes.scatter(
            coordinates[shown, 0], coordinates[shown, 1], s=3 if width >= WIDE else 1.5, color=colour, alpha=0.45,
            linewidths=0, rasterized=True,
        )  # fmt: skip
        axes.contour(
            contours.x, contours.y, contours.share, contours.levels(0.9, 0.5),
            colors="black", linewidths=0.8, linestyles=["--", "-"],
        )  # fmt: skip
        axes.set(xlim=limits[0], ylim=limits[1])
        label(axes, title=name)
    figure.supxlabel(_component(1, variance), fontsize=TEXT)
    figure.supylabel(_component(2, variance), fontsize=TEXT)
    held = {
        "50 % of the real rows": Line2D([], [], color="black", linewidth=0.8, linestyle="-"),
        "90 % of the real rows": Line2D([], [], color="black", linewidth=0.8, linestyle="--"),
    }
    legend(figure, held, 2)
    return figure


@dataclass(frozen=True)
class _Sides:
    """Both sets as float64 matrices ``[N, C]``, with the names of the columns and which of them are discrete."""

    names: list[str]
    discrete: np.ndarray
    real: np.ndarray
    synthetic: np.ndarray

    @classmethod
    def read(cls, real: Transitions, synthetic: Transitions, spec: TransitionSpec) -> _Sides:
        check_rows(spec, 1, real=real, synthetic=synthetic)
        names: list[str] = []
        discrete: list[bool] = []
        for field in spec.fields:
            names += field.elements
            discrete += [field.kind != "continuous"] * field.size
        left, right = (columns(thin(rows, MAX_ROWS, seed), spec).numpy() for seed, rows in enumerate((real, synthetic)))
        return cls(names, np.array(discrete), left, right)

    def index(self, name: str) -> int:
        if name not in self.names:
            raise ValueError(f"unknown column {name!r}; known columns: {', '.join(self.names)}.")
        return self.names.index(name)

    def worst(self, similarity: np.ndarray, count: int) -> list[int]:
        """The least similar columns; of an element's observation and next observation only the less similar one."""
        chosen: dict[str, int] = {}
        for column in np.argsort(similarity, kind="stable").tolist():
            chosen.setdefault(self.names[column].removeprefix("next_"), column)
        return list(chosen.values())[:count]

    def similarity(self) -> np.ndarray:
        """Of each column, in [0, 1], as in `measure_fidelity`."""
        similarity = ks_complement(torch.from_numpy(self.real), torch.from_numpy(self.synthetic)).numpy()
        for column in np.flatnonzero(self.discrete):
            _, left, right = _shares(self.real[:, column], self.synthetic[:, column])
            similarity[column] = 1.0 - 0.5 * np.abs(left - right).sum()
        return similarity


def _shares(real: np.ndarray, synthetic: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct values of both sides, ascending, and the share of each value in each side."""
    values, index = np.unique(np.concatenate((real, synthetic)), return_inverse=True)
    left, right = (np.bincount(part, minlength=len(values)) for part in np.split(index.reshape(-1), [len(real)]))
    return values, left / len(real), right / len(synthetic)


def _marginal(axes: Axes, real: np.ndarray, synthetic: np.ndarray) -> dict[str, Any]:
    """Draw one column; as bars if it has few values."""
    values, left, right = _shares(real, synthetic)
    if len(values) <= _FEW_VALUES:
        place = np.arange(len(values))
        drawn = {
            "real": axes.bar(place - 0.2, left, 0.4, color=REAL, edgecolor="0.3", linewidth=0.6),
            "synthetic": axes.bar(
                place + 0.2, right, 0.4, facecolor="white", edgecolor=SYNTHETIC, linewidth=0.9, hatch="////"
            ),
        }
        named = np.unique(np.linspace(0, len(values) - 1, min(len(values), 5)).round().astype(int))
        axes.set_xticks(place[named], [f"{values[place]:.4g}" for place in named])
        axes.set_xlim(-0.8, len(values) - 0.2)
        return drawn
    low, high = np.quantile(np.concatenate((real, synthetic)), [0.001, 0.999])
    edges = np.linspace(low, high, 41) if low < high else np.linspace(values[0], values[-1], 41)
    heights = [np.histogram(side, edges, density=True)[0] for side in (real, synthetic)]
    return {
        "real": axes.stairs(heights[0], edges, fill=True, color=REAL),
        "synthetic": axes.stairs(heights[1], edges, color=SYNTHETIC, linewidth=1.1),
    }


def _fields_of(names: list[str]) -> list[tuple[str, int, int]]:
    """Neighbouring columns of one field: its name, the first column and the one after the last."""
    fields: list[tuple[str, int, int]] = []
    for index, name in enumerate(names):
        field = name.split("[")[0]
        if fields and fields[-1][0] == field:
            fields[-1] = (field, fields[-1][1], index + 1)
        else:
            fields.append((field, index, index + 1))
    return fields


def _name_columns(axes: Axes, names: list[str], with_rows: bool) -> None:
    """Name the rows of a symmetric matrix; its columns are the same."""
    if len(names) <= _NAMED_COLUMNS:
        places, texts = list(np.arange(len(names), dtype=float)), names
    else:
        fields = _fields_of(names)
        places = [0.5 * (start + stop - 1) for _, start, stop in fields]
        texts = [name.replace("next_", "next\n") for name, _, _ in fields]
    axes.set_xticks([])
    axes.set_yticks(places, texts if with_rows else [""] * len(texts))
    axes.tick_params(length=0)


def _mark_fields(axes: Axes, names: list[str], colour: str) -> None:
    """Lines between the columns of different fields."""
    for _, start, _ in _fields_of(names)[1:]:
        axes.axhline(start - 0.5, color=colour, linewidth=0.6)
        axes.axvline(start - 0.5, color=colour, linewidth=0.6)


def _limits(values: np.ndarray) -> tuple[float, float]:
    """The range of nearly all values, with a margin."""
    low, high = np.quantile(values, [0.001, 0.999])
    margin = 0.05 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _component(number: int, variance: list[float]) -> str:
    return f"component {number} ({100 * variance[number - 1]:.0f} % of variance)"
