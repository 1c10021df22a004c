"""When to refresh, what to learn, and how much of a batch is synthetic."""

from .synthetic_replay import SyntheticReplay

__all__ = ["SyntheticReplay"]
