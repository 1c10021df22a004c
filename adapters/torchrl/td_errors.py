"""TD errors of a storage's rows: recorded by address, forgotten where a row is overwritten."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..guidance.td_error import TDError
from ..replay.synthetic_replay import SyntheticReplay
from .addresses import is_synthetic


class RecordsTDErrors:
    """The part of a storage that keeps what losses say of its rows, for the guidance `TDError`."""

    synthetic: SyntheticReplay
    ndim: int
    max_size: int
    _total_shape: Any

    def _rows_per_slot(self) -> int:
        """Rows at each place of the first dimension."""
        return math.prod(self._total_shape[1:]) if self.ndim > 1 and self._total_shape is not None else 1

    @property
    def _wants_td_errors(self) -> bool:
        return isinstance(self.synthetic.options.guidance, TDError)

    def record_td_errors(self, index: Tensor, errors: Tensor) -> None:
        """Keep what a loss says of rows, for the guidance `TDError`: ``batch["index"]`` and ``batch["td_error"]``.

        A `PrioritizedSampler` does so when its priorities are updated.

        Args:
            index: addresses of a batch, ``[N]`` or ``[N, ndim]``; those of synthetic rows are left out.
            errors: ``[N]``, of any sign.
        """
        if not self._wants_td_errors:
            return
        index, errors = index.detach().cpu(), errors.detach().cpu().float().reshape(-1)
        real = ~is_synthetic(index)
        index, errors = index[real], errors[real]
        if index.ndim > 1:
            position = index[:, 0]
            for dim in range(1, self.ndim):
                position = position * self._total_shape[dim] + index[:, dim]
            index = position
        self.synthetic.record_td_errors(index.numpy(), errors)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _forget_td_errors(self, cursor: Any) -> None:
        """Other rows are at a cursor now: an index of any kind, whose first part is of the first dimension."""
        if isinstance(cursor, tuple) and cursor:
            cursor = cursor[0]
        rows = self._rows_per_slot()
        slots = _slots_named(cursor, self.max_size // rows)
        self.synthetic.forget_td_errors((slots[:, None] * rows + np.arange(rows)).reshape(-1))

    def _bind_td_errors(self) -> None:
        """Tell the guidance the errors that were recorded."""
        if self._wants_td_errors:
            storage = weakref.ref(self)  # a cycle would keep the storage, and a refresh process with it, alive
            self.synthetic.bind_td_error(lambda rows: _errors_of(storage(), len(rows)))


def _slots_named(cursor: Any, num_slots: int) -> NDArray[np.int64]:
    """The slots that an index names, without work for the others; all of them if it is of no known kind."""
    if isinstance(cursor, slice):
        return np.arange(*cursor.indices(num_slots))
    index = cursor.cpu().numpy() if isinstance(cursor, Tensor) else np.asarray(cursor)
    if index.dtype == np.bool_:
        return np.flatnonzero(index)
    if np.issubdtype(index.dtype, np.integer):
        return index.reshape(-1).astype(np.int64) % num_slots
    return np.arange(num_slots)


def _errors_of(storage: RecordsTDErrors | None, num_rows: int) -> NDArray[np.float32]:
    """The recorded errors of the rows of a storage, in the order of `real_transitions`."""
    if storage is None:
        raise RuntimeError("the storage whose TD errors were bound is gone")
    return storage.synthetic.recorded_td_errors(np.arange(num_rows))
