"""How many gradient steps an algorithm takes for each real transition, estimated from the batches it draws."""

from __future__ import annotations

#: Rows of a usual batch. A larger one may be split for several updates (sbx) and counts as several.
_USUAL_BATCH = 256


class UpdateRatio:
    """The update-to-data ratio between two refreshes: batches drawn for each real transition written.

    Attributes:
        num_batches, num_rows: drawn since the last measurement.
    """

    def __init__(self) -> None:
        self.num_batches = self.num_rows = 0
        self._since = 0

    def count(self, batch_size: int, num_observed: int) -> None:
        """Count a batch, drawn after `num_observed` real transitions were written."""
        if self.num_batches == 0:
            self._since = num_observed  # earlier rows, usually of random actions, come without gradient steps
        self.num_batches += 1
        self.num_rows += batch_size

    def measure(self, num_observed: int, min_transitions: int) -> float | None:
        """The ratio, after which counting restarts; None, and counting continues, below `min_transitions`."""
        written = num_observed - self._since
        if self.num_batches == 0 or written < min_transitions:
            return None
        ratio = max(self.num_batches, self.num_rows / _USUAL_BATCH) / written
        self.num_batches = self.num_rows = 0
        return ratio
