"""Which real rows are held out: chosen once, in short runs, never trained on.

A refresh evaluates its model on rows that no model has been trained on. Because training continues from one refresh to
the next, a held-out row stays held out until the ring buffer overwrites it. Because neighbouring rows are nearly equal,
rows are held out in runs that follow each other in their stream, or in their trajectory where a stream has several
mixed.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..transitions import RowOrder

#: Share of all rows ever written that is held out, and the largest share of the rows now in the buffer; the latter can
#: be higher while runs of several streams begin at once.
SHARE = 0.04
_LARGEST_SHARE = 0.05
#: Rows of the first runs and of the longest ones, and how many times as many rows are held out before a run.
_SHORTEST_RUN, _LONGEST_RUN, _ROWS_BEFORE = 4, 50, 4


@dataclass
class _Stream:
    """The state of one stream: the next write to decide about, and the held-out ones, as intervals in their order."""

    next_write: int = 0
    held: list[tuple[int, int]] = field(default_factory=list)


class HoldOut:
    """Chooses held-out rows as they appear and remembers the choice.

    For rows of one stream the choice does not depend on when it is asked for.
    """

    def __init__(self) -> None:
        self._streams: dict[int, _Stream] = {}
        self._num_seen = 0
        self._num_held = 0

    def state_dict(self) -> dict[str, Any]:
        """Which rows are held out, as plain data."""
        return {
            "streams": [
                [int(name), int(stream.next_write), [[int(start), int(stop)] for start, stop in stream.held]]
                for name, stream in self._streams.items()
            ],
            "num_seen": int(self._num_seen),
            "num_held": int(self._num_held),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> HoldOut:
        """What `state_dict` returned, here or in an earlier version."""
        hold_out = cls()
        # Earlier versions kept the run of the last row, too, between the next write and the held-out ones.
        for name, next_write, *_, held in state["streams"]:
            runs = [(int(start), int(stop)) for start, stop in held]
            hold_out._streams[int(name)] = _Stream(int(next_write), runs)
        hold_out._num_seen, hold_out._num_held = int(state["num_seen"]), int(state["num_held"])
        return hold_out

    def mask(self, order: RowOrder) -> NDArray[np.bool_]:
        """True for the held-out rows, ``[N]``; decides about rows not seen before."""
        mask = np.zeros(len(order.write_index), np.bool_)
        rows_of = _pieces(np.lexsort((order.write_index, order.stream)), order.stream)
        for rows in rows_of:
            mask[rows] = _held(self._stream_of(order, rows), order.write_index[rows])
        room = int(_LARGEST_SHARE * len(mask)) - int(mask.sum())
        # What so many rows begin runs with, however many were written before: a small ring has some runs, too.
        longest = int(np.clip(_LARGEST_SHARE * len(mask) / _ROWS_BEFORE, _SHORTEST_RUN, _LONGEST_RUN))
        for rows in rows_of:
            stream, writes = self._stream_of(order, rows), order.write_index[rows]
            for sequence in _pieces(rows[np.argsort(order.sequence[rows], kind="stable")], order.sequence):
                first_new = int(np.searchsorted(order.write_index[sequence], stream.next_write))
                if first_new < len(sequence):
                    held = mask[sequence]
                    room = self._decide(held, first_new, longest, room)
                    mask[sequence] = held
            new = writes >= stream.next_write
            stream.held = [(start, stop) for start, stop in stream.held if stop > writes[0]]  # others are overwritten
            stream.held += _intervals(writes[new & mask[rows]])
            stream.next_write = max(stream.next_write, int(writes[-1]) + 1)
        return mask

    def _stream_of(self, order: RowOrder, rows: NDArray[np.int64]) -> _Stream:
        return self._streams.setdefault(int(order.stream[rows[0]]), _Stream())

    def _decide(self, held: NDArray[np.bool_], first_new: int, longest: int, room: int) -> int:
        """Hold out as many new rows as share and `room` allow.

        Args:
            held: of rows that follow each other, ``[n]``; set for those from `first_new` on.
            first_new: place of the first row to decide about.
            longest: rows of a run at most.
            room: rows that may be held out.

        Returns:
            The room left.
        """
        others = np.flatnonzero(~held[:first_new])
        before = first_new - (int(others[-1]) + 1 if len(others) else 0)
        # The row before is held out: its run goes on.
        left = self._length(self._num_held - before, longest) - before if before else 0
        place = first_new
        while place < len(held):
            if left <= 0:
                left = self._length(self._num_held, longest)
                wait = min(self._wait(left), len(held) - place)
                place += wait
                self._num_seen += wait
            stop = min(place + left, len(held))
            self._num_seen += stop - place
            if stop - place <= room:
                room -= stop - place
                self._num_held += stop - place
                held[place:stop] = True
            place, left = stop, 0
        return room

    @staticmethod
    def _length(num_held: int, longest: int) -> int:
        """Rows of the run that begins after so many held-out rows.

        It grows with them, so that there are some runs at any number of rows; nothing else decides it, so that it is
        the same whenever it is asked for.
        """
        return min(max(num_held // _ROWS_BEFORE, _SHORTEST_RUN), longest)

    def _wait(self, length: int) -> int:
        """Rows until the next run of this length begins.

        It begins at a random place of the rows of which it is the share. At a fixed one it would, in tasks whose
        episodes are as long, always meet the same steps of an episode: all the last rows, say, would be held out and
        none learned. For the same reason a run goes on across an episode's end: a run cut there is short, and as long
        ones make up for it less often, last rows would be held out too often.
        """
        at_random = self._num_held + random.Random(self._num_held).random() * length
        return max(
            math.ceil(at_random / SHARE) - self._num_seen,
            math.ceil((self._num_held + length) / _LARGEST_SHARE) - length - self._num_seen,
            0,
        )


def _pieces(rows: NDArray[np.int64], names: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The rows, which are sorted by their name, a piece for each name."""
    if not len(rows):
        return []
    return np.split(rows, np.flatnonzero(np.diff(names[rows])) + 1)


def _held(stream: _Stream, writes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of these writes of a stream are held out."""
    starts, stops = np.array(stream.held, np.int64).reshape(-1, 2).T
    begun, ended = (np.searchsorted(edges, writes, side="right") for edges in (starts, stops))
    return begun > ended


def _intervals(writes: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Sorted writes as intervals of consecutive ones."""
    runs = np.split(writes, np.flatnonzero(np.diff(writes) != 1) + 1) if len(writes) else []
    return [(int(run[0]), int(run[-1]) + 1) for run in runs]
