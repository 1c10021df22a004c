"""Classes that only files of version 3 name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Usage:
    """Counters of a `SyntheticReplay`."""

    num_batches: int = 0
    num_refreshes: int = 0
    num_observed: int = 0
    start_after: int = 0
