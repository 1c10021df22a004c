from .diffusion.conditions import ConditioningConfig
from .diffusion.config import NetworkConfig, SamplerConfig, TrainingConfig
from .diffusion.solvers import DPMSolver, HeunSolver
from .evaluation.fidelity import Fidelity, measure_fidelity
from .guidance.base import FunctionGuidance, Guidance
from .guidance.curiosity import Curiosity
from .guidance.novelty import Novelty
from .guidance.rarity import Rarity
from .guidance.return_to_go import ReturnToGo
from .guidance.td_error import TDError
from .replay.cost import CostEstimate, estimate_cost
from .replay.options import SyntheticOptions
from .replay.ray_executor import RayExecutor
from .replay.refresh_process import RefreshProcess
from .replay.reports import RefreshReport
from .replay.synthetic_replay import SyntheticReplay
from .transitions import RowOrder, Transitions, TransitionSpec
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
    "Curiosity",
    "DPMSolver",
    "DiffusionUpsampler",
    "Fidelity",
    "FitReport",
    "FunctionGuidance",
    "Guidance",
    "HeunSolver",
    "NetworkConfig",
    "Novelty",
    "Rarity",
    "RayExecutor",
    "RefreshProcess",
    "RefreshReport",
    "ReturnToGo",
    "RowBudget",
    "RowOrder",
    "SamplerConfig",
    "SyntheticOptions",
    "SyntheticReplay",
    "TDError",
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
