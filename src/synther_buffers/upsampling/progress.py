"""Progress bars of training and sampling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class _Bar(tqdm):  # type: ignore[misc]  # tqdm ships no types
    #: Otherwise tqdm starts a monitor thread for the whole process.
    monitor_interval = 0


class Bar:
    """A progress bar, or nothing."""

    def __init__(self, bar: _Bar | None) -> None:
        self._bar = bar

    def update_to(self, done: int, **figures: str) -> None:
        """Show that `done` of the total is done, with some figures beside it."""
        if self._bar is not None:
            if figures:
                self._bar.set_postfix(figures, refresh=False)
            self._bar.update(done - self._bar.n)


@contextmanager
def progress(what: str, total: int, *, shown: bool) -> Iterator[Bar]:
    """A bar on terminals; one that does nothing elsewhere, or if not `shown`."""
    if not shown:
        yield Bar(None)
        return
    options: dict[str, Any] = {"desc": f"synther: {what}", "total": total, "leave": False, "unit_scale": True}
    with _Bar(disable=None, **options) as bar:
        yield Bar(bar)
