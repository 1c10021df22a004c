"""Common style of the figures: sizes, colours, line styles, and axes that are readable at paper width."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: matplotlib's layout engines; ``compressed`` keeps axes of a fixed aspect together.
Layout = Literal["constrained", "compressed"]
#: Widths in inches of one column and of the whole text in two-column papers.
COLUMN, PAGE = 3.3, 6.9
#: Narrower than this, panels go below each other instead of beside each other.
WIDE = 5.0
#: Points.
TEXT, SMALL = 8, 7

#: Okabe and Ito's palette with a wine red in place of the yellow, which is hard to see on white paper; each colour has
#: its own line style and marker, for greyscale.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)), (0, (5, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
#: Real rows are grey areas, synthetic rows lines or points in colour.
REAL, SYNTHETIC = "0.72", COLOURS[0]


def new_figure(width: float, height: float, layout: Layout = "constrained") -> Figure:
    """A figure made without pyplot, which would keep a reference to it and select a backend.

    Raises:
        ValueError: a width out of range.
    """
    if not 2.0 <= width <= 50.0:
        raise ValueError(f"width is {width}; wanted inches, from 2 to 50 (a column has {COLUMN}, a page {PAGE}).")
    return Figure(figsize=(width, height), dpi=200, layout=layout)


def label(axes: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """Label axes in sizes for paper, and hide the upper and right spines."""
    axes.set_xlabel(x, fontsize=TEXT)
    axes.set_ylabel(y, fontsize=TEXT)
    axes.set_title(title, fontsize=TEXT)
    axes.tick_params(labelsize=SMALL, width=0.6, length=2.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_linewidth(0.6)


def split(count: int, most: int) -> tuple[int, int]:
    """Lines, and entries per line, that spread `count` entries evenly with at most `most` in a line."""
    lines = math.ceil(count / max(1, most))
    return lines, math.ceil(count / lines)


def legend(figure: Figure, entries: Mapping[str, Any], most: int) -> None:
    """One legend for all axes, above them, with at most `most` entries in a line: name -> artist."""
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside upper center",
        ncols=split(len(entries), most)[1],
        fontsize=SMALL,
        frameon=False,
        handlelength=4.0,  # long enough to tell the line styles
    )
