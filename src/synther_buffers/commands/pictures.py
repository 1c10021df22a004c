"""The pictures of real against synthetic rows, as files or as bytes of PNG."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..transitions import Transitions, TransitionSpec

#: Functions of `synther_buffers.plots`, called with (real, synthetic, spec).
PICTURES = ("marginals", "correlations", "projection")


def load_plots() -> Any:
    """The module `synther_buffers.plots`.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    return importlib.import_module("synther_buffers.plots")


def draw(real: Transitions, synthetic: Transitions, spec: TransitionSpec) -> Iterator[tuple[str, Figure | str]]:
    """Every picture of `PICTURES`: its name, and the figure or why it cannot be drawn of these rows.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    plots = load_plots()
    for name in PICTURES:
        figure: Figure | str
        try:
            figure = getattr(plots, name)(real, synthetic, spec)
        except ValueError as error:  # too few columns that vary, say: the other pictures are worth having
            figure = str(error)
        yield name, figure


def png_pictures(real: Transitions, synthetic: Transitions, spec: TransitionSpec) -> dict[str, bytes | str]:
    """Every picture of `PICTURES` by its name: the bytes of a PNG, or why it cannot be drawn of these rows.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    drawn: dict[str, bytes | str] = {}
    for name, figure in draw(real, synthetic, spec):
        if isinstance(figure, str):
            drawn[name] = figure
            continue
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=150)
        drawn[name] = stream.getvalue()
    return drawn
