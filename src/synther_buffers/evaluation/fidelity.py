"""Quality of a synthetic set: the cheap figures that every refresh reports.

Marginal similarity is SDMetrics' KSComplement (one minus the Kolmogorov-Smirnov statistic of a numerical column) or
TVComplement (one minus the total variation distance of a discrete one), averaged over columns. Correlation similarity
is SDMetrics' CorrelationSimilarity: ``1 - |rho_real - rho_synthetic| / 2`` with Pearson's rho, averaged over pairs of
numerical columns. All lie in [0, 1], higher is better. Constant columns count only in the marginals, as 1 if they are
reproduced and 0 if not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..public_paths import public
from ..transitions import Transitions, TransitionSpec
from .points import MAX_ROWS, columns, thin


@public
@dataclass(frozen=True)
class Fidelity:
    """Similarities of two sets of rows, in [0, 1], 1 for equal.

    Attributes:
        marginal: mean over columns of the Kolmogorov-Smirnov or total-variation complement.
        correlation: mean over pairs of numerical columns; NaN with fewer than two that vary.
        worst_column: name of the column with the lowest marginal similarity.
        worst_marginal: that similarity.
    """

    marginal: float
    correlation: float
    worst_column: str
    worst_marginal: float


def measure_fidelity(real: Transitions, synthetic: Transitions, spec: TransitionSpec) -> Fidelity:
    """Compare at most 5,000 rows of each set, column by column and pair by pair.

    Larger sets are subsampled, by the same random choice at each call.
    """
    names, discrete, left, right = _columns(real, synthetic, spec)
    similarity = _similarity(discrete, left, right)
    worst = int(similarity.argmin())
    return Fidelity(
        marginal=float(similarity.mean()),
        correlation=correlation_similarity(left[:, ~discrete], right[:, ~discrete]),
        worst_column=names[worst],
        worst_marginal=float(similarity[worst]),
    )


def column_similarities(real: Transitions, synthetic: Transitions, spec: TransitionSpec) -> dict[str, float]:
    """The marginal similarity of each column, in [0, 1], by its name; `measure_fidelity` has their mean."""
    names, discrete, left, right = _columns(real, synthetic, spec)
    return dict(zip(names, _similarity(discrete, left, right).tolist(), strict=True))


def ks_complement(real: Tensor, synthetic: Tensor) -> Tensor:
    """``1 - sup |F_real - F_synthetic|`` of each column; ``[n, C]`` and ``[m, C]`` give ``[C]``."""
    left, right = real.T.contiguous().sort(1).values, synthetic.T.contiguous().sort(1).values
    points = torch.cat((left, right), dim=1)
    # In float64, because a quotient of whole numbers has torch's default dtype, which may be bfloat16.
    at_left = torch.searchsorted(left, points, right=True).double() / left.shape[1]
    at_right = torch.searchsorted(right, points, right=True).double() / right.shape[1]
    return 1.0 - (at_left - at_right).abs().amax(1)


def correlation_similarity(real: Tensor, synthetic: Tensor) -> float:
    """Mean over pairs of columns that vary in both sets of ``1 - |rho_real - rho_synthetic| / 2``."""
    ranges = [side.amax(0) - side.amin(0) for side in (real, synthetic)]
    varies = (ranges[0] > 0) & (ranges[1] > 0)
    if int(varies.sum()) < 2:
        return float("nan")
    # In units of their ranges, because the squares of very small or large values leave the range of the dtype.
    sides = [side[:, varies] / span[varies] for side, span in zip((real, synthetic), ranges, strict=True)]
    difference = (torch.corrcoef(sides[0].T) - torch.corrcoef(sides[1].T)).abs()
    size = len(difference)
    row, column = torch.triu_indices(size, size, offset=1, device=difference.device)
    return float(1.0 - difference[row, column].mean() / 2.0)


def _similarity(discrete: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Of each column, ``[C]`` in [0, 1]."""
    return torch.where(discrete, _tv_complement(left, right, discrete), ks_complement(left, right))


def _tv_complement(left: Tensor, right: Tensor, discrete: Tensor) -> Tensor:
    out = torch.ones(left.shape[1], dtype=torch.float64, device="cpu")
    for column in torch.nonzero(discrete).flatten().tolist():
        values, index = torch.unique(torch.cat((left[:, column], right[:, column])), return_inverse=True)
        shares = [
            torch.bincount(part, minlength=len(values)).double() / len(part)
            for part in index.split([len(left), len(right)])
        ]
        out[column] = 1.0 - 0.5 * (shares[0] - shares[1]).abs().sum()
    return out


def _columns(
    real: Transitions, synthetic: Transitions, spec: TransitionSpec
) -> tuple[list[str], Tensor, Tensor, Tensor]:
    """Names, which are discrete, and some rows of both sides as float64 matrices on the CPU."""
    names = [name for field in spec.fields for name in field.elements]
    discrete = [field.kind != "continuous" for field in spec.fields for _ in range(field.size)]
    left, right = (columns(thin(rows, MAX_ROWS, seed=0), spec) for rows in (real, synthetic))
    return names, torch.tensor(discrete, device="cpu"), left, right
