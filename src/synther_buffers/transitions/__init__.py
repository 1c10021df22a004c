"""What a row is: transitions and their fields, and the float matrix that a model learns."""

from .transitions import SEPARATOR, Field, Observation, Transitions, TransitionSpec

__all__ = ["SEPARATOR", "Field", "Observation", "TransitionSpec", "Transitions"]
