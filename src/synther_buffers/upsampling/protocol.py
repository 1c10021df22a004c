"""What an upsampler is to everybody who uses one: buffers, offline upsampling, reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from ..transitions import Transitions, TransitionSpec


@dataclass(frozen=True)
class FitReport:
    """What a fit did.

    Attributes:
        loss: mean training loss over the last tenth of the steps (1 is the untrained model's).
        held_out_loss: the loss of the model on the held-out rows, NaN where there were none.
        steps: gradient steps, of both attempts where a warm start was given up.
        seconds: wall time.
        warm: the model goes on from the last one.
        reason: why it started from scratch, or "" if it did not.
        phases: seconds of each part: normalize, train, terminals, calibrate.
        budget: gradient steps that the last attempt was given; fewer were taken where it stopped early.
        best_step: step of the last attempt whose weights the model has, 0 where nothing was held out to choose by.
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

    def spent(self) -> str:
        """What was spent and why it ended, in a few words."""
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
        """What reports and the refresh log say of its configuration: plain data."""
        ...

    def fit(self, transitions: Transitions, *, held_out: Transitions | None = None) -> FitReport:
        """Learn real transitions; `held_out` rows may be used to judge, never to learn.

        Both may be views of a live buffer: copy what is kept beyond the call. Where it raises, the upsampler may be
        in any state: it is not used again.
        """
        ...

    def sample(self, num_samples: int) -> Transitions:
        """Draw `num_samples` legal synthetic transitions. A buffer copies them: the memory stays the upsampler's."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that `fit` and `sample` depend on: tensors and plain data.

        A refresh makes a new upsampler, gives it the last one's state, fits it and draws from it. What is not in the
        state is lost between refreshes.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; here a copy, which may be kept and changed.

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
            progress_bar: whether it may show one.
        """
        ...
