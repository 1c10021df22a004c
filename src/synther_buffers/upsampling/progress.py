"""Progress of training and sampling: a bar on terminals and in notebooks, a line now and then elsewhere."""

from __future__ import annotations

import functools
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ..console import log_line

logger = logging.getLogger(__name__)

#: Seconds between two lines where no bar can be drawn, as in a file or a pipe.
SECONDS_BETWEEN_LINES = 30.0


class Progress(Protocol):
    """Shows how far a task has come."""

    def update_to(self, done: int, **figures: str) -> None:
        """Show that `done` of the total is done, with some figures beside it."""
        ...


class _Nothing:
    def update_to(self, done: int, **figures: str) -> None:
        pass


class _Bar:
    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def update_to(self, done: int, **figures: str) -> None:
        if figures:
            self._bar.set_postfix(figures, refresh=False)
        self._bar.update(done - self._bar.n)


class _Lines:
    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._start = self._last = time.monotonic()

    def update_to(self, done: int, **figures: str) -> None:
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES or not 0 < done < self._total:
            return
        self._last = now
        shown = "".join(f", {name} {figure}" for name, figure in figures.items())
        remaining = (now - self._start) * (self._total - done) / done
        log_line(
            logger, "synther: %s: %s of %s%s, at most %.0f s to go",
            self._what, f"{done:,}", f"{self._total:,}", shown, remaining, shown=True,
        )  # fmt: skip


@contextmanager
def progress(what: str, total: int, *, shown: bool) -> Iterator[Progress]:
    """Progress of a task of `total` steps or rows; nothing is shown if not `shown`."""
    if not shown:
        yield _Nothing()
        return
    bars = _bars()
    if bars is None:
        yield _Lines(what, total)
        return
    with bars(desc=f"synther: {what}", total=total, leave=False, unit_scale=True) as bar:
        yield _Bar(bar)


def _bars() -> Any:
    """The class of the bars for where stderr goes now; None where a bar would print a line at each update.

    These are files and pipes, and terminals on which rich draws a live display (Stable-Baselines3's progress bar):
    rich takes stderr over and prints all that is written to it above its display.
    """
    in_notebook, bars = _bar_class()
    if in_notebook:
        return bars
    stderr = sys.stderr
    rich_draws = type(stderr).__module__.partition(".")[0] == "rich"
    return bars if not rich_draws and hasattr(stderr, "isatty") and stderr.isatty() else None


@functools.cache
def _bar_class() -> tuple[bool, Any]:
    """Whether this is a notebook that can show widgets, and tqdm's class for it or for a terminal."""
    with warnings.catch_warnings():
        # In a notebook without ipywidgets, tqdm warns and takes its terminal bar.
        warnings.simplefilter("ignore")
        import tqdm.auto
        import tqdm.autonotebook
        import tqdm.std

    class Bar(tqdm.auto.tqdm):  # type: ignore[misc]  # tqdm ships no types
        #: Otherwise tqdm starts a monitor thread for the whole process.
        monitor_interval = 0

    return tqdm.autonotebook.tqdm is not tqdm.std.tqdm, Bar
