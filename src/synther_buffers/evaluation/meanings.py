"""What the figures of `synther_buffers.evaluation.metrics.evaluate` mean, in plain words and with a verdict.

`FIGURES` is the table. *good* is about what real rows of the same policy reach against one another when there are a few
thousand of each; *fair* is worth a look, *poor* a flaw that is easy to see. With a few hundred rows even real ones are
fair in some figures. A verdict says nothing about how well an agent will learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

#: An interval, both ends included.
Range = tuple[float, float]

GOOD, FAIR, POOR = "good", "fair", "poor"
#: In place of a value.
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Figure:
    """A figure, what it means, and how it is judged.

    Attributes:
        key: its place in `Evaluation.to_dict`, with dots.
        name: in words.
        meaning: of its values, in a line.
        best: the best value; None without a verdict.
        good, fair: the values with these verdicts, any other is poor; None without a verdict.
        missing: why it can be missing from a result.
        unit: from the whole result, what `good` and `fair` are multiples of; None for 1.
    """

    key: str
    name: str
    meaning: str
    best: float | None = None
    good: Range | None = None
    fair: Range | None = None
    missing: str = ""
    unit: Callable[[Mapping[str, Any]], float] | None = None

    def verdict(self, value: float, result: Mapping[str, Any]) -> str:
        """One of `GOOD`, `FAIR`, `POOR`, or nothing for a figure that is not judged."""
        if self.good is None or self.fair is None:
            return ""
        unit = 1.0 if self.unit is None else self.unit(result)
        for word, (low, high) in ((GOOD, self.good), (FAIR, self.fair)):
            if low * unit <= value <= high * unit:
                return word
        return POOR


@dataclass(frozen=True)
class Explained:
    """A line for people.

    Attributes:
        key, name, meaning: as in `Figure`; the meaning of a figure that was not measured is why.
        value: as text.
        verdict: one of `GOOD`, `FAIR`, `POOR`, or nothing.
    """

    key: str
    name: str
    value: str
    verdict: str
    meaning: str


def _terminal_tolerance(result: Mapping[str, Any]) -> float:
    """A tenth of the real rate, or two standard errors of the difference of two samples, if that is more."""
    real, synthetic = result["num_real"], result["num_synthetic"]
    rates = result["terminals"]
    pooled = (rates["real_rate"] * real + rates["synthetic_rate"] * synthetic) / (real + synthetic)
    return max(0.1 * rates["real_rate"], 2.0 * math.sqrt(pooled * (1.0 - pooled) * (1.0 / real + 1.0 / synthetic)))


_NOT_SIMULATED = "no row could be simulated"
_AS_ABOVE = "the same of the real rows, to compare with"


def _simulated(key: str, whose: str, meanings: Mapping[str, str], judged: bool) -> Iterator[Figure]:
    """The figures of a simulator, for synthetic rows with verdicts and for real rows without."""
    error: dict[str, Any] = {"best": 0.0, "good": (0.0, 0.05), "fair": (0.0, 0.3)}
    median: dict[str, Any] = {"best": 0.0, "good": (0.0, 0.02), "fair": (0.0, 0.1)}
    found: dict[str, Any] = {"best": 1.0, "good": (0.8, 1.0), "fair": (0.5, 1.0)}
    names: dict[str, tuple[str, str, dict[str, Any]]] = {
        "dynamics_mean": ("dynamics error, mean", _NOT_SIMULATED, error),
        "dynamics_median": ("dynamics error, median", _NOT_SIMULATED, median),
        "reward_mean": ("reward error, mean", _NOT_SIMULATED, error),
        "reward_median": ("reward error, median", _NOT_SIMULATED, median),
        "terminal_agreement": (
            "terminal agreement",
            _NOT_SIMULATED,
            {"best": 1.0, "good": (0.99, 1.0), "fair": (0.95, 1.0)},
        ),
        "terminal_precision": ("terminal precision", "no simulated row is flagged terminal", found),
        "terminal_recall": ("terminal recall", "no row is terminal in the simulator", found),
        "num_rows": ("rows simulated", "", {}),
        "share_simulated": ("share simulated", "", {}),
    }
    for part, (name, missing, judgement) in names.items():
        meaning = meanings.get(part, _AS_ABOVE)
        yield Figure(f"{key}.{part}", f"{whose}{name}", meaning, missing=missing, **(judgement if judged else {}))


#: Every figure of `Evaluation`, in the order in which people read them.
FIGURES: tuple[Figure, ...] = (
    Figure("num_real", "real rows", "rows that were given"),
    Figure("num_synthetic", "synthetic rows", "rows that were given"),
    Figure("num_train", "training rows", "rows that were given, if any"),
    Figure("seed", "seed", "of the choice of rows"),
    Figure(
        "fidelity.marginal", "marginal similarity", "1: every column has the real distribution",
        1.0, (0.95, 1.0), (0.9, 1.0),
    ),
    Figure("fidelity.worst_column", "worst column", "the column whose distribution is the least similar"),
    Figure(
        "fidelity.worst_marginal", "worst column's similarity", "1: that column has the real distribution, too",
        1.0, (0.9, 1.0), (0.75, 1.0),
    ),
    Figure(
        "fidelity.correlation", "correlation similarity", "1: columns go together as in the real rows",
        1.0, (0.95, 1.0), (0.9, 1.0), "fewer than two columns of numbers vary",
    ),
    Figure(
        "auc", "two-sample AUC", "0.5: cannot be told from real rows; 1: is told at once",
        0.5, (0.25, 0.75), (0.1, 0.9), "too few different rows to train and test a classifier",
    ),
    Figure(
        "neighborhoods.precision", "precision", "1: every synthetic row lies among real ones",
        1.0, (0.8, 1.0), (0.65, 1.0),
    ),
    Figure(
        "neighborhoods.recall", "recall", "1: every real row lies among synthetic ones",
        1.0, (0.8, 1.0), (0.65, 1.0),
    ),
    Figure(
        "neighborhoods.density", "density", "1: as dense as real rows; above: bunched together; below: spread out",
        1.0, (0.75, 1.25), (0.5, 2.0),
    ),
    Figure(
        "neighborhoods.coverage", "coverage", "0.97: all that real rows do occurs; less: something is left out",
        0.97, (0.8, 1.0), (0.65, 1.0),
    ),
    Figure("terminals.real_rate", "terminal rate, real", "share of terminal rows"),
    Figure("terminals.synthetic_rate", "terminal rate, synthetic", "share of terminal rows"),
    Figure(
        "terminals.error", "terminal error", "0: as many terminal rows as in the data; above: more; below: fewer",
        0.0, (-1.0, 1.0), (-3.0, 3.0), unit=_terminal_tolerance,
    ),
    Figure("closest.synthetic_median", "distance, synthetic", "median, to the closest training row"),
    Figure("closest.held_out_median", "distance, real", "the same of the real rows"),
    Figure(
        "closest.ratio", "distance ratio", "1: as new as real rows; towards 0: copies; above 1: off the data",
        1.0, (0.8, 1.3), (0.5, 2.0), "at least half of the real rows are training rows",
    ),
    Figure(
        "closest.share_closer", "share of copies", "0.05: copies nothing; 1: all rows are copies of training rows",
        0.05, (0.0, 0.1), (0.0, 0.25),
    ),
    *_simulated(
        "simulator", "",
        {
            "dynamics_mean": "0: every next observation is the simulator's; 1: no better than a constant guess",
            "dynamics_median": "the same of the row in the middle, which a few bad rows do not move",
            "reward_mean": "0: every reward is the simulator's; 1: no better than a constant guess",
            "reward_median": "the same of the row in the middle",
            "terminal_agreement": "1: every terminal flag is the simulator's",
            "terminal_precision": "1: every row that is flagged terminal is so in the simulator",
            "terminal_recall": "1: every row that is terminal in the simulator is flagged",
            "num_rows": "rows whose state the simulator could be put into",
            "share_simulated": "compare errors of sets with about the same share only",
        },
        judged=True,
    ),
    *_simulated("simulator_real", "real rows: ", {}, judged=False),
)  # fmt: skip

#: Parts that are None as a whole where something was not given: their name in words, and what was not given.
PARTS: dict[str, tuple[str, str]] = {
    "closest": ("distance to training rows", "no training rows were given (--train)"),
    "simulator": ("errors in a simulator", "no simulator was given (--env)"),
    "simulator_real": ("the same of real rows", "no simulator was given (--env)"),
}


def explain(result: Mapping[str, Any]) -> list[Explained]:
    """The lines for people of a result.

    Args:
        result: what `Evaluation.to_dict` gives, or the same with NaN and infinity in place of None.

    Returns:
        A line for each figure, in the order of `FIGURES`. A part that is None as a whole is one line.

    Raises:
        KeyError: a figure is missing altogether.
    """
    lines = []
    told = set()
    for figure in FIGURES:
        part, _, name = figure.key.rpartition(".")
        value = result[part] if part else result
        if value is not None:
            lines.append(_line(figure, value[name], result))
        elif part not in told:
            told.add(part)
            title, reason = PARTS[part]
            lines.append(Explained(part, title, NOT_MEASURED, "", reason))
    return lines


def _line(figure: Figure, value: Any, result: Mapping[str, Any]) -> Explained:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return Explained(figure.key, figure.name, NOT_MEASURED, "", figure.missing or "it has no finite value")
    verdict = "" if isinstance(value, str) else figure.verdict(value, result)
    return Explained(figure.key, figure.name, _text(value), verdict, figure.meaning)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0.0 or abs(value) >= 0.001 else f"{value:.1e}"
    return f"{value:,}" if isinstance(value, int) else str(value)
