"""What follows an observation and an action: a regression mends what the diffusion model got wrong.

A denoiser learns the joint distribution of all columns at once. Where the reward is, say, a sum of squared actions, it
needs far more steps than few rows allow to learn that relation: the generated rewards have the right distribution and
hardly any correlation with their actions. A regression learns it from the same rows in seconds, as model-based
reinforcement learning does (Janner et al., NeurIPS 2019).

So an ensemble (`synther_buffers.regression`) learns reward and next observation from observation and action. It
replaces a column only if the generated values lie much farther from its predictions than real rows do that it did not
learn: then the generated values do not belong to their observations and actions. A column that it predicts badly stays
as it is, because a mean is no value where much of the outcome is chance. So do categories, flags and the other values
of a column with point masses.

Whether a row has a point mass (a rare penalty, say) is predicted as well, where the generated rows have it in the wrong
places. A second ensemble finds those places; a classifier of that point mass alone, which uses few columns, then says
which rows have it. Its cut is that of the real rows, so the share of synthetic rows with the point mass follows from
their own observations and actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..regression import FEWEST_ROWS, Ensemble
from ..transitions.codec import Codec
from .rare_classifier import RareClassifier

#: Least share of a column's variance that the ensemble has to explain.
_LEAST_EXPLAINED = 0.5
#: A number is replaced if the mean squared difference of generated values from the predictions is more than so many
#: times that of real values. Where the denoiser has learned the relation this is 0.2 to 0.8 (the generated values are
#: compared with the mean of the ensemble, the real ones with single networks), and where it has not, 5 to 60.
_LARGEST_ERROR = 2.0
#: An indicator is replaced if the ensemble finds at least this share of the real rows with the point mass among as many
#: with the largest predictions, and finds less than this part of that share among the generated rows. (The error does
#: not tell: predictions of a rare value are soft, and both differences are mostly theirs.)
_LEAST_RECALL, _LARGEST_LOSS = 0.6, 0.85
#: Weight of each column in the classifier's group lasso, as for terminals.
_PENALTY = 3e-3


class OutcomeRegression:
    """Replaces outcome columns of encoded rows by predictions.

    Args:
        codec: of the rows.
        numbers: indices of the columns of numbers that it replaces, ``[k]``.
        ensemble: predicts all columns of numbers from the codec's given columns; None if it replaces none.
        indicators: of the columns of point masses that it replaces, the classifier and the log-odds of its cut.
    """

    def __init__(
        self,
        codec: Codec,
        numbers: Tensor,
        ensemble: Ensemble | None,
        indicators: Mapping[int, tuple[RareClassifier, float]],
    ) -> None:
        self._codec = codec
        self._numbers, self._ensemble, self._indicators = numbers, ensemble, dict(indicators)
        self._columns = _columns(codec)

    @classmethod
    def fit(
        cls, codec: Codec, rows: Tensor, generated: Tensor, num_steps: int, generator: torch.Generator
    ) -> OutcomeRegression:
        """Learn the outcomes of real rows, and which of them the generated rows have wrong.

        With fewer than five real rows it replaces nothing: a regression could be judged only on what it learned.

        Args:
            codec: of the rows.
            rows: real ones, encoded, ``[N, D]`` float32, each environment's in the order of writing.
            generated: rows that the model generated, encoded, ``[n, D]`` float32 on the same device.
            num_steps: gradient steps of each network, at most.
            generator: source of weights and minibatches, on their device.
        """
        columns = _columns(codec)
        given, numbers, indicators = (part.to(rows.device) for part in columns)
        inputs, wrong = rows[:, given], numbers[:0]
        ensemble = None
        enough = len(rows) >= FEWEST_ROWS and len(given) > 0
        if enough and len(numbers):
            ensemble = Ensemble.fit(inputs, rows[:, numbers], generator, num_steps)
            wrong = numbers[_wrong_numbers(ensemble, ensemble.predict(generated[:, given]), generated[:, numbers])]
        classifiers = {}
        if enough and len(indicators):
            screen = Ensemble.fit(inputs, rows[:, indicators], generator, num_steps)
            misplaced = _wrong_indicators(screen, screen.predict(generated[:, given]), generated[:, indicators])
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
            draws = torch.Generator().manual_seed(seed)
            penalty = torch.full_like(inputs[0], _PENALTY)
            for column in indicators[misplaced].tolist():
                label = rows[:, column] > 0
                classifier = RareClassifier.fit(inputs, label, penalty, num_steps, draws)
                classifiers[column] = (classifier, _cut(classifier.logits(inputs), int(label.sum())))
        return cls(codec, wrong.cpu(), ensemble if len(wrong) else None, classifiers)

    @property
    def replaced(self) -> Tensor:
        """Columns of the matrix that are predicted."""
        return torch.cat((self._numbers, torch.tensor(sorted(self._indicators), dtype=torch.long, device="cpu")))

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
        if not len(self._numbers) and not self._indicators:
            return matrix
        given, numbers, _ = (part.to(matrix.device) for part in self._columns)
        inputs = matrix[:, given]
        matrix = matrix.clone()
        if self._ensemble is not None:
            wrong = self._numbers.to(matrix.device)
            matrix[:, wrong] = self._ensemble.predict(inputs)[:, torch.isin(numbers, wrong)]
        for column, (classifier, cut) in self._indicators.items():
            # Decoding keeps such values apart whatever rate they have.
            matrix[:, column] = torch.where(classifier.logits(inputs) > cut, 1.0, -1.0)
        return matrix

    def state_dict(self) -> dict[str, Any]:
        """Replaced columns and what predicts them, as CPU tensors and plain data; nothing where none is replaced."""
        state: dict[str, Any] = {}
        if self._ensemble is not None:
            state |= {"numbers": self._numbers, "ensemble": self._ensemble.state_dict()}
        if self._indicators:
            state["indicators"] = [
                {"column": column, "cut": cut, "net": classifier.state_dict()}
                for column, (classifier, cut) in self._indicators.items()
            ]
        return state

    @classmethod
    def from_state(cls, codec: Codec, state: dict[str, Any], device: torch.device) -> OutcomeRegression:
        """What `state_dict` returned, for the same codec.

        Raises:
            ValueError: the state is of another codec, or damaged.
        """
        given, numbers, indicators = _columns(codec)
        if not set(state) <= {"numbers", "ensemble", "indicators"} or ("numbers" in state) != ("ensemble" in state):
            raise ValueError(f"the regression's state has the entries {sorted(state)}, which are none of this version.")
        replaced = torch.as_tensor(state.get("numbers", []), dtype=torch.long, device="cpu")
        classified = [int(entry["column"]) for entry in state.get("indicators", [])]
        unknown = [*set(replaced.tolist()) - set(numbers.tolist()), *set(classified) - set(indicators.tolist())]
        if unknown:
            raise ValueError(f"the regression replaces the columns {unknown}, which are no outcomes of these rows.")
        ensemble = None
        if "ensemble" in state:
            ensemble = Ensemble.from_state(state["ensemble"], len(given), len(numbers), device)
        try:
            classifiers = {
                int(entry["column"]): (RareClassifier.from_state(entry["net"], len(given), device), float(entry["cut"]))
                for entry in state.get("indicators", [])
            }
        except RuntimeError as error:
            raise ValueError(f"a classifier of the regression cannot be read: {error}") from None
        return cls(codec, replaced, ensemble, classifiers)


def _wrong_numbers(ensemble: Ensemble, prediction: Tensor, value: Tensor) -> Tensor:
    """Which of the generated columns ``[n, k]`` do not follow from observation and action, ``[k]``."""
    error = (value - prediction).double().square().mean(0)
    return (error > _LARGEST_ERROR * ensemble.error) & (ensemble.explained >= _LEAST_EXPLAINED)


def _wrong_indicators(ensemble: Ensemble, prediction: Tensor, value: Tensor) -> Tensor:
    """The same of indicators: positive where a row has the point mass."""
    counts = [int(share * len(value)) for share in ensemble.share.tolist()]
    wanted = [
        # As many of the rows as in the data, those with the largest predictions, should have it.
        torch.zeros_like(column, dtype=torch.bool).index_fill(0, column.topk(count).indices, True)
        for column, count in zip(prediction.unbind(1), counts, strict=True)
    ]
    recall = torch.stack(
        [
            (rows & (column > 0)).double().sum() / rows.sum().clamp(min=1)
            for rows, column in zip(wanted, value.unbind(1), strict=True)
        ]
    )
    # Where no row has the point mass any more, the largest value of the constant column is that of all rows. Where it
    # is so rare that no generated row should have it, none is in the wrong place.
    judged = (ensemble.share < 1.0) & (torch.tensor(counts, device=recall.device) > 0)
    return judged & (ensemble.recall >= _LEAST_RECALL) & (recall < _LARGEST_LOSS * ensemble.recall)


def _cut(logits: Tensor, count: int) -> float:
    """Log-odds that about so many of the rows ``[N]`` exceed, half-way between two of them.

    Rows with the same observation and action have the same log-odds. They are all above the cut or all below it,
    whichever is closer to the number.
    """
    ordered = logits.double().sort(descending=True).values
    value = ordered[count - 1]
    above, reaching = int((ordered > value).sum()), int((ordered >= value).sum())
    last = reaching if reaching - count <= count - above else above
    if last == 0:
        return float(ordered[0]) + 1.0
    if last == len(ordered):
        return float(ordered[-1]) - 1.0
    return float(ordered[last - 1 : last + 1].mean())


def _columns(codec: Codec) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the columns to predict from; of the numbers, and of the indicators of point masses, to predict.

    The latter two are learned apart, because a network stops when it begins to learn the noise of its targets, and the
    indicator of a rare value is learned late.
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
    given.sort()
    first, second, third = (torch.tensor(part, dtype=torch.long, device="cpu") for part in (given, numbers, indicators))
    return first, second, third
