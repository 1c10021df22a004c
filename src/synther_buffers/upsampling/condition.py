"""What drawn rows must have: a given observation, action or relevance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..diffusion.conditions import pack_condition
from ..public_paths import public
from ..transitions import TransitionSpec
from ..transitions.transitions import flatten

if TYPE_CHECKING:
    from .fitted_model import FittedModel


@public
@dataclass(frozen=True)
class Condition:
    """What `DiffusionUpsampler.sample` is asked for; row i of each tensor is for row i of the draw.

    Needs an upsampler whose configuration has `conditioning`. Given values come back bit for bit.

    Attributes:
        observation: ``[n, *shape]``, or a dict of such tensors for a Dict space; None to generate it.
        action: ``[n, *shape]``, as in the training rows; needs `observation`. None to generate it.
        relevance: ``[n]`` or one number for all rows, in the unit of the relevance that was learned; None for rows of
            any relevance.
    """

    observation: Any = None
    action: Any = None
    relevance: Any = None

    def known(self, spec: TransitionSpec, num_samples: int) -> dict[str, Tensor]:
        """The given values by name of the field, ``[num_samples, *shape]`` in the field's dtype, on the CPU.

        Raises:
            ValueError: another number of rows or another shape than wanted, a key that is missing or unknown, an action
                without an observation, or nothing at all.
        """
        if self.observation is None and self.action is None and self.relevance is None:
            raise ValueError("the condition is empty; give an observation, an action or a relevance, or no condition.")
        if self.action is not None and self.observation is None:
            raise ValueError("the condition has an action without an observation; give both, or the observation alone.")
        given: dict[str, Any] = {}
        for name, value in (("observation", self.observation), ("action", self.action)):
            if isinstance(value, Mapping):
                given.update(flatten(name, dict(value)))
            elif value is not None:
                given[name] = value
        fields = {field.name: field for field in spec.observation if self.observation is not None}
        if self.action is not None:
            fields[spec.action.name] = spec.action
        if set(given) != set(fields):
            raise ValueError(f"the condition has {sorted(given)}; wanted {sorted(fields)}.")
        out = {}
        for name, field in fields.items():
            value = torch.as_tensor(given[name], device="cpu").detach()
            wanted = (num_samples, *field.shape)
            if tuple(value.shape) != wanted:
                raise ValueError(f"{name} of the condition has shape {tuple(value.shape)}; wanted {wanted}.")
            out[name] = value.to(field.torch_dtype)
        return out

    def scores(self, model: FittedModel, num_samples: int) -> Tensor | None:
        """The relevance on the scale that the model learned, ``[num_samples]``; None for any.

        Raises:
            ValueError: none was learned, one beyond what was learned, or another number of them.
        """
        relevance = None
        if self.relevance is not None:
            if model.relevance is None:
                raise ValueError(
                    "the condition has a relevance, but the model was fitted without one: fit(..., relevance=)."
                )
            wanted = torch.as_tensor(self.relevance, dtype=torch.float64, device="cpu")
            if tuple(wanted.shape) not in ((), (num_samples,)):
                raise ValueError(
                    f"relevance of the condition has shape {tuple(wanted.shape)}; wanted () or ({num_samples},)."
                )
            relevance = model.relevance.scores(wanted.expand(num_samples).contiguous())
        return relevance


def encode(model: FittedModel, known: Mapping[str, Tensor], scores: Tensor | None, num_rows: int) -> Tensor:
    """A condition as the denoiser takes it, ``[num_rows, 2 D + 2]`` on its device.

    Args:
        model: that is asked.
        known: ``[num_rows, *shape]`` by name of the field, from `Condition.known`.
        scores: ``[num_rows]``, from `Condition.scores`.
        num_rows: of this part of a draw.
    """
    device, codec = model.denoising.device, model.codec
    values = torch.zeros((num_rows, codec.dim), dtype=torch.float32, device=device)
    if known:
        values = codec.encode_known(known, device)
    relevance = None if scores is None else scores.to(device)
    return pack_condition(values, codec.layout.columns_of(known).to(device), relevance)
