"""When a refresh is due."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class RefreshSchedule:
    """Counts real transitions and decides when a refresh is due.

    Attributes:
        retrain_every: real transitions between refreshes.
        start_after: real transitions before the first one.
        num_observed: real transitions written so far.
        next_refresh: real transitions at which the next refresh is due.
    """

    retrain_every: int
    start_after: int
    num_observed: int = 0
    next_refresh: int = 0

    def __post_init__(self) -> None:
        """The first refresh comes after `start_after`."""
        self.next_refresh = self.next_refresh or self.start_after

    @property
    def due(self) -> bool:
        """Whether enough transitions were written; several missed refreshes become one."""
        return self.num_observed >= self.next_refresh

    def attempted(self) -> None:
        """A refresh was done, skipped or failed: the next one is due `retrain_every` transitions from now."""
        self.next_refresh = self.num_observed + self.retrain_every

    def reset(self) -> None:
        """Forget all transitions."""
        self.num_observed, self.next_refresh = 0, self.start_after
