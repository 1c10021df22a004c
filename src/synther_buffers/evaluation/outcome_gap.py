"""Do rewards and next observations belong to their rows? A joint figure, cheap enough for every refresh."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..transitions import Transitions, TransitionSpec
from .points import MAX_ROWS, Units, check_rows, element_columns, one_hot, thin

#: Random features of the regression, and the ridge, as a share of the number of rows.
_FEATURES, _RIDGE = 128, 1e-3
#: An outcome counts if the regression leaves at most this share of its variance unexplained on held-out rows.
_LARGEST_REST = 0.5
#: A squared error counts at most so many variances of the outcome. Otherwise a few rare crashes, of which the held-out
#: rows may have none, would be the whole figure.
_LARGEST_ERROR = 4.0


def outcome_gap(
    real: Transitions, synthetic: Transitions, train: Transitions, spec: TransitionSpec, *, seed: int = 0
) -> float:
    """How much worse a regression predicts synthetic outcomes than held-out real ones.

    It learns the training rows. A ridge regression on squares and random features (Rahimi and Recht 2007) predicts the
    reward and the change of the observation from observation and action. For each outcome of which it explains at least
    half on the held-out rows, the gap is the share of variance that it explains less of the synthetic rows, between 0
    and 1. The result is the larger of the reward's gap and the mean gap of the observation's elements. 0: outcomes
    belong to their observations and actions as real ones do. 1: they might be those of other rows. Right values in the
    wrong rows have the right marginals, and a gap.

    An outcome that never varies in the training rows, like the change of a goal, tells nothing as long as the synthetic
    rows keep to it. Where they do not, such a reward counts as any other, and such elements by a mean of their own.

    Args:
        real: held-out rows.
        synthetic: rows to judge.
        train: the rows that were learned.
        spec: the fields of all of them.
        seed: of the random features, and of the choice of rows where there are more than 5,000.

    Returns:
        The gap; NaN if the regression explains no outcome that varies, and the others are kept to.

    Raises:
        ValueError: rows that do not match the spec, are not finite, or none.
    """
    check_rows(spec, 1, real=real, synthetic=synthetic, train=train)
    train, real, synthetic = (thin(rows, MAX_ROWS, seed) for rows in (train, real, synthetic))
    units = Units.measure(train, spec)
    generator = torch.Generator().manual_seed(seed)
    width = _given(train[:1], spec, units).shape[1]
    weights = torch.randn(width, _FEATURES, generator=generator, dtype=torch.float64, device="cpu")
    weights = weights / math.sqrt(width)
    shift = torch.randn(_FEATURES, generator=generator, dtype=torch.float64, device="cpu")

    def features(rows: Transitions) -> Tensor:
        inputs = _given(rows, spec, units)
        ones = torch.ones(len(inputs), 1, dtype=torch.float64, device="cpu")
        # The squares, because many a reward has a cost of squared actions.
        return torch.cat((ones, inputs, inputs.square(), torch.tanh(inputs @ weights + shift)), dim=1)

    learned, outcomes = features(train), _outcomes(train, spec, units)
    centre, scale = outcomes.mean(0), outcomes.std(0, correction=0)
    varies = scale > 1e-9
    # What never changes in the data must not change in synthetic rows either: any change is large.
    scale = torch.where(varies, scale, 1e-3)
    product = learned.T @ learned
    product.diagonal().add_(_RIDGE * len(learned))
    solution = torch.linalg.solve(product, learned.T @ ((outcomes - centre) / scale))

    def rest(rows: Transitions) -> Tensor:
        error = (_outcomes(rows, spec, units) - centre) / scale - features(rows) @ solution
        return error.square().clamp(max=_LARGEST_ERROR).mean(0)

    best = rest(real)
    known = best <= _LARGEST_REST
    gaps = (rest(synthetic) - best).clamp(0.0, 1.0)
    # The reward, the first of the outcomes, matters as much as hundreds of elements of an observation together.
    is_reward = torch.arange(len(gaps), device="cpu") == 0
    parts = [gaps[known & varies & chosen] for chosen in (is_reward, ~is_reward)]
    # Constants that are kept to would dilute the mean of what varies, or be all that there is to judge by.
    constant = [gaps[known & ~varies & chosen] for chosen in (is_reward, ~is_reward)]
    parts += [part for part in constant if bool((part > 0.0).any())]
    return max((float(part.mean()) for part in parts if len(part)), default=math.nan)


def _given(rows: Transitions, spec: TransitionSpec, units: Units) -> Tensor:
    """Observation and action in the units of the training rows, ``[N, D]`` float64."""
    following = {"reward", "terminated", *(field.name for field in spec.next_observation)}
    flat = rows.flat()
    parts = []
    for field in spec.fields:
        if field.name not in following:
            value = element_columns(flat[field.name])
            if field.kind == "continuous":
                value = (value - units.mean[field.name]) / units.std[field.name]
            elif field.kind == "categorical":
                value = one_hot(field, value)
            parts.append(value)
    return torch.cat(parts, dim=1)


def _outcomes(rows: Transitions, spec: TransitionSpec, units: Units) -> Tensor:
    """Reward and, of continuous observations, the change, in the units of the training rows, ``[N, K]`` float64."""
    flat = rows.flat()
    parts = [element_columns(flat["reward"]) / units.std["reward"]]
    for before, after in zip(spec.observation, spec.next_observation, strict=True):
        if before.kind == after.kind == "continuous":
            change = element_columns(flat[after.name]) - element_columns(flat[before.name])
            parts.append(change / units.std[before.name])
    return torch.cat(parts, dim=1)
