"""Checks of single arguments; each error names the argument, the value and what is wanted."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

#: What torch takes for a seed.
_LARGEST_SEED = 2**64 - 1


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


def seed_number(name: str, value: Any) -> int:
    """`value` as an int that random generators take.

    Raises:
        TypeError: not a whole number.
        ValueError: below 0, or 2**64 or more.
    """
    number = whole_number(name, value, 0)
    if number > _LARGEST_SEED:
        raise ValueError(f"{name} is {value}; it must be below 2**64.")
    return number


def flag(name: str, value: Any) -> bool:
    """`value` as a bool; 0 and 1 are taken, which a file may have in place of false and true.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(value, bool | np.bool_ | int) or value not in (0, 1):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); wanted True or False.")
    return bool(value)


def positive(name: str, value: Any, *, finite: bool = True) -> float:
    """`value` as a float above 0.

    Args:
        name: of the argument.
        value: as given.
        finite: refuse infinity.

    Raises:
        TypeError: no number.
        ValueError: 0 or below, NaN included, or infinite.
    """
    number = _number(name, value, "wanted a number above 0")
    if not number > 0.0:
        raise ValueError(f"{name} is {value}; it must be positive.")
    return _finite(name, number) if finite else number


def not_negative(name: str, value: Any, *, finite: bool = True) -> float:
    """`value` as a float, at least 0.

    Args:
        name: of the argument.
        value: as given.
        finite: refuse infinity.

    Raises:
        TypeError: no number.
        ValueError: below 0, NaN included, or infinite.
    """
    number = _number(name, value, "wanted a number, at least 0")
    if not number >= 0.0:
        raise ValueError(f"{name} is {value}; it must be at least 0.")
    return _finite(name, number) if finite else number


def below_one(name: str, value: Any) -> float:
    """`value` as a float from 0 to below 1.

    Raises:
        TypeError: no number.
        ValueError: outside 0 to 1, NaN included, or 1.
    """
    number = _number(name, value, "wanted a number, at least 0 and below 1")
    if not 0.0 <= number < 1.0:
        raise ValueError(f"{name} is {value}; it must be at least 0 and below 1.")
    return number


def finite_number(name: str, value: Any) -> float:
    """`value` as a float, neither NaN nor infinite.

    Raises:
        TypeError: no number.
        ValueError: NaN or infinity.
    """
    return _finite(name, _number(name, value, "wanted a finite number"))


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


def _finite(name: str, number: float) -> float:
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}; wanted a finite number.")
    return number


def suggestion(given: str, known: Iterable[str]) -> str:
    """``" Did you mean 'retrain_every'?"`` for a name that is close to a known one, else ``""``."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
