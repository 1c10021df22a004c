"""Replay buffers that mix real transitions with ones a diffusion model has learned from them."""

from .diffusion.training import TrainingConfig
from .evaluation.fidelity import Fidelity, measure_fidelity
from .replay.holdout import RowOrder
from .replay.options import SyntheticOptions
from .replay.reports import RefreshReport
from .replay.synthetic_replay import SyntheticReplay
from .transitions import Transitions, TransitionSpec
from .upsampling.diffusion_upsampler import DiffusionUpsampler, FitReport, Upsampler
from .upsampling.presets import PRESETS, NetworkConfig, SamplerConfig, UpsamplerConfig
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
    "SyntheticOptions",
    "SyntheticReplay",
    "TrainingConfig",
    "TransitionSpec",
    "Transitions",
    "Upsampler",
    "UpsamplerConfig",
    "__version__",
    "measure_fidelity",
]
