"""Relevance by the agent's own error: rows whose value it gets wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..public_paths import public
from ..transitions import RowOrder, Transitions
from .base import Guidance


@public
@dataclass(frozen=True, kw_only=True)
class TDError(Guidance):
    """The absolute temporal-difference error of the agent's critic, as prioritised replay uses it.

    The buffer has to be told the errors. Stable-Baselines3 and sbx: pass ``callback=SynthERCallback()``. Tianshou:
    nothing to do with most algorithms, which report them. TorchRL: after the loss
    ``storage.record_td_errors(batch["index"], batch["td_error"])``, or a `PrioritizedSampler`. Anywhere:
    ``synthetic.bind_td_error(function)``.
    """

    def relevance(self, transitions: Transitions, order: RowOrder) -> Tensor:
        """Not from rows alone.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("TD errors come from what bind_td_error has set, not from the rows alone")


class RecordedErrors:
    """The last error that an algorithm reported for each slot of a buffer.

    Args:
        errors: ``[slots]``, as `errors` of an earlier one; NaN where none is known.
    """

    def __init__(self, errors: NDArray[np.float32] | None = None) -> None:
        self.errors = np.empty(0, np.float32) if errors is None else np.asarray(errors, np.float32)

    def record(self, slots: Any, errors: Any) -> None:
        """Keep the absolute errors ``[n]`` of the rows in some slots ``[n]``; negative slots are none."""
        slots = np.asarray(slots)
        errors = np.asarray(errors, np.float32).reshape(slots.shape)
        slots, errors = slots[slots >= 0], errors[slots >= 0]
        if not slots.size:
            return
        missing = int(slots.max()) + 1 - len(self.errors)
        if missing > 0:
            unknown = np.full(max(missing, len(self.errors)), np.nan, np.float32)
            self.errors = np.concatenate((self.errors, unknown))
        self.errors[slots] = np.abs(errors)

    def forget(self, slots: Any) -> None:
        """Other rows are in these slots ``[n]`` now."""
        if not len(self.errors):
            return
        slots = np.asarray(slots)
        self.errors[slots[slots < len(self.errors)]] = np.nan

    def of(self, slots: Any) -> NDArray[np.float32]:
        """The errors ``[n]`` of the rows in some slots ``[n]``; rows without one have the mean of the others.

        Raises:
            RuntimeError: none is known.
        """
        slots = np.asarray(slots)
        errors = np.full(len(slots), np.nan, np.float32)
        inside = slots < len(self.errors)
        errors[inside] = self.errors[slots[inside]]
        known = np.isfinite(errors)
        if not known.any():
            raise RuntimeError("no TD error was reported yet")
        return np.where(known, errors, errors[known].mean(dtype=np.float64)).astype(np.float32)
