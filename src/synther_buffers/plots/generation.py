"""How noise becomes rows: a strip of panels, or an animation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..upsampling.diffusion_upsampler import DiffusionUpsampler
from .style import COLOURS, COLUMN, MARKERS, PAGE, SMALL, SYNTHETIC, TEXT, label, new_figure

#: Rows that have a marker of their own in all panels.
_FOLLOWED = 4
#: Largest number of frames of an animation; of longer schedules, levels are left out.
_MAX_FRAMES = 48
_LAST_FRAME_SECONDS = 2.0


def generation_strip(
    upsampler: DiffusionUpsampler,
    *,
    columns: Sequence[str] | None = None,
    num_samples: int = 1_000,
    num_panels: int | None = None,
    width: float = PAGE,
) -> Figure:
    """Noise becoming transitions: two columns at falling noise levels sigma, with four rows marked in all panels.

    Columns are normalised, as the model uses them, and divided by ``sqrt(1 + (sigma / sigma_data)^2)``: at every level
    the rows then have about unit variance, so that all panels have the same scale. The last panel shows the rows.

    Args:
        upsampler: a fitted one. Its later samples do not depend on this call.
        columns: two names like ``("observation[0]", "reward")``; those of the next observation show the change from
            the observation, if the model is configured so. None for the first two continuous columns that vary.
        num_samples: rows that are generated.
        num_panels: noise levels, evenly spaced in the schedule; None for as many as fit the width.
        width: of the figure in inches.

    Raises:
        TypeError: an upsampler that does not generate from noise.
        RuntimeError: it has not been fitted.
        ValueError: unknown columns, or not two.
    """
    panels = max(3, int(width / 1.35)) if num_panels is None else num_panels
    if panels < 2:
        raise ValueError(f"num_panels is {num_panels}; it must be at least 2, the noise and the rows.")
    course = _Course.follow(upsampler, columns, num_samples)
    chosen = course.spaced(panels)
    figure = new_figure(width, width / len(chosen) + 0.4)
    for axes, index in zip(figure.subplots(1, len(chosen), sharex=True, sharey=True), chosen, strict=True):
        _Cloud(axes, course).show(index)
        label(axes, title=course.title(index))
        axes.set_box_aspect(1)
    figure.supxlabel(course.label(0), fontsize=TEXT)
    figure.supylabel(course.label(1), fontsize=SMALL)
    return figure


def generation_animation(
    upsampler: DiffusionUpsampler,
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    num_samples: int = 1_000,
    frames_per_second: int = 8,
    width: float = COLUMN,
    dpi: int = 150,
) -> Path:
    """The same as `generation_strip` as a GIF, a frame per noise level; the last frame stays for two seconds.

    Args:
        upsampler: as in `generation_strip`.
        path: of the file, ending in ``.gif``.
        columns: as in `generation_strip`.
        num_samples: as in `generation_strip`.
        frames_per_second: speed; schedules of more than 48 levels are reduced to 48 frames.
        width: of the picture in inches.
        dpi: pixels per inch.

    Returns:
        The path.

    Raises:
        TypeError, RuntimeError, ValueError: as `generation_strip`; or the path has another ending.
    """
    path = Path(path)
    if path.suffix.lower() != ".gif":
        raise ValueError(f"path is {path}; wanted a name that ends in .gif, because an animation is written as a GIF.")
    if frames_per_second < 1:
        raise ValueError(f"frames_per_second is {frames_per_second}; it must be at least 1.")
    course = _Course.follow(upsampler, columns, num_samples)
    figure = new_figure(width, width + 0.1)
    axes = figure.subplots()
    cloud = _Cloud(axes, course)
    cloud.show(0)
    label(axes, course.label(0), course.label(1), course.title(0))
    axes.set_box_aspect(1)
    # Laid out once: otherwise the axes would move with the width of the title.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    writer = PillowWriter(fps=frames_per_second)
    with writer.saving(figure, str(path), dpi):
        for index in course.spaced(_MAX_FRAMES):
            cloud.show(index)
            axes.title.set_text(course.title(index))
            writer.grab_frame()
        for _ in range(round(_LAST_FRAME_SECONDS * frames_per_second)):
            writer.grab_frame()
    return path


@dataclass(frozen=True)
class _Course:
    """Two columns of a generation, from noise to rows.

    Attributes:
        names: of the columns.
        sigmas: noise levels, the last one 0.
        points: ``[levels, N, 2]``, each level scaled to about unit variance.
        limits: of both axes.
    """

    names: tuple[str, str]
    sigmas: list[float]
    points: np.ndarray
    limits: tuple[tuple[float, float], tuple[float, float]]

    @classmethod
    def follow(cls, upsampler: DiffusionUpsampler, columns: Sequence[str] | None, num_samples: int) -> _Course:
        if not isinstance(upsampler, DiffusionUpsampler):
            raise TypeError(
                f"upsampler is a {type(upsampler).__name__}, which does not generate rows from noise; "
                "wanted a fitted DiffusionUpsampler."
            )
        states = upsampler.denoising_path(num_samples)
        names = matrix_columns(upsampler)
        if columns is None:
            index = _first_two(upsampler, names)
        else:
            if isinstance(columns, str) or len(columns) != 2:
                raise ValueError(f"columns is {columns!r}; wanted the names of two.")
            for name in columns:
                if name not in names:
                    raise ValueError(f"unknown column {name!r}; known columns: {', '.join(names)}.")
            index = [names.index(name) for name in columns]
        sigmas = [sigma for sigma, _ in states]
        data = upsampler.settings.sigma_data
        points = np.stack([x[:, index].cpu().numpy() / math.sqrt(1 + (sigma / data) ** 2) for sigma, x in states])
        low, high = np.quantile(points.reshape(-1, 2), [0.001, 0.999], axis=0)
        margin = 0.05 * (high - low)
        limits = tuple(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))
        return cls((names[index[0]], names[index[1]]), sigmas, points, (limits[0], limits[1]))

    def spaced(self, count: int) -> list[int]:
        """At most `count` levels, evenly spaced in the schedule, with the first and the last."""
        last = len(self.sigmas) - 1
        return np.unique(np.linspace(0, last, min(count, last + 1)).round().astype(int)).tolist()

    def title(self, level: int) -> str:
        sigma = self.sigmas[level]
        return r"rows ($\sigma = 0$)" if sigma == 0 else rf"$\sigma = {float(f'{sigma:.2g}'):g}$"

    def label(self, column: int) -> str:
        return f"{self.names[column]} (normalised)"


class _Cloud:
    """The points of one panel; `show` moves them to a noise level."""

    def __init__(self, axes: Axes, course: _Course) -> None:
        self._course = course
        self._rest: PathCollection = axes.scatter([], [], s=2.5, color=SYNTHETIC, alpha=0.35, linewidths=0)
        self._rest.set_rasterized(True)
        self._followed: list[Line2D] = [
            axes.plot([], [], marker, color=colour, markersize=4.5, markeredgecolor="black", markeredgewidth=0.7)[0]
            for marker, colour in zip(MARKERS[:_FOLLOWED], COLOURS[1 : 1 + _FOLLOWED], strict=True)
        ]
        axes.set(xlim=course.limits[0], ylim=course.limits[1])

    def show(self, level: int) -> None:
        points = self._course.points[level]
        self._rest.set_offsets(points)
        for line, point in zip(self._followed, points, strict=False):
            line.set_data(point[:1], point[1:])


def matrix_columns(upsampler: DiffusionUpsampler) -> list[str]:
    """Names of the columns of `DiffusionUpsampler.denoising_path`."""
    names: list[str] = []
    for field in upsampler.spec.fields:
        if field.name == "terminated" and not upsampler.settings.model_terminals:
            continue
        if field.kind == "categorical":
            for element, start, count in zip(field.elements, field.start, field.num_categories, strict=True):
                names += [f"{element}={value}" for value in field.values or range(start, start + count)]
        else:
            names += field.elements
    return names


def _first_two(upsampler: DiffusionUpsampler, names: list[str]) -> list[int]:
    """The first two columns of continuous fields that vary; other columns if there are fewer than two."""
    scale = upsampler.state_dict()["model"]["codec"]["normalizer"]["scale"]  # 0 where a column is constant
    continuous = {field.name for field in upsampler.spec.fields if field.kind == "continuous"}
    varying = [
        index for index, name in enumerate(names) if name.split("[")[0] in continuous and float(scale[index]) > 0
    ]
    return [*varying, *(index for index in range(len(names)) if index not in varying)][:2]
