"""What follows an observation and an action: a regression mends what the diffusion model got wrong.

A denoiser learns the joint distribution of all columns at once. Where the reward is, say, a sum of squared actions, it
needs far more steps than few rows allow to learn that relation: the generated rewards have the right distribution and
hardly any correlation with their actions. A regression learns it from the same rows in seconds, as model-based
reinforcement learning does (Janner et al., NeurIPS 2019).

So an ensemble (`synther_buffers.regression`) learns reward and next observation from observation and action. It
replaces a column only if the generated values lie much farther from its predictions than real rows do that it did not
learn: then the generated values do not belong to their observations and actions. A column that it predicts badly stays
as it is, because a mean is no value where much of the outcome is chance. So do categories, flags and the other values
of a column with point masses. Whether a row has a point mass (a rare penalty, say) is predicted: its indicator is a
number between -1 and 1, and as many of the rows with the largest ones get the value as in the data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..regression import Ensemble
from ..transitions.codec import Codec

#: Least share of a column's variance that the ensemble has to explain.
_LEAST_EXPLAINED = 0.5
#: A number is replaced if the mean squared difference of generated values from the predictions is more than so many
#: times that of real values. Where the denoiser has learned the relation this is 0.2 to 0.8 (the generated values are
#: compared with the mean of the ensemble, the real ones with single networks), and where it has not, 5 to 60.
_LARGEST_ERROR = 2.0
#: An indicator is replaced if the ensemble finds at least this share of the real rows with the point mass among as many
#: with the largest predictions, and finds less than this part of that share among the generated rows. (The error does
#: not tell: predictions of a rare value are soft, and both differences are mostly theirs.)
_LEAST_RECALL, _LARGEST_LOSS = 0.75, 0.85


class OutcomeRegression:
    """Replaces outcome columns of encoded rows by predictions.

    Args:
        codec: of the rows.
        ensembles: predict the outcome columns of the codec from its other ones, one ensemble for each of `_parts`.
        replaced: ``[outcomes]`` bool, which of them it replaces; None until `judge` has been called.
    """

    def __init__(self, codec: Codec, ensembles: tuple[Ensemble, ...], replaced: Tensor | None = None) -> None:
        self._codec, self._ensembles = codec, ensembles
        self._given, self._parts = _columns(codec)
        self._outcome = torch.cat(self._parts) if self._parts else torch.zeros(0, dtype=torch.long)
        self._replaced = torch.zeros(len(self._outcome), dtype=torch.bool) if replaced is None else replaced

    @classmethod
    def fit(cls, codec: Codec, rows: Tensor, num_steps: int, generator: torch.Generator) -> OutcomeRegression:
        """Learn encoded rows ``[N, D]`` float32, in the order of writing, with at most `num_steps` gradient steps each.

        It replaces nothing until `judge` has been called.
        """
        given, parts = _columns(codec)
        inputs = rows[:, given.to(rows.device)]
        return cls(
            codec,
            tuple(Ensemble.fit(inputs, rows[:, part.to(rows.device)], generator, num_steps) for part in parts),
        )

    def judge(self, generated: Tensor) -> OutcomeRegression:
        """The regression that replaces the columns of these generated rows ``[n, D]`` that need it."""
        if not self._ensembles:
            return self
        inputs = generated[:, self._given.to(generated.device)]
        wrong = []
        for ensemble, part in zip(self._ensembles, self._parts, strict=True):
            judge = _wrong_indicators if int(part[0]) >= self._codec.layout.first_indicator else _wrong_numbers
            wrong.append(judge(ensemble, ensemble.predict(inputs), generated[:, part.to(generated.device)]))
        return OutcomeRegression(self._codec, self._ensembles, torch.cat(wrong).cpu())

    @property
    def replaced(self) -> Tensor:
        """Columns of the matrix that are predicted."""
        return self._outcome[self._replaced]

    @property
    def replaced_names(self) -> list[str]:
        """Names of the elements that are predicted, as ``reward``, ``next_observation[3]`` or ``reward = -100``."""
        names: dict[int, str] = {}
        for block in self._codec.layout.blocks:
            columns = range(block.columns.start, block.columns.stop)
            names.update(zip(columns, block.field.elements, strict=False))
            for element, part in block.indicators.items():
                for column, mass in zip(range(part.start, part.stop), block.masses[element], strict=True):
                    names[column] = f"{block.field.elements[element]} = {mass.value:g}"
        return [names[column] for column in self.replaced.tolist()]

    def apply(self, matrix: Tensor) -> Tensor:
        """Encoded rows ``[n, D]`` with the predicted columns, in new memory if there are any."""
        if not bool(self._replaced.any()):
            return matrix
        predicted = self._predict(matrix)[:, self._replaced.to(matrix.device)]
        return matrix.index_copy(1, self.replaced.to(matrix.device), predicted)

    def _predict(self, matrix: Tensor) -> Tensor:
        """All outcome columns, ``[n, outcomes]``."""
        inputs = matrix[:, self._given.to(matrix.device)]
        return torch.cat([ensemble.predict(inputs) for ensemble in self._ensembles], dim=1)

    def state_dict(self) -> dict[str, Any]:
        """The ensembles' states and the replaced columns; nothing without an ensemble."""
        if not self._ensembles:
            return {}
        return {"ensembles": [ensemble.state_dict() for ensemble in self._ensembles], "replaced": self._replaced}

    @classmethod
    def from_state(cls, codec: Codec, state: dict[str, Any], device: torch.device) -> OutcomeRegression:
        """What `state_dict` returned, for the same codec.

        Raises:
            ValueError: the state is of another codec, or damaged.
        """
        if not state:
            return cls(codec, ())
        given, parts = _columns(codec)
        replaced = state["replaced"]
        num_outcomes = sum(map(len, parts))
        if replaced.shape != (num_outcomes,) or replaced.dtype != torch.bool or len(state["ensembles"]) != len(parts):
            raise ValueError(
                f"the regression has {len(state['ensembles'])} parts and its replaced columns are "
                f"{tuple(replaced.shape)} {replaced.dtype}; wanted {len(parts)} and ({num_outcomes},) torch.bool."
            )
        ensembles = tuple(
            Ensemble.from_state(saved, len(given), len(part), device)
            for saved, part in zip(state["ensembles"], parts, strict=True)
        )
        return cls(codec, ensembles, replaced)


def _wrong_numbers(ensemble: Ensemble, prediction: Tensor, value: Tensor) -> Tensor:
    """Which of the generated columns ``[n, k]`` do not follow from observation and action, ``[k]``."""
    error = (value - prediction).double().square().mean(0)
    return (error > _LARGEST_ERROR * ensemble.error) & (ensemble.explained >= _LEAST_EXPLAINED)


def _wrong_indicators(ensemble: Ensemble, prediction: Tensor, value: Tensor) -> Tensor:
    """The same of indicators: positive where a row has the point mass."""
    wanted = [
        # As many of the rows as in the data, those with the largest predictions, should have it.
        torch.zeros_like(column, dtype=torch.bool).index_fill(0, column.topk(int(share * len(column))).indices, True)
        for column, share in zip(prediction.unbind(1), ensemble.share.tolist(), strict=True)
    ]
    recall = torch.stack(
        [
            (rows & (column > 0)).double().sum() / rows.sum().clamp(min=1)
            for rows, column in zip(wanted, value.unbind(1), strict=True)
        ]
    )
    return (ensemble.recall >= _LEAST_RECALL) & (recall < _LARGEST_LOSS * ensemble.recall)


def _columns(codec: Codec) -> tuple[Tensor, list[Tensor]]:
    """Indices of the columns to predict from, and of those to predict, none of which is empty.

    The latter in two parts: numbers, and the indicators of point masses. They are learned apart, because a network
    stops when it begins to learn the noise of its targets, and the indicator of a rare value is learned late.
    """
    given: list[int] = []
    numbers: list[int] = []
    indicators: list[int] = []
    following = {"reward", *(field.name for field in codec.spec.next_observation)}
    for block in codec.layout.blocks:
        columns = range(block.columns.start, block.columns.stop)
        masses = [column for part in block.indicators.values() for column in range(part.start, part.stop)]
        if block.field.name in following:
            if block.field.kind == "continuous":
                grouped = {element for group in block.one_hot for element in group}
                numbers += [
                    column
                    for element, column in enumerate(columns)
                    if element not in block.indicators and element not in grouped
                ]
                indicators += masses
        elif block.field.name != "terminated":
            given += [*columns, *masses]
    parts = [torch.tensor(part, dtype=torch.long) for part in (numbers, indicators) if part and given]
    return torch.tensor(sorted(given), dtype=torch.long), parts
