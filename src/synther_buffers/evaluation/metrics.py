"""All quality figures of a synthetic set: for benchmarks, reports and the command line.

==========================  =========================  ==================================================
figure                      range, best                meaning of the best value
==========================  =========================  ==================================================
marginal, correlation       [0, 1], 1                  columns and pairs of columns are distributed alike
two-sample AUC              [0, 1], 0.5                a classifier cannot tell the sets apart
distance to closest record  ratio [0, inf), 1          rows are new, neither copies nor off the data
precision, recall           [0, 1], 1                  rows lie among real ones; real ones among them
density, coverage           [0, inf), 1; [0, 1], 0.97  the same, robust to outliers
dynamics, reward error      [0, inf), 0                a simulator gives the same outcome of the action
terminal error              [-1, 1], 0                 the rate of terminal rows is right
==========================  =========================  ==================================================

`evaluate` computes them all. Use real rows that the model was not trained on: against its own training rows, a model
that memorised them looks perfect.

Distances and errors are in units of the real rows' standard deviations (`synther_buffers.evaluation.points.Units`).
Larger sets are subsampled to `max_rows` rows with separate generators: the same seed gives the same figures, and the
global random streams are neither read nor advanced.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..transitions import Transitions, TransitionSpec
from .copies import ClosestRecord, closest_distance, closest_record
from .dynamics import SimulatedRows, SimulatorError, simulate, simulator_error
from .fidelity import Fidelity, measure_fidelity
from .points import CHUNK, MAX_ROWS, Units, check_rows, columns, thin
from .simulators import Simulator

__all__ = [
    "ClosestRecord",
    "Evaluation",
    "Neighborhoods",
    "SimulatedRows",
    "SimulatorError",
    "TerminalError",
    "closest_distance",
    "closest_record",
    "evaluate",
    "expected_coverage",
    "neighborhoods",
    "simulate",
    "simulator_error",
    "terminal_error",
    "two_sample_auc",
]

#: Smaller differences between distances are rounding of the matrix product of normalised float64 values.
_ROUNDING = 1e-6
_FOLDS = 3


@dataclass(frozen=True)
class Neighborhoods:
    """Overlap of two sets by nearest neighbours (Naeem et al. 2020).

    Attributes:
        precision: share of synthetic rows inside the neighbourhood of some real row.
        recall: share of real rows inside the neighbourhood of some synthetic row.
        density: mean number of real neighbourhoods that a synthetic row lies in, each divided by the number of real
            rows in it, which is `neighbors` or, where rows are equal, more; above 1 if synthetic rows concentrate where
            real rows are dense.
        coverage: share of real neighbourhoods with a synthetic row inside; `expected_coverage` if both sets have the
            same distribution.
    """

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True)
class TerminalError:
    """Rates of terminal rows; `error` is the synthetic rate minus the real one."""

    real_rate: float
    synthetic_rate: float
    error: float


@dataclass(frozen=True)
class Evaluation:
    """Everything `evaluate` computes.

    Attributes:
        num_real, num_synthetic, num_train: rows that were given (0 train rows if none were).
        seed: of the subsampling.
        fidelity: marginal and correlation similarity.
        auc: of the two-sample classifier; NaN if the sets have too few different rows to train and test one.
        neighborhoods: precision, recall, density and coverage.
        terminals: rates.
        closest: distance to the closest training row; None without training rows.
        simulator: errors of the synthetic rows; None without a simulator.
        simulator_real: errors of the real rows, which come from storage and simulation only.
    """

    num_real: int
    num_synthetic: int
    num_train: int
    seed: int
    fidelity: Fidelity
    auc: float
    neighborhoods: Neighborhoods
    terminals: TerminalError
    closest: ClosestRecord | None
    simulator: SimulatorError | None
    simulator_real: SimulatorError | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers that are not finite become None."""
        return _plain(asdict(self))


def evaluate(
    real: Transitions,
    synthetic: Transitions,
    spec: TransitionSpec,
    *,
    train: Transitions | None = None,
    simulator: Simulator | None = None,
    seed: int = 0,
    max_rows: int = MAX_ROWS,
) -> Evaluation:
    """Compare a synthetic set with real rows by every figure of this module.

    Args:
        real: rows that were not trained on; if there are none, the training rows, with the caveat above.
        synthetic: rows to evaluate.
        spec: the fields of both.
        train: the rows that were trained on, for the distance to the closest record; all of them are searched.
        simulator: gives the true outcome of an action; see `synther_buffers.evaluation.simulators`.
        seed: of the choice of rows and of the classifier.
        max_rows: largest number of real and of synthetic rows.

    Raises:
        ValueError: rows that do not match the spec, are not finite, or are too few.
        ImportError: scikit-learn is missing.
    """
    auc = _auc(real, synthetic, spec, seed, max_rows)
    few_real, few_synthetic = thin(real, max_rows, seed), thin(synthetic, max_rows, seed + 1)
    return Evaluation(
        num_real=len(real),
        num_synthetic=len(synthetic),
        num_train=0 if train is None else len(train),
        seed=seed,
        fidelity=measure_fidelity(few_real, few_synthetic, spec),
        auc=auc,
        neighborhoods=neighborhoods(real, synthetic, spec, seed=seed, max_rows=max_rows),
        terminals=terminal_error(real, synthetic),
        closest=None if train is None else closest_record(real, synthetic, [train], spec, seed=seed, max_rows=max_rows),
        simulator=None if simulator is None else simulator_error(real, few_synthetic, spec, simulator),
        simulator_real=None if simulator is None else simulator_error(real, few_real, spec, simulator),
    )


def two_sample_auc(
    real: Transitions, synthetic: Transitions, spec: TransitionSpec, *, seed: int = 0, max_rows: int = MAX_ROWS
) -> float:
    """Area under the ROC curve of boosted trees that tell real from synthetic rows, mean over 3 folds.

    In [0, 1]: 0.5 if the sets cannot be told apart, 1 if every row can. The classifier two-sample test of Lopez-Paz and
    Oquab (2017) with scikit-learn's `HistGradientBoostingClassifier` and the same number of rows of each set. Rows that
    occur more than once are in the same fold, so that repetition alone gives no information.

    Raises:
        ValueError: rows that do not match the spec, are not finite, fewer than 30 of a set, or too few different ones.
        ImportError: scikit-learn is missing.
    """
    auc = _auc(real, synthetic, spec, seed, max_rows)
    if math.isnan(auc):
        raise ValueError("real and synthetic have too few different rows to train and test a classifier.")
    return auc


def _auc(real: Transitions, synthetic: Transitions, spec: TransitionSpec, seed: int, max_rows: int) -> float:
    """As `two_sample_auc`, or NaN with too few different rows."""
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.metrics import roc_auc_score
    except ImportError as error:
        raise ImportError('the two-sample AUC needs scikit-learn: pip install "synther-buffers[metrics]"') from error
    check_rows(spec, 10 * _FOLDS, real=real, synthetic=synthetic)
    count = min(len(real), len(synthetic), max_rows)
    sides = [columns(thin(rows, count, seed + i), spec).numpy() for i, rows in enumerate((real, synthetic))]
    rows, label = np.concatenate(sides), np.repeat([0, 1], count)
    _, which = np.unique(rows, axis=0, return_inverse=True)
    which = which.reshape(-1)
    fold = np.random.default_rng(seed % 2**64).integers(_FOLDS, size=which.max() + 1)[which]
    scores = []
    for test in (fold == index for index in range(_FOLDS)):
        if not (0 < label[test].sum() < test.sum() and 0 < label[~test].sum() < (~test).sum()):
            return math.nan
        model = HistGradientBoostingClassifier(early_stopping=False, random_state=seed % 2**32)
        model.fit(rows[~test], label[~test])
        scores.append(roc_auc_score(label[test], model.predict_proba(rows[test])[:, 1]))
    return float(np.mean(scores))


def neighborhoods(
    real: Transitions,
    synthetic: Transitions,
    spec: TransitionSpec,
    *,
    neighbors: int = 5,
    seed: int = 0,
    max_rows: int = MAX_ROWS,
) -> Neighborhoods:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    The neighbourhood of a row is the ball up to its k-th nearest other row of its own set. With N real rows X and M
    synthetic rows Y: precision ``1/M sum_j [Y_j in some B(X_i)]``, recall ``1/N sum_i [X_i in some B(Y_j)]``, density
    ``1/M sum_ij [Y_j in B(X_i)] / |{n: X_n in B(X_i)}|``, coverage ``1/N sum_i [some Y_j in B(X_i)]``. It uses the same
    number of rows of each set.

    The balls are open, so that k real rows lie in one, its own row among them, and the density is that of Naeem et al.;
    where rows are equal, as in small discrete tasks, there are more, and with k in their place a second real sample
    would have a density far above 1.

    Args:
        real: rows that were not trained on.
        synthetic: rows to evaluate.
        spec: the fields of both.
        neighbors: k.
        seed: of the choice of rows.
        max_rows: largest number of rows of each set.

    Raises:
        ValueError: rows that do not match the spec, are not finite, or not more than `neighbors`.
    """
    check_rows(spec, neighbors + 1, real=real, synthetic=synthetic)
    count = min(len(real), len(synthetic), max_rows)
    units = Units.measure(real, spec)
    left = units.points(thin(real, count, seed))
    right = units.points(thin(synthetic, count, seed + 1))
    (left_radius, left_inside), (right_radius, _) = _balls(left, neighbors), _balls(right, neighbors)
    precise = torch.zeros(count, dtype=torch.bool, device="cpu")
    recalled, covered = precise.clone(), precise.clone()
    total = 0.0
    for start in range(0, count, CHUNK):
        part = slice(start, start + CHUNK)
        distance = torch.cdist(left[part], right)
        inside = distance < left_radius[part, None]
        precise |= inside.any(0)
        covered[part] = inside.any(1)
        recalled[part] = (distance < right_radius).any(1)
        total += float((inside.sum(1) / left_inside[part]).sum())
    precision, recall, coverage = (float(share.double().mean()) for share in (precise, recalled, covered))
    return Neighborhoods(precision, recall, total / count, coverage)


def expected_coverage(num_rows: int, neighbors: int = 5) -> float:
    """The mean coverage of two sets of `num_rows` rows each from one distribution, 0.969 for many rows and k = 5.

    ``1 - prod_{i=1..k} (N - i) / (2N - i)`` (Naeem et al. 2020, derived there for any distribution).
    """
    return 1.0 - math.prod((num_rows - i) / (2 * num_rows - i) for i in range(1, neighbors + 1))


def terminal_error(real: Transitions, synthetic: Transitions) -> TerminalError:
    """Share of terminal rows among all synthetic and all real rows, and the difference."""
    rates = [float(rows.terminated.double().mean()) for rows in (real, synthetic)]
    return TerminalError(rates[0], rates[1], rates[1] - rates[0])


def _balls(points: Tensor, neighbors: int) -> tuple[Tensor, Tensor]:
    """The radius of each point's ball, ``[N]`` float64, and how many points lie in it, ``[N]`` float64.

    The radius is slightly less than the distance to the k-th nearest other point; at least `_ROUNDING`, for equal rows.
    """
    radii, inside = [], []
    for chunk in points.split(CHUNK):
        distance = torch.cdist(chunk, points)
        radius = (distance.kthvalue(neighbors + 1, dim=1).values - _ROUNDING).clamp_min(_ROUNDING)
        radii.append(radius)
        inside.append((distance < radius[:, None]).sum(1).double())
    return torch.cat(radii), torch.cat(inside)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
