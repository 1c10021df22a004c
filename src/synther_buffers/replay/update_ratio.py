"""How many gradient steps an algorithm takes for each real transition, estimated from the batches it draws."""

from __future__ import annotations

import math

#: Rows of the largest batch that is surely one update. A larger one may be cut for any number of them (sbx).
_LARGEST_UPDATE = 256


class UpdateRatio:
    """The update-to-data ratio between two refreshes: updates for each real transition written.

    Attributes:
        num_batches: drawn since the last measurement.
        num_updates: that were made of these; NaN if it cannot be known.
    """

    def __init__(self) -> None:
        self.num_batches, self.num_updates = 0, 0.0
        self._since = 0

    def count(self, batch_size: int, num_observed: int, update_size: int | None = None) -> None:
        """Count a batch, drawn after `num_observed` real transitions were written.

        Args:
            batch_size: its rows.
            num_observed: see above.
            update_size: rows that the algorithm takes for one update; None if it is not known.
        """
        if self.num_batches == 0:
            self._since = num_observed  # earlier rows, usually of random actions, come without gradient steps
        self.num_batches += 1
        if update_size is not None:
            self.num_updates += batch_size / update_size
        else:
            self.num_updates += 1 if batch_size <= _LARGEST_UPDATE else math.nan

    def measure(self, num_observed: int, min_transitions: int) -> float | None:
        """The ratio, after which counting restarts.

        None if the number of updates cannot be known, and below `min_transitions`, where counting continues.
        """
        written = num_observed - self._since
        if self.num_batches == 0 or written < min_transitions:
            return None
        ratio = self.num_updates / written
        self.num_batches, self.num_updates = 0, 0.0
        return None if math.isnan(ratio) else ratio
