"""What an algorithm does, for a buffer that outlives it or is loaded into another one."""

from __future__ import annotations

import weakref
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm


class OfAlgorithm:
    """Refers to an algorithm weakly."""

    #: What of the algorithm, for the error.
    what: str

    def __init__(self, model: BaseAlgorithm) -> None:
        self._reference = weakref.ref(model)

    def is_of(self, model: BaseAlgorithm) -> bool:
        """Whether it is of this algorithm."""
        return self._reference() is model

    @property
    def algorithm(self) -> Any:
        """The algorithm.

        Raises:
            RuntimeError: it is gone.
        """
        algorithm = self._reference()
        if algorithm is None:
            raise RuntimeError(f"the algorithm whose {self.what} was bound is gone")
        return algorithm


def may_replace(bound: Any, model: BaseAlgorithm) -> bool:
    """Whether the algorithm's own may be bound: nothing is yet, or what is belongs to another algorithm."""
    return bound is None or (isinstance(bound, OfAlgorithm) and not bound.is_of(model))
