"""The interface of an upsampler, used by buffers, offline upsampling and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from ..public_paths import public
from ..transitions import Transitions, TransitionSpec


@public
@dataclass(frozen=True)
class FitReport:
    """What a fit did.

    Attributes:
        loss: mean training loss over the last tenth of the steps (1 is the untrained model's).
        held_out_loss: the loss of the model on the held-out rows, NaN where there were none.
        steps: gradient steps, of both attempts if a warm start was given up.
        seconds: wall time.
        warm: training continued from the last model.
        reason: why it started from scratch, or "" if it did not.
        phases: seconds of each part: normalize, train, outcomes, terminals, calibrate.
        budget: gradient steps planned for the last attempt; fewer were taken if it stopped early.
        best_step: step of the last attempt whose weights the model has; 0 if no rows were held out to choose it.
        predicted: names of the elements that a regression predicts, because what the model generated did not follow
            from observation and action (`synther_buffers.upsampling.outcomes`).
    """

    loss: float
    held_out_loss: float
    steps: int
    seconds: float
    warm: bool
    reason: str = ""
    phases: dict[str, float] = field(default_factory=dict)
    budget: int = 0
    best_step: int = 0
    # A tuple, so that the class has the default: a report in an older file was pickled without this field.
    predicted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """JSON knows no tuples."""
        object.__setattr__(self, "predicted", tuple(self.predicted))

    def spent(self) -> str:
        """The steps taken and the weights kept, in a few words."""
        if self.steps == 0:
            return "nothing was trained"
        if not self.best_step:
            return f"{self.steps} steps"
        kept = f"weights of step {self.best_step}, at the least held-out loss {self.held_out_loss:.3f}"
        return f"{self.steps} steps of a budget of {self.budget}, {kept}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@runtime_checkable
class Upsampler(Protocol):
    """A model of transitions: it learns real ones and draws synthetic ones."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration as shown in reports and the refresh log: plain data."""
        ...

    def fit(self, transitions: Transitions, *, held_out: Transitions | None = None) -> FitReport:
        """Learn real transitions; `held_out` rows may be used to evaluate, never to learn.

        Both may be views of a live buffer: copy what is kept beyond the call. If it raises, the upsampler may be in any
        state, because it is not used again.
        """
        ...

    def sample(self, num_samples: int) -> Transitions:
        """Draw `num_samples` legal synthetic transitions. A buffer copies them, so their memory may be reused."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that `fit` and `sample` depend on: tensors and plain data.

        A refresh makes a new upsampler, loads the last one's state into it, fits it and draws from it. Anything that is
        not in the state is lost between refreshes.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. `state` is a copy, which may be kept and changed.

        Raises:
            ValueError: a state that it cannot read.
        """
        ...


class UpsamplerFactory(Protocol):
    """A picklable callable that makes an `Upsampler`; a class with this constructor is one."""

    def __call__(self, spec: TransitionSpec, *, device: torch.device | str, seed: int, progress_bar: bool) -> Upsampler:
        """Make one.

        Args:
            spec: the fields of a transition.
            device: where it trains and draws.
            seed: of everything random in it.
            progress_bar: whether it may show a progress bar.
        """
        ...
