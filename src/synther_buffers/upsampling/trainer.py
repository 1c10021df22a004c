"""Training: real transitions and the last model in, a new model and a report out."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.conditions import ConditionDraws
from ..diffusion.early_stopping import EarlyStopping
from ..diffusion.edm import Preconditioner
from ..diffusion.sampling import sampling_limits
from ..diffusion.training import NonFiniteLossError, evaluate_denoiser, train_denoiser
from ..transitions import Transitions, TransitionSpec
from ..transitions.codec import Codec
from .budget import regularized, terminal_steps, train_steps, warm_steps
from .fitted_model import CALIBRATION_ROWS, Denoising, FittedModel, check_finite, codec_options, new_denoiser
from .outcomes import OutcomeRegression
from .presets import UpsamplerConfig
from .progress import progress
from .protocol import FitReport
from .relevance import RelevanceScale
from .seeds import derive_seed, generator
from .terminals import TerminalClassifier

logger = logging.getLogger(__name__)

#: Fewest held-out rows with which the weights are chosen by the held-out loss.
_FEWEST_JUDGES = 30
#: Measurements of the held-out loss in a training, the fewest steps between two of them, and the number of consecutive
#: ones without a new lowest loss that ends the training.
_LOOKS, _FEWEST_STEPS_BETWEEN_LOOKS, _PATIENCE = 20, 50, 5


@dataclass(frozen=True)
class Trainer:
    """Makes fitted models of one configuration.

    Attributes:
        spec: the fields of a transition.
        config: of the upsampler.
        device: where it trains.
        seed: of this fit.
        progress_bar: show one on terminals.
    """

    spec: TransitionSpec
    config: UpsamplerConfig
    device: torch.device
    seed: int
    progress_bar: bool

    @torch.inference_mode(False)
    def fit(
        self,
        transitions: Transitions,
        held_out: Transitions | None,
        previous: FittedModel | None,
        why_from_scratch: str = "first fit",
        relevance: Tensor | None = None,
    ) -> tuple[FittedModel, FitReport]:
        """A new model of the rows; `previous` is not changed.

        Training continues from the previous model if its normalisation still fits the data. It is replaced by training
        from scratch if it diverges or ends worse on the held-out rows than the previous model. With a budget, the
        number of rows determines the number of steps and the regularisation, and the model has the weights with the
        lowest held-out loss, if enough rows are held out.

        Args:
            transitions: finite rows of the spec, at least one, on any device.
            held_out: rows that evaluate the model.
            previous: the model to continue from; None to start from scratch.
            why_from_scratch: the reason that the report gives for that.
            relevance: of each row, ``[N]``, or None.

        Raises:
            ValueError: rows that do not match the spec, or none, or a relevance that cannot be learned.
            NonFiniteLossError: training diverged.
            FloatingPointError: the model generates values that are not finite.
        """
        start = time.perf_counter()
        self.spec.check(transitions)
        if len(transitions) == 0:
            raise ValueError("transitions has no rows; at least one is needed to learn from.")
        scale = self._relevance_scale(relevance, len(transitions))
        scores = None if scale is None or relevance is None else scale.scores(relevance).to(self.device)
        clock = _Clock()
        reason = "" if previous is not None else why_from_scratch
        if previous is not None and (drift := previous.codec.drift(transitions)) > 1.0:
            reason = f"the data left the model's normalisation (drift {drift:.2f} > 1)"
        attempts: list[_Attempt] = []
        if previous is not None and not reason:
            codec = self._codec(transitions, previous.codec)
            rows = codec.encode(transitions, self.device)
            judged = self._encode_held_out(codec, held_out, rows)
            clock.lap("normalize")
            before = self._validation_loss(previous.denoising.denoiser, judged)
            num_steps = warm_steps(self.config, len(rows), previous.num_rows)
            try:
                conditions = self._conditions(codec, scores)
                attempts.append(self._train(previous.denoising.denoiser, rows, judged, num_steps, conditions))
                if attempts[-1].held_out_loss > before:
                    reason = "a warm start ended worse on held-out rows than it began"
            except NonFiniteLossError as error:
                reason = f"a warm start diverged: {error}"
            clock.lap("train")
        if reason:
            codec = self._codec(transitions, None)
            rows = codec.encode(transitions, self.device)
            judged = self._encode_held_out(codec, held_out, rows)
            clock.lap("normalize")
            num_steps = train_steps(self.config, len(rows))
            conditions = self._conditions(codec, scores)
            attempts.append(self._train(self._new_denoiser(codec.dim), rows, judged, num_steps, conditions))
        trained = attempts[-1]
        low, high = rows.aminmax(dim=0)
        denoising = Denoising(self.config, trained.denoiser, low, high, self._sigma_max(rows, previous))
        clock.lap("train")
        generated = denoising.sampler(CALIBRATION_ROWS, derive_seed(self.seed, "calibration")).draw(0, CALIBRATION_ROWS)
        check_finite(torch.isfinite(generated).all())
        clock.lap("calibrate")
        outcomes = None
        if self.config.outcome_steps > 0:
            draws = generator(derive_seed(self.seed, "outcomes"), self.device)
            outcomes = OutcomeRegression.fit(codec, rows, generated, self.config.outcome_steps, draws)
            clock.lap("outcomes")
        del rows
        terminals = TerminalClassifier(self.spec, self.device)
        if self.config.model_terminals:
            draws = generator(derive_seed(self.seed, "terminals"))
            terminals.fit(transitions, terminal_steps(self.config, len(transitions)), draws)
        clock.lap("terminals")
        model = self._calibrated(denoising, codec, terminals, outcomes, generated, len(transitions), scale)
        clock.lap("calibrate")
        report = FitReport(
            loss=trained.loss,
            held_out_loss=trained.held_out_loss,
            steps=sum(attempt.steps for attempt in attempts),
            seconds=time.perf_counter() - start,
            warm=not reason,
            reason=reason,
            phases=clock.phases,
            budget=num_steps,
            best_step=trained.best_step,
            predicted=() if model.outcomes is None else tuple(model.outcomes.replaced_names),
        )
        return model, report

    def _codec(self, transitions: Transitions, previous: Codec | None) -> Codec:
        """Encodes and decodes rows like these; keeps the normalisation of `previous`, for which its weights hold."""
        normalizer = None if previous is None else previous.normalizer
        return Codec.fit(self.spec, transitions, normalizer=normalizer, **codec_options(self.config))

    def _encode_held_out(self, codec: Codec, held_out: Transitions | None, rows: Tensor) -> Tensor | None:
        """The held-out rows, within the limits that the training rows ``[N, D]`` give the sampler.

        The loss is a squared error, so one value far outside would outweigh all other rows.
        """
        if held_out is None or len(held_out) == 0:
            return None
        low, high = sampling_limits(*rows.aminmax(dim=0))
        return codec.encode(held_out, self.device).clamp_(low, high)

    def _new_denoiser(self, dim: int) -> Preconditioner:
        weights = generator(derive_seed(self.seed, "network"))
        return new_denoiser(self.config, dim, self.device, weights)

    def _relevance_scale(self, relevance: Tensor | None, num_rows: int) -> RelevanceScale | None:
        if relevance is None:
            return None
        if self.config.conditioning is None:
            raise ValueError("relevance is given, but the configuration has no conditioning, so it cannot be learned.")
        if tuple(relevance.shape) != (num_rows,):
            raise ValueError(f"relevance has shape {tuple(relevance.shape)}; wanted one number a row, ({num_rows},).")
        return RelevanceScale.measure(relevance)

    def _conditions(self, codec: Codec, scores: Tensor | None) -> ConditionDraws | None:
        """The conditions under which the rows are learned: the observation, or it and the action, are known."""
        conditioning = self.config.conditioning
        if conditioning is None:
            return None
        observation = [field.name for field in self.spec.observation]
        known = [codec.layout.columns_of(names) for names in (observation, [*observation, self.spec.action.name])]
        share = conditioning.given_share
        bounds = torch.tensor([share / 2, share], dtype=torch.float32, device=self.device)
        return ConditionDraws(torch.stack(known).to(self.device), bounds, scores, conditioning.drop_relevance)

    def _train(
        self,
        denoiser: Preconditioner,
        rows: Tensor,
        held_out: Tensor | None,
        num_steps: int,
        conditions: ConditionDraws | None,
    ) -> _Attempt:
        """Train a copy; with a budget, regularised by the number of rows and with early stopping."""
        stopping = None
        if self.config.budget is not None and held_out is not None and len(held_out) >= _FEWEST_JUDGES:
            look_every = max(num_steps // _LOOKS, _FEWEST_STEPS_BETWEEN_LOOKS)
            stopping = EarlyStopping(lambda now: self._validation_loss(now, held_out), look_every, _PATIENCE)
        draws = generator(derive_seed(self.seed, "training", num_steps), self.device)
        with progress("training", num_steps, shown=self.progress_bar) as bar:
            trained, loss = train_denoiser(
                denoiser,
                rows,
                num_steps,
                regularized(self.config, len(rows)),
                draws,
                lambda done, loss: bar.update_to(done, loss=f"{loss:.4f}"),
                stopping,
                conditions,
            )
        if stopping is None:
            return _Attempt(trained, loss, self._validation_loss(trained, held_out), num_steps, 0)
        return _Attempt(trained, loss, stopping.least, stopping.stopped_at or num_steps, stopping.least_step)

    def _validation_loss(self, denoiser: Preconditioner, rows: Tensor | None) -> float:
        """The loss on held-out rows, always with the same noise; NaN without rows."""
        if rows is None:
            return math.nan
        draws = generator(derive_seed(self.seed, "validation"), self.device)
        return evaluate_denoiser(denoiser, rows, self.config.training, draws)

    def _sigma_max(self, rows: Tensor, previous: FittedModel | None) -> float:
        """The noise level where sampling starts: the noise has to reach the largest value of the rows."""
        largest, wanted = float(rows.abs().max()), self.config.sampler.solver.sigma_max
        sigma_max = max(wanted, 2.0 * largest)
        if sigma_max > wanted and (previous is None or previous.denoising.sigma_max != sigma_max):
            logger.warning(
                "The largest normalised value is %.1f; sampling starts at sigma_max=%.1f instead of %.1f to reach it.",
                largest, sigma_max, wanted,
            )  # fmt: skip
        return sigma_max

    def _calibrated(
        self,
        denoising: Denoising,
        codec: Codec,
        terminals: TerminalClassifier,
        outcomes: OutcomeRegression | None,
        matrix: Tensor,
        num_rows: int,
        relevance: RelevanceScale | None,
    ) -> FittedModel:
        """The model with its thresholds, measured on encoded rows ``[n, D]`` that it generated."""
        if outcomes is not None:
            matrix = outcomes.apply(matrix)
        thresholds = codec.thresholds(matrix)
        shift = 0.0
        if self.config.model_terminals:
            rows = self.spec.empty(len(matrix), self.device)
            codec.decode(matrix, rows, thresholds)
            shift = terminals.calibrate(terminals.logits(rows))
        return FittedModel(self.spec, denoising, codec, thresholds, terminals, shift, num_rows, outcomes, relevance)


@dataclass(frozen=True)
class _Attempt:
    """One training: the denoiser, its losses, the steps taken, and the step of its weights (0: the last)."""

    denoiser: Preconditioner
    loss: float
    held_out_loss: float
    steps: int
    best_step: int


class _Clock:
    """Seconds spent in each phase."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the last lap to a phase."""
        now = time.perf_counter()
        self.phases[name] = self.phases.get(name, 0.0) + now - self._last
        self._last = now
