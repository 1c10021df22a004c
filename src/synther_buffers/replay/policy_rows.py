"""Synthetic rows whose actions are the current policy's.

Generated rows have the actions of the data, which older policies chose. What a critic gets wrong are the values of
actions that the replay has never seen (MAD-TD, Voelcker et al., ICLR 2025). So a part of the synthetic set can have
observations of real rows, actions that the policy chooses for them now, and the model's reward, next observation and
end. They are drawn again more often than the model is trained, because the policy changes faster than the dynamics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..transitions import Transitions, TransitionSpec
from ..transitions.fields import Field
from ..upsampling.condition import Condition
from ..upsampling.fitted_model import FittedModel
from ..upsampling.seeds import derive_seed, generator
from .random_streams import kept_random_streams

#: Chooses actions ``[n, *shape]`` for observations ``[n, *shape]`` (a dict of them for a Dict space). Both are as the
#: buffer stores them; the observations are tensors on the CPU.
Policy = Callable[[Any], Any]

#: Rows of a draw, at most half of the set. They serve for a few hundred environment steps; more take seconds to draw.
NUM_POLICY_ROWS = 2_048
#: Real rows that are looked at for each one that is used: some lie outside of what the model learned.
_CANDIDATES = 2


def draw_policy_rows(
    model: FittedModel, real: Transitions, policy: Policy, spec: TransitionSpec, num_rows: int, seed: int
) -> Transitions:
    """Rows with observations of real rows, the policy's actions and the model's outcomes.

    The global random streams are where they were before.

    Args:
        model: learned with conditions.
        real: at least one row.
        policy: see `Policy`.
        spec: of the rows.
        num_rows: to draw.
        seed: of everything random in it.

    Raises:
        ValueError: the policy's actions have another shape than the buffer's, or lie far from the actions in the data;
            or every real row lies outside of what the model learned.
    """
    draws = generator(derive_seed(seed, "observations"))
    index = torch.randint(len(real), (_CANDIDATES * num_rows,), generator=draws, device="cpu")
    candidates = real[index.to(real.device)].to("cpu")
    columns = candidates.flat()
    near = model.codec.near({field.name: columns[field.name] for field in spec.observation})
    if not bool(near.any()):
        raise ValueError("no real row lies within what the last model learned; a refresh will learn the newer ones")
    chosen = candidates[_repeated(near, num_rows)]
    with kept_random_streams(), torch.no_grad():
        action = _as_stored(policy(chosen.observation), spec.action, num_rows)
    near = model.codec.near({spec.action.name: action})
    if 2 * int(near.sum()) >= num_rows:
        # A few actions far from the data cost no draw; of many, `sample` says what is wrong.
        index = _repeated(near, num_rows)
        chosen, action = chosen[index], _within_bounds(action[index], spec.action)
    condition = Condition(observation=chosen.observation, action=action)
    return model.sample(num_rows, derive_seed(seed, "outcomes"), condition=condition)


def _repeated(mask: Tensor, count: int) -> Tensor:
    """`count` indices of the rows in a mask, in turn."""
    index = mask.nonzero()[:, 0]
    return index[torch.arange(count, device=index.device) % len(index)]


def _as_stored(action: Any, field: Field, count: int) -> Tensor:
    """A policy's actions as ``[count, *shape]`` in the field's dtype; one-hot ones as the category."""
    action = action.detach().cpu() if isinstance(action, Tensor) else torch.as_tensor(np.array(action), device="cpu")
    wanted = (count, *field.shape)
    if field.kind == "categorical" and action.ndim == len(wanted) + 1 and action.numel() != count * field.size:
        action = action.to(torch.uint8).argmax(-1)
    if action.numel() != count * field.size:
        raise ValueError(f"the policy returned actions of shape {tuple(action.shape)}; wanted {wanted}")
    return action.reshape(wanted).to(field.torch_dtype)


def _within_bounds(action: Tensor, field: Field) -> Tensor:
    """Actions ``[n, *shape]`` with what lies beyond the action space's bounds set to them."""
    if not field.low:  # categories and flags have no bounds
        return action
    low, high = (
        torch.tensor(bound, dtype=torch.float64, device="cpu").reshape(field.shape) for bound in (field.low, field.high)
    )
    return action.double().clamp(low, high).to(action.dtype)
