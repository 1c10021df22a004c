"""A fitted model as plain data, and upsamplers in files: safetensors with JSON, never a pickle."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..transitions import TransitionSpec
from ..transitions.codec import Codec
from ..transitions.values import Thresholds
from .fitted_model import Denoising, FittedModel, codec_options, new_denoiser
from .outcomes import OutcomeRegression
from .presets import UpsamplerConfig
from .relevance import RelevanceScale
from .seeds import generator
from .terminals import TerminalClassifier

#: Version of what `model_state` and `save_file` write. Version 3 has the same parts under other names.
STATE_VERSION = 4
#: Metadata key of the JSON header in a safetensors file.
_HEADER = "synther_buffers"


# -- a model as plain data ---------------------------------------------------------------------------------------------


def model_state(model: FittedModel) -> dict[str, Any]:
    """The model as CPU tensors and plain data."""
    denoising, thresholds = model.denoising, model.thresholds
    return {
        "denoiser": {name: tensor.cpu() for name, tensor in denoising.denoiser.state_dict().items()},
        "low": denoising.low.cpu(),
        "high": denoising.high.cpu(),
        "sigma_max": denoising.sigma_max,
        "codec": model.codec.state_dict(),
        "thresholds": thresholds.state_dict(),
        "terminals": model.terminals.state_dict(),
        "terminal_shift": model.terminal_shift,
        "num_rows": model.num_rows,
        "outcomes": None if model.outcomes is None else model.outcomes.state_dict(),
        "relevance": None if model.relevance is None else model.relevance.state_dict(),
        "spec": model.spec.to_dict(),
        "settings": weight_settings(denoising.config),
    }


def weight_settings(config: UpsamplerConfig) -> dict[str, Any]:
    """The settings that the weights depend on and the shapes of the weights do not show."""
    return {"sigma_data": config.sigma_data, **codec_options(config)}


def model_from_state(
    state: dict[str, Any], spec: TransitionSpec, config: UpsamplerConfig, device: torch.device
) -> FittedModel:
    """The model whose state `model_state` returned, for the configuration that it was made with.

    Raises:
        ValueError: the state is damaged, of another configuration or of another spec.
    """
    try:
        _check_origin(state, spec, config)
        codec = Codec.from_state_dict(spec, state["codec"], **codec_options(config))
        _check_denoiser(state["denoiser"], config, codec.dim)
        denoiser = new_denoiser(config, codec.dim, device, generator(0)).requires_grad_(False)
        denoiser.load_state_dict(state["denoiser"])
        terminals = TerminalClassifier(spec, device)
        terminals.load_state_dict(state["terminals"])
        outcomes, relevance = state.get("outcomes"), state.get("relevance")
        low, high = (state[bound].to(device) for bound in ("low", "high"))
        if low.shape != (codec.dim,) or high.shape != (codec.dim,):
            raise ValueError(f"low and high have shapes {tuple(low.shape)} and {tuple(high.shape)}, not {codec.dim}.")
        return FittedModel(
            spec,
            Denoising(config, denoiser, low, high, float(state["sigma_max"])),
            codec,
            Thresholds.from_state(state["thresholds"]),
            terminals,
            float(state["terminal_shift"]),
            # Not in the states of the first releases:
            int(state.get("num_rows", 0)),
            None if outcomes is None else OutcomeRegression.from_state(codec, outcomes, device),
            None if relevance is None else RelevanceScale(relevance["quantiles"].double()),
        )
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, ValueError) as error:
        raise ValueError(f"the model's state cannot be read ({error}).") from error


def _check_origin(state: dict[str, Any], spec: TransitionSpec, config: UpsamplerConfig) -> None:
    """Raise an error if the model was fitted with another spec or other settings; older states have neither."""
    if "spec" in state and (fitted := TransitionSpec.from_dict(state["spec"])) != spec:
        raise ValueError(f"it was fitted on other transitions: {fitted}, not {spec}")
    present = weight_settings(config)
    for name, value in state.get("settings", {}).items():
        if value != present.get(name):
            raise ValueError(f"it was fitted with {name}={value}, but this configuration has {present.get(name)}")


def _check_denoiser(tensors: dict[str, Tensor], config: UpsamplerConfig, dim: int) -> None:
    """Raise an error if the weights do not fit the configuration, before a network of its size is built."""
    network = config.network
    size = sum(tensor.numel() for tensor in tensors.values())
    # Every layer has a matrix of width by width at least, and the row is embedded in embedding_dim columns.
    if max(network.depth * network.width**2, network.embedding_dim, network.fourier_dim) > size:
        raise ValueError(f"the configuration's {network} is too large for the {size} numbers in the weights")
    wanted = {
        name: tensor.shape for name, tensor in new_denoiser(config, dim, "meta", generator(0)).state_dict().items()
    }
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if wanted != found:
        name = next(name for name in [*wanted, *found] if wanted.get(name) != found.get(name))
        raise ValueError(
            f"the weights {name} have shape {found.get(name)}, but this configuration wants {wanted.get(name)}"
        )


# -- an upsampler's state, of all versions -----------------------------------------------------------------------------


def migrate_state(state: dict[str, Any]) -> dict[str, Any]:
    """An upsampler's state in the current format.

    Args:
        state: what `DiffusionUpsampler.state_dict` returned, now or in version 3.

    Raises:
        ValueError: a version that this library does not know.
    """
    version = state.get("version")
    if version == STATE_VERSION:
        return state
    if version != 3:
        raise ValueError(f"the state has version {version!r}; this library reads versions 3 and {STATE_VERSION}.")
    model = None
    if state["denoiser"]:
        low, high = state["range"]
        model = {
            "denoiser": state["denoiser"],
            "low": low,
            "high": high,
            "sigma_max": state["sigma_max"],
            "codec": state["codec"],
            "thresholds": state["decisions"],
            "terminals": state["terminals"],
            "terminal_shift": state["terminal_shift"],
        }
    return {"version": STATE_VERSION, "num_fits": state["num_fits"], "num_draws": state["num_draws"], "model": model}


# -- files -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saved:
    """What a file of an upsampler holds."""

    spec: TransitionSpec
    config: UpsamplerConfig
    seed: int
    state: dict[str, Any]


def save_file(path: str | Path, saved: Saved) -> None:
    """Write one safetensors file; its header holds everything except tensors as JSON.

    Raises:
        OSError: the file cannot be written. What was at `path` stays.
    """
    header = {"spec": saved.spec.to_dict(), "config": saved.config.to_dict(), "seed": saved.seed}
    packed = pack({"version": STATE_VERSION, **header, "state": saved.state})
    temporary = Path(f"{path}.tmp")
    try:
        temporary.write_bytes(packed)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def config_from_file(data: dict[str, Any]) -> UpsamplerConfig:
    """The configuration that `UpsamplerConfig.to_dict` wrote, now or in an older version.

    A file may have shares that `ConditioningConfig` refuses. They matter only to further training, for which the
    defaults replace them.
    """
    conditioning = data.get("conditioning")
    if conditioning is not None:
        refused = {"given_share": 1.0, "drop_relevance": 0.0}
        kept = {name: value for name, value in conditioning.items() if value != refused.get(name)}
        data = {**data, "conditioning": kept}
    return UpsamplerConfig.from_dict(data)


def load_file(path: str | Path) -> Saved:
    """Read what `save_file` wrote, now or in version 3.

    Raises:
        ValueError: not a file of this library, a damaged one, or one of an unknown version.
        OSError: the file cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        content = unpack(data)
        spec = TransitionSpec.from_dict(content["spec"])
        config = config_from_file(content["config"])
        return Saved(spec, config, int(content["seed"]), migrate_state(content["state"]))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not an upsampler that this library saved ({error}).") from error


# -- nested plain data with tensors, as bytes --------------------------------------------------------------------------


def pack(value: dict[str, Any]) -> bytes:
    """Nested plain data with tensors as the bytes of a safetensors file.

    Raises:
        TypeError: something in it is neither a tensor nor a JSON value.
    """
    tensors: dict[str, Tensor] = {}
    header = json.dumps(_take_tensors(value, tensors))
    return safetensors.torch.save(tensors, metadata={_HEADER: header})


def unpack(data: bytes) -> Any:
    """The inverse of `pack`; lists come back as tuples.

    Raises:
        ValueError: not what `pack` wrote, or damaged.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        header = json.loads(metadata[_HEADER])
        tensors = safetensors.torch.load(data)
        if "state" in header:  # version 3: tensors only in the state
            return {**header, "state": _put_tensors(header["state"], tensors)}
        return _put_tensors(header, tensors)
    except (
        safetensors.SafetensorError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError
    ) as error:  # fmt: skip
        raise ValueError(f"these are no data that this library wrote ({error})") from error


def _take_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Replace each tensor in nested plain data by a reference into `tensors`, for JSON."""
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"items": [[key, _take_tensors(child, tensors)] for key, child in value.items()]}
    if isinstance(value, tuple | list):
        return {"list": [_take_tensors(child, tensors) for child in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}  # JSON has no infinity
    if value is not None and not isinstance(value, bool | int | float | str):
        raise TypeError(f"a state holds {value!r} ({type(value).__name__}); wanted tensors and plain data.")
    return {"plain": value}


def _put_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `_take_tensors`; lists come back as tuples."""
    (kind, content), *_ = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {key: _put_tensors(child, tensors) for key, child in content}
    if kind == "list":
        return tuple(_put_tensors(child, tensors) for child in content)
    return float(content) if kind == "float" else content
