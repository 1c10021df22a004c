"""Tables of a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence

Rows = list[list[str]]


def table(header: Sequence[str], rows: Rows) -> str:
    """Rows below a header."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
