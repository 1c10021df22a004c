"""Conditions of a denoiser: columns whose values are known, and the relevance of a row.

A condition is one tensor ``[n, 2 D + 2]`` for rows of D columns: the known values (0 elsewhere), 1 for each known
column, the relevance (0 if none is asked for), and 1 if one is. Training hides parts of it at random, so that one
network learns the rows with and without conditions (classifier-free guidance, Ho and Salimans 2022, section 3; for
transitions Wang et al., "Prioritized Generative Replay", ICLR 2025).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..public_paths import public
from ..validation import not_negative
from .edm import Preconditioner


@public
@dataclass(frozen=True)
class ConditioningConfig:
    """How a denoiser learns conditions, and how rows are drawn under them.

    Attributes:
        given_share: of the rows in a training step for which the observation is known, in half of them the action too;
            below 1, because a model has to learn rows without conditions as well.
        drop_relevance: share of the rows in a training step that are learned without their relevance; above 0, for the
            same reason.
        guidance: how far rows are pushed towards the wanted relevance; 1 draws from the distribution that was learned,
            more pushes them further and makes them less varied. In the Heun solver only the first of a step's two
            evaluations is guided, as published, which halves the push.
    """

    given_share: float = 0.5
    drop_relevance: float = 0.25
    guidance: float = 2.0

    def __post_init__(self) -> None:
        """Reject values out of range with an error that names them."""
        for name in ("given_share", "drop_relevance", "guidance"):
            object.__setattr__(self, name, not_negative(f"conditioning.{name}", getattr(self, name)))
        for name in ("given_share", "drop_relevance"):
            if getattr(self, name) > 1:
                raise ValueError(f"conditioning.{name} is {getattr(self, name)}; it is a share, from 0 to 1.")
        for name, nothing, wanted in (("given_share", 1.0, "below 1"), ("drop_relevance", 0.0, "above 0")):
            if getattr(self, name) == nothing:
                raise ValueError(
                    f"conditioning.{name} is {nothing}; it must be {wanted}, because some rows have to be learned "
                    "without a condition: the thresholds of decoding and the held-out loss are of such rows."
                )


def condition_dim(dim: int) -> int:
    """Columns of a condition for rows with `dim` columns."""
    return 2 * dim + 2


def pack_condition(values: Tensor, known: Tensor, relevance: Tensor | None = None) -> Tensor:
    """A condition ``[n, 2 D + 2]``.

    Args:
        values: ``[n, D]`` float32; those of columns that are not known do not matter.
        known: ``[D]`` or ``[n, D]`` bool.
        relevance: ``[n]`` float32; None asks for none.
    """
    known = known.expand(values.shape)
    last = values.new_zeros((len(values), 2))
    if relevance is not None:
        last[:, 0], last[:, 1] = relevance, 1.0
    return torch.cat((torch.where(known, values, 0.0), known.to(values), last), dim=1)


def without_relevance(condition: Tensor) -> Tensor:
    """The same condition for rows of any relevance, in new memory."""
    condition = condition.clone()
    condition[:, -2:] = 0.0
    return condition


class ConditionalPreconditioner(Preconditioner):
    """D of rows of which some columns may be known: there it returns the known values.

    So the loss has no part in them, and in a solver they move from noise straight to their values, as in training.
    """

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Preconditioner.forward`.

        Args:
            x: ``[n, D]`` float32.
            sigma: ``[n]`` or ``[1]``.
            condition: ``[n, 2 D + 2]``, see `pack_condition`; None if nothing is known.
        """
        denoised = super().forward(x, sigma, condition)
        if condition is None:
            return denoised
        dim = x.shape[1]
        return torch.where(condition[:, dim : 2 * dim] > 0, condition[:, :dim], denoised)


@dataclass(frozen=True)
class ConditionDraws:
    """Draws the condition under which each row of a training step is learned.

    Attributes:
        known: ``[k, D]`` bool, sets of columns that may be known together.
        bounds: ``[k]`` float32 ascending, up to which share of the rows each set is known; beyond the last nothing is.
        relevance: ``[N]`` float32, of each training row, or None.
        drop_relevance: share of the rows that are learned without it.
    """

    known: Tensor
    bounds: Tensor
    relevance: Tensor | None
    drop_relevance: float

    def draw(self, index: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Conditions ``[n, 2 D + 2]``; nothing in it waits for the device.

        Args:
            index: ``[n]`` of the training rows.
            rows: ``[n, D]``, these rows.
            generator: source of the choice.
        """
        chance = torch.rand((2, len(index)), generator=generator, device=rows.device, dtype=torch.float32)
        # One more set, the empty one, beyond the last bound.
        sets = torch.cat((self.known, torch.zeros_like(self.known[:1])))
        known = sets[torch.bucketize(chance[0], self.bounds, right=True)]
        condition = pack_condition(rows, known)
        if self.relevance is not None:
            told = (chance[1] >= self.drop_relevance).to(rows)
            condition[:, -2], condition[:, -1] = self.relevance[index] * told, told
        return condition
