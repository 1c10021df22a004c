"""Replay buffers that mix real transitions with ones a diffusion model has learned from them."""

from .config import PRESETS, NetworkConfig, SamplerConfig, UpsamplerConfig
from .diffusion.training import TrainingConfig
from .fidelity import Fidelity, measure_fidelity
from .holdout import RowOrder
from .replay import SyntheticReplay
from .reports import RefreshReport
from .transitions import Transitions, TransitionSpec
from .upsampler import DiffusionUpsampler, FitReport, Upsampler
from .version import __version__

__all__ = [
    "PRESETS",
    "DiffusionUpsampler",
    "Fidelity",
    "FitReport",
    "NetworkConfig",
    "RefreshReport",
    "RowOrder",
    "SamplerConfig",
    "SyntheticReplay",
    "TrainingConfig",
    "TransitionSpec",
    "Transitions",
    "Upsampler",
    "UpsamplerConfig",
    "__version__",
    "measure_fidelity",
]
