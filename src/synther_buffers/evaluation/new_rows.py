"""Error of new rows in a simulator, compared with that of a regression on the same training rows.

A low error alone proves nothing: a copy of a training row has none. So rows are put in bins by their distance to the
closest training row, and each bin gets a reference error: an ensemble of networks learns ``(r, s')`` from ``(s, a)`` by
regression on the same rows, and predicts at the same ``(s, a)``. A generative model that has learned as much as the
data allow has about the same error. A far lower error is a sign of copies, a far higher one of wrong dynamics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..regression import Ensemble
from ..transitions import Transitions, TransitionSpec
from .copies import closest_distance
from .dynamics import simulate
from .points import check_rows, element_columns, thin
from .simulators import Simulator


@dataclass(frozen=True)
class Bin:
    """Rows at about one distance to the closest training row.

    Attributes:
        num_rows: rows that were simulated.
        dynamics, reward: mean squared error of the rows' own outcome, in variances of the real rows.
        dynamics_expected, reward_expected: that of the ensemble at the same observations and actions.
    """

    num_rows: int
    dynamics: float
    reward: float
    dynamics_expected: float
    reward_expected: float


@dataclass(frozen=True)
class NewRows:
    """Errors by distance to the closest training row; the distances of held-out rows delimit the bins.

    Attributes:
        near: closer than three quarters of the held-out rows.
        middle: as far as the middle half of them.
        far: farther than three quarters of them.
    """

    near: Bin
    middle: Bin
    far: Bin


class RegressionEnsemble:
    """Networks that learn next observation and reward from observation and action, by the mean squared error.

    Args:
        train: rows to learn, each environment's in the order of writing.
        spec: their fields; observations and actions must be boxes without categories.
        seed: of weights and minibatches; the global random streams are neither read nor moved.
        num_steps: gradient steps at most.

    Raises:
        ValueError: fields that are not continuous.
    """

    def __init__(self, train: Transitions, spec: TransitionSpec, seed: int = 0, num_steps: int = 3_000) -> None:
        if any(field.kind != "continuous" for field in spec.fields if field.name != "terminated"):
            raise ValueError("the spec has categories; the ensemble learns plain numbers only.")
        self.spec = spec
        inputs, targets = _inputs(train, spec), _targets(train, spec)
        self._in, self._out = _Scale(inputs), _Scale(targets)
        generator = torch.Generator().manual_seed(seed)
        self._networks = Ensemble.fit(self._in(inputs), self._out(targets), generator, num_steps)

    @torch.no_grad()
    def predict(self, rows: Transitions) -> Transitions:
        """The rows with the ensemble's mean next observation and reward at their observations and actions."""
        inputs = self._in(_inputs(rows, self.spec))
        outcome = self._out.back(self._networks.predict(inputs))
        flat, at = dict(rows.flat()), 0
        for field in _outcome(self.spec):
            value = outcome[:, at : at + field.size]
            at += field.size
            if field.name != "reward":
                value = value + element_columns(flat["observation" + field.name.removeprefix("next_observation")])
            flat[field.name] = value.reshape(flat[field.name].shape).to(flat[field.name].dtype)
        return Transitions.from_flat(flat)


def error_of_new_rows(
    held_out: Transitions,
    synthetic: Transitions,
    train: Transitions,
    spec: TransitionSpec,
    simulator: Simulator,
    ensemble: RegressionEnsemble,
    *,
    seed: int = 0,
    max_rows: int = 2_000,
) -> NewRows:
    """Errors of synthetic rows by their distance to the closest training row, compared with the ensemble's.

    Args:
        held_out: real rows that neither the model nor the ensemble has learned; they give the units and the limits of
            the bins.
        synthetic: rows to evaluate, at most `max_rows` of them.
        train: rows that both have learned.
        spec: the fields of all of them.
        simulator: gives the true outcomes.
        ensemble: trained on `train`.
        seed: of the choice of rows.
        max_rows: of each set.

    Raises:
        ValueError: rows that do not match the spec, are not finite, or none.
    """
    check_rows(spec, 1, held_out=held_out, synthetic=synthetic, train=train)
    rows = thin(synthetic, max_rows, seed)
    low, high = closest_distance(thin(held_out, max_rows, seed + 1), train, spec, held_out).quantile(
        torch.tensor([0.25, 0.75], dtype=torch.float64)
    )
    distance = closest_distance(rows, train, spec, held_out)
    own = simulate(rows, spec, simulator, held_out)
    expected = simulate(ensemble.predict(rows), spec, simulator, held_out)
    simulated = own.simulated & expected.simulated

    def summary(inside: Tensor) -> Bin:
        inside = inside & simulated
        errors = (own.dynamics_error, own.reward_error, expected.dynamics_error, expected.reward_error)
        return Bin(int(inside.sum()), *(float(error[inside].mean()) for error in errors))

    return NewRows(summary(distance < low), summary((distance >= low) & (distance <= high)), summary(distance > high))


class _Scale:
    """Standardises columns."""

    def __init__(self, values: Tensor) -> None:
        self.mean = values.mean(0)
        self.std = torch.where(values.amin(0) < values.amax(0), values.std(0, correction=0), 1.0)

    def __call__(self, values: Tensor) -> Tensor:
        return ((values - self.mean) / self.std).float()

    def back(self, values: Tensor) -> Tensor:
        return values.double() * self.std + self.mean


def _outcome(spec: TransitionSpec) -> list[Any]:
    return [field for field in spec.fields if field.name == "reward" or field in spec.next_observation]


def _inputs(rows: Transitions, spec: TransitionSpec) -> Tensor:
    flat = rows.flat()
    skipped = {"terminated", *(field.name for field in _outcome(spec))}
    return torch.cat([element_columns(flat[field.name]) for field in spec.fields if field.name not in skipped], dim=1)


def _targets(rows: Transitions, spec: TransitionSpec) -> Tensor:
    """Reward, and the next observation as the change from the observation, which is smoother."""
    flat, parts = rows.flat(), []
    for field in _outcome(spec):
        value = element_columns(flat[field.name])
        if field.name != "reward":
            value = value - element_columns(flat["observation" + field.name.removeprefix("next_observation")])
        parts.append(value)
    return torch.cat(parts, dim=1)
