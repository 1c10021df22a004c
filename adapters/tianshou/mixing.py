"""What the Tianshou buffers share: counting writes, refreshing, and drawing mixed batches."""

from __future__ import annotations

import inspect
import weakref
from typing import Any, Self, Unpack

import numpy as np
from numpy.typing import NDArray
from tianshou.data import Batch, ReplayBuffer, ReplayBufferManager
from tianshou.data.batch import create_value
from tianshou.data.types import RolloutBatchProtocol

from ..guidance.td_error import TDError
from ..replay.interleaving import batch_order
from ..replay.options import SyntheticKeywords, lists_options, split_keywords
from ..replay.synthetic_replay import SyntheticReplay
from ..transitions import RowOrder, Transitions, TransitionSpec
from ..validation import whole_number
from .rows import modelled, to_transitions
from .slots import SyntheticSlots


class BufferKeywords(SyntheticKeywords, total=False):
    """Those of every buffer, and Tianshou's own."""

    stack_num: int
    ignore_obs_next: bool
    save_only_last_obs: bool
    sample_avail: bool
    random_seed: int
    alpha: float
    beta: float
    weight_norm: bool


class SynthERMixin(SyntheticSlots):
    """Adds synthetic transitions to the vectorised Tianshou buffer class to its right in the bases.

    Real rows are in slots 0 to ``maxsize - 1``, as in the plain buffer; the synthetic rows follow as one more
    sub-buffer, from slot ``maxsize`` on, each an episode of one step. Only ``sample`` and ``sample_indices`` of a
    positive size draw any: ``len``, ``buffer[:]``, slices, ``sample_indices(0)`` and ``sample_indices(None)``,
    ``hasnull``, ``unfinished_index`` and everything that counts rows cover only the real ones. The raw arrays
    (``buffer.rew``) cover both. In a batch, real and synthetic rows are interleaved, so each slice of it has about the
    same share of synthetic rows; ``indices >= buffer.maxsize`` is True for these. Keys that are not modelled (``info``,
    ``policy``, keys added by an episode hook) are 0, False or None in synthetic rows, as in a row that lacks them.

    Args:
        total_size: real rows in all, as of `VectorReplayBuffer`.
        buffer_num: number of environments that write into the buffer, one sub-buffer for each.
        **options: those of `synther_buffers.SyntheticOptions`, and the plain buffer's own.

    Attributes:
        synthetic: the `SyntheticReplay`, with the schedule, the synthetic rows and the reports of the refreshes.

    Raises:
        ValueError: an argument out of range, or one that leaves out next observations or stacks frames; at the first
            row a `total_size` smaller than `retrain_every`.
        TypeError: an argument of the wrong type, or one that the plain buffer does not take.
    """

    synthetic: SyntheticReplay

    @lists_options
    def __init__(self, total_size: int, buffer_num: int = 1, **options: Unpack[BufferKeywords]) -> None:
        total_size, buffer_num = (
            whole_number(name, value, 1) for name, value in (("total_size", total_size), ("buffer_num", buffer_num))
        )
        chosen, others = split_keywords(type(self).__name__, options, self._framework_keywords())
        # The class to the right takes the sizes.
        super().__init__(total_size, buffer_num, **others)  # type: ignore[call-arg, arg-type]
        # Without a spec: a Tianshou buffer does not get the spaces, so it is inferred from the rows.
        advice = "Set update_step_num_gradient_steps_per_sample=10.0 in the trainer's parameters."
        self.synthetic = SyntheticReplay(None, update_advice=advice, **chosen)
        self.synthetic.limit_capacity("total_size", total_size, self.maxsize)
        mixes = self.synthetic.synthetic_fraction > 0
        if mixes:
            self._refuse_options()
        self._num_slots = self.synthetic.num_synthetic if mixes else 0
        self._num_written = [0] * buffer_num
        self._write_index = np.zeros(self.maxsize, np.int64)
        self._placed: tuple[Transitions | None, Any] = (None, None)
        self._bind_td_errors()

    @classmethod
    def _framework_keywords(cls) -> set[str]:
        """Those of the plain buffers, to find misspelt ones: Tianshou's constructors ignore unknown keywords."""
        plain = (
            base for base in cls.__mro__ if issubclass(base, ReplayBuffer) and not issubclass(base, ReplayBufferManager)
        )
        return {name for base in plain for name in inspect.signature(base).parameters} - {"size", "kwargs"}

    def _refuse_options(self) -> None:
        if not self._save_obs_next:
            raise ValueError(
                "ignore_obs_next=True is not supported: it does not store next observations, so the rows at episode "
                "ends are wrong. Leave it False."
            )
        if self.stack_num > 1:
            raise ValueError(
                f"stack_num={self.stack_num} is not supported: synthetic rows have no rows before them to stack. "
                "Stack frames in the environment (gymnasium.wrappers.FrameStackObservation) and leave stack_num 1."
            )
        if self._save_only_last_obs:
            raise ValueError(
                "save_only_last_obs=True is not supported: synthetic rows have no rows before them to stack again. "
                "Leave it False."
            )

    # -- writing -----------------------------------------------------------------------------------------------------

    def add(
        self, batch: RolloutBatchProtocol, buffer_ids: NDArray[Any] | list[int] | None = None
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Store one transition of each environment; see Tianshou's own `add`.

        Args:
            batch: ``[len(buffer_ids), ...]``; without `buffer_ids` and with one sub-buffer also a single transition,
                as `ReplayBuffer` takes it.
            buffer_ids: the sub-buffer of each row; None for all of them in turn.

        Raises:
            ValueError: no ``obs_next``, an image observation, rewards of several agents, or a sub-buffer that is not
                there; rows for another number of sub-buffers; a `total_size` smaller than `retrain_every`.
            TypeError: observations or actions that are not numbers.
        """
        self.synthetic.check_capacity()
        if buffer_ids is None and self.buffer_num == 1 and np.ndim(batch.terminated) == 0:
            batch = Batch.stack([batch])
        numbers = list(range(self.buffer_num)) if buffer_ids is None else np.asarray(buffer_ids).tolist()
        if len(batch.rew) != len(numbers):
            said = f"buffer_num={self.buffer_num}" if buffer_ids is None else "buffer_ids"
            raise ValueError(
                f"the batch has {len(batch.rew)} rows for {len(numbers)} sub-buffers ({said}); wanted one for each. "
                "A buffer that was loaded has as many sub-buffers as it was saved with: pass the buffer_ids of your "
                "environments, or use as many environments."
            )
        for number in numbers:
            if not 0 <= number < self.buffer_num:
                raise ValueError(
                    f"buffer_ids has {number}, but there are only {self.buffer_num} sub-buffers, from 0 on. "
                    "Set buffer_num to the number of environments."
                )
        keys, stored = batch.get_keys(), self._meta.get_keys()
        if self._num_slots and (not stored or "obs_next" not in keys):
            self._check(batch)
        if self.buffer_num == 1 and not keys <= set(self._reserved_keys):
            # `ReplayBuffer` stores a user's own keys, but a manager drops all except these.
            self._reserved_keys += tuple(set(keys).difference(self._reserved_keys))
        added = super().add(batch, buffer_ids)
        for slot, number in zip(added[0].tolist(), numbers, strict=False):
            self._write_index[slot] = self._num_written[number]
            self._num_written[number] += 1
        self.synthetic.forget_td_errors(added[0])
        self.synthetic.observe_total(sum(self._num_written))
        return added

    def _check(self, batch: Any) -> None:
        """Raise an error if the upsampler cannot learn rows like these; the first rows are taken as typical."""
        if "obs_next" not in batch:
            raise ValueError(
                f"the batch has no obs_next, only {sorted(batch.keys())}: {type(self).__name__} learns whole "
                "transitions. Add the next observations, or set synthetic_fraction=0."
            )
        TransitionSpec.infer(to_transitions(batch))

    def update(self, buffer: ReplayBuffer) -> NDArray[Any]:
        """Copy the data of another buffer into this one, as `ReplayBuffer` does; with one sub-buffer only.

        Returns:
            The slots they got, oldest first.

        Raises:
            ValueError, TypeError: as of `add`; nothing is stored then.
            NotImplementedError: there are several sub-buffers.
        """
        if self.buffer_num > 1:
            return super().update(buffer)
        if len(buffer) == 0:
            return np.array([], np.int64)
        self.synthetic.check_capacity()
        if self._num_slots:
            self._check(buffer._meta)
        if not self._meta.get_keys():
            self._meta = create_value(buffer._meta, self.maxsize, stack=False)  # type: ignore[assignment]
            self._set_batch_for_children()
        child = self.buffers[0]
        slots = ReplayBuffer.update(child, buffer)
        self._lengths[0], self.last_index[0] = len(child), child.last_index[0]
        self._num_written[0] += len(slots)
        self._write_index[slots] = np.arange(self._num_written[0] - len(slots), self._num_written[0])
        self._rows_stored(slots)
        self.synthetic.forget_td_errors(slots)
        self.synthetic.observe_total(sum(self._num_written))
        return slots

    def reset(self, keep_statistics: bool = False) -> None:
        """Empty the buffer and forget the synthetic set, the model and the counters."""
        super().reset(keep_statistics)
        self._learn_afresh()

    def set_batch(self, batch: RolloutBatchProtocol) -> None:
        """Replace all data, ``[maxsize, ...]``, and reset the synthetic part; see Tianshou's `set_batch`.

        Raises:
            ValueError, TypeError: as of `add`; nothing is stored then.
        """
        self.synthetic.check_capacity()
        if self._num_slots:
            self._check(batch)
        super().set_batch(batch)
        self._learn_afresh()

    @classmethod
    def from_data(
        cls, obs: Any, act: Any, rew: Any, terminated: Any, truncated: Any, done: Any, obs_next: Any, **kwargs: Any
    ) -> Self:
        """A full buffer of given rows, as of `ReplayBuffer`; an empty one if there are none.

        Args:
            obs: array or HDF5 dataset, ``[N, ...]``.
            act: likewise.
            rew: likewise.
            terminated: likewise.
            truncated: likewise.
            done: likewise.
            obs_next: likewise.
            **kwargs: the constructor's, besides the sizes.

        Raises:
            ValueError: arrays of different lengths, or fewer rows than a refresh needs.
        """
        data = {"obs": obs, "act": act, "rew": rew, "terminated": terminated, "truncated": truncated, "done": done}
        data["obs_next"] = obs_next
        lengths = {name: len(array) for name, array in data.items()}
        size = lengths["obs"]
        if set(lengths.values()) != {size}:
            raise ValueError(f"the arrays differ in length: {lengths}; wanted one row of each for every transition.")
        buffer = cls(max(size, 1), 1, **kwargs)
        if size == 0:
            return buffer
        buffer.synthetic.check_capacity()  # before the datasets are read
        buffer.set_batch(Batch(data))
        child = buffer.buffers[0]
        child._size = buffer._lengths[0] = size
        child.last_index[0] = buffer.last_index[0] = size - 1
        buffer._rows_stored(np.arange(size))
        buffer._learn_afresh()
        return buffer

    def _rows_stored(self, slots: NDArray[Any]) -> None:
        """New real rows came into `slots` other than through `add`."""

    def _rows_moved(self, source: NDArray[Any], target: NDArray[Any], before: NDArray[Any]) -> None:
        self._write_index[target] = self._write_index[source]
        self.synthetic.forget_td_errors(before)

    def _learn_afresh(self) -> None:
        """Forget the synthetic set and the model, and count the rows that are there."""
        self.synthetic.reset()
        self._placed = (None, None)
        self._num_written = [0] * self.buffer_num
        self._count_rows()
        self.synthetic.observe_total(sum(self._num_written))

    def _count_rows(self) -> None:
        """Number the rows of the sub-buffers that hold more rows than were counted."""
        for number, (offset, child) in enumerate(zip(self._offset, self.buffers, strict=True)):
            if len(child) > self._num_written[number]:
                slots = child.sample_indices(0) + offset
                self._write_index[slots] = np.arange(len(slots))
                self._num_written[number] = len(slots)

    # -- TD errors ---------------------------------------------------------------------------------------------------

    def __getattr__(self, key: str) -> Any:
        # Algorithms report their TD errors to every buffer that has this method, and those without any log a warning
        # at each update. So it is there only if it is of use.
        if key == "update_weight" and "synthetic" in self.__dict__ and self._keeps_td_errors:
            return self._record_td_errors
        return super().__getattr__(key)

    @property
    def _keeps_td_errors(self) -> bool:
        """Whether the guidance asks for the errors that are reported here, and no function of the user's is bound."""
        return isinstance(self.synthetic.td_error, _ReportedErrors)

    def _record_td_errors(self, index: NDArray[Any], errors: Any) -> None:
        """Keep the TD errors of the real rows among `index`."""
        index = np.asarray(index)
        self.synthetic.record_td_errors(np.where(index < self.maxsize, index, -1), errors)  # -1 is no row

    def _bind_td_errors(self) -> None:
        """Tell the guidance the errors that algorithms reported."""
        if isinstance(self.synthetic.options.guidance, TDError):
            self.synthetic.bind_td_error(_ReportedErrors(self))

    def _reported_td_errors(self) -> NDArray[np.float32]:
        """In the order of `real_transitions`."""
        return self.synthetic.recorded_td_errors(np.arange(self.maxsize)[self._real_slots()])

    # -- reading -----------------------------------------------------------------------------------------------------

    def sample_indices(self, batch_size: int | None) -> NDArray[Any]:
        """Indices of a batch, after the first refresh partly synthetic; both kinds are interleaved.

        Args:
            batch_size: rows in all; 0 or None for every real row, negative for none.
        """
        if batch_size is None or batch_size <= 0:
            return super().sample_indices(batch_size)
        synthetic = self.synthetic
        if len(self) > synthetic.num_observed:  # rows were written without `add`
            self._count_rows()
            synthetic.observe_total(sum(self._num_written))
        if synthetic.refresh_due:
            synthetic.refresh(self.real_transitions, self.row_order)
        if synthetic.redraw_due:
            synthetic.redraw_policy_rows(self.real_transitions)
        # Cal-QL replaces the storage.
        if synthetic.rows is not self._placed[0] or self._meta is not self._placed[1]:
            self._place()
        num_real, num_synthetic = synthetic.split(batch_size)
        if num_synthetic == 0:
            return super().sample_indices(batch_size)
        drawn = synthetic.draw_indices(num_synthetic).numpy() + self.maxsize
        if num_real == 0:  # asked for 0 rows, the plain buffer returns all
            return drawn
        return np.concatenate((self._real_indices(num_real), drawn))[batch_order(num_real, num_synthetic)]

    def _real_indices(self, num_rows: int) -> NDArray[Any]:
        """Indices of real rows for a mixed batch, those that the plain buffer would draw."""
        return super().sample_indices(num_rows)

    def _place(self) -> None:
        """Write the synthetic set into its slots; once per refresh."""
        if self.synthetic.rows is not None:
            self._write_synthetic(self.synthetic.rows)
        self._placed = (self.synthetic.rows, self._meta)

    # -- the real rows -----------------------------------------------------------------------------------------------

    def _real_slots(self) -> slice | NDArray[np.int64]:
        """The slots that were written, sub-buffer by sub-buffer; a slice if they are contiguous."""
        sizes = [len(child) for child in self.buffers]
        if all(len(child) == child.maxsize for child in self.buffers[:-1]):
            return slice(0, sum(sizes))
        return np.concatenate(
            [np.arange(offset, offset + size) for offset, size in zip(self._offset, sizes, strict=True)]
        )

    def real_transitions(self) -> Transitions:
        """Every row that was written; views of the storage if they are contiguous there."""
        return to_transitions(modelled(self._meta)[self._real_slots()])

    def row_order(self) -> RowOrder:
        """When each row was written, in the order of `real_transitions`."""
        slots = self._real_slots()
        stream = np.repeat(np.arange(self.buffer_num), [len(child) for child in self.buffers])
        return RowOrder(self._write_index[slots], stream, np.asarray(self.done[slots], np.bool_))

    # -- persistence -------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_placed": (None, None)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "synthetic" not in state:
            raise ValueError(
                f"this file was not saved by {type(self).__name__}: it has no settings of a synthetic set. Load it "
                "with the class that saved it, and give its rows to from_data or update of a new buffer."
            )
        super().__setstate__(state)
        self._place()
        self._bind_td_errors()


class _ReportedErrors:
    """The errors that algorithms reported to a buffer; a cycle would keep it, and a refresh process with it, alive."""

    def __init__(self, buffer: SynthERMixin) -> None:
        self._buffer = weakref.ref(buffer)

    def __call__(self, rows: Transitions) -> NDArray[np.float32]:
        buffer = self._buffer()
        if buffer is None:
            raise RuntimeError("the buffer whose TD errors were bound is gone")
        return buffer._reported_td_errors()
