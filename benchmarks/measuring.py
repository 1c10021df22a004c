"""What the benchmarks share: the machine's description, alternating timings, and writing results."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "cpu": model,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def alternate(first: Callable[[], Any], second: Callable[[], Any], repeats: int, rounds: int) -> tuple[float, float]:
    """Median seconds of one call of each, measured in turn so that a drifting machine hits both alike."""
    times: tuple[list[float], list[float]] = ([], [])
    for function in (first, second):
        function()
    for _ in range(rounds):
        for function, seconds in zip((first, second), times, strict=True):
            start = time.perf_counter()
            for _ in range(repeats):
                function()
            seconds.append((time.perf_counter() - start) / repeats)
    return median(times[0]), median(times[1])


def write(name: str, results: dict[str, Any], out: str | None) -> None:
    """Write results as JSON, to `out` or under the results folder, and say where."""
    path = Path(out) if out else RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n")
    print(f"\nwritten to {path}")
