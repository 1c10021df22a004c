"""Which real rows are held out: chosen once, in short runs that do not cross an episode's end, never trained on.

A refresh evaluates its model on rows that no model has been trained on. Because training continues from one refresh to
the next, a held-out row stays held out until the ring buffer overwrites it. Because neighbouring rows are nearly equal,
rows are held out in runs of consecutive writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..transitions import RowOrder

#: Share of all rows ever written that is held out, and the largest share of the rows now in the buffer; the latter can
#: be higher while runs of several streams begin at once.
SHARE = 0.04
_LARGEST_SHARE = 0.05
_LONGEST_RUN = 50


@dataclass
class _Stream:
    """The state of one stream: its held-out runs, and the run of the last row."""

    next_write: int = 0
    run_start: int = 0
    run_held: bool = False
    episode_ended: bool = False
    held: list[tuple[int, int]] = field(default_factory=list)


class HoldOut:
    """Chooses held-out rows as they appear and remembers the choice."""

    def __init__(self) -> None:
        self._streams: dict[int, _Stream] = {}
        self._run_length = 0
        self._num_seen = 0
        self._num_held = 0

    def state_dict(self) -> dict[str, Any]:
        """Which rows are held out, as plain data."""
        return {
            "streams": [
                [
                    int(name),
                    int(stream.next_write),
                    int(stream.run_start),
                    bool(stream.run_held),
                    bool(stream.episode_ended),
                    [[int(start), int(stop)] for start, stop in stream.held],
                ]
                for name, stream in self._streams.items()
            ],
            "run_length": int(self._run_length),
            "num_seen": int(self._num_seen),
            "num_held": int(self._num_held),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> HoldOut:
        """What `state_dict` returned."""
        hold_out = cls()
        for name, next_write, run_start, run_held, episode_ended, held in state["streams"]:
            runs = [(int(start), int(stop)) for start, stop in held]
            hold_out._streams[int(name)] = _Stream(next_write, run_start, run_held, episode_ended, runs)
        hold_out._run_length = int(state["run_length"])
        hold_out._num_seen, hold_out._num_held = int(state["num_seen"]), int(state["num_held"])
        return hold_out

    def mask(self, order: RowOrder) -> NDArray[np.bool_]:
        """True for the held-out rows, ``[N]``; decides about rows not seen before."""
        if not self._run_length:
            self._run_length = int(np.clip(len(order.write_index) // 100, 1, _LONGEST_RUN))
        mask = np.zeros(len(order.write_index), np.bool_)
        rows_of = {}
        for name in np.unique(order.stream).tolist():
            rows = np.flatnonzero(order.stream == name)
            rows_of[name] = rows[np.argsort(order.write_index[rows], kind="stable")]
            stream = self._streams.setdefault(name, _Stream())
            mask[rows_of[name]] = self._held(stream, order.write_index[rows_of[name]])
        room = int(_LARGEST_SHARE * len(mask)) - int(mask.sum())
        for name, rows in rows_of.items():
            stream, writes = self._streams[name], order.write_index[rows]
            room = self._decide(stream, writes, order.episode_end[rows], room)
            mask[rows] = self._held(stream, writes)
        return mask

    @staticmethod
    def _held(stream: _Stream, writes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of a stream's rows are held out; forgets the runs that were overwritten."""
        stream.held = [(start, stop) for start, stop in stream.held if stop > writes[0]]
        held = np.zeros(len(writes), np.bool_)
        for start, stop in stream.held:
            first, last = np.searchsorted(writes, [start, stop])
            held[first:last] = True
        return held

    def _decide(self, stream: _Stream, writes: NDArray[np.int64], episode_end: NDArray[np.bool_], room: int) -> int:
        """Divide a stream's new rows into runs, hold out as many as share and `room` allow; returns the room left."""
        new = np.flatnonzero(writes >= stream.next_write)
        if not len(new):
            return room
        if writes[new[0]] > stream.next_write:
            # Rows were overwritten before they were seen here: the run before them has ended.
            stream.run_start, stream.run_held = int(writes[new[0]]), False
        start = new[0]
        while start < len(writes):
            write = int(writes[start])
            goes_on = write > stream.run_start and write - stream.run_start < self._run_length
            goes_on &= not (episode_end[start - 1] if start > 0 else stream.episode_ended)
            if not goes_on:
                stream.run_start = write
                stream.run_held = self._num_held + self._run_length <= SHARE * (self._num_seen + self._run_length)
            stop = min(start + self._run_length - (write - stream.run_start), len(writes))
            ends = np.flatnonzero(episode_end[start:stop])
            if len(ends):
                stop = start + int(ends[0]) + 1
            self._num_seen += stop - start
            stream.run_held = stream.run_held and stop - start <= room
            if stream.run_held:
                room -= stop - start
                self._num_held += stop - start
                stream.held.append((write, write + stop - start))
            start = stop
        stream.next_write = int(writes[-1]) + 1
        stream.episode_ended = bool(episode_end[-1])
        return room
