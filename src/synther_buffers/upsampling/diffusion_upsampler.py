"""The upsampler that users see: it holds the current model, and counts fits and draws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..public_paths import public
from ..transitions import Transitions, TransitionSpec
from . import checkpoint
from .condition import Condition
from .fitted_model import FittedModel
from .presets import UpsamplerConfig, check_float64, resolve_config, resolve_device
from .protocol import FitReport
from .seeds import derive_seed
from .trainer import Trainer


@public
class DiffusionUpsampler:
    """EDM diffusion (Karras et al. 2022) over whole transitions, as in SynthER (Lu et al. 2023).

    Args:
        spec: the fields of a transition.
        config: a preset's name (``auto`` picks by device) or an `UpsamplerConfig`.
        device: where it trains and samples; ``auto`` is CUDA where there is one.
        seed: of everything random in it; the global random streams are neither read nor moved.
        progress_bar: show one on terminals while fitting and sampling.

    Attributes:
        spec, device, seed: as given.
        settings: the `UpsamplerConfig`.
        model: the current `FittedModel`, None before the first fit. A fit replaces it by a new one.

    Raises:
        ValueError: unknown preset, unusable device.
        TypeError: `config` is neither a name nor an `UpsamplerConfig`.
    """

    def __init__(
        self,
        spec: TransitionSpec,
        config: str | UpsamplerConfig = "auto",
        device: str | torch.device = "auto",
        seed: int = 0,
        progress_bar: bool = False,
    ) -> None:
        self.spec = spec
        self.device = resolve_device(device)
        check_float64(self.device)
        self.settings = resolve_config(config, self.device)
        self.seed = seed
        self.progress_bar = progress_bar
        self.model: FittedModel | None = None
        self._num_fits = 0
        self._num_draws = 0

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings as plain data."""
        return self.settings.to_dict()

    def fit(
        self,
        transitions: Transitions,
        *,
        held_out: Transitions | None = None,
        warm_start: bool | None = None,
        relevance: Tensor | None = None,
    ) -> FitReport:
        """Train on real transitions.

        A warm start continues from the last model if its normalisation still fits the data. It is replaced by training
        from scratch if it diverges or ends worse than the last model on the held-out rows. If anything fails, the last
        model stays as it was.

        Args:
            transitions: finite rows of the spec, on any device.
            held_out: rows that evaluate the model while it is trained.
            warm_start: None for the value in the configuration.
            relevance: a number for each row, ``[N]`` in any unit, that draws can ask for; needs `conditioning` in the
                configuration. None learns none.

        Raises:
            ValueError: rows that do not match the spec, or none; a relevance of another length, that is not finite or
                the same in all rows, or without `conditioning`.
            NonFiniteLossError: training diverged.
        """
        warm = self.settings.warm_start if warm_start is None else warm_start
        seed = derive_seed(self.seed, "fit", self._num_fits)
        trainer = Trainer(self.spec, self.settings, self.device, seed, self.progress_bar)
        previous, why = (self.model, "first fit") if warm else (None, "no warm start")
        model, report = trainer.fit(transitions, held_out, previous, why, relevance)
        self.model, self._num_fits, self._num_draws = model, self._num_fits + 1, 0
        return report

    def sample(self, num_samples: int, *, condition: Condition | None = None) -> Transitions:
        """Draw synthetic transitions, in new memory on the upsampler's device.

        Args:
            num_samples: any number of rows.
            condition: what they must have; None for rows like the data.

        Raises:
            RuntimeError: nothing was fitted yet.
            ValueError: a negative number, or a condition that does not fit the rows that were learned.
        """
        if num_samples < 0:
            raise ValueError(f"num_samples is {num_samples}; it must be at least 0.")
        model = self._fitted()
        seed = self._draw_seed("draw", self._num_draws)
        rows = model.sample(num_samples, seed, condition=condition, progress_bar=self.progress_bar)
        self._num_draws += 1
        return rows

    def denoising_path(self, num_samples: int) -> list[tuple[float, Tensor]]:
        """How noise becomes rows: the rows of `sample` at every noise level. It does not count as a draw.

        The matrix has the columns of the spec's fields in their order, normalised: one per element, or one per category
        of a categorical element; `terminated` only if it is modelled, and the next observation's float columns as the
        change from the observation if that is modelled.

        Args:
            num_samples: rows to follow.

        Returns:
            Pairs of a noise level sigma and the rows there, ``[num_samples, D]`` float32 on the upsampler's device,
            from the noise of the largest level to the rows at level 0.

        Raises:
            RuntimeError: nothing was fitted yet.
            ValueError: `num_samples` is not positive.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}; it must be at least 1.")
        return self._fitted().denoising_path(num_samples, self._draw_seed("path", 0))

    def _fitted(self) -> FittedModel:
        if self.model is None:
            raise RuntimeError("this upsampler has not been fitted yet: call fit(transitions) first.")
        return self.model

    def _draw_seed(self, purpose: str, count: int) -> int:
        return derive_seed(self.seed, purpose, self._num_fits, count)

    # -- persistence -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Model and counters: CPU tensors and plain data."""
        return {
            "version": checkpoint.STATE_VERSION,
            "num_fits": self._num_fits,
            "num_draws": self._num_draws,
            "model": None if self.model is None else checkpoint.model_state(self.model),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, now or in an older version.

        Raises:
            ValueError: a state that is damaged, of another configuration or spec, or of a version that is not known.
                The upsampler stays as it was.
        """
        state = checkpoint.migrate_state(state)
        model = state["model"]
        if model is not None:
            model = checkpoint.model_from_state(model, self.spec, self.settings, self.device)
        self.model, self._num_fits, self._num_draws = model, int(state["num_fits"]), int(state["num_draws"])

    def save(self, path: str | Path) -> None:
        """Write the upsampler to one safetensors file; its header holds the rest as JSON. Nothing is pickled.

        Raises:
            OSError: the file cannot be written. What was at `path` stays.
        """
        checkpoint.save_file(path, checkpoint.Saved(self.spec, self.settings, self.seed, self.state_dict()))

    @classmethod
    def load(
        cls, path: str | Path, *, spec: TransitionSpec | None = None, device: str | torch.device = "auto"
    ) -> DiffusionUpsampler:
        """Read what `save` wrote, now or in an older version.

        Args:
            path: the file.
            spec: the spec that it must have been made for; None accepts any.
            device: where the upsampler runs.

        Raises:
            ValueError: not such a file, a damaged one, one of an unknown version, or one for another spec.
            OSError: the file cannot be read.
        """
        saved = checkpoint.load_file(path)
        if spec is not None and spec != saved.spec:
            raise ValueError(f"{path} was made for other transitions: it has {saved.spec}, but you asked for {spec}.")
        upsampler = cls(saved.spec, saved.config, device, saved.seed)
        try:
            upsampler.load_state_dict(saved.state)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        return upsampler
