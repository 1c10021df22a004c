"""What follows an observation and an action: a regression in place of what the diffusion model generates.

A denoiser learns the joint distribution of all columns at once. Where the reward is, say, a sum of squared actions, it
needs far more steps than few rows allow to learn that relation: the generated rewards have the right distribution and
hardly any correlation with their actions. A regression learns it from the same rows in seconds. So the model generates
observations and actions, and an ensemble (`synther_buffers.regression`) predicts reward and next observation from them,
as model-based reinforcement learning does (Janner et al., NeurIPS 2019).

The mean is wrong where much of the outcome is chance. A column whose variance the ensemble explains less than half on
rows it did not learn stays as generated. So do categories, flags and columns with point masses, whose mean is no value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..regression import Ensemble
from ..transitions.codec import Codec

#: Least share of a column's variance that the ensemble has to explain.
_LEAST_EXPLAINED = 0.5


class OutcomeRegression:
    """Replaces outcome columns of encoded rows by predictions.

    Args:
        codec: of the rows.
        ensemble: predicts all `outcome_columns` of the codec from its other ones; None if it has no such columns.
    """

    def __init__(self, codec: Codec, ensemble: Ensemble | None) -> None:
        self.ensemble = ensemble
        self._given, self._outcome = _columns(codec)

    @classmethod
    def fit(cls, codec: Codec, rows: Tensor, num_steps: int, generator: torch.Generator) -> OutcomeRegression:
        """Learn encoded rows ``[N, D]`` float32, in the order of writing, with at most `num_steps` gradient steps."""
        given, outcome = _columns(codec)
        if len(outcome) == 0 or len(given) == 0:
            return cls(codec, None)
        inputs, targets = (rows[:, columns.to(rows.device)] for columns in (given, outcome))
        return cls(codec, Ensemble.fit(inputs, targets, generator, num_steps))

    @property
    def replaced(self) -> Tensor:
        """Columns of the matrix that are predicted: those whose variance the ensemble explains well enough."""
        if self.ensemble is None:
            return self._outcome[:0]
        return self._outcome[self.ensemble.explained.cpu() >= _LEAST_EXPLAINED]

    def apply(self, matrix: Tensor) -> Tensor:
        """Encoded rows ``[n, D]`` with the predicted columns, in new memory."""
        if self.ensemble is None:
            return matrix
        explained = self.ensemble.explained >= _LEAST_EXPLAINED
        predicted = self.ensemble.predict(matrix[:, self._given.to(matrix.device)])
        return matrix.index_copy(1, self.replaced.to(matrix.device), predicted[:, explained])

    def state_dict(self) -> dict[str, Any]:
        """The ensemble's state; nothing without one."""
        return {} if self.ensemble is None else self.ensemble.state_dict()

    @classmethod
    def from_state(cls, codec: Codec, state: dict[str, Any], device: torch.device) -> OutcomeRegression:
        """What `state_dict` returned, for the same codec.

        Raises:
            ValueError: the state is of another codec, or damaged.
        """
        given, outcome = _columns(codec)
        return cls(codec, Ensemble.from_state(state, len(given), len(outcome), device) if state else None)


def _columns(codec: Codec) -> tuple[Tensor, Tensor]:
    """Indices of the columns to predict from, and of those to predict."""
    given: list[int] = []
    outcome: list[int] = []
    following = {"reward", *(field.name for field in codec.spec.next_observation)}
    for block in codec.layout.blocks:
        columns = range(block.columns.start, block.columns.stop)
        if block.field.name in following:
            if block.field.kind == "continuous":
                grouped = {element for group in block.one_hot for element in group}
                outcome += [
                    column
                    for element, column in enumerate(columns)
                    if element not in block.indicators and element not in grouped
                ]
        elif block.field.name != "terminated":
            given += columns
            given += [column for part in block.indicators.values() for column in range(part.start, part.stop)]
    return torch.tensor(sorted(given), dtype=torch.long), torch.tensor(outcome, dtype=torch.long)
