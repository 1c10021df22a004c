"""What a row is: transitions and their fields, and the float matrix that a model learns."""

from ..public_paths import exported_from
from .fields import SEPARATOR, Field
from .row_order import RowOrder
from .transitions import Observation, Transitions, TransitionSpec, concatenate

__all__ = ["SEPARATOR", "Field", "Observation", "RowOrder", "TransitionSpec", "Transitions", "concatenate"]

exported_from(__name__, Field)
