"""When a refresh is due."""

from __future__ import annotations

from dataclasses import dataclass

#: Without a `retrain_every`: real transitions before the first refresh, and the limits of the interval after it, which
#: is the given share of the real rows that the store holds. 500 is what the learning benchmark has measured, 10,000 the
#: paper's.
FIRST, SHORTEST, LONGEST, SHARE_OF_ROWS = 1_000, 500, 10_000, 0.1


@dataclass
class RefreshSchedule:
    """Counts real transitions and decides when a refresh is due.

    Attributes:
        retrain_every: real transitions between refreshes, None for an interval that grows with the rows.
        start_after: real transitions before the first one, None for `retrain_every` or `FIRST`.
        capacity: real rows that the store holds, None for no limit.
        num_observed: real transitions written so far.
        next_refresh: real transitions at which the next refresh is due.
    """

    retrain_every: int | None
    start_after: int | None = None
    capacity: int | None = None
    num_observed: int = 0
    next_refresh: int = 0

    def __post_init__(self) -> None:
        """The first refresh comes after `first`."""
        self.next_refresh = self.next_refresh or self.first

    @property
    def first(self) -> int:
        """Real transitions before the first refresh."""
        if self.start_after is not None:
            return self.start_after
        return self._stored(FIRST) if self.retrain_every is None else self.retrain_every

    def interval(self, num_observed: int) -> int:
        """Real transitions from a refresh at `num_observed` to the next one."""
        if self.retrain_every is not None:
            return self.retrain_every
        # Rows that are overwritten before the next refresh would never be learned.
        return self._stored(min(max(int(SHARE_OF_ROWS * self._stored(num_observed)), SHORTEST), LONGEST))

    def _stored(self, num_rows: int) -> int:
        return num_rows if self.capacity is None else min(num_rows, self.capacity)

    @property
    def due(self) -> bool:
        """Whether enough transitions were written; several missed refreshes become one."""
        return self.num_observed >= self.next_refresh

    def attempted(self) -> None:
        """A refresh was done, skipped or failed: the next one is due an interval from now."""
        self.next_refresh = self.num_observed + self.interval(self.num_observed)


def redraw_interval(interval: int, redraw_every: int | None) -> int:
    """Real transitions between two draws of rows with the policy's actions: as given, or a fifth of the refreshes'."""
    return max(interval // 5, 1) if redraw_every is None else redraw_every
