"""Checks of the values that an upsampler, which may be a user's own, returns, before they are used."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..transitions import Field, Transitions, TransitionSpec
from ..upsampling.diffusion_upsampler import DiffusionUpsampler
from ..upsampling.protocol import FitReport, Upsampler
from .learnable_rows import finite_rows


def checked_fit(upsampler: Upsampler, fit: Any) -> FitReport:
    """The report of a fit, with plain numbers.

    Raises:
        TypeError: it is not a `FitReport`, or does not hold numbers.
    """
    if not isinstance(fit, FitReport):
        raise TypeError(f"{_named(upsampler, 'fit')} returned {fit!r}; wanted a FitReport.")
    try:
        return replace(
            fit,
            loss=float(fit.loss),
            held_out_loss=float(fit.held_out_loss),
            steps=int(fit.steps),
            seconds=float(fit.seconds),
            warm=bool(fit.warm),
            reason=str(fit.reason),
            budget=int(fit.budget),
            best_step=int(fit.best_step),
            phases={str(name): float(seconds) for name, seconds in fit.phases.items()},
        )
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise TypeError(f"{_named(upsampler, 'fit')} returned {fit!r}; wanted a FitReport of numbers.") from error


def checked_rows(upsampler: Upsampler, rows: Any, spec: TransitionSpec, num_rows: int) -> Transitions:
    """The drawn rows, in memory that is not shared with the upsampler.

    Raises:
        TypeError: they are not `Transitions`.
        ValueError: wrong number, fields, shapes, dtypes or categories, or values that are not finite.
    """
    if not isinstance(rows, Transitions):
        raise TypeError(f"{_named(upsampler, 'sample')} returned {type(rows).__name__}; wanted Transitions.")
    for name, value in _leaves(vars(rows)):
        if not isinstance(value, torch.Tensor | None):
            raise TypeError(
                f"{_named(upsampler, 'sample')} returned {type(value).__name__} as {name}; wanted a tensor."
            )
    spec.check(rows)
    if len(rows) != num_rows:
        raise ValueError(f"the upsampler was asked for {num_rows} rows and gave {len(rows)}.")
    if not finite_rows(rows).all():
        raise ValueError("the upsampler generated rows that are not finite.")
    for field in spec.fields:
        _check_values(field, rows.flat()[field.name])
    if isinstance(upsampler, DiffusionUpsampler):
        return rows  # already in new memory; a copy may be large
    return Transitions.from_flat({name: tensor.detach().clone() for name, tensor in rows.flat().items()})


def checked_state(upsampler: Upsampler) -> dict[str, Any]:
    """The upsampler's state, in memory that is not shared with the upsampler.

    Raises:
        TypeError: it is not a dict, or holds objects that cannot be copied and so not saved.
    """
    state: Any = upsampler.state_dict()
    if not isinstance(state, dict):
        raise TypeError(f"{_named(upsampler, 'state_dict')} returned {type(state).__name__}; wanted a dict.")
    try:
        return copy.deepcopy(state)
    except Exception as error:
        raise TypeError(
            f"{_named(upsampler, 'state_dict')} returned what cannot be copied ({error}); wanted plain data."
        ) from error


def checked_config(upsampler: Upsampler) -> dict[str, Any]:
    """The upsampler's configuration.

    Raises:
        TypeError: it is not a mapping.
    """
    config: Any = upsampler.config
    if not isinstance(config, Mapping):
        raise TypeError(f"{_named(upsampler, 'config')} is {config!r}; wanted names and values.")
    return dict(config)


def _check_values(field: Field, tensor: torch.Tensor) -> None:
    """Raise an error for integers and flags outside their categories, because agents index by them."""
    if field.kind == "continuous" or field.values or tensor.dtype == torch.bool or not len(tensor):
        return
    values = tensor.reshape(len(tensor), field.size).cpu().numpy()
    binary = field.kind == "binary"
    low = np.zeros(field.size) if binary else np.array(field.start)
    high = low + 1 if binary else low + np.array(field.num_categories) - 1
    wrong = (values < low) | (values > high)
    if wrong.any():
        element = int(wrong.any(0).argmax())
        raise ValueError(
            f"the upsampler generated {values[wrong[:, element], element][0]} in {field.elements[element]}; wanted "
            f"{int(low[element])} to {int(high[element])}."
        )


def _leaves(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The values in nested mappings, with their innermost name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield name, value


def _named(upsampler: Upsampler, what: str) -> str:
    return f"{type(upsampler).__name__}.{what}"
