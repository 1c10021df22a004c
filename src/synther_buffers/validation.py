"""Checks of single arguments; each error names the argument, the value and what is wanted."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import numpy as np


def whole_number(name: str, value: Any, minimum: int) -> int:
    """`value` as an int.

    Raises:
        TypeError: no whole number; True and False are none either.
        ValueError: below `minimum`.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); wanted a whole number, at least {minimum}.")
    if value < minimum:
        raise ValueError(f"{name} is {value}; it must be at least {minimum}.")
    return int(value)


def fraction(name: str, value: Any, meaning: str = "between 0 and 1") -> float:
    """`value` as a float from 0 to 1.

    Args:
        name: of the argument.
        value: as given.
        meaning: ends the sentence "it must lie ...".

    Raises:
        TypeError: no number.
        ValueError: outside 0 to 1, NaN included.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); wanted a number from 0 to 1.")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value}; it must lie {meaning}.")
    return float(value)


def suggestion(given: str, known: Iterable[str]) -> str:
    """``" Did you mean 'retrain_every'?"`` for a name that is close to a known one, else ``""``."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
