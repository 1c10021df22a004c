"""What a guidance is: it says how relevant each real row is, and how much more often relevant rows are wanted."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..public_paths import public
from ..transitions import RowOrder, Transitions, TransitionSpec
from ..validation import not_negative, suggestion
from .classes import Classes

#: How rows of a wanted relevance are made.
Mechanism = Literal["condition", "resampling"]


@public
@dataclass(frozen=True, kw_only=True)
class Guidance(ABC):
    """Says how relevant each real row is. The synthetic set then has more rows like the relevant ones.

    Only the ranks of the relevance count, so it may have any unit. With z the normal score of a row's rank (the
    value that a standard normal distribution has at that rank), rows are wanted with a probability in proportion to
    ``exp(strength * z)``: at strength 1 the mean rank of the set would be 76 % instead of 50 %, at 2 it would be 92 %.

    Attributes:
        strength: see above; 0 leaves the set as it is.
        by: ``"condition"``: the model learns the relevance with the rows and is asked for relevant ones, as in
            "Prioritized Generative Replay" (Wang et al., ICLR 2025); needs a model of this library. ``"resampling"``:
            four times as many rows are drawn, a regression on the real rows says how relevant each is, and the set is
            chosen from them, each at most once, which reaches a mean rank of 70 % at strength 1 and at most 87 %; works
            with every upsampler.
    """

    strength: float = 1.0
    by: Mechanism = "condition"

    def __post_init__(self) -> None:
        """Reject values out of range with an error that names them."""
        object.__setattr__(self, "strength", not_negative("guidance.strength", self.strength))
        if self.by not in get_args(Mechanism):
            close = suggestion(self.by, get_args(Mechanism)) if isinstance(self.by, str) else ""
            raise ValueError(f"guidance.by is {self.by!r}; wanted 'condition' or 'resampling'.{close}")

    @abstractmethod
    def relevance(self, transitions: Transitions, order: RowOrder) -> Tensor:
        """The relevance of each row, ``[N]`` in any unit; more is more relevant.

        It is asked at each refresh, in the agent's process, even if the refresh runs elsewhere.

        Args:
            transitions: a copy of all real rows of the buffer that are finite, raw, environment after environment.
            order: when each was written.
        """

    def for_spec(self, spec: TransitionSpec | None) -> Guidance:
        """The same guidance for rows of this spec; itself unless it depends on what the fields are."""
        return self

    def classes(self, transitions: Transitions) -> Classes | None:
        """Classes of the rows that are learned, whose quotas the set has instead of relevant rows; None for none."""
        return None


@dataclass(frozen=True, kw_only=True)
class FieldGuidance(Guidance):
    """A guidance that depends on what the fields are: numbers or categories."""

    _spec: TransitionSpec | None = field(default=None, init=False, repr=False, compare=False)

    def for_spec(self, spec: TransitionSpec | None) -> Guidance:
        """A copy for rows of this spec; with None the rows themselves show what their fields are."""
        bound = copy.copy(self)
        object.__setattr__(bound, "_spec", spec)
        return bound

    def spec_of(self, transitions: Transitions) -> TransitionSpec:
        """The spec that was set, or what these rows show."""
        return TransitionSpec.infer(transitions) if self._spec is None else self._spec


@public
@dataclass(frozen=True, kw_only=True)
class FunctionGuidance(Guidance):
    """A relevance of your own: ``guidance=lambda rows: rows.reward``, or this for more settings.

    Attributes:
        function: from real rows (`Transitions`) to a number for each, ``[N]``.
    """

    function: Callable[[Transitions], Any]

    def __post_init__(self) -> None:
        """Reject values of the wrong type with an error that names them."""
        super().__post_init__()
        if not callable(self.function):
            raise TypeError(f"guidance.function is {self.function!r}; wanted a function of transitions.")

    def relevance(self, transitions: Transitions, order: RowOrder) -> Tensor:
        """What the function says."""
        return self.function(transitions)  # checked where it is used


GuidanceOption = str | Guidance | Callable[[Transitions], Any] | None


def resolve_guidance(guidance: Any, names: Mapping[str, type[Guidance]]) -> Guidance | None:
    """The guidance that a buffer's `guidance` argument describes.

    Args:
        guidance: as the user gave it.
        names: those that stand for a guidance with its defaults.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name, a guidance nor a function.
    """
    if guidance is None or isinstance(guidance, Guidance):
        return guidance
    if isinstance(guidance, str):
        if guidance not in names:
            known = ", ".join(repr(name) for name in names)
            raise ValueError(f"guidance is {guidance!r}; wanted one of {known}.{suggestion(guidance, names)}")
        return names[guidance]()
    if isinstance(guidance, type) and issubclass(guidance, Guidance):
        raise TypeError(f"guidance is the class {guidance.__name__}; wanted an object: {guidance.__name__}(...).")
    if callable(guidance):
        return FunctionGuidance(function=guidance)
    raise TypeError(f"guidance is {guidance!r}; wanted a name, a Guidance, a function of transitions, or None.")


def checked_relevance(relevance: Any, num_rows: int) -> Tensor:
    """A relevance as ``[num_rows]`` float64 on the CPU.

    Raises:
        TypeError: no numbers.
        ValueError: another number of them.
    """
    try:
        # A tensor by itself, because `as_tensor` moves it to the default device.
        tensor = relevance if isinstance(relevance, Tensor) else torch.as_tensor(relevance, device="cpu")
        value = tensor.detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"the relevance is {type(relevance).__name__}; wanted a number for each row") from error
    if value.ndim == 2 and value.shape[1] == 1:
        value = value[:, 0]
    if tuple(value.shape) != (num_rows,):
        raise ValueError(f"the relevance has shape {tuple(value.shape)}; wanted a number for each row, ({num_rows},)")
    return value
