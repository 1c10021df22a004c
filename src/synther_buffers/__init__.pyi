from .diffusion.conditions import ConditioningConfig
from .diffusion.config import NetworkConfig, SamplerConfig, TrainingConfig
from .diffusion.solvers import DPMSolver, HeunSolver
from .evaluation.fidelity import Fidelity, measure_fidelity
from .replay.cost import CostEstimate, estimate_cost
from .replay.holdout import RowOrder
from .replay.options import SyntheticOptions
from .replay.ray_executor import RayExecutor
from .replay.refresh_process import RefreshProcess
from .replay.reports import RefreshReport
from .replay.synthetic_replay import SyntheticReplay
from .transitions import Transitions, TransitionSpec
from .upsampling.budget import RowBudget
from .upsampling.condition import Condition
from .upsampling.diffusion_upsampler import DiffusionUpsampler
from .upsampling.presets import PRESETS, UpsamplerConfig
from .upsampling.protocol import FitReport, Upsampler, UpsamplerFactory
from .version import __version__ as __version__

__all__ = [
    "PRESETS",
    "Condition",
    "ConditioningConfig",
    "CostEstimate",
    "DPMSolver",
    "DiffusionUpsampler",
    "Fidelity",
    "FitReport",
    "HeunSolver",
    "NetworkConfig",
    "RayExecutor",
    "RefreshProcess",
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
    "estimate_cost",
    "measure_fidelity",
]
