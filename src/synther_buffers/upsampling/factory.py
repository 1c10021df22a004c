"""Makes an upsampler from the user's `upsampler` argument."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..diffusion.conditions import ConditioningConfig
from ..transitions import TransitionSpec
from .budget import synthetic_rows
from .diffusion_upsampler import DiffusionUpsampler
from .presets import UpsamplerConfig, check_float64, merge_config, resolve_config
from .protocol import Upsampler, UpsamplerFactory

#: Default size of a synthetic set of a user's own upsampler.
_NUM_SYNTHETIC = 100_000


@dataclass(frozen=True)
class DiffusionFactory:
    """Makes diffusion upsamplers of one configuration, the same on every machine."""

    config: UpsamplerConfig

    def __call__(self, spec: TransitionSpec, *, device: torch.device | str, seed: int, progress_bar: bool) -> Upsampler:
        """See `UpsamplerFactory`."""
        return DiffusionUpsampler(spec, self.config, device, seed, progress_bar)


#: A preset's name, a configuration, a mapping of what differs from the device's preset, or a factory.
UpsamplerOption = str | UpsamplerConfig | Mapping[str, Any] | UpsamplerFactory


def resolve_factory(upsampler: UpsamplerOption, device: torch.device) -> UpsamplerFactory:
    """The factory that a buffer's `upsampler` argument describes: a preset, a configuration, or a factory itself.

    Raises:
        ValueError: unknown preset or name in a mapping, a value out of range, a device without float64.
        TypeError: an upsampler instead of its configuration (so that saving an agent does not save the model too), or
            an object that cannot be called.
    """
    if isinstance(upsampler, Mapping):
        upsampler = merge_config(resolve_config("auto", device), upsampler, "upsampler")
    if isinstance(upsampler, str | UpsamplerConfig):
        check_float64(device)
        return DiffusionFactory(resolve_config(upsampler, device))
    if isinstance(upsampler, Upsampler) and not isinstance(upsampler, type):
        raise TypeError(
            f"upsampler is a live {type(upsampler).__name__}; pass its configuration, or a factory "
            "(spec, *, device, seed, progress_bar) -> Upsampler, so that saving the agent does not save the model too."
        )
    if not callable(upsampler):
        raise TypeError(f"upsampler is {upsampler!r}; wanted the name of a preset, an UpsamplerConfig or a factory.")
    factory: UpsamplerFactory = upsampler
    return factory


def with_conditions(
    factory: UpsamplerFactory, what: str, instead: str, *, given_share: float | None = None
) -> UpsamplerFactory:
    """The same factory, whose models learn conditions.

    Args:
        factory: of any upsampler.
        what: needs them, for the error.
        instead: what else to set, for the error.
        given_share: see `ConditioningConfig`; None for its default. A configuration that has conditions keeps its own.

    Raises:
        ValueError: they are not of this library.
    """
    if not isinstance(factory, DiffusionFactory):
        raise ValueError(
            f"{what} needs a model that can be asked for particular rows, but upsampler is {factory!r}; use a preset "
            f"or an UpsamplerConfig, or {instead}."
        )
    if factory.config.conditioning is not None:
        return factory
    conditioning = ConditioningConfig() if given_share is None else ConditioningConfig(given_share=given_share)
    return DiffusionFactory(replace(factory.config, conditioning=conditioning))


def make_upsampler(
    factory: UpsamplerFactory,
    spec: TransitionSpec,
    *,
    device: str | torch.device,
    seed: int,
    progress_bar: bool,
    state: dict[str, Any] | None = None,
) -> Upsampler:
    """The upsampler that the factory makes.

    Args:
        factory: makes it.
        spec: see `UpsamplerFactory`.
        device: likewise.
        seed: likewise.
        progress_bar: likewise.
        state: of an earlier one. It is copied, because a training that changes it in place may fail.

    Raises:
        TypeError: the factory does not return an `Upsampler`.
    """
    made: Any = factory(spec, device=device, seed=seed, progress_bar=progress_bar)
    missing = [name for name in ("config", "fit", "sample", "state_dict", "load_state_dict") if not _has(made, name)]
    if missing:
        raise TypeError(f"the factory {factory!r} returned {made!r}, which has no {', '.join(missing)}.")
    upsampler: Upsampler = made
    if state is not None:
        upsampler.load_state_dict(copy.deepcopy(state))
    return upsampler


def _has(made: Any, name: str) -> bool:
    """Whether there is such an attribute, including a property that raises an AttributeError, which its use reports."""
    return hasattr(made, name) or inspect.getattr_static(made, name, None) is not None


def most_synthetic(factory: UpsamplerFactory) -> int:
    """The largest default size of a synthetic set."""
    return factory.config.num_synthetic if isinstance(factory, DiffusionFactory) else _NUM_SYNTHETIC


def default_num_synthetic(factory: UpsamplerFactory, num_rows: int) -> int:
    """Default size of a synthetic set for `num_rows` real rows."""
    return synthetic_rows(factory.config, num_rows) if isinstance(factory, DiffusionFactory) else _NUM_SYNTHETIC
