"""Replay buffers that mix real transitions with ones a diffusion model has learned from them."""

from .config import PRESETS, UpsamplerConfig
from .diffusion.config import NetworkConfig, SamplerConfig, TrainingConfig
from .diffusion.solvers import DPMSolver, HeunSolver
from .fidelity import Fidelity, measure_fidelity
from .holdout import RowOrder
from .replay import SyntheticReplay
from .reports import RefreshReport
from .transitions import Transitions, TransitionSpec
from .upsampler import DiffusionUpsampler, FitReport, Upsampler
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
    "SyntheticReplay",
    "TrainingConfig",
    "TransitionSpec",
    "Transitions",
    "Upsampler",
    "UpsamplerConfig",
    "__version__",
    "measure_fidelity",
]

# What lies in pickled files (a model that Stable-Baselines3 saved holds its buffer's configuration) is named by its
# public path, so that moving the file that defines it breaks no saved file.
for _class in (DPMSolver, HeunSolver, NetworkConfig, SamplerConfig, TrainingConfig, UpsamplerConfig):
    _class.__module__ = __name__
del _class
