"""One training of a user's script, in a process of its own: ``python -m synther_buffers.training_process``.

Arguments: script, function, seed, synthetic fraction, and the file to which the answer goes as JSON: score, curve and
seconds, or the traceback.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import time
import traceback
from pathlib import Path
from typing import Any


def train(script: Path, function: str, seed: int, fraction: float) -> dict[str, Any]:
    """Load the script as a module, call its function, and return what `comparison.Run` needs.

    Raises:
        ValueError: no such function, or it returned neither a number nor a curve.
    """
    sys.path.insert(0, str(script.parent))
    spec = importlib.util.spec_from_file_location(script.stem, script)
    if spec is None or spec.loader is None:
        raise ValueError(f"script is {str(script)!r}; wanted a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module
    spec.loader.exec_module(module)
    called = getattr(module, function, None)
    if not callable(called):
        raise ValueError(f"{script} has no function {function!r}; wanted {function}(seed, synthetic_fraction).")
    start = time.perf_counter()
    score, curve = _score(called(seed=seed, synthetic_fraction=fraction), function)
    return {"score": score, "curve": curve, "seconds": time.perf_counter() - start}


def _score(returned: Any, function: str) -> tuple[float, list[list[float]]]:
    """The number to compare, and the curve if there is one."""
    try:
        curve = [] if _is_number(returned) else [[float(step), float(value)] for step, value in returned]
        score = sum(value for _, value in curve) / len(curve) if curve else float(returned)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{function} returned {returned!r}; wanted a number, or a curve [(environment steps, return), ...]."
        ) from error
    if not all(math.isfinite(number) for number in (score, *(step for step, _ in curve))):
        raise ValueError(f"{function} returned {returned!r}; wanted finite numbers.")
    return score, curve


def _is_number(value: Any) -> bool:
    """Python's, NumPy's, or an array or tensor without dimensions."""
    return hasattr(value, "__float__") and getattr(value, "shape", ()) == ()


def main() -> int:
    """The exit code: 0, or 1 if the training failed."""
    script, function, seed, fraction, answer = sys.argv[1:]
    try:
        found = train(Path(script), function, int(seed), float(fraction))
    except KeyboardInterrupt:
        return 130
    except BaseException:  # also a script that calls `sys.exit`
        found = {"error": traceback.format_exc()}
    Path(answer).write_text(json.dumps(found), encoding="utf-8")
    return int("error" in found)


if __name__ == "__main__":
    sys.exit(main())
