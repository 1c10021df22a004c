"""The arithmetic of protocol.md: paired differences in units of a task's headroom, and their interquartile mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .lines import Line

#: ``scores[task][arm][seed]``.
Scores = Mapping[str, Mapping[str, Mapping[int, float]]]

RESAMPLES = 10_000
#: A lower end above this is harmless (protocol.md).
HARM = -0.05


@dataclass(frozen=True)
class Comparison:
    """An arm against an opponent.

    Attributes:
        tasks: compared, those whose oracle beat the control and that have seeds of both arms.
        seeds: the smallest number of pairs of a task.
        mean: interquartile mean of the differences, in units of the headroom.
        low, high: ends of its 95 % interval.
        improvement: probability that a run of the arm beats a run of the opponent, mean over tasks.
    """

    tasks: tuple[str, ...]
    seeds: int
    mean: float
    low: float
    high: float
    improvement: float

    @property
    def verdict(self) -> str:
        """In the words of the protocol, against this opponent."""
        if self.low > 0.0:
            return "better"
        if self.high < 0.0:
            return "worse"
        return "no worse" if self.low > HARM else "not shown"


def _area(line: Line) -> float:
    return line["area"]


def scores_of(lines: Sequence[Line], agent: str = "sbx", score: Callable[[Line], float] = _area) -> Scores:
    """A figure of the runs, their area under the curve, by task, arm and seed; that of the first line of each."""
    scores: dict[str, dict[str, dict[int, float]]] = {}
    for line in lines:
        if line["agent"] == agent:
            scores.setdefault(line["task"], {}).setdefault(line["arm"], {}).setdefault(line["seed"], score(line))
    return scores


def headroom(scores: Scores, task: str, control: str) -> float:
    """Mean score of oracle minus mean score of the control over the seeds that both have; NaN without one."""
    pairs = paired(scores, task, "oracle", control)
    return float(np.mean([first - second for first, second in pairs])) if pairs else float("nan")


def paired(scores: Scores, task: str, arm: str, opponent: str) -> list[tuple[float, float]]:
    """The scores of the seeds that both arms have."""
    first, second = (scores.get(task, {}).get(name, {}) for name in (arm, opponent))
    return [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]


def differences(
    scores: Scores, arm: str, opponent: Mapping[str, str], units: Mapping[str, float]
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Paired differences in units of each task's headroom, ``[seeds, tasks]``, and the tasks that have one.

    All tasks get as many seeds as the one with the fewest.
    """
    columns = {}
    for task, unit in units.items():
        pairs = paired(scores, task, arm, opponent[task])
        if unit > 0.0 and pairs:
            columns[task] = [(first - second) / unit for first, second in pairs]
    seeds = min((len(column) for column in columns.values()), default=0)
    table = np.array([column[:seeds] for column in columns.values()], np.float64).reshape(len(columns), seeds).T
    return tuple(columns), table


def interval(table: NDArray[np.float64], resamples: int = RESAMPLES) -> tuple[float, float, float]:
    """Interquartile mean of ``[seeds, tasks]`` and its 95 % interval, seeds drawn anew within each task.

    The ends are NaN where there is one seed, of which nothing can be drawn anew.
    """
    from rliable import library, metrics

    if len(table) == 1:
        return float(metrics.aggregate_iqm(table)), math.nan, math.nan
    # rliable draws from NumPy's global stream.
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        points, intervals = library.get_interval_estimates(
            {"difference": table}, lambda rows: np.array([metrics.aggregate_iqm(rows)]), reps=resamples
        )
    finally:
        np.random.set_state(state)  # noqa: NPY002
    low, high = intervals["difference"][:, 0]
    return float(points["difference"][0]), float(low), float(high)


def interval_with_units(
    table: NDArray[np.float64], gains: Sequence[Sequence[float]], resamples: int = 10 * RESAMPLES
) -> tuple[float, float]:
    """The 95 % interval of the interquartile mean if the units, too, are drawn anew from the seeds that gave them.

    The ends are NaN where there is one seed, or where a gain is not above 0, so that a unit might not be.

    Args:
        table: paired differences, not in units, ``[seeds, tasks]``.
        gains: by task, what the oracle gains over the control seed by seed; their mean is the unit.
        resamples: of the bootstrap.
    """
    from scipy.stats import trim_mean

    if len(table) < 2 or min(map(min, gains)) <= 0.0:
        return math.nan, math.nan
    random = np.random.default_rng(0)
    seeds, tasks = table.shape
    drawn = table[random.integers(0, seeds, (resamples, seeds, tasks)), np.arange(tasks)]
    units = [np.array(values)[random.integers(0, len(values), (resamples, len(values)))].mean(1) for values in gains]
    means = trim_mean((drawn / np.stack(units, 1)[:, None]).reshape(resamples, -1), 0.25, axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def student_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of a few values and its 95 % interval by Student's t; the ends are NaN with one."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def told(differences: Sequence[float]) -> str:
    """Mean, interval and signs of paired differences."""
    if not differences:
        return "-"
    mean, low, high = student_interval(differences)
    above = sum(value > 0.0 for value in differences)
    ends = f" [{low:.3g}, {high:.3g}]" if len(differences) > 1 else ""
    return f"{mean:.3g}{ends}, {above} of {len(differences)}"


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> str:
    """Spearman's correlation and its 95 % interval by Fisher's transformation, of at least five pairs.

    The interval uses the standard error of Bonett and Wright (2000), ``sqrt((1 + r^2 / 2) / (n - 3))``.
    """
    from scipy.stats import spearmanr

    if len(first) < 5:
        return "-"
    found = float(spearmanr(first, second).statistic)
    half = 1.96 * math.sqrt((1 + found**2 / 2) / (len(first) - 3))
    # A correlation of 1 has no finite transform.
    middle = math.atanh(min(max(found, -1 + 1e-9), 1 - 1e-9))
    return f"{found:.2f} [{math.tanh(middle - half):.2f}, {math.tanh(middle + half):.2f}], {len(first)}"


def compare(
    scores: Scores,
    arm: str,
    opponent: Mapping[str, str],
    units: Mapping[str, float],
    resamples: int = RESAMPLES,
) -> Comparison | None:
    """One line of the primary comparison; None where there is no pair of runs on a task with headroom.

    Args:
        scores: areas under the curve.
        arm: the treatment.
        opponent: arm by task.
        units: the headroom by task; a task whose headroom is not above 0 is left out.
        resamples: of the bootstrap.
    """
    from rliable import metrics

    compared, table = differences(scores, arm, opponent, units)
    if not table.size:
        return None
    mean, low, high = interval(table, resamples)
    # Scaling a task leaves the order of its scores, so the raw ones will do; tasks may differ in seeds.
    chances = []
    for task in compared:
        first, second = zip(*paired(scores, task, arm, opponent[task]), strict=True)
        chances.append(metrics.probability_of_improvement(np.array(first)[:, None], np.array(second)[:, None]))
    return Comparison(compared, len(table), mean, low, high, float(np.mean(chances)))
