"""Log lines that are seen without any setting: where nobody configured logging, they go to stderr."""

from __future__ import annotations

import logging
import sys


class _Stderr(logging.StreamHandler):
    """Writes to what ``sys.stderr`` is at that time: notebooks, tests and progress bars replace it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(message)s"))

    @property
    def stream(self):  # type: ignore[no-untyped-def]
        return sys.stderr


_stderr = _Stderr()


def log_line(logger: logging.Logger, message: str, *args: object, shown: bool) -> None:
    """Log at INFO. Where nobody configured logging, Python would drop the line: if `shown`, it goes to stderr instead.

    Nobody configured logging if no handler would get the line, and no level was set for this package.
    """
    if shown and _nobody_configured(logger):
        frame = sys._getframe(1)
        _stderr.handle(
            logger.makeRecord(logger.name, logging.INFO, frame.f_code.co_filename, frame.f_lineno, message, args, None)
        )
    else:
        logger.info(message, *args, stacklevel=2)


def is_seen(logger: logging.Logger, *, shown: bool) -> bool:
    """Whether a line of `log_line` goes anywhere."""
    return (shown and _nobody_configured(logger)) or (logger.hasHandlers() and logger.isEnabledFor(logging.INFO))


def _nobody_configured(logger: logging.Logger) -> bool:
    return not logger.hasHandlers() and not _has_level(logger) and logger.manager.disable < logging.INFO


def _has_level(logger: logging.Logger | None) -> bool:
    """Whether a level above INFO was set on the logger or one of its parents but the root, whose default is WARNING."""
    while logger is not None and logger.parent is not None:
        if logger.level:
            return logger.level > logging.INFO
        logger = logger.parent
    return False
