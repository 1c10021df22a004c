"""Rare values of a column, such as a task with few rows, get their share of the synthetic set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..public_paths import public
from ..transitions import RowOrder, Transitions
from ..transitions.special_columns import FEW_VALUES
from .base import Guidance
from .classes import Classes, columns_named

#: More distinct values than this are no classes.
_MOST_CLASSES = 256


@public
@dataclass(frozen=True, kw_only=True)
class Rarity(Guidance):
    """Quotas for the values of some columns: for the tasks of a multi-task agent, of which some have little data.

    `strength` has no effect: the quotas are met exactly. Rows are drawn until they are, at most eight times as many as
    the set has; a class that still lacks rows has some of its rows more than once.

    Attributes:
        of: names of the elements that make the classes, as reports have them (``"observation[3]"``, ``"reward"``), or
            of a whole field (``"observation.task"``, ``"action"``). Rows with the same values there are of one class.
        quotas: share of the set for each class, by its value or tuple of values; None for equal shares. Classes that
            are left out get none.
    """

    of: str | Sequence[str]
    quotas: Mapping[Any, float] | None = None

    def __post_init__(self) -> None:
        """Reject values out of range with an error that names them."""
        super().__post_init__()
        names = (self.of,) if isinstance(self.of, str) else tuple(self.of) if isinstance(self.of, Sequence) else ()
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"guidance.of is {self.of!r}; wanted the name of an element or a field, or several.")
        object.__setattr__(self, "of", names)
        if self.quotas is None:
            return
        try:
            quotas = {_as_tuple(value): float(share) for value, share in self.quotas.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise TypeError(
                f"guidance.quotas is {self.quotas!r}; wanted a mapping from a number, or a tuple of them, to a share."
            ) from error
        total = sum(quotas.values())
        if any(not share >= 0 for share in quotas.values()) or not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(
                f"guidance.quotas is {dict(self.quotas)}, which sums to {total:g}; wanted shares of at least 0 "
                "that sum to 1."
            )
        object.__setattr__(self, "quotas", quotas)

    def relevance(self, transitions: Transitions, order: RowOrder) -> Tensor:
        """How rare a row's class is: minus the logarithm of its share, ``[N]``.

        Raises:
            ValueError: a column that is not there, or too many classes.
        """
        return self.classes(transitions).rarity_of(transitions)

    def classes(self, transitions: Transitions) -> Classes:
        """The classes of real rows, and their quotas.

        Raises:
            ValueError: a column that is not there, too many classes, or a quota for one without rows.
        """
        names = tuple(self.of)
        parts, flat = {name: columns_named(transitions, (name,)) for name in names}, transitions.flat()
        values, counts = torch.cat([*parts.values()], dim=1).unique(dim=0, return_counts=True)
        for name, part in parts.items():
            # Generated integers are rounded; of floats only few values come back exactly.
            if flat[name.partition("[")[0]].is_floating_point():
                distinct = max(len(column.unique()) for column in part.T)
                if distinct > FEW_VALUES:
                    raise ValueError(
                        f"{name} has {distinct} different values, and of a column of floats a model restores at most "
                        f"{FEW_VALUES}; give the classes as a Discrete space, as whole numbers, or one-hot"
                    )
        if len(values) > _MOST_CLASSES:
            raise ValueError(f"{', '.join(names)} has {len(values):,} values; wanted at most {_MOST_CLASSES} classes")
        if self.quotas is None:
            quotas = torch.full((len(values),), 1.0 / len(values), dtype=torch.float64, device="cpu")
        else:
            quotas = torch.zeros(len(values), dtype=torch.float64, device="cpu")
            for value, share in self.quotas.items():
                # A float32 column does not have 0.1 itself.
                same = torch.isclose(values, torch.tensor(value, dtype=torch.float64, device="cpu"), 1e-6, 1e-9).all(1)
                if share > 0 and not bool(same.any()):
                    raise ValueError(
                        f"guidance.quotas has {value}, of which there is no real row; there are {values.tolist()}"
                    )
                quotas[same] = share
            quotas /= quotas.sum()
        return Classes(names, values, counts.double() / len(transitions), quotas)


def _as_tuple(value: Any) -> tuple[float, ...]:
    return tuple(float(part) for part in value) if isinstance(value, tuple | list) else (float(value),)
