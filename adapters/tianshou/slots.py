"""The storage: real rows in the slots where Tianshou has them, then slots for synthetic rows."""

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
    """A buffer whose index space continues with synthetic rows after its own ``maxsize`` slots.

    All attributes with which Tianshou's classes count (``maxsize``, ``buffers``, ``_lengths``) describe the real rows
    only, so that these classes work unchanged. In the index space (``next``, ``prev``, ``subbuffer_edges``) the
    synthetic rows are one more sub-buffer: each row is an episode of one step and its own neighbour. Only the arrays of
    the storage cover both.
    """

    _num_slots: int
    #: The index that `__getitem__` is reading, which `get` need not look at again for each key. It is compared by
    #: identity, so that another thread's costs a second look and nothing else.
    _resolved: Any = None

    # -- walking the index space -------------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> Any:
        """A batch of the rows at `index`, real and synthetic; a slice and negative indices mean real ones.

        The ``done`` of a synthetic row is its ``terminated``: algorithms that read it from a batch (CQL, BCQ) stop
        bootstrapping there.
        """
        if not self._num_slots or isinstance(index, slice):
            return super().__getitem__(index)
        index = self.__dict__["_resolved"] = self._slots_at(index)
        try:
            batch = super().__getitem__(index)
        finally:
            self.__dict__.pop("_resolved", None)
        columns = batch.__dict__  # attributes of a Batch are slow
        columns["done"] = np.where(index >= self.maxsize, columns["terminated"], columns["done"])[()]
        return batch

    def get(
        self, index: Any, key: str, default_value: Any = None, stack_num: int | None = None
    ) -> Batch | NDArray[Any]:
        """One key of the rows at `index`, real and synthetic; a slice and negative indices mean real ones."""
        if index is not self._resolved and self._num_slots:
            index = self._slots_at(index)
        return super().get(index, key, default_value, stack_num)

    def _slots_at(self, index: Any) -> Indices:
        """The slots at an index, of which a slice and negative numbers count the real rows alone.

        Raises:
            IndexError: a negative number below the first real row.
        """
        if isinstance(index, slice | EllipsisType):
            return np.arange(self.maxsize)[index]
        index = np.asarray(index)
        if index.dtype.kind == "b":
            index = np.flatnonzero(index)
        elif index.size and index.item(index.argmin()) < 0:  # faster than min
            index, negative = index.copy(), index < 0
            index[negative] = np.arange(self.maxsize)[index[negative]]
        return index if index.ndim else int(index)

    def next(self, index: Indices) -> NDArray[Any]:
        """The index of the next transition; the same index at an episode's end, and so for every synthetic row."""
        return self._own_neighbour(index, super().next(index))

    def prev(self, index: Indices) -> NDArray[Any]:
        """The index of the previous transition; the same at an episode's start, and so for every synthetic row."""
        return self._own_neighbour(index, super().prev(index))

    def _own_neighbour(self, index: Indices, neighbour: NDArray[Any]) -> NDArray[Any]:
        if not self._num_slots:
            return neighbour
        index = np.asarray(index)
        return np.where(index >= self.maxsize, index, neighbour)[()]

    @property
    def subbuffer_edges(self) -> NDArray[Any]:
        """Where the sub-buffers begin and end; that of the synthetic rows is the last."""
        edges = super().subbuffer_edges
        return np.append(edges, self.maxsize + self._num_slots) if self._num_slots else edges

    # -- changing the storage ----------------------------------------------------------------------------------------

    def _set_batch_for_children(self) -> None:
        """Make room for synthetic rows, and let the sub-buffers be views of the storage again."""
        if not self._meta.get_keys():
            return
        self._meta = extended(self._meta, self.maxsize + self._num_slots)
        for offset, child in zip(self._offset, self.buffers, strict=True):
            # Not set_batch, which rejects the keys of episode hooks.
            child._meta = self._meta[offset : offset + child.maxsize]

    def _write_synthetic(self, rows: Transitions) -> None:
        """Fill the synthetic slots, in bulk."""
        self._set_batch_for_children()  # keys may have been added to the storage directly
        write_transitions(self._meta, self.maxsize, rows)

    def set_array_at_key(
        self, seq: NDArray[Any], key: str, index: Any = None, default_value: float | None = None
    ) -> None:
        """Set a key of the real rows; see Tianshou's own. Without `index`, `seq` has ``maxsize`` rows."""
        if index is None and self._num_slots:
            if len(seq) != self.maxsize:
                raise ValueError(f"seq has {len(seq)} rows, but the buffer has {self.maxsize}; pass an index.")
            index, default_value = np.arange(self.maxsize), 0
        elif self._num_slots:
            index = self._slots_at(index)
        super().set_array_at_key(seq, key, index, default_value)
        if self._num_slots:
            # Tianshou fills the other slots with a default, usually NaN, which must not appear in synthetic rows.
            blank_others(self._meta, slice(self.maxsize, None))

    def dropnull(self) -> None:
        """Drop the real rows that have a NaN or a None, and move the others together in their order."""
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
            start = int(keep[:before_episode].sum()) if child._ep_len else kept
            child._ep_start_idx, child._insertion_idx = start % child.maxsize, kept % child.maxsize
            child._size = self._lengths[number] = kept
            child.last_index[0] = max(kept - 1, 0)
            self.last_index[number] = offset + child.last_index[0]

    def _rows_moved(self, source: NDArray[Any], target: NDArray[Any], before: NDArray[Any]) -> None:
        """The real rows in slots `source` are now in `target`; the other slots of `before` are empty."""

    # -- persistence -------------------------------------------------------------------------------------------------

    def __copy__(self) -> Self:
        """A shallow copy, which shares everything with this buffer.

        Without this method Python would go through `__getstate__`, which leaves the sub-buffers without their storage.
        """
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """The real rows, stored once: the sub-buffers are views of the storage and keep only their ``done``.

        With ``done`` in the sub-buffers, Tianshou's own class can read the HDF5 file too.
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
            ValueError: the file of another class; the message names the file.
        """
        try:
            return super().load_hdf5(path, device)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save_hdf5(self, path: str, compression: str | None = None) -> None:
        """Save everything: the real rows as arrays, the synthetic set, the model and the schedule as pickled bytes."""
        with h5py.File(path, "w") as file:
            to_hdf5(self.__getstate__(), file, compression=compression)
