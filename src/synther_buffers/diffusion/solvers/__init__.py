"""Solvers: from noise to rows, given a denoiser."""

from .base import Denoiser, Noise, Solver, Watch
from .dpm import DPMSolver
from .heun import HeunSolver

#: The solvers by the names under which configurations are written to files.
SOLVERS: dict[str, type[Solver]] = {solver.name: solver for solver in (HeunSolver, DPMSolver)}

__all__ = ["SOLVERS", "DPMSolver", "Denoiser", "HeunSolver", "Noise", "Solver", "Watch"]
