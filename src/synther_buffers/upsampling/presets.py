"""Configuration of the upsampler: one frozen dataclass, and the presets. Every default says where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from ..diffusion.network import ACTIVATIONS, Activation
from ..diffusion.training import TrainingConfig
from ..validation import suggestion, whole_number

Solver = Literal["stochastic-heun", "sde-dpm-solver-2m"]
SOLVERS: tuple[str, ...] = ("stochastic-heun", "sde-dpm-solver-2m")


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the residual MLP; see `synther_buffers.diffusion.network.ResidualMLP`."""

    width: int
    depth: int
    embedding_dim: int
    fourier_dim: int = 16
    activation: Activation = "relu"


@dataclass(frozen=True)
class SamplerConfig:
    """How noise becomes rows.

    Attributes:
        solver: ``stochastic-heun`` (EDM's Algorithm 2, 2 N - 1 evaluations) or ``sde-dpm-solver-2m`` (N evaluations).
        num_steps: noise levels N.
        sigma_min, sigma_max, rho: the schedule (EDM, equation 5). sigma_max is raised where the data reach beyond it.
        s_churn, s_tmin, s_tmax, s_noise: EDM's Algorithm 2; the other solver ignores them.
        bfloat16: evaluate the network in bfloat16; everything outside it stays float32.
    """

    solver: Solver
    num_steps: int
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    s_churn: float = 80.0
    s_tmin: float = 0.05
    s_tmax: float = 50.0
    s_noise: float = 1.003
    bfloat16: bool = False


@dataclass(frozen=True)
class UpsamplerConfig:
    """Everything `DiffusionUpsampler` needs besides the spec; start from a preset and `dataclasses.replace` parts.

    Attributes:
        network, training, sampler: see there.
        train_steps: gradient steps of a training from scratch.
        warm_steps: gradient steps when training goes on from the last model.
        warm_start: go on from the last model at all (the paper starts afresh at each refresh).
        num_synthetic: rows a refresh generates where the buffer is not told otherwise.
        sigma_data: standard deviation of the normalised rows.
        next_observation_change, normalize_reward, model_terminals: see `synther_buffers.transitions.codec.Codec`.
        terminal_steps: gradient steps of the classifier that says which rows are terminal.
    """

    network: NetworkConfig
    training: TrainingConfig
    sampler: SamplerConfig
    train_steps: int
    warm_steps: int
    warm_start: bool
    num_synthetic: int
    sigma_data: float = 1.0
    next_observation_change: bool = True
    normalize_reward: bool = True
    model_terminals: bool = True
    terminal_steps: int = 1_500

    def __post_init__(self) -> None:
        """Reject values out of range with an error that names them."""
        for name in ("train_steps", "warm_steps", "num_synthetic", "terminal_steps"):
            whole_number(name, getattr(self, name), 1)
        for name in ("width", "depth", "embedding_dim"):
            whole_number(f"network.{name}", getattr(self.network, name), 1)
        whole_number("network.fourier_dim", self.network.fourier_dim, 2)
        if self.network.activation not in ACTIVATIONS:
            raise ValueError(f"network.activation is {self.network.activation!r}; known: {', '.join(ACTIVATIONS)}.")
        whole_number("training.batch_size", self.training.batch_size, 1)
        whole_number("training.ema_every", self.training.ema_every, 1)
        whole_number("training.warmup_steps", self.training.warmup_steps, 0)
        whole_number("sampler.num_steps", self.sampler.num_steps, 1)
        for name, value in (
            ("training.max_grad_norm", self.training.max_grad_norm),
            ("training.p_std", self.training.p_std),
            ("sampler.rho", self.sampler.rho),
        ):
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be positive.")
        if not 0 <= self.training.ema_decay < 1:
            raise ValueError(f"training.ema_decay is {self.training.ema_decay}; it must be at least 0 and below 1.")
        if not self.sampler.s_churn >= 0:
            raise ValueError(f"sampler.s_churn is {self.sampler.s_churn}; it must be at least 0.")
        if not self.training.learning_rate > 0:
            raise ValueError(f"training.learning_rate is {self.training.learning_rate}; it must be positive.")
        if not self.sigma_data > 0:
            raise ValueError(f"sigma_data is {self.sigma_data}; it must be positive.")
        if not 0 < self.sampler.sigma_min < self.sampler.sigma_max:
            raise ValueError(
                f"sampler.sigma_min={self.sampler.sigma_min} and sampler.sigma_max={self.sampler.sigma_max}; "
                "wanted 0 < sigma_min < sigma_max."
            )
        if self.sampler.solver not in SOLVERS:
            raise ValueError(f"sampler.solver is {self.sampler.solver!r}; known solvers: {', '.join(SOLVERS)}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> UpsamplerConfig:
        """The configuration that `to_dict` wrote."""
        training = {**data["training"], "betas": tuple(data["training"]["betas"])}
        return cls(
            **{
                **data,
                "network": NetworkConfig(**data["network"]),
                "training": TrainingConfig(**training),
                "sampler": SamplerConfig(**data["sampler"]),
            }
        )


# SynthER (Lu et al., NeurIPS 2023), sections 4.2 and B, and the configuration files of its published code. Terminals
# are modelled and rewards z-scored on Gym; on DMC there are no terminals and rewards are left as they are.
_PAPER_ONLINE = UpsamplerConfig(
    network=NetworkConfig(width=1024, depth=6, embedding_dim=256),
    training=TrainingConfig(batch_size=256, learning_rate=3e-4),
    sampler=SamplerConfig(solver="stochastic-heun", num_steps=128),
    train_steps=100_000,
    warm_steps=100_000,
    warm_start=False,
    num_synthetic=1_000_000,
    next_observation_change=False,
)
_PAPER_OFFLINE = replace(
    _PAPER_ONLINE,
    network=NetworkConfig(width=2048, depth=6, embedding_dim=128),
    training=TrainingConfig(batch_size=1024, learning_rate=3e-4),
    num_synthetic=5_000_000,
)
# Ours: the least work that we found to reach the fidelity of the paper's net and sampler after 10,000 of its steps, on
# 50,000 rows each of HalfCheetah-v5, Walker2d-v5 and Hopper-v5 (docs/results/fidelity.md). By: gated layers, a larger
# learning rate with a rise to it, noise levels drawn closer to where the structure of the rows is decided. The
# sampler's levels are almost log-uniform (a large rho): at rho = 7 the steps between the levels that
# matter are so long that 20 of them widen a Gaussian's variance by more than 10 % (tests/diffusion/test_samplers.py).
_CPU = UpsamplerConfig(
    network=NetworkConfig(width=192, depth=6, embedding_dim=128, activation="swiglu"),
    training=TrainingConfig(batch_size=512, learning_rate=4e-3, warmup_steps=100, p_std=0.8, bfloat16=True),
    sampler=SamplerConfig(
        solver="sde-dpm-solver-2m", num_steps=16, sigma_min=0.05, sigma_max=20.0, rho=100.0, bfloat16=True
    ),
    train_steps=7_000,
    warm_steps=2_000,
    warm_start=True,
    num_synthetic=100_000,
)

# The same with a net of as many weights as the paper's, and a learning rate as much smaller as the net is wider. Chosen
# by argument, not yet by measurement on a GPU.
_GPU = replace(
    _CPU,
    network=NetworkConfig(width=640, depth=6, embedding_dim=256, activation="swiglu"),
    training=replace(_CPU.training, learning_rate=1.2e-3),
    train_steps=20_000,
    warm_steps=7_000,
    num_synthetic=1_000_000,
)

#: The presets by name. ``auto`` stands for ``cpu`` or ``gpu`` and is resolved by `resolve_config`.
PRESETS: dict[str, UpsamplerConfig] = {
    "cpu": _CPU,
    "gpu": _GPU,
    "paper-online": _PAPER_ONLINE,
    "paper-online-dmc": replace(_PAPER_ONLINE, normalize_reward=False, model_terminals=False),
    "paper-offline": _PAPER_OFFLINE,
}


def resolve_config(config: str | UpsamplerConfig, device: torch.device) -> UpsamplerConfig:
    """The configuration that a preset's name stands for on a device; bfloat16 only where the hardware has it.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor an `UpsamplerConfig`.
    """
    if isinstance(config, UpsamplerConfig):
        return config
    if not isinstance(config, str):
        raise TypeError(f"upsampler is {config!r}; wanted the name of a preset, an UpsamplerConfig or a factory.")
    name = config
    if name == "auto":
        name = "gpu" if device.type == "cuda" else "cpu"
    if name not in PRESETS:
        raise ValueError(f"unknown preset {config!r}; known presets: auto, {', '.join(PRESETS)}.")
    preset = PRESETS[name]
    if not _multiplies_bfloat16(device):
        # Without such instructions bfloat16 is emulated, and slower than float32.
        preset = replace(
            preset, training=replace(preset.training, bfloat16=False), sampler=replace(preset.sampler, bfloat16=False)
        )
    return preset


def merge_config(base: UpsamplerConfig, changes: Mapping[str, Any], where: str) -> UpsamplerConfig:
    """A configuration with some values replaced, as plain data (JSON, YAML) say it.

    Args:
        base: the values that stay.
        changes: names and values; those of a part are a mapping themselves, ``{"network": {"width": 64}}``.
        where: whose data they are, for messages.

    Raises:
        ValueError: an unknown name, or a value out of range.
        TypeError: a part that is no mapping, or a value of the wrong type.
    """

    def merged(values: dict[str, Any], changes: Any, path: str) -> dict[str, Any]:
        if not isinstance(changes, Mapping):
            raise TypeError(f"{where}: {path or 'the whole'} is {changes!r}; wanted names and values.")
        for name in changes:
            if name not in values:
                raise ValueError(
                    f"{where}: unknown {f'{path}.' if path else ''}{name}.{suggestion(str(name), values)} "
                    f"Known: {', '.join(values)}."
                )
        return {
            name: changes[name]
            if name in changes and not isinstance(value, dict)
            else merged(value, changes[name], f"{path}.{name}" if path else name)
            if name in changes
            else value
            for name, value in values.items()
        }

    return UpsamplerConfig.from_dict(merged(base.to_dict(), changes, ""))


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 matrix products."""
    if device.type == "cuda":
        return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def resolve_device(device: str | torch.device) -> torch.device:
    """The device a name stands for; ``auto`` is CUDA where there is one.

    Raises:
        ValueError: the name of no device, or of one this machine does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except Exception as error:  # torch raises RuntimeError, AssertionError or ImportError, by back end
        reason = str(error).splitlines()[0]
        raise ValueError(f"the device {device!r} cannot be used here ({reason}); try 'auto' or 'cpu'.") from error
    return resolved
