"""The results file: one JSON line a run, appended as it comes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """The whole lines of a file, none if there is no file.

    Raises:
        ValueError: a line before the last that is no JSON.
    """
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    # A run that was cut off while it wrote leaves a last line without its end.
    found = []
    for number, text in enumerate(lines[:-1], 1):
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}, is no JSON ({error}); take it out.") from error
    return found


def repair(path: Path) -> None:
    """Take a torn last line off a file, so that the next one does not join it."""
    if path.exists():
        whole = path.read_bytes()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            with path.open("r+b") as file:
                file.truncate(end)


def append(path: Path, line: Line) -> None:
    """Add a line, and see it on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def first_of_each(lines: Sequence[Line]) -> list[Line]:
    """The first line of each run."""
    runs: dict[tuple[str, str, int, str], Line] = {}
    for line in lines:
        runs.setdefault((line["task"], line["arm"], line["seed"], line["agent"]), line)
    return list(runs.values())


def runs_of(lines: Sequence[Line], task: str, arm: str, agent: str = "sbx") -> list[Line]:
    """The lines of one task, arm and agent."""
    return [line for line in lines if (line["task"], line["arm"], line["agent"]) == (task, arm, agent)]
