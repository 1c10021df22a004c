"""Replay buffers that mix real transitions with ones a diffusion model has learned from them."""

from . import aliases
from .diffusion.config import NetworkConfig, SamplerConfig, TrainingConfig
from .diffusion.solvers import DPMSolver, HeunSolver
from .evaluation.fidelity import Fidelity, measure_fidelity
from .public_paths import exported_from
from .replay.holdout import RowOrder
from .replay.options import SyntheticOptions
from .replay.reports import RefreshReport
from .replay.synthetic_replay import SyntheticReplay
from .transitions import Field, Transitions, TransitionSpec
from .upsampling.budget import RowBudget
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
    "RowBudget",
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

# Whatever of it lies in pickled files: a buffer that was saved, a model with its buffer's configuration.
exported_from(
    __name__,
    DPMSolver,
    DiffusionUpsampler,
    Fidelity,
    FitReport,
    HeunSolver,
    NetworkConfig,
    RefreshReport,
    RowBudget,
    SamplerConfig,
    SyntheticOptions,
    SyntheticReplay,
    TrainingConfig,
    TransitionSpec,
    Transitions,
    UpsamplerConfig,
)
exported_from(f"{__name__}.transitions", Field)
aliases.install()
