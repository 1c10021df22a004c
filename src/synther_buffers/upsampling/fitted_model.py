"""A fitted model: an immutable value that draws rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..diffusion.conditions import ConditionalPreconditioner, condition_dim
from ..diffusion.edm import Preconditioner
from ..diffusion.network import ResidualMLP
from ..diffusion.sampling import SLAB_ROWS, RowSampler
from ..transitions import Transitions, TransitionSpec
from ..transitions.codec import Codec
from ..transitions.values import Thresholds
from .condition import Condition, encode
from .outcomes import OutcomeRegression
from .presets import UpsamplerConfig
from .progress import progress
from .relevance import RelevanceScale
from .seeds import derive_seed, generator
from .terminals import TerminalClassifier

#: Rows generated after training to measure the thresholds of decoding; draws of fewer rows use these.
CALIBRATION_ROWS = 4_096
#: Draws of at least this many rows measure the shift for the data's rate of terminals on their own rows.
_OWN_RATE_ROWS = 1_000
#: Rows that are generated before they are decoded, which happens in float64.
_CHUNK_ROWS, _CHUNK_ROWS_CUDA = 16_384, 131_072


@dataclass(frozen=True)
class Denoising:
    """From noise to the matrix of encoded rows.

    Attributes:
        config: of the whole upsampler.
        denoiser: D, trained.
        low, high: range of the encoded training rows, ``[D]`` float32, on the device where rows are drawn.
        sigma_max: noise level to start from.
    """

    config: UpsamplerConfig
    denoiser: Preconditioner
    low: Tensor
    high: Tensor
    sigma_max: float

    @property
    def device(self) -> torch.device:
        return self.low.device

    def sampler(self, num_rows: int, seed: int, *, block_rows: int | None = None) -> RowSampler:
        """A sampler for the matrix of one request, ``[num_rows, D]``."""
        config = self.config.sampler
        return RowSampler(
            self.denoiser,
            config if block_rows is None else replace(config, block_rows=block_rows),
            num_rows=num_rows,
            low=self.low,
            high=self.high,
            sigma_max=self.sigma_max,
            seed=seed,
        )


@dataclass(frozen=True)
class FittedModel:
    """The result of training; everything that drawing rows needs.

    Attributes:
        spec: the fields of a transition.
        denoising: from noise to encoded rows.
        codec: from encoded rows to transitions.
        thresholds: of decoding, for draws too small to measure their own.
        terminals: classifier of terminal rows.
        terminal_shift: of its log-odds, for draws too small to measure their own.
        num_rows: real rows of the last training; 0 if unknown.
        outcomes: predicts reward and next observation; None if they stay as generated.
        relevance: scale of the relevance that was learned; None if none was.
    """

    spec: TransitionSpec
    denoising: Denoising
    codec: Codec
    thresholds: Thresholds
    terminals: TerminalClassifier
    terminal_shift: float
    num_rows: int = 0
    outcomes: OutcomeRegression | None = None
    relevance: RelevanceScale | None = None

    @torch.inference_mode(False)
    def sample(
        self, num_samples: int, seed: int, *, condition: Condition | None = None, progress_bar: bool = False
    ) -> Transitions:
        """Synthetic transitions, in new memory on the model's device; the same seed gives the same rows.

        Under a condition the thresholds are those of the unconditional rows: given a state that is almost always
        terminal, almost all rows are terminal, whatever the rate in the data.

        Raises:
            ValueError: a condition that does not fit the model.
            FloatingPointError: the model generated values that are not finite.
        """
        known: dict[str, Tensor] = {}
        scores, guidance = None, 1.0
        if condition is not None:
            conditioning = self.denoising.config.conditioning
            if conditioning is None:
                raise ValueError(
                    "a condition is given, but this upsampler learns none; make it with a configuration whose "
                    "conditioning is a ConditioningConfig()."
                )
            known = condition.known(self.spec, num_samples)
            self.codec.check_known(known)
            scores = condition.scores(self, num_samples)
            if condition.relevance is not None:
                guidance = conditioning.guidance
        sampler = self.denoising.sampler(num_samples, derive_seed(seed, "rows"))
        models_terminals = self.denoising.config.model_terminals
        out = self.spec.empty(num_samples, self.denoising.device)
        thresholds, logits = self.thresholds, []
        finite = torch.ones((), dtype=torch.bool, device=self.denoising.device)
        chunk_rows = self._chunk_rows(num_samples)
        with progress("sampling", num_samples, shown=progress_bar) as bar:
            for start in range(0, num_samples, chunk_rows):
                count = min(chunk_rows, num_samples - start)
                part = slice(start, start + count)
                given = {name: value[part] for name, value in known.items()}
                under = None
                if condition is not None:
                    under = encode(self, given, None if scores is None else scores[part], count)
                matrix = sampler.draw(start, count, None, under, guidance)
                if self.outcomes is not None:
                    matrix = self.outcomes.apply(matrix)
                if start == 0 and count >= CALIBRATION_ROWS and condition is None:
                    thresholds = self.codec.thresholds(matrix)
                rows = out[part]
                self.codec.decode(matrix, rows, thresholds, given)
                for value in (matrix, *rows.flat().values()):
                    if value.is_floating_point():
                        finite &= torch.isfinite(value).all()
                if models_terminals:
                    logits.append(self.terminals.logits(rows))
                bar.update_to(start + count)
        check_finite(finite)
        if logits:
            all_logits = torch.cat(logits)
            many = num_samples >= _OWN_RATE_ROWS and condition is None
            shift = self.terminals.calibrate(all_logits) if many else self.terminal_shift
            flags = generator(derive_seed(seed, "flags"), self.denoising.device)
            out.terminated.copy_(self.terminals.draw(all_logits, shift, flags))
        return out

    @torch.inference_mode(False)
    def denoising_path(self, num_samples: int, seed: int) -> list[tuple[float, Tensor]]:
        """How noise becomes rows: the matrix at every noise level.

        Returns:
            Pairs of a noise level sigma and the encoded rows there, ``[num_samples, D]`` float32 on the model's
            device, from the noise of the largest level to the rows at level 0.
        """
        path: list[tuple[float, Tensor]] = []
        # One block, so that `watch` gets all rows at once.
        sampler = self.denoising.sampler(num_samples, derive_seed(seed, "rows"), block_rows=num_samples)
        sampler.draw(0, num_samples, lambda sigma, x: path.append((sigma, x)))
        return path

    def _chunk_rows(self, num_samples: int) -> int:
        """Rows that are generated before they are decoded: chunks of whole slabs of noise, as equal as possible."""
        most = _CHUNK_ROWS_CUDA if self.denoising.device.type == "cuda" else _CHUNK_ROWS
        num_chunks = max(math.ceil(num_samples / most), 1)
        return max(math.ceil(num_samples / num_chunks / SLAB_ROWS), 1) * SLAB_ROWS


def new_denoiser(
    config: UpsamplerConfig, dim: int, device: torch.device | str, weights: torch.Generator
) -> Preconditioner:
    """An untrained denoiser of rows with `dim` columns, with initial weights from a CPU generator."""
    settings = {**vars(config.network), "generator": weights, "device": torch.device(device)}
    if config.conditioning is None:
        return Preconditioner(ResidualMLP(dim, **settings), config.sigma_data)
    network = ResidualMLP(dim, condition_dim=condition_dim(dim), **settings)
    return ConditionalPreconditioner(network, config.sigma_data)


def codec_options(config: UpsamplerConfig) -> dict[str, bool]:
    """The codec's part of the configuration."""
    names = ("next_observation_change", "normalize_reward", "model_terminals")
    return {name: getattr(config, name) for name in names}


def check_finite(finite: Tensor) -> None:
    """Raise unless it is True. Reading it waits for a GPU, so this is called once for all rows.

    Raises:
        FloatingPointError: it is False.
    """
    if not bool(finite):
        raise FloatingPointError("the model generated values that are not finite.")
