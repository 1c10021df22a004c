"""Does my agent gain from synthetic rows? The user's own training, with and without them, over seeds."""

from __future__ import annotations

import importlib.util
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: Draws of the bootstrap interval.
_RESAMPLES = 10_000
#: With fewer seeds than this no interval is given: it would be far too narrow.
FEWEST_SEEDS = 3

#: What a training returns: a number, or a curve of ``(environment steps, return)``.
Returned = float | Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        seed: that it was given.
        synthetic_fraction: likewise.
        score: what is compared: the number that it returned, or the mean return of the curve.
        curve: ``[[environment steps, return], ...]``, empty if it returned a number.
        seconds: wall time.
    """

    seed: int
    synthetic_fraction: float
    score: float
    curve: list[list[float]]
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Real rows alone against mixed batches, paired by seed.

    Attributes:
        runs: all of them.
        fraction: share of synthetic rows of the mixed batches.
        seeds: those with both runs, in order.
        differences: score with synthetic rows minus score without, by seed.
        mean: of the differences.
        low, high: 95 % interval of the mean (bootstrap over seeds, bias-corrected); NaN with fewer than three seeds.
    """

    runs: tuple[Run, ...]
    fraction: float
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """One sentence."""
        better = sum(difference > 0 for difference in self.differences)
        told = f"with synthetic rows the score is higher in {better} of {len(self.seeds)} seeds"
        if math.isnan(self.low):
            return f"{told}; fewer than {FEWEST_SEEDS} seeds say nothing."
        if self.low > 0.0:
            return f"{told}: a gain, as far as {len(self.seeds)} seeds can tell."
        if self.high < 0.0:
            return f"{told}: a loss, as far as {len(self.seeds)} seeds can tell."
        return f"{told}: no difference is shown; the interval of the mean contains 0."

    def scores(self, fraction: float) -> list[float]:
        """Of the paired seeds, in their order."""
        by_seed = {run.seed: run.score for run in self.runs if run.synthetic_fraction == fraction}
        return [by_seed[seed] for seed in self.seeds]

    def seconds(self, fraction: float) -> float:
        """Mean wall time of a training; NaN if there is none."""
        times = [run.seconds for run in self.runs if run.synthetic_fraction == fraction]
        return sum(times) / len(times) if times else math.nan


def compare(
    script: str | Path,
    function: str = "train",
    *,
    seeds: Sequence[int] = tuple(range(5)),
    fraction: float = 0.5,
    jobs: int = 1,
    results: str | Path | None = None,
    on_run: Callable[[Run], None] = lambda run: None,
) -> Comparison:
    """Call ``function(seed, synthetic_fraction)`` of a script with fraction 0 and `fraction` for each seed.

    Each training has a process of its own, in which the script is loaded as a module (what stands behind
    ``if __name__ == "__main__":`` does not run), so that no global random stream or cache of one run reaches another.

    Args:
        script: a Python file.
        function: of it, ``train(seed: int, synthetic_fraction: float)``. It trains an agent whose buffer gets that
            fraction, and returns a number (like the mean return of evaluation episodes) or a curve
            ``[(environment steps, return), ...]``, whose mean is compared.
        seeds: one pair of trainings for each.
        fraction: share of synthetic rows, from above 0 to 1.
        jobs: trainings at a time.
        results: a file of JSON lines to which each run is appended as it ends. Runs that it has are not repeated.
        on_run: called after each run.

    Raises:
        ValueError: no such script or function, seeds or a fraction out of range, a training that returned something
            else, or results of another script.
        RuntimeError: a training failed; what it raised is the cause. The results so far are in `results`.
    """
    script = Path(script)
    if not script.is_file():
        raise ValueError(f"script is {str(script)!r}; there is no such file.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds is {list(seeds)}; wanted one or more, each once.")
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction is {fraction}; wanted a share above 0, at most 1.")
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; wanted 1 or more.")
    source = {"script": str(script.resolve()), "function": function}
    known = {} if results is None else {(run.seed, run.synthetic_fraction): run for run in _read(Path(results), source)}
    wanted = [(seed, share) for seed in seeds for share in (0.0, fraction)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as pool:
        futures = {
            pool.submit(_train, script.resolve(), function, seed, share): (seed, share)
            for seed, share in wanted
            if (seed, share) not in known
        }
        for future in as_completed(futures):
            seed, share = futures[future]
            try:
                run = future.result()
            except ValueError:
                pool.shutdown(cancel_futures=True)
                raise
            except Exception as error:
                pool.shutdown(cancel_futures=True)
                raise RuntimeError(f"{function}(seed={seed}, synthetic_fraction={share}) failed: {error!r}") from error
            known[seed, share] = run
            if results is not None:
                _append(Path(results), {**source, **asdict(run)})
            on_run(run)
    return summarize([known[pair] for pair in wanted], fraction)


def summarize(runs: Sequence[Run], fraction: float) -> Comparison:
    """The paired differences of these runs, and the interval of their mean."""
    scores = {(run.seed, run.synthetic_fraction): run.score for run in runs}
    seeds = [seed for seed, share in scores if share == 0.0 and (seed, fraction) in scores]
    differences = [scores[seed, fraction] - scores[seed, 0.0] for seed in seeds]
    low = high = math.nan
    if len(seeds) >= FEWEST_SEEDS:
        low, high = _interval(differences)
    mean = sum(differences) / len(differences) if differences else math.nan
    return Comparison(tuple(runs), fraction, tuple(seeds), tuple(differences), mean, low, high)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    if min(values) == max(values):
        return values[0], values[0]
    import numpy as np

    try:
        from scipy.stats import bootstrap
    except ImportError as error:
        raise ImportError('the interval needs SciPy: pip install "synther-buffers[metrics]"') from error
    found = bootstrap((np.array(values),), np.mean, n_resamples=_RESAMPLES, rng=np.random.default_rng(0))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _train(script: Path, function: str, seed: int, fraction: float) -> Run:
    """One training, in a process of its own."""
    sys.path.insert(0, str(script.parent))
    spec = importlib.util.spec_from_file_location(script.stem, script)
    if spec is None or spec.loader is None:
        raise ValueError(f"script is {str(script)!r}; wanted a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module
    spec.loader.exec_module(module)
    train = getattr(module, function, None)
    if not callable(train):
        raise ValueError(f"{script} has no function {function!r}; wanted {function}(seed, synthetic_fraction).")
    start = time.perf_counter()
    score, curve = _score(train(seed=seed, synthetic_fraction=fraction), function)
    return Run(seed, fraction, score, curve, time.perf_counter() - start)


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
    """Python's, NumPy's or a tensor of one element."""
    return hasattr(value, "__float__") and not (hasattr(value, "__len__") and getattr(value, "shape", (1,)) != ())


def _read(path: Path, source: dict[str, str]) -> Iterator[Run]:
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break  # a line that a kill cut short
        try:
            entry = json.loads(line)
            found = {name: entry.pop(name) for name in source}
            run = Run(**entry)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"line {number} of {path} is no result of a comparison ({error!r}).") from error
        if found != source:
            raise ValueError(f"{path} has results of {found}; wanted those of {source}. Write to another file.")
        yield run
    whole = text.rfind("\n") + 1
    if whole < len(text):
        path.write_text(text[:whole], encoding="utf-8")


def _append(path: Path, entry: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
