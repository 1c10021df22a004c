"""Does my agent gain from synthetic rows? The user's own training, with and without them, over seeds."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any


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
        low, high: 95 % interval of the mean (Student's t); NaN with one seed.
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
            return f"{told}; one seed says nothing."
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
        return fmean(times) if times else math.nan


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
    What it prints goes to stderr.

    Args:
        script: a Python file.
        function: of it, ``train(seed: int, synthetic_fraction: float)``. It trains an agent whose buffer gets that
            fraction, and returns a number (like the mean return of evaluation episodes) or a curve
            ``[(environment steps, return), ...]``, whose mean is compared.
        seeds: one pair of trainings for each.
        fraction: share of synthetic rows, above 0 and at most 1.
        jobs: trainings at a time.
        results: a file of JSON lines to which each run is appended as it ends. Runs that it has are not repeated. It
            belongs to one version of the script.
        on_run: called after each run.

    Raises:
        ValueError: no such script, seeds or a fraction out of range, no folder for `results`, or results of another
            script.
        ImportError: SciPy is missing, which the interval needs.
        RuntimeError: a training failed. The message has its traceback; `results` has all those that did not.
    """
    script, seeds, fraction = Path(script), [operator.index(seed) for seed in seeds], float(fraction)
    if not script.is_file():
        raise ValueError(f"script is {str(script)!r}; there is no such file.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds is {seeds}; wanted one or more, each once.")
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction is {fraction}; wanted a share above 0, at most 1.")
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; wanted 1 or more.")
    if results is not None and not Path(results).absolute().parent.is_dir():
        raise ValueError(f"results is {str(results)!r}; its folder is not there.")
    _quantile(2)  # what is missing shows before hours of training
    digest = hashlib.sha256(script.read_bytes()).hexdigest()[:16]
    source = {"script": str(script.resolve()), "function": function, "digest": digest}
    known = {} if results is None else {(run.seed, run.synthetic_fraction): run for run in _read(Path(results), source)}
    wanted = [(seed, share) for seed in seeds for share in (0.0, fraction)]
    trainings = _Trainings(script.resolve(), function)
    failure: Exception | None = None
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(trainings.run, *pair): pair for pair in wanted if pair not in known}
        try:
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                try:
                    run = future.result()
                except RuntimeError as error:
                    # Those that run now may end well; no other one begins.
                    failure = failure or error
                    for other in futures:
                        other.cancel()
                    continue
                known[futures[future]] = run
                if results is not None:
                    _append(Path(results), {**source, **asdict(run)})
                on_run(run)
        except BaseException:  # an interrupt, a full disk
            for other in futures:
                other.cancel()
            trainings.stop()
            raise
    if failure is not None:
        raise failure
    return summarize([known[pair] for pair in wanted], fraction)


def summarize(runs: Sequence[Run], fraction: float) -> Comparison:
    """The paired differences of these runs, and the interval of their mean."""
    scores = {(run.seed, run.synthetic_fraction): run.score for run in runs}
    seeds = [seed for seed, share in scores if share == 0.0 and (seed, fraction) in scores]
    differences = [scores[seed, fraction] - scores[seed, 0.0] for seed in seeds]
    mean = fmean(differences) if differences else math.nan
    margin = math.nan
    if len(differences) > 1:
        margin = _quantile(len(differences)) * stdev(differences) / math.sqrt(len(differences))
    return Comparison(tuple(runs), fraction, tuple(seeds), tuple(differences), mean, mean - margin, mean + margin)


def _quantile(count: int) -> float:
    """Of Student's t for a two-sided 95 % interval of so many values."""
    try:
        from scipy.stats import t
    except ImportError as error:
        raise ImportError('the interval needs SciPy: pip install "synther-buffers[metrics]"') from error
    return float(t.ppf(0.975, count - 1))


class _Trainings:
    """Runs trainings of a script in processes, from several threads."""

    def __init__(self, script: Path, function: str) -> None:
        self._script, self._function = script, function
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def run(self, seed: int, fraction: float) -> Run:
        """One training.

        Raises:
            RuntimeError: it failed, with its traceback.
        """
        named = f"{self._function}(seed={seed}, synthetic_fraction={fraction})"
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder) / "answer.json"
            command = [sys.executable, "-m", "synther_buffers.training_process", str(self._script), self._function]
            # What the training prints must not mix with results on this process's stdout.
            process = subprocess.Popen([*command, str(seed), str(fraction), str(answer)], stdout=2)
            with self._lock:
                self._running.add(process)
            try:
                code = process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)
            if not answer.exists():
                raise RuntimeError(
                    f"{named} ended with exit code {code} before it returned; was it killed, or out of memory?"
                )
            found = json.loads(answer.read_text(encoding="utf-8"))
        if "error" in found:
            raise RuntimeError(f"{named} failed.\n{found['error']}")
        return Run(seed, fraction, found["score"], found["curve"], found["seconds"])

    def stop(self) -> None:
        """End those that run."""
        with self._lock:
            for process in self._running:
                process.terminate()


def _read(path: Path, source: dict[str, str]) -> Iterator[Run]:
    """The runs of a results file. A last line that a kill cut short is taken off it.

    Raises:
        ValueError: the file holds something else, or results of something else; it is left as it is.
    """
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    lines, begins = text.splitlines(), json.dumps(source)[:-1]
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            found = {name: entry.pop(name) for name in source}
            run = Run(**entry)
            if not math.isfinite(run.score):
                raise ValueError("the score is not finite")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # A file of one line that does not begin like ours is the user's, with or without the end of the line.
            is_ours = number > 1 or begins.startswith(line) or line.startswith(begins)
            if is_ours and number == len(lines) and not text.endswith("\n"):
                path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
                return
            raise ValueError(f"line {number} of {path} is no result of a comparison ({error!r}).") from error
        if found | {"digest": source["digest"]} == source:
            if found != source:
                raise ValueError(
                    f"{source['script']} has changed since {path} was begun; its results may be of other settings. "
                    "Write to another file."
                )
        else:
            raise ValueError(f"{path} has results of {found}; wanted those of {source}. Write to another file.")
        yield run
    if text and not text.endswith("\n"):
        path.write_text(text + "\n", encoding="utf-8")


def _append(path: Path, entry: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
