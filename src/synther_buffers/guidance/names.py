"""Guidances that a name stands for."""

from __future__ import annotations

from .base import Guidance
from .curiosity import Curiosity
from .novelty import Novelty
from .return_to_go import ReturnToGo
from .td_error import TDError

NAMES: dict[str, type[Guidance]] = {
    "curiosity": Curiosity,
    "novelty": Novelty,
    "return": ReturnToGo,
    "td-error": TDError,
}
