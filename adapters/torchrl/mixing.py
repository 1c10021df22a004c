"""What the storages share: who reads and writes, the draw of a batch, the rows at synthetic addresses."""

from __future__ import annotations

import inspect
import logging
import pickle
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl import data as torchrl_data
from torchrl.data import LazyTensorStorage, RandomSampler, RoundRobinWriter, replay_buffers

from ..replay.interleaving import batch_order_on
from ..replay.options import SyntheticKeywords, lists_options, split_keywords
from ..replay.synthetic_replay import SyntheticReplay
from ..transitions import RowOrder, Transitions
from .addresses import FIRST, Index, address_of, as_many, generation_of, is_same, is_synthetic, names_rows, row_of
from .gather import Gatherer, can_gather
from .layout import Key, Layout, normalized_keys
from .prioritized import adopt
from .saving import Counts, packed_synthetic, read_beside, restore_synthetic, write_beside
from .td_errors import RecordsTDErrors

logger = logging.getLogger(__name__)

#: Classes that the oldest supported TorchRL lacks; an empty tuple there, so that `isinstance` is False.
_HINDSIGHT: Any = getattr(torchrl_data, "HERReplayBuffer", ())
_SINGLE_ROWS: Any = getattr(replay_buffers, "Transition", ())


class StorageKeywords(SyntheticKeywords, total=False):
    """Those of every buffer, and the storages' own."""

    device: torch.device | str
    ndim: int
    compilable: bool
    consolidated: bool
    shared_init: bool
    cleanup_memmap: bool
    scratch_dir: Any
    existsok: bool
    auto_cleanup: bool | None


class SynthERStorageMixin(RecordsTDErrors, LazyTensorStorage):  # type: ignore[misc]  # TorchRL ships no types
    """Adds synthetic transitions to the lazy TorchRL storage class to its right in the bases.

    The storage holds real rows only: its length, slices and iteration cover no others. `RandomSampler`, which asks the
    storage for random rows, and `SynthERPrioritizedSampler`, which `PrioritizedSampler` becomes, get addresses of real
    and synthetic rows interleaved. Reading a synthetic address gives a row with every key of a real one: modelled if it
    is part of a transition or named in `modelled_keys`, ``done`` as the only step of an episode, ``traj_ids`` -1, and
    all other keys copied from some real row.

    Args:
        max_size: rows of the storage.
        modelled_keys: keys of your own that the upsampler is to learn along with the transition.
        **options: those of `synther_buffers.SyntheticOptions`, and the storage's own.

    Attributes:
        synthetic: the `SyntheticReplay`, with the schedule, the synthetic rows and the reports of the refreshes.

    Raises:
        ValueError: an argument out of range; at the first row a storage smaller than `retrain_every`.
        TypeError: an argument of the wrong type, or a `HERReplayBuffer`.
    """

    synthetic: SyntheticReplay
    _last_count = 0  # storages that an older version pickled have none

    @lists_options
    def __init__(self, max_size: int, *, modelled_keys: Sequence[Any] = (), **options: Unpack[StorageKeywords]) -> None:
        storage = next(
            base
            for base in type(self).__mro__
            if issubclass(base, LazyTensorStorage) and not issubclass(base, SynthERStorageMixin)
        )
        chosen, others = split_keywords(type(self).__name__, options, inspect.signature(storage).parameters)
        super().__init__(max_size, **others)
        self.modelled_keys = normalized_keys(modelled_keys)
        # The set moves to the storage's device at the first refresh; the device may be unknown until then.
        advice = "Draw a batch and take a step ten times for each collected transition."
        self.synthetic = SyntheticReplay(None, device="cpu", update_advice=advice, **chosen)
        self.synthetic.limit_capacity("max_size", max_size, self.max_size)
        self._is_checked = False
        self._num_set = self._num_forgotten = 0
        self._warned_of: set[str] = set()
        self._forget_derived()
        self._bind_td_errors()

    def _forget_derived(self) -> None:
        self._leaves: dict[Key, Tensor] = {}
        self._leaves_of: tuple[Transitions, TensorDictBase] | None = None
        self._gatherer: Gatherer | None = None
        self._drawn: tuple[Index, Index, Tensor] | None = None

    @property
    def _is_mixing(self) -> bool:
        return self.synthetic.synthetic_fraction > 0

    # -- who reads and writes ----------------------------------------------------------------------------------------

    def attach(self, buffer: Any) -> None:
        """Register a buffer that uses this storage."""
        if self._is_mixing and isinstance(buffer, _HINDSIGHT):
            raise TypeError(
                f"{type(self).__name__} does not support HERReplayBuffer: it looks up later rows of the same episode, "
                "which synthetic rows do not have. Use LazyTensorStorage, or a TensorDictReplayBuffer."
            )
        super().attach(buffer)

    def _may_mix(self, warn: bool = True) -> bool:
        """Whether random rows may be synthetic for every buffer here; lets prioritised samplers mix.

        Samplers are set after `attach` and can be replaced at any time, so this is checked at each use.
        """
        may_mix, real_only = True, []
        for buffer in self._attached_entities:
            unit = getattr(buffer, "_sample_unit", None)
            if unit is not None and not isinstance(unit, _SINGLE_ROWS):
                may_mix = False  # for all buffers, because the storage does not know which of them asks
                real_only.append(f"of all buffers of a storage with the sample unit {type(unit).__name__}")
            sampler = getattr(buffer, "_prioritized_sampler", None) or getattr(buffer, "_sampler", None)
            if sampler is not None and not isinstance(sampler, RandomSampler) and not adopt(sampler):
                real_only.append(f"that {type(sampler).__name__} draws")
        for which in real_only if warn else ():
            if which not in self._warned_of:
                self._warned_of.add(which)
                logger.warning(
                    "Batches %s hold real rows only: it chooses rows by their place in the storage, and synthetic "
                    "rows have none. For synthetic rows use RandomSampler (the default) or PrioritizedSampler and "
                    "single transitions; otherwise LazyTensorStorage does the same.",
                    which,
                )
        return may_mix

    # -- writing -----------------------------------------------------------------------------------------------------

    def _max_size_along_dim0(self, *, single_data: Any = None, batched_data: Any = None) -> int:
        """Slots of the first dimension; writers ask for them before they move, so that a refused write leaves no trace.

        Raises:
            ValueError, TypeError: as in `set`.
        """
        data = single_data if batched_data is None else batched_data
        if self._is_mixing and data is not None:
            self.synthetic.check_capacity()
            self._checked_rows(data, is_one=batched_data is None)
        # Not by super(), whose attributes torch.compile cannot resolve; nor below.
        return LazyTensorStorage._max_size_along_dim0(self, single_data=single_data, batched_data=batched_data)

    def set(self, cursor: Any, data: Any, *, set_cursor: bool = True) -> None:
        """Store rows; see the storage's own `set`.

        Raises:
            ValueError: the rows are not transitions or do not have the storage's shape, or the storage is smaller than
                `retrain_every`.
            TypeError: the data are not a tensordict.
        """
        num_rows = 0
        if self._is_mixing:
            self.synthetic.check_capacity()
            is_one = isinstance(cursor, int | np.integer) or (isinstance(cursor, Tensor) and cursor.ndim == 0)
            num_rows = self._checked_rows(data, is_one) if set_cursor else 0
            self._may_mix(warn=False)
        if self._gatherer is not None and not self._gatherer.knows(data):
            self._gatherer = None  # a new key: until the next refresh rows are read without the gatherer
        LazyTensorStorage.set(self, cursor, data, set_cursor=set_cursor)
        self._num_set += num_rows
        if self._wants_td_errors:
            self._forget_td_errors(cursor)

    def _checked_rows(self, data: Any, is_one: bool) -> int:
        """The number of rows in `data`, a single slot or several; raises an error unless they are transitions."""
        rows = data[0] if isinstance(data, list) and data else data
        if not isinstance(rows, TensorDictBase):
            raise TypeError(
                f"{type(self).__name__} stores transitions as tensordicts (got {type(rows).__name__}): it has to know "
                "observations from rewards. Convert them with tensordict.TensorDict, or use LazyTensorStorage."
            )
        num_dims = self.ndim - is_one
        if isinstance(data, list):
            num_dims -= 1
        if rows.batch_dims != num_dims:
            raise ValueError(
                f"the data have batch size {list(rows.batch_size)}, but a storage with ndim={self.ndim} wants "
                f"{num_dims} batch dimension{'s' * (num_dims != 1)} here. Flatten them first (data.reshape(-1)), or "
                f"build the storage with ndim={self.ndim + rows.batch_dims - num_dims}."
            )
        if self.initialized and rows.batch_size[num_dims - self.ndim + 1 :] != self._total_shape[1:]:
            raise ValueError(
                f"the data have batch size {list(rows.batch_size)}, but earlier ones were stored as "
                f"{list(self._total_shape)}: all but the first dimension have to agree."
            )
        if not self._is_checked:
            Layout.of(rows, self.modelled_keys)
            self._is_checked = True
        return rows.batch_size.numel() * (len(data) if isinstance(data, list) else 1)

    def _empty(self) -> None:
        """Forget the rows, and with them the synthetic set, the model and the counters."""
        super()._empty()
        self.synthetic.reset()
        self._num_set, self._num_forgotten = 0, self._write_count()
        self._last_count = self._num_forgotten
        self._forget_derived()

    def _num_written(self) -> int:
        """Rows ever written: as counted by the writers, which other processes share, and at least those set here."""
        count, rows_per_slot = self._write_count(), self._rows_per_slot()
        if count < self._last_count:
            # There is another writer, or one that was not loaded with the storage: it goes on from what was written.
            self._num_forgotten = count - max(self.synthetic.num_observed, self._num_set) // rows_per_slot
        self._last_count = count
        return max((count - self._num_forgotten) * rows_per_slot, self._num_set, self._len)

    def _write_count(self) -> int:
        """Slots along the first dimension that the writers have counted."""
        writers = [getattr(buffer, "_writer", None) for buffer in self._attached_entities]
        return sum(int(getattr(writer, "_write_count", 0)) for writer in writers)

    # -- drawing -----------------------------------------------------------------------------------------------------

    def _rand_given_ndim(self, batch_size: int) -> Index:
        """Addresses of a batch: what `RandomSampler` asks for."""
        num_real, num_synthetic = self.split_batch(batch_size)
        index = super()._rand_given_ndim(num_real)
        return index if num_synthetic == 0 else self.add_synthetic(index, num_synthetic)

    def split_batch(self, batch_size: int) -> tuple[int, int]:
        """``(n_real, n_synthetic)`` of the batch to draw now, after a refresh if one is due."""
        if self._is_mixing and not self._may_mix():
            return batch_size, 0
        self.synthetic.observe_total(self._num_written())
        if self.synthetic.refresh_due:
            if not self.initialized and self.shared_init:
                self._wait_for_init()
            self.synthetic.to(self.device)
            self.synthetic.refresh(self.real_transitions, self.row_order)
        if self.synthetic.redraw_due:
            self.synthetic.redraw_policy_rows(self.real_transitions)
        num_real, num_synthetic = self.synthetic.split(batch_size)
        if num_synthetic and not self._lay_out():
            num_real, num_synthetic = batch_size, 0
            self.synthetic.last_batch.interleaved(num_real, num_synthetic)
        return num_real, num_synthetic

    def add_synthetic(self, index: Index, num_synthetic: int) -> Index:
        """Addresses of real rows and of synthetic ones, which are drawn uniformly, interleaved.

        Args:
            index: ``[N]`` real addresses, or one such tensor per dimension of the storage.
            num_synthetic: how many to add, as `split_batch` has said.
        """
        rows = self.synthetic.draw_indices(num_synthetic)
        address = address_of(rows, self.synthetic.generation)
        num_real = len(index[0] if isinstance(index, tuple) else index)
        order = batch_order_on(num_real, num_synthetic, address.device)
        if not isinstance(index, tuple):
            index = index.to(self.device)
            drawn: Index = torch.cat((index, address)).index_select(0, order)
            read_at: Index = torch.cat((index, as_many(index, num_synthetic)))
        else:
            index = tuple(part.to(self.device) for part in index)
            drawn = tuple(torch.cat((part, address)).index_select(0, order) for part in index)
            read_at = tuple(torch.cat((part, as_many(part, num_synthetic))) for part in index)
        self._drawn = (drawn, read_at, rows)
        return drawn

    # -- reading -----------------------------------------------------------------------------------------------------

    def get(self, index: Any) -> Any:
        """A batch of the rows at `index`; those at synthetic addresses, anywhere in it, are synthetic."""
        drawn, self._drawn = self._drawn, None
        if drawn is not None and is_same(index, drawn[0]):
            _, read_at, rows = drawn
            if self._gatherer is not None:
                return self._gatherer.rows(read_at, rows)
            # Read directly: every address is in range, so the slice of written rows that `get` takes is not needed.
            with torch.no_grad():
                data = self._storage[read_at]
                first = len(data) - len(rows)
                for key, leaf in self._leaves.items():
                    torch.index_select(leaf, 0, rows, out=data.get(key)[first:])
            return data[batch_order_on(first, len(rows), rows.device)]
        if names_rows(index):
            # A sampler's that did not ask the storage for addresses, or of a sample unit, which has more rows.
            self.synthetic.last_batch.told_by(partial(is_synthetic, index))
        return self[index]

    def __getitem__(self, index: Any) -> Any:
        """Rows at `index`, as in `get`, but no batch: buffers read a batch by `get`."""
        if self._is_mixing:
            self._may_mix()
            if self.synthetic.rows is not None and not isinstance(index, slice):
                return self._get_any(index)
        return super().get(index)

    def _get_any(self, index: Any) -> Any:
        """Rows at any index, such as that of an earlier batch."""
        first = index[0] if isinstance(index, tuple) and index else index
        if not isinstance(first, int | np.integer | Tensor | np.ndarray | list | range):
            return super().get(index)
        address = torch.as_tensor(first if not isinstance(first, range) else list(first), device=self.device)
        if address.dtype == torch.bool or not bool((address <= FIRST).any()):
            return super().get(index)
        others = index[1:] if isinstance(index, tuple) else ()
        parts = torch.broadcast_tensors(address, *(torch.as_tensor(part, device=self.device) for part in others))
        # A single row is read as a batch of one, because what a storage gives for a number is its own memory.
        is_one = parts[0].ndim == 0
        if is_one:
            parts = [part.reshape(1) for part in parts]
        synthetic = parts[0] <= FIRST
        address = parts[0][synthetic]
        if bool((generation_of(address) != self.synthetic.generation).any()):
            raise IndexError("the index names synthetic rows that a refresh has replaced.")
        if not self._lay_out():
            raise IndexError("the index names synthetic rows that do not fit the stored ones.")
        rows = row_of(address)
        read_at = tuple(part.masked_fill(synthetic, 0) for part in parts)
        data = super().get(read_at if isinstance(index, tuple) else read_at[0])
        for key, leaf in self._leaves.items():
            data.get(key)[synthetic] = leaf[rows]
        return data[0] if is_one else data

    def _lay_out(self) -> bool:
        """Give the synthetic set the keys, shapes and dtypes of the stored rows; once per refresh.

        Returns:
            Whether the set fits the rows. It does not if it was learned before a part of a transition came, or before
            `modelled_keys` named one.
        """
        of = self._leaves_of
        if of is not None and of[0] is self.synthetic.rows and of[1] is self._storage:
            return bool(self._leaves)
        rows = self.synthetic.to(self.device).served()
        addresses = address_of(torch.arange(len(rows), device=self.device), self.synthetic.generation)
        self._leaves, self._gatherer = {}, None
        try:
            with torch.inference_mode(False):
                stored = self._written()
                self._leaves = Layout.of(stored, self.modelled_keys).synthetic_leaves(rows, stored, addresses)
        except ValueError as error:
            logger.warning(
                "The synthetic rows do not fit the stored ones (%s): batches are all real until the next refresh.",
                str(error).rstrip("."),
            )
        else:
            self._gatherer = Gatherer(self._storage, self._leaves) if can_gather(self._storage) else None
        # Last, so that what an interrupt cut short is done again.
        self._leaves_of = (rows, self._storage)
        return bool(self._leaves)

    # -- the real rows -----------------------------------------------------------------------------------------------

    def _written(self) -> TensorDictBase:
        """Every row that was written, ``[N]``, views of the storage."""
        stored = self._storage[: self._len_along_dim0]
        return stored if self.ndim == 1 else stored.flatten(0, self.ndim - 1)

    def real_transitions(self) -> Transitions:
        """Every row that was written; views where dtype and shape are those of `Transitions`."""
        layout = Layout.of(self._storage, self.modelled_keys)
        spec = self.synthetic.spec
        one_hot = None if spec is None else layout.are_categories(spec.action.shape)
        return layout.transitions(self._written(), one_hot)

    def row_order(self) -> RowOrder:
        """When each row was written, in the order of `real_transitions`; by its place for writers of unknown order."""
        layout, stored = Layout.of(self._storage, self.modelled_keys), self._written()
        ends = layout.episode_ends(stored).cpu().numpy()
        num_slots = self._len_along_dim0
        next_slot, num_written = num_slots, num_slots
        writers = [buffer._writer for buffer in self._attached_entities]
        # A buffer that only reads has a writer too.
        writers = [writer for writer in writers if getattr(writer, "_write_count", 0)] or writers
        if len(writers) == 1 and isinstance(writers[0], RoundRobinWriter):
            num_written = max(self._num_written() // self._rows_per_slot(), num_slots)
            if self._is_full:
                next_slot = writers[0]._cursor
        order = RowOrder.of_ring(ends.reshape(num_slots, self._rows_per_slot()), next_slot, num_written)
        # In one dimension, rows of several environments lie mixed.
        trajectory = layout.trajectories(stored) if self.ndim == 1 else None
        return replace(order, trajectory=trajectory, max_steps=layout.max_steps(stored))

    # -- persistence -------------------------------------------------------------------------------------------------

    def dumps(self, path: str | Path) -> None:
        """Save to a directory; LazyTensorStorage can load it too, without the synthetic part."""
        packed = self._packed(self._marked_rows())  # before the rows, which other processes may write meanwhile
        super().dumps(path)
        write_beside(path, packed)

    def loads(self, path: str | Path) -> None:
        """Load what `dumps` saved; the constructor's settings are kept.

        Also loads what LazyTensorStorage saved, without a synthetic set. If the synthetic part cannot be read, or was
        saved with other real rows than are there now, a warning says so, and the synthetic set and its model are lost;
        the pickle that older versions wrote is not read.
        """
        super().loads(path)
        self._unpack(read_beside(path))

    def state_dict(self) -> dict[str, Any]:
        """The storage's state and the synthetic part, as bytes in a uint8 tensor."""
        # Without a mark: TorchRL's state is the storage's own memory, in which rows may change before it is saved.
        packed = torch.frombuffer(bytearray(self._packed(None)), dtype=torch.uint8)
        return {**super().state_dict(), "synthetic": packed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of this class's `state_dict` or of LazyTensorStorage's."""
        super().load_state_dict(state_dict)
        packed = state_dict.get("synthetic")
        self._unpack(None if packed is None else packed.cpu().numpy().tobytes())

    def _packed(self, marked: TensorDictBase | None) -> bytes:
        counts = Counts(self._num_written(), self._num_forgotten, self._last_count)
        return packed_synthetic(self.synthetic, counts, marked)

    def _marked_rows(self) -> TensorDictBase | None:
        """Every row, by slots, to be known again with the synthetic part; None where rows come back as other ones."""
        is_changed = getattr(self.checkpointer, "_save_hooks", ()) or getattr(self.checkpointer, "_load_hooks", ())
        if is_changed or not self.initialized or not isinstance(self._storage, TensorDictBase):
            return None
        return self._storage[: self._len_along_dim0]

    def _unpack(self, packed: bytes | None) -> None:
        self._forget_derived()
        self.synthetic.reset()
        counts = Counts() if packed is None else restore_synthetic(packed, self.synthetic, self._marked_rows())
        self._num_set, self._num_forgotten, self._last_count = counts
        if self._is_mixing:
            self._may_mix(warn=False)  # before the first batch, which may come before the next write

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is derived from the synthetic set."""
        state = {**super().__getstate__(), "_leaves": {}, "_leaves_of": None, "_gatherer": None, "_drawn": None}
        if get_spawning_popen() is not None:
            # Tensors are sent to a worker as handles, which are invalid if the tensor was made for the pickle only.
            state["synthetic"] = pickle.dumps(self.synthetic)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if isinstance(self.synthetic, bytes):
            self.synthetic = pickle.loads(self.synthetic)
        self._bind_td_errors()
