"""Which real rows are held out: chosen once, in short runs that do not cross an episode's end, never trained on.

A refresh judges its model on rows that no model has been trained on. As training goes on from one refresh to the next,
a row once held out must stay so until the ring buffer overwrites it; and as neighbouring rows are nearly equal, rows
are held out in runs of consecutive writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

#: Share of the rows that is held out; with the longest run that is allowed for, any ring stays below 5 %.
_SHARE = 0.04
_LONGEST_RUN = 50


@dataclass(frozen=True)
class RowOrder:
    """When each real row was written, so that a row keeps its identity while a ring buffer moves.

    Attributes:
        write_index: ``[N]`` int64, counts the writes of the row's stream from 0; never reused.
        stream: ``[N]`` int64, which environment wrote the row.
        episode_end: ``[N]`` bool, an episode ended with this row (terminated or truncated); all False if unknown.
    """

    write_index: NDArray[np.int64]
    stream: NDArray[np.int64]
    episode_end: NDArray[np.bool_]

    @classmethod
    def appended(cls, num_rows: int) -> RowOrder:
        """The order of rows that one stream wrote and nothing overwrote."""
        return cls(np.arange(num_rows), np.zeros(num_rows, np.int64), np.zeros(num_rows, np.bool_))


@dataclass
class _Stream:
    """What is known of one stream: its held-out runs, and the run that the last row belongs to."""

    next_write: int = 0
    run_start: int = 0
    run_held: bool = False
    held: list[tuple[int, int]] = field(default_factory=list)


class HoldOut:
    """Chooses held-out rows as they appear and remembers the choice."""

    def __init__(self) -> None:
        self._streams: dict[int, _Stream] = {}
        self._run_length = 0
        self._num_seen = 0
        self._num_held = 0

    def mask(self, order: RowOrder) -> NDArray[np.bool_]:
        """True for the held-out rows, ``[N]``; rows not seen before are decided now."""
        if not self._run_length:
            self._run_length = int(np.clip(len(order.write_index) // 100, 1, _LONGEST_RUN))
        mask = np.zeros(len(order.write_index), np.bool_)
        for name in np.unique(order.stream):
            rows = np.flatnonzero(order.stream == name)
            rows = rows[np.argsort(order.write_index[rows], kind="stable")]
            stream = self._streams.setdefault(int(name), _Stream())
            writes = order.write_index[rows]
            self._decide(stream, writes, order.episode_end[rows])
            stream.held = [(start, stop) for start, stop in stream.held if stop > writes[0]]
            for start, stop in stream.held:
                first, last = np.searchsorted(writes, [start, stop])
                mask[rows[first:last]] = True
        return mask

    def _decide(self, stream: _Stream, writes: NDArray[np.int64], episode_end: NDArray[np.bool_]) -> None:
        """Cut the new rows of a stream into runs and hold out as many as keep the share."""
        new = np.flatnonzero(writes >= stream.next_write)
        if not len(new):
            return
        if writes[new[0]] > stream.next_write:
            # Rows were overwritten before anybody saw them: the run before them has ended.
            stream.run_start, stream.run_held = int(writes[new[0]]), False
        start = new[0]
        while start < len(writes):
            write = int(writes[start])
            goes_on = write > stream.run_start and write - stream.run_start < self._run_length
            goes_on &= not (start > 0 and episode_end[start - 1])
            if not goes_on:
                stream.run_start = write
                self_share = self._num_held + self._run_length <= _SHARE * (self._num_seen + self._run_length)
                stream.run_held = self_share
            stop = min(start + self._run_length - (write - stream.run_start), len(writes))
            ends = np.flatnonzero(episode_end[start:stop])
            if len(ends):
                stop = start + int(ends[0]) + 1
            self._num_seen += stop - start
            if stream.run_held:
                self._num_held += stop - start
                stream.held.append((write, write + stop - start))
            start = stop
        stream.next_write = int(writes[-1]) + 1
