"""Checks of configured values: the error names the argument by its path in the configuration."""

from __future__ import annotations

from typing import Any


def check_whole(name: str, value: Any, minimum: int) -> None:
    """Raise unless `value` is a whole number, at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); wanted a whole number, at least {minimum}.")
    if value < minimum:
        raise ValueError(f"{name} is {value}; it must be at least {minimum}.")


def check_positive(name: str, value: float) -> None:
    """Raise unless `value` is above 0; NaN is not."""
    if not value > 0:
        raise ValueError(f"{name} is {value}; it must be positive.")
