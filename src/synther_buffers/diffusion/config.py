"""Configuration of network, training and sampler. Each part checks itself when it is made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..public_paths import public
from ..validation import below_one, finite_number, flag, not_negative, positive, whole_number
from .network import ACTIVATIONS, Activation
from .solvers import SOLVERS, Solver


@public
@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the residual MLP; see `synther_buffers.diffusion.network.ResidualMLP`."""

    width: int
    depth: int
    embedding_dim: int
    fourier_dim: int = 16
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        """Reject values out of range with an error that names them."""
        for name, minimum in (("width", 1), ("depth", 1), ("embedding_dim", 1), ("fourier_dim", 2)):
            object.__setattr__(self, name, whole_number(f"network.{name}", getattr(self, name), minimum))
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"network.activation is {self.activation!r}; known: {', '.join(ACTIVATIONS)}.")


@public
@dataclass(frozen=True)
class TrainingConfig:
    """How a denoiser is trained.

    Attributes:
        batch_size: rows per step, drawn with replacement.
        learning_rate: peak of AdamW's learning rate, which falls to 0 as a cosine (Loshchilov and Hutter 2017).
        warmup_steps: steps, at most a tenth of the training, over which the rate rises linearly; without it large rates
            diverge.
        betas, weight_decay: AdamW's.
        dropout: share of each layer's hidden units that are set to 0 in a training step.
        max_grad_norm: gradients are clipped to this norm; infinity clips none.
        p_mean, p_std: of ln sigma (EDM, Table 1).
        ema_decay, ema_every: moving average of the weights, updated every `ema_every` steps. The decay ramps up as
            (1 + k) / (10 + k), so that the first weights do not dominate the average of a short training.
        bfloat16: run the network in bfloat16 (weights, optimiser and loss stay float32).
    """

    batch_size: int
    learning_rate: float
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    dropout: float = 0.0
    max_grad_norm: float = 1.0
    p_mean: float = -1.2
    p_std: float = 1.2
    ema_decay: float = 0.995
    ema_every: int = 10
    bfloat16: bool = False

    def __post_init__(self) -> None:
        """Reject values out of range with an error that names them."""
        for name, minimum in (("batch_size", 1), ("ema_every", 1), ("warmup_steps", 0)):
            object.__setattr__(self, name, whole_number(f"training.{name}", getattr(self, name), minimum))
        for name in ("learning_rate", "p_std"):
            object.__setattr__(self, name, positive(f"training.{name}", getattr(self, name)))
        for name in ("dropout", "ema_decay"):
            object.__setattr__(self, name, below_one(f"training.{name}", getattr(self, name)))
        object.__setattr__(self, "max_grad_norm", positive("training.max_grad_norm", self.max_grad_norm, finite=False))
        object.__setattr__(self, "weight_decay", not_negative("training.weight_decay", self.weight_decay))
        object.__setattr__(self, "p_mean", finite_number("training.p_mean", self.p_mean))
        object.__setattr__(self, "bfloat16", flag("training.bfloat16", self.bfloat16))
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise TypeError(f"training.betas is {self.betas!r}; wanted two numbers, such as (0.9, 0.99).")
        betas = (below_one("training.betas[0]", self.betas[0]), below_one("training.betas[1]", self.betas[1]))
        object.__setattr__(self, "betas", betas)


@public
@dataclass(frozen=True)
class SamplerConfig:
    """How noise becomes rows.

    Attributes:
        solver: with its settings, `HeunSolver` or `DPMSolver`. Its sigma_max is raised if the data reach beyond it.
        bfloat16: evaluate the network in bfloat16; everything outside it stays float32.
        block_rows: rows that go through the solver together; None is 2,048, on CUDA 65,536. It affects drawn rows only
            by rounding.
    """

    solver: Solver
    bfloat16: bool = False
    block_rows: int | None = None

    def __post_init__(self) -> None:
        """Reject values out of range with an error that names them."""
        if not isinstance(self.solver, Solver):
            raise TypeError(f"sampler.solver is {self.solver!r}; wanted a solver, such as DPMSolver(num_steps=16).")
        object.__setattr__(self, "bfloat16", flag("sampler.bfloat16", self.bfloat16))
        if self.block_rows is not None:
            object.__setattr__(self, "block_rows", whole_number("sampler.block_rows", self.block_rows, 1))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle; version 3 has the solver's name and the settings of all solvers side by side."""
        if isinstance(name := state["solver"], str):
            own = {field.name for field in fields(SOLVERS[name])}
            solver = SOLVERS[name](**{key: value for key, value in state.items() if key in own})
            state = {"solver": solver, "bfloat16": state["bfloat16"], "block_rows": None}
        self.__dict__.update(state)
