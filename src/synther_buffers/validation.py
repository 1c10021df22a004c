"""Checks of single arguments; each error names the argument, the value and what is wanted."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import numpy as np


def whole_number(name: str, value: Any, minimum: int) -> int:
    """`value` as an int.

    Raises:
        TypeError: not a whole number; True and False are refused too.
        ValueError: below `minimum`.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); wanted a whole number, at least {minimum}.")
    if value < minimum:
        raise ValueError(f"{name} is {value}; it must be at least {minimum}.")
    return int(value)


def positive(name: str, value: Any) -> float:
    """`value` as a float above 0.

    Raises:
        TypeError: no number.
        ValueError: 0 or below, NaN included.
    """
    number = _number(name, value, "wanted a number above 0")
    if not number > 0.0:
        raise ValueError(f"{name} is {value}; it must be positive.")
    return number


def not_negative(name: str, value: Any) -> float:
    """`value` as a float, at least 0.

    Raises:
        TypeError: no number.
        ValueError: below 0, NaN included.
    """
    number = _number(name, value, "wanted a number, at least 0")
    if not number >= 0.0:
        raise ValueError(f"{name} is {value}; it must be at least 0.")
    return number


def fraction(name: str, value: Any, meaning: str = "between 0 and 1") -> float:
    """`value` as a float from 0 to 1.

    Args:
        name: of the argument.
        value: as given.
        meaning: completes "it must lie ..." in the error.

    Raises:
        TypeError: no number.
        ValueError: outside 0 to 1, NaN included.
    """
    number = _number(name, value, "wanted a number from 0 to 1")
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{name} is {value}; it must lie {meaning}.")
    return number


def _number(name: str, value: Any, wanted: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); {wanted}.")
    return float(value)


def suggestion(given: str, known: Iterable[str]) -> str:
    """``" Did you mean 'retrain_every'?"`` for a name that is close to a known one, else ``""``."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
