"""When to refresh, what to learn, and how much of a batch is synthetic."""

from ..aliases import Usage as _Usage
from .synthetic_replay import SyntheticReplay

__all__ = ["SyntheticReplay", "_Usage"]
