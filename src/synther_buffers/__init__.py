"""Replay buffers that mix real transitions with ones a diffusion model has learned from them."""

from .config import PRESETS, NetworkConfig, SamplerConfig, UpsamplerConfig
from .diffusion.training import TrainingConfig
from .transitions import Transitions, TransitionSpec
from .upsampler import DiffusionUpsampler, FitReport, Upsampler
from .version import __version__ as __version__

__all__ = [
    "PRESETS",
    "DiffusionUpsampler",
    "FitReport",
    "NetworkConfig",
    "SamplerConfig",
    "TrainingConfig",
    "TransitionSpec",
    "Transitions",
    "Upsampler",
    "UpsamplerConfig",
]

