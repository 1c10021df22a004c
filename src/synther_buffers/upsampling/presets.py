"""Configuration of the upsampler, and the presets with the sources of their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from ..diffusion.conditions import ConditioningConfig
from ..diffusion.config import NetworkConfig, SamplerConfig, TrainingConfig
from ..diffusion.solvers import SOLVERS, DPMSolver, HeunSolver
from ..public_paths import public
from ..validation import flag, positive, suggestion, whole_number
from .budget import RowBudget


@public
@dataclass(frozen=True)
class UpsamplerConfig:
    """Everything `DiffusionUpsampler` needs besides the spec; start from a preset and `dataclasses.replace` parts.

    Attributes:
        network, training, sampler: see there.
        train_steps: gradient steps of a training from scratch; with a budget, on `budget.full_rows` rows.
        warm_steps: gradient steps when training continues from the last model; with a budget, the minimum for
            `budget.full_rows` rows.
        warm_start: whether training continues from the last model (the paper starts from scratch at each refresh).
        num_synthetic: rows that a refresh generates by default; with a budget, the maximum of this default.
        sigma_data: standard deviation of the normalised rows.
        next_observation_change, normalize_reward, model_terminals: see `synther_buffers.transitions.codec.Codec`.
        terminal_steps: gradient steps of the classifier of terminal rows.
        outcome_steps: gradient steps, at most, of the regression that replaces generated rewards and next observations
            that do not follow from observation and action (`synther_buffers.upsampling.outcomes`); 0 keeps all of them.
        budget: scales steps, regularisation and `num_synthetic` with the number of rows, and keeps the weights with the
            lowest held-out loss; None does neither, as published.
        conditioning: learn rows under conditions as well, for `DiffusionUpsampler.sample(..., condition=)`; None does
            not.
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
    outcome_steps: int = 0
    budget: RowBudget | None = None
    conditioning: ConditioningConfig | None = None

    def __post_init__(self) -> None:
        """Reject values out of range with an error that names them."""
        for name in ("train_steps", "warm_steps", "num_synthetic", "terminal_steps"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1))
        object.__setattr__(self, "outcome_steps", whole_number("outcome_steps", self.outcome_steps, 0))
        object.__setattr__(self, "sigma_data", positive("sigma_data", self.sigma_data))
        for name in ("warm_start", "next_observation_change", "normalize_reward", "model_terminals"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))
        if not isinstance(self.budget, RowBudget | None):
            raise TypeError(f"budget is {self.budget!r}; wanted a RowBudget, or None to spend the same on any rows.")
        if not isinstance(self.conditioning, ConditioningConfig | None):
            raise TypeError(f"conditioning is {self.conditioning!r}; wanted a ConditioningConfig, or None.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it."""
        data = asdict(self)
        data["sampler"]["solver"]["name"] = self.sampler.solver.name
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> UpsamplerConfig:
        """The configuration that `to_dict` wrote, now or in state version 3.

        Raises:
            ValueError: a solver that is not one of this library's.
        """
        training = {**data["training"], "betas": tuple(data["training"]["betas"])}
        sampler = _migrate_sampler(data["sampler"])
        solver = dict(sampler["solver"])
        budget, conditioning = data.get("budget"), data.get("conditioning")
        name = solver.pop("name")
        if name not in SOLVERS:
            raise ValueError(f"sampler.solver.name is {name!r}; known solvers: {', '.join(SOLVERS)}.")
        return cls(
            **{
                **data,
                "network": NetworkConfig(**data["network"]),
                "training": TrainingConfig(**training),
                "sampler": SamplerConfig(**{**sampler, "solver": SOLVERS[name](**solver)}),
                "budget": None if budget is None else RowBudget(**budget),
                "conditioning": None if conditioning is None else ConditioningConfig(**conditioning),
            }
        )


def _migrate_sampler(sampler: dict[str, Any]) -> dict[str, Any]:
    """A sampler's settings in the current format; version 3 has the settings of all solvers side by side."""
    name = sampler["solver"]
    if not isinstance(name, str):
        return sampler
    own = {field.name for field in fields(SOLVERS[name])} if name in SOLVERS else set()
    return {
        "solver": {"name": name, **{key: value for key, value in sampler.items() if key in own}},
        "bfloat16": sampler["bfloat16"],
    }


# SynthER (Lu et al., NeurIPS 2023), sections 4.2 and B, and the configuration files of its published code. Terminals
# are modelled and rewards z-scored on Gym; on DMC there are no terminals and rewards are left as they are.
_PAPER_ONLINE = UpsamplerConfig(
    network=NetworkConfig(width=1024, depth=6, embedding_dim=256),
    training=TrainingConfig(batch_size=256, learning_rate=3e-4),
    sampler=SamplerConfig(HeunSolver(num_steps=128)),
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
# The library's own: the cheapest configuration found that reaches the fidelity of the paper's network and sampler after
# 10,000 of its steps, on 50,000 rows each of HalfCheetah-v5, Walker2d-v5 and Hopper-v5 (docs/results/fidelity.md). It
# has gated layers, a larger learning rate with a warm-up, and training noise levels closer to those that determine the
# structure of the rows. The sampler's levels are almost log-uniform (a large rho): at rho = 7 the steps between the
# levels that matter are so long that 20 of them widen a Gaussian's variance by more than 10 % (see the solver's tests).
# Weight decay, dropout and the budget are for few rows (docs/results/few_rows.md).
_CPU = UpsamplerConfig(
    network=NetworkConfig(width=192, depth=6, embedding_dim=128, activation="swiglu"),
    training=TrainingConfig(
        batch_size=512,
        learning_rate=4e-3,
        warmup_steps=100,
        weight_decay=1.0,
        dropout=0.2,
        p_std=0.8,
        bfloat16=True,
    ),
    sampler=SamplerConfig(DPMSolver(num_steps=16, sigma_min=0.05, sigma_max=20.0, rho=100.0), bfloat16=True),
    train_steps=7_000,
    warm_steps=2_000,
    warm_start=True,
    num_synthetic=100_000,
    outcome_steps=700,
    budget=RowBudget(),
)

# The same network: one with as many weights as the paper's, 640 wide, copies more of up to 2,000 rows and generates no
# better ones from 10,000 to 40,000 (docs/results/few_rows.md). A GPU draws a large set in seconds.
_GPU = replace(_CPU, num_synthetic=1_000_000)

#: The presets by name. ``auto`` stands for ``cpu`` or ``gpu`` and is resolved by `resolve_config`.
PRESETS: dict[str, UpsamplerConfig] = {
    "cpu": _CPU,
    "gpu": _GPU,
    "paper-online": _PAPER_ONLINE,
    "paper-online-dmc": replace(_PAPER_ONLINE, normalize_reward=False, model_terminals=False),
    "paper-offline": _PAPER_OFFLINE,
}


def resolve_config(config: str | UpsamplerConfig, device: torch.device) -> UpsamplerConfig:
    """The configuration of a preset on a device; bfloat16 only if the hardware supports it.

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


#: Parts of a configuration that may be left out.
_MAY_BE_NONE = ("budget", "conditioning")


def merge_config(base: UpsamplerConfig, changes: Mapping[str, Any], where: str) -> UpsamplerConfig:
    """A configuration with some values replaced by those in plain data (JSON, YAML).

    Args:
        base: the values that stay.
        changes: names and values; those of a part are a mapping themselves, ``{"network": {"width": 64}}``.
        where: name of the data, for messages.

    Raises:
        ValueError: an unknown name, or a value out of range.
        TypeError: a part that is not a mapping, or a value of the wrong type.
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
            if name in changes and (not isinstance(value, dict) or (name in _MAY_BE_NONE and changes[name] is None))
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


def check_float64(device: torch.device) -> None:
    """Raise an error if the device cannot decode rows, which is done in float64.

    Raises:
        ValueError: it has no float64.
    """
    if device.type == "mps":
        raise ValueError("device is 'mps', which has no float64, and decoding rows needs it; use 'cpu'.")


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of this name; ``auto`` is CUDA if there is one.

    Raises:
        ValueError: not the name of a device, or a device that this machine does not have.
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
