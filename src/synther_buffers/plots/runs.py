"""The refreshes of an online run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..replay.reports import RefreshReport
from .style import COLOURS, PAGE, WIDE, label, legend, new_figure

Source = str | Path | Sequence[RefreshReport] | Sequence[Mapping[str, Any]]


def refreshes(source: Source, *, width: float = PAGE) -> Figure:
    """Loss and fidelity over the refreshes of a run, against the number of real transitions.

    Filled markers are refreshes that continued from the last model, open ones those that started from scratch. The thin
    lines without markers are the similarity of real rows to real rows, the best value to be expected. The loss has the
    whole scale from 0 to that of an untrained model, 1: it may rise while the data become more varied, and that is no
    failure. The titles say where both ended.

    Args:
        source: the refresh log (a JSON line per refresh), or its reports: `SyntheticReplay.reports`, or its lines.
            If several runs were appended to a log, each of them is shown.
        width: of the figure in inches; below 5, the panels are below each other.

    Raises:
        ValueError: no refresh, or a line that is not one of a refresh log. A last line that was cut off is left out.
        OSError: the log cannot be read.
    """
    lines = _read(source)
    steps = _series(lines, "num_observed")
    warm = [bool(_lookup(line, "fit.warm")) for line in lines]
    # Where the count decreases another run begins; no line connects the two.
    breaks = np.flatnonzero(np.diff(steps) < 0) + 1
    side_by_side = width >= WIDE
    figure = new_figure(width, 2.4 if side_by_side else 4.2)
    loss, similarity = figure.subplots(1, 2) if side_by_side else figure.subplots(2, 1, sharex=True)

    def draw(axes: Axes, key: str, style: int, marker: str, line: Any = "-", thickness: float = 1.2) -> Line2D:
        values = _series(lines, key)
        x, y = np.insert(steps, breaks, math.nan), np.insert(values, breaks, math.nan)
        (artist,) = axes.plot(x, y, color=COLOURS[style], linestyle=line, linewidth=thickness)
        artist.set_gid(key)
        if marker:
            for filled in (True, False):
                face = COLOURS[style] if filled else "white"
                chosen = np.array([flag is filled for flag in warm])
                axes.plot(
                    steps[chosen], values[chosen], marker, markersize=4, color=COLOURS[style], markerfacecolor=face
                )
        return Line2D([], [], color=COLOURS[style], linestyle=line, linewidth=thickness, marker=marker, markersize=4)

    below: dict[str, Any] = {
        "training loss": draw(loss, "fit.loss", 0, "o"),
        "held-out loss": draw(loss, "fit.held_out_loss", 1, "s", "--"),
        "marginal": draw(similarity, "fidelity.marginal", 2, "^"),
        "of real rows": draw(similarity, "fidelity_real.marginal", 2, "", "-", 0.7),
        "correlation": draw(similarity, "fidelity.correlation", 3, "D", "--"),
        "of real rows ": draw(similarity, "fidelity_real.correlation", 3, "", "--", 0.7),
    }
    loss.axhline(1.0, color="0.6", linewidth=0.8, zorder=0)
    loss.set_ylim(0.0, max(1.08, 1.05 * loss.dataLim.ymax))
    label(loss, "real transitions" if side_by_side else "", "loss (1: untrained)", _loss_in_words(lines[-1]))
    label(similarity, "real transitions", "similarity (1: equal)", _similarity_in_words(lines[-1]))
    for axes in (loss, similarity):
        axes.locator_params(axis="x", nbins=5)
    legend(figure, below, 3 if side_by_side else 2)
    return figure


def _loss_in_words(last: Mapping[str, Any]) -> str:
    held_out, learned = (_lookup(last, f"fit.{name}") for name in ("held_out_loss", "loss"))
    if held_out is None or not math.isfinite(held_out):
        return "no rows were held out"
    versus = "" if learned is None or not math.isfinite(learned) else f" ({learned:.2f} on learned ones)"
    return f"loss on new rows ends at {held_out:.2f}{versus}"


def _similarity_in_words(last: Mapping[str, Any]) -> str:
    found, best = (_lookup(last, f"{name}.marginal") for name in ("fidelity", "fidelity_real"))
    if found is None or best is None or not math.isfinite(found):
        return "too few rows were held out to compare with"
    return f"columns end {found:.0%} alike (real rows: {best:.0%})"


def _read(source: Source) -> list[Mapping[str, Any]]:
    if isinstance(source, str | Path):
        lines = list(_parse(Path(source)))
    elif isinstance(source, Iterable):
        lines = [asdict(report) if isinstance(report, RefreshReport) else report for report in source]
    else:
        raise TypeError(f"source is a {type(source).__name__}; wanted the path of a refresh log, or reports.")
    if not lines:
        raise ValueError(f"{source if isinstance(source, str | Path) else 'source'} holds no refresh yet.")
    for number, line in enumerate(lines, 1):
        if not isinstance(line, Mapping) or not {"num_observed", "fit", "fidelity", "fidelity_real"} <= line.keys():
            raise ValueError(
                f"entry {number} of {source if isinstance(source, str | Path) else 'source'} is no report of a "
                "refresh; wanted the lines that SyntheticReplay writes to its refresh_log."
            )
    return lines


def _parse(path: Path) -> Iterable[Mapping[str, Any]]:
    texts = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, text in enumerate(texts, 1):
        try:
            if text.strip():
                yield json.loads(text)
        except ValueError as error:
            if number == len(texts) and not text.endswith("\n"):
                return  # the run was killed, or is writing at this moment
            raise ValueError(f"line {number} of {path} is not JSON ({error}); wanted a refresh log.") from error


def _series(lines: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """One figure of every refresh; NaN where the log has null."""
    values = [_lookup(line, key) for line in lines]
    return np.array([math.nan if value is None else float(value) for value in values])


def _lookup(line: Mapping[str, Any], key: str) -> Any:
    value: Any = line
    for part in key.split("."):
        value = value.get(part)
    return value
