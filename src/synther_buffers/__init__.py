"""Replay buffers that mix real transitions with ones a diffusion model has learned from them."""

from .diffusion.config import NetworkConfig, SamplerConfig, TrainingConfig
from .diffusion.solvers import DPMSolver, HeunSolver
from .evaluation.fidelity import Fidelity, measure_fidelity
from .replay.holdout import RowOrder
from .replay.options import SyntheticOptions
from .replay.reports import RefreshReport
from .replay.synthetic_replay import SyntheticReplay
from .transitions import Transitions, TransitionSpec
from .upsampling.diffusion_upsampler import DiffusionUpsampler
from .upsampling.presets import PRESETS, UpsamplerConfig
from .upsampling.protocol import FitReport, Upsampler, UpsamplerFactory
from .version import __version__

__all__ = [
    "PRESETS",
    "DPMSolver",
    "DiffusionUpsampler",
    "Fidelity",
    "FitReport",
    "HeunSolver",
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
    "UpsamplerFactory",
    "__version__",
    "measure_fidelity",
]

# What lies in pickled files (a model that Stable-Baselines3 saved holds its buffer's configuration) is named by its
# public path, so that moving the file that defines it breaks no saved file.
for _class in (DPMSolver, HeunSolver, NetworkConfig, SamplerConfig, TrainingConfig, UpsamplerConfig):
    _class.__module__ = __name__
del _class
