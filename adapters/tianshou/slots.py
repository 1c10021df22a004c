"""The storage: real rows in the slots where Tianshou has them, then as many slots for synthetic rows."""

from __future__ import annotations

from types import EllipsisType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray
from tianshou.data import Batch, ReplayBufferManager
from tianshou.data.utils.converter import to_hdf5

from ..transitions import Transitions
from .rows import blank_others, extended, rows_with_null, write_transitions

Indices = int | NDArray[Any]


class SyntheticSlots(ReplayBufferManager):
    """A buffer whose index space goes on, after its own ``maxsize`` slots, with synthetic rows.

    Everything that Tianshou's classes count with (``maxsize``, ``buffers``, ``_lengths``) is of the real rows, so that
    they go on unchanged. The synthetic rows are one more sub-buffer to those who walk the index space: each row an
    episode of one step, its own neighbour. Only the arrays of the storage cover both.
    """

    _num_slots: int

    # -- walking the index space -------------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> Any:
        """A batch of the rows at `index`, real and synthetic; a slice and negative indices mean real ones.

        The ``done`` of a synthetic row is its ``terminated``: algorithms that read it from a batch (CQL, BCQ) stop
        bootstrapping there.
        """
        if not self._num_slots or isinstance(index, slice | EllipsisType):
            return super().__getitem__(index)
        index = np.asarray(index)
        if index.dtype == np.bool_:
            index = np.flatnonzero(index)
        elif index.size and index.min() < 0:
            index = np.where(index < 0, index + self.maxsize, index)
        batch = super().__getitem__(index if index.ndim else int(index))
        columns = batch.__dict__  # attributes of a Batch are slow
        columns["done"] = np.where(index >= self.maxsize, columns["terminated"], columns["done"])[()]
        return batch

    def next(self, index: Indices) -> NDArray[Any]:
        """The index of the next transition, the same at an episode's end: of every synthetic row."""
        return self._own_neighbour(index, super().next(index))

    def prev(self, index: Indices) -> NDArray[Any]:
        """The index of the transition before, the same at an episode's start: of every synthetic row."""
        return self._own_neighbour(index, super().prev(index))

    def _own_neighbour(self, index: Indices, neighbour: NDArray[Any]) -> NDArray[Any]:
        if not self._num_slots:
            return neighbour
        index = np.asarray(index)
        return np.where(index >= self.maxsize, index, neighbour)[()]

    @property
    def subbuffer_edges(self) -> NDArray[Any]:
        """Where the sub-buffers begin and end, that of the synthetic rows last."""
        edges = super().subbuffer_edges
        return np.append(edges, self.maxsize + self._num_slots) if self._num_slots else edges

    # -- changing the storage ----------------------------------------------------------------------------------------

    def _set_batch_for_children(self) -> None:
        """Let the sub-buffers see their rows of the storage, after it has changed; make room for synthetic rows."""
        if not self._meta.get_keys():
            return
        self._meta = extended(self._meta, self.maxsize + self._num_slots)
        for offset, child in zip(self._offset, self.buffers, strict=True):
            # Not set_batch: it refuses the keys of episode hooks.
            child._meta = self._meta[offset : offset + child.maxsize]

    def _write_synthetic(self, rows: Transitions) -> None:
        """Fill the synthetic slots, in bulk."""
        self._set_batch_for_children()  # somebody may have put a key into the storage directly
        write_transitions(self._meta, self.maxsize, rows)

    def set_array_at_key(
        self, seq: NDArray[Any], key: str, index: Any = None, default_value: float | None = None
    ) -> None:
        """Set a key of the real rows; see Tianshou's own. Without `index`, `seq` has ``maxsize`` rows."""
        if index is None and self._num_slots:
            if len(seq) != self.maxsize:
                raise ValueError(f"seq has {len(seq)} rows, but the buffer has {self.maxsize}; pass an index.")
            index, default_value = np.arange(self.maxsize), 0
        super().set_array_at_key(seq, key, index, default_value)
        if self._num_slots:
            # The default, NaN as a rule, must not reach a batch through the synthetic rows.
            blank_others(self._meta, slice(self.maxsize, None))

    def dropnull(self) -> None:
        """Drop the real rows that have a NaN or a None, and close up the others in their order."""
        for number, (offset, child) in enumerate(zip(self._offset, self.buffers, strict=True)):
            slots = child.sample_indices(0) + offset
            if not len(slots):
                continue
            keep = ~rows_with_null(self._meta[slots])
            rows, kept = self._meta[slots[keep]], int(keep.sum())
            target = np.arange(offset, offset + kept)
            self._meta[target] = rows
            self._rows_moved(slots[keep], target, slots)
            before_episode = int((child._ep_start_idx - (slots[0] - offset)) % child.maxsize)
            child._ep_start_idx = int(keep[:before_episode].sum()) if child._ep_len else kept
            child._size = child._insertion_idx = self._lengths[number] = kept
            child.last_index[0] = max(kept - 1, 0)
            self.last_index[number] = offset + child.last_index[0]

    def _rows_moved(self, source: NDArray[Any], target: NDArray[Any], before: NDArray[Any]) -> None:
        """What belongs to the real rows of `source` goes to `target`; of `before`, no other slot has a row now."""

    # -- persistence -------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """The real rows once: the sub-buffers are views of the storage, and their ends of episodes are all they need.

        Those make an HDF5 file one that Tianshou's own class can read too.
        """
        state = self.__dict__.copy()
        empty = not self._meta.get_keys()
        state["_meta"] = Batch() if empty else self._meta[: self.maxsize]
        state["buffers"] = np.empty(self.buffer_num, object)
        for number, (offset, child) in enumerate(zip(self._offset, self.buffers, strict=True)):
            twin = object.__new__(type(child))
            done = Batch() if empty else Batch(done=self.done[offset : offset + child.maxsize])
            twin.__dict__.update({**child.__dict__, "_meta": done})
            state["buffers"][number] = twin
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._set_batch_for_children()

    @classmethod
    def load_hdf5(cls, path: str, device: str | None = None) -> Self:
        """Load what `save_hdf5` saved.

        Raises:
            ValueError: the file of another class; the message names it.
        """
        try:
            return super().load_hdf5(path, device)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save_hdf5(self, path: str, compression: str | None = None) -> None:
        """Save everything: the real rows as arrays, the synthetic set, the model and the schedule as pickled bytes."""
        with h5py.File(path, "w") as file:
            to_hdf5(self.__getstate__(), file, compression=compression)
