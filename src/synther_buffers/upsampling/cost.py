"""What a refresh will cost on this machine, from the measured speed of its parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..diffusion.training import TrainingStep
from ..transitions import Transitions, TransitionSpec
from ..transitions.codec import Codec
from .budget import terminal_steps, train_steps, warm_steps
from .factory import DiffusionFactory
from .fitted_model import CALIBRATION_ROWS, Denoising, codec_options, new_denoiser
from .outcomes import OutcomeRegression
from .presets import UpsamplerConfig
from .protocol import UpsamplerFactory
from .seeds import generator
from .terminals import TerminalClassifier

#: Steps of what is timed, after some that are not: the first steps of a process are slower than the others.
_WARM_UP_STEPS, _TIMED_STEPS = 3, 20
#: Rows that are learned, which do not change the time of a step, and rows that are generated at a time.
_ROWS, _DRAWN = 512, 1_024


@dataclass(frozen=True)
class Speed:
    """Measured seconds of the parts of a refresh.

    Attributes:
        step: a gradient step of the denoiser.
        terminal_step: one of the classifier of terminal rows.
        outcome_step: one of the regression of rewards and next observations.
        row: to generate a row.
    """

    step: float
    terminal_step: float
    outcome_step: float
    row: float

    def refresh_seconds(
        self, config: UpsamplerConfig, num_rows: int, num_synthetic: int, num_rows_before: int | None = None
    ) -> float:
        """Wall time of a refresh that takes all steps of its budget.

        Args:
            config: of the upsampler.
            num_rows: real rows to learn.
            num_synthetic: rows to generate.
            num_rows_before: rows of the model that training continues from; None for a training from scratch.
        """
        if num_rows_before is None or not config.warm_start:
            steps = train_steps(config, num_rows)
        else:
            steps = warm_steps(config, num_rows, num_rows_before)
        return (
            steps * self.step
            + (terminal_steps(config, num_rows) * self.terminal_step if config.model_terminals else 0.0)
            + config.outcome_steps * self.outcome_step
            + (CALIBRATION_ROWS + num_synthetic) * self.row
        )


def measure_speed(spec: TransitionSpec, rows: Transitions, config: UpsamplerConfig, device: torch.device) -> Speed:
    """Measure on real rows, in about a second. The global random streams are neither read nor advanced.

    Args:
        spec: of the rows.
        rows: finite ones, at least one.
        config: of the upsampler.
        device: where it will train.

    Raises:
        ValueError: rows that do not match the spec, or none.
    """
    rows = rows[:_ROWS]
    codec = Codec.fit(spec, rows, normalizer=None, **codec_options(config))
    matrix = codec.encode(rows, device)
    draws, on_cpu = generator(0, device), generator(0)
    denoiser = new_denoiser(config, codec.dim, device, generator(0))
    step = TrainingStep(denoiser, matrix, config.training, draws)
    denoising = Denoising(config, denoiser, *matrix.aminmax(dim=0), config.sampler.solver.sigma_max)
    sampler = denoising.sampler(_DRAWN, seed=0)

    def train(steps: int) -> None:
        for _ in range(steps):
            step()

    def classify(steps: int) -> None:
        TerminalClassifier(spec, device).fit(rows, steps, on_cpu)

    def regress(steps: int) -> None:
        OutcomeRegression.fit(codec, matrix, matrix, steps, draws)

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    def per_step(work: Callable[[int], None]) -> float:
        work(_WARM_UP_STEPS)
        # What does not depend on the number of steps is in both calls.
        most, least = seconds(lambda: work(_TIMED_STEPS)), seconds(lambda: work(1))
        return max(most - least, 0.0) / (_TIMED_STEPS - 1)

    seconds(lambda: sampler.draw(0, _DRAWN))
    return Speed(
        step=per_step(train),
        terminal_step=per_step(classify) if config.model_terminals else 0.0,
        outcome_step=per_step(regress) if config.outcome_steps else 0.0,
        row=seconds(lambda: sampler.draw(0, _DRAWN)) / _DRAWN,
    )


def expected_seconds(
    factory: UpsamplerFactory,
    spec: TransitionSpec,
    rows: Transitions,
    num_synthetic: int,
    device: torch.device,
) -> float | None:
    """Wall time of a first refresh on these rows, by `measure_speed`; None for a user's own upsampler."""
    if not isinstance(factory, DiffusionFactory):
        return None
    speed = measure_speed(spec, rows, factory.config, device)
    return speed.refresh_seconds(factory.config, len(rows), num_synthetic)
