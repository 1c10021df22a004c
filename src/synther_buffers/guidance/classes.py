"""Classes of rows, by the values of some columns, and their quotas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..transitions import Transitions

#: Rows whose class is looked up at a time.
_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Classes:
    """Classes of rows and their quotas, as plain data.

    Attributes:
        names: of the elements that make them.
        values: of each class, ``[k, m]`` float64.
        shares: of the real rows, ``[k]``.
        quotas: of the synthetic rows, ``[k]``.
    """

    names: tuple[str, ...]
    values: Tensor
    shares: Tensor
    quotas: Tensor

    def of(self, rows: Transitions) -> Tensor:
        """The class of each row, ``[n]``; -1 for none."""
        found = []
        for part in columns_named(rows, self.names).split(_ROWS_AT_ONCE):
            same = (part[:, None] == self.values).all(2)
            found.append(torch.where(same.any(1), same.byte().argmax(1), -1))
        return torch.cat(found)

    def rarity_of(self, rows: Transitions) -> Tensor:
        """How rare each row's class is among the real rows, ``[n]``."""
        return self.rarity[self.of(rows)]

    @property
    def rarity(self) -> Tensor:
        """Minus the logarithm of the share, ``[k]``."""
        return -self.shares.log()

    def counts(self, num_rows: int) -> Tensor:
        """Rows of each class in a set of `num_rows`, ``[k]`` int64: quotas, the rest to the largest remainders."""
        exact = self.quotas * num_rows
        counts = exact.floor().long()
        rest = num_rows - int(counts.sum())
        counts[(exact - counts).argsort(descending=True, stable=True)[:rest]] += 1
        return counts


def columns_named(rows: Transitions, names: Sequence[str]) -> Tensor:
    """Elements of rows by their names, ``[N, m]`` float64 on the CPU.

    Raises:
        ValueError: there is none of that name.
    """
    found, flat = [], rows.flat()
    for name in names:
        field, _, element = name.partition("[")
        value = flat.get(field)
        size = 0 if value is None else value[:1].numel()
        index = list(range(size)) if not element else [int(element[:-1])] if element[:-1].isdigit() else []
        if value is None or not index or index[-1] >= size:
            raise ValueError(f"guidance.of has {name!r}, which the rows do not have; they have {', '.join(flat)}")
        found.append(value.reshape(len(value), -1)[:, index].double().cpu())
    return torch.cat(found, dim=1)
