"""When rows were written, by which environment, and where episodes end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RowOrder:
    """When each real row was written; identifies a row whatever its slot in the ring buffer.

    Attributes:
        write_index: ``[N]`` int64, counts the writes of the row's stream from 0; never reused.
        stream: ``[N]`` int64, the environment that wrote the row.
        episode_end: ``[N]`` bool, an episode ended with this row (terminated or truncated); all False if unknown.
        trajectory: ``[N]`` int64, the trajectory that a row belongs to, where a stream has the rows of several
            environments mixed; None where the rows of a stream follow each other.
        max_steps: environment steps that a row spans at most.
    """

    write_index: NDArray[np.int64]
    stream: NDArray[np.int64]
    episode_end: NDArray[np.bool_]
    trajectory: NDArray[np.int64] | None = None
    max_steps: int = 1

    def __getitem__(self, rows: NDArray[np.int64]) -> RowOrder:
        """The order of some of the rows, ``[n]`` indices."""
        trajectory = None if self.trajectory is None else self.trajectory[rows]
        return RowOrder(self.write_index[rows], self.stream[rows], self.episode_end[rows], trajectory, self.max_steps)

    @property
    def sequence(self) -> NDArray[np.int64]:
        """What the rows that follow each other have in common, ``[N]``: the trajectory where given, or the stream."""
        return self.stream if self.trajectory is None else self.trajectory

    def by_sequence(self) -> NDArray[np.int64]:
        """Indices ``[N]`` that put rows that follow each other side by side, wherever they lie in memory."""
        rows: NDArray[np.int64] = np.lexsort((self.write_index, self.sequence, self.stream))
        return rows

    @classmethod
    def appended(cls, num_rows: int) -> RowOrder:
        """The order of rows that one stream wrote and that were not overwritten."""
        return cls(np.arange(num_rows), np.zeros(num_rows, np.int64), np.zeros(num_rows, np.bool_))

    @classmethod
    def of_ring(cls, episode_end: NDArray[np.bool_], next_slot: int, num_written: int) -> RowOrder:
        """The order of the rows of a ring buffer, read slot by slot, the streams of a slot one after the other.

        Args:
            episode_end: ``[slots, streams]``, of the slots that were written.
            next_slot: where the next row will be written; in a full ring, the slot of the oldest row.
            num_written: slots ever written, overwritten ones included.

        Returns:
            The order of ``slots * streams`` rows.
        """
        num_slots, num_streams = episode_end.shape
        age = (np.arange(num_slots) - next_slot) % max(num_slots, 1)
        return cls(
            np.repeat(age + num_written - num_slots, num_streams),
            np.tile(np.arange(num_streams), num_slots),
            episode_end.reshape(-1),
        )
