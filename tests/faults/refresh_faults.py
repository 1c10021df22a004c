"""Faults of an upsampler in a refresh, each with what must come of it, and places where a refresh happens."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from toys import equal

from synther_buffers import FitReport, SyntheticReplay, Transitions

POINTS = ("make", "load_state_dict", "fit", "sample", "state_dict", "config")

#: What an upsampler may raise. A `StopIteration` ends loops that it meets, and a warning is an exception too.
EXCEPTIONS = [
    RuntimeError("planted"),
    ValueError("planted"),
    TypeError("planted"),
    KeyError("planted"),
    IndexError("planted"),
    AttributeError("planted"),
    AssertionError("planted"),
    ArithmeticError("planted"),
    FloatingPointError("planted"),
    MemoryError("planted"),
    OSError(errno.ENOSPC, "planted"),
    TimeoutError("planted"),
    EOFError("planted"),
    ImportError("planted"),
    NotImplementedError("planted"),
    RecursionError("planted"),
    StopIteration("planted"),
    UserWarning("planted"),
    torch.OutOfMemoryError("planted"),
]
#: What stops a program: it must get through.
INTERRUPTS = [KeyboardInterrupt(), SystemExit(3), asyncio.CancelledError(), GeneratorExit()]


@dataclass
class Fault:
    """What happens to an upsampler.

    Attributes:
        name: of the kind.
        point: the method that does not do what it should; "make" is the factory.
        said: what the warning must contain; "" where the refresh has to succeed.
        error: what is raised instead.
        wrong: what is done to the value that would be returned, called with the upsampler and it.
    """

    name: str
    point: str
    said: str = ""
    error: BaseException | None = None
    wrong: Callable[[Any, Any], Any] | None = None

    @property
    def interrupts(self) -> bool:
        return self.error is not None and not isinstance(self.error, Exception)


def _column(change: Callable[[torch.Tensor], Any], *names: str) -> Callable[[Any, Any], Any]:
    """Change a field of the drawn rows."""

    def wrong(upsampler: Any, rows: Transitions) -> Transitions:
        return replace(rows, **{name: change(getattr(rows, name)) for name in names})

    return wrong


def _poisoned(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[len(tensor) // 2] = value
        return tensor

    return change


def _writes_later(upsampler: Any, rows: Transitions) -> Transitions:
    """Its own memory: what it does to it after the refresh is what `Factory.write` does."""
    upsampler.factory.lent.append(rows)
    return rows


def _lends_training_rows(upsampler: Any, rows: Transitions) -> Transitions:
    """The very rows that it was given to learn, marked in place."""
    given = upsampler.given[: len(rows)]
    given.reward.copy_(rows.reward)
    upsampler.factory.lent.append(given)
    return given


def _lends_state(upsampler: Any, state: dict[str, Any]) -> dict[str, Any]:
    upsampler.factory.lent.append(state["weights"])
    return state


def _repeats_one(upsampler: Any, rows: Transitions) -> Transitions:
    """One row in the memory of all."""
    return Transitions.from_flat({name: tensor[:1].expand_as(tensor) for name, tensor in rows.flat().items()})


def _zeroes_its_rows(upsampler: Any, report: FitReport) -> FitReport:
    for tensor in (*upsampler.given.flat().values(), *upsampler.held_out.flat().values()):
        tensor.zero_()
    return report


def _with_grad(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor * torch.ones(1, requires_grad=True)).to(tensor.dtype)


def _in_inference(upsampler: Any, rows: Transitions) -> Transitions:
    with torch.inference_mode():
        return Transitions.from_flat({name: tensor.clone() for name, tensor in rows.flat().items()})


#: Name, point, words of the warning, what is returned instead.
WRONG: list[tuple[str, str, str, Callable[[Any, Any], Any]]] = [
    ("nothing made", "make", "returned None, which has no config, fit", lambda u, v: None),
    ("a class made", "make", "returned <object object", lambda u, v: object()),
    ("no report", "fit", "fit returned None; wanted a FitReport", lambda u, v: None),
    ("a text", "fit", "fit returned 'done'; wanted a FitReport", lambda u, v: "done"),
    ("a dict", "fit", "; wanted a FitReport", lambda u, v: {"loss": 0.5}),
    ("a class", "fit", "; wanted a FitReport", lambda u, v: FitReport),
    ("no loss", "fit", "wanted a FitReport of numbers", lambda u, v: replace(v, loss=None)),
    ("a loss of two", "fit", "wanted a FitReport of numbers", lambda u, v: replace(v, loss=torch.zeros(2))),
    ("no phases", "fit", "wanted a FitReport of numbers", lambda u, v: replace(v, phases=None)),
    ("no rows", "sample", "sample returned NoneType; wanted Transitions", lambda u, v: None),
    ("a dict of rows", "sample", "sample returned dict; wanted Transitions", lambda u, v: v.flat()),
    ("a tuple of rows", "sample", "sample returned tuple; wanted Transitions", lambda u, v: (v,)),
    ("a generator", "sample", "sample returned generator; wanted Transitions", lambda u, v: (row for row in v.reward)),
    ("one row less", "sample", "was asked for 60 rows and gave 59", lambda u, v: v[:-1]),
    ("one row more", "sample", "was asked for 60 rows and gave 61", lambda u, v: v[[*range(60), 0]]),
    ("no row at all", "sample", "was asked for 60 rows and gave 0", lambda u, v: v[:0]),
    ("uneven rows", "sample", "has shape", _column(lambda tensor: tensor[:-1], "action")),
    ("a missing field", "sample", "transitions have the fields", lambda u, v: replace(v, action=None)),
    ("no reward", "sample", "transitions have the fields", lambda u, v: replace(v, reward=None)),
    ("a further field", "sample", "transitions have the fields", lambda u, v: replace(v, extra={"x": v.reward})),
    ("a list", "sample", "sample returned list as reward; wanted a ten", _column(torch.Tensor.tolist, "reward")),
    ("an array", "sample", "returned ndarray as action; wanted a tensor", _column(torch.Tensor.numpy, "action")),
    ("a column", "sample", "reward has shape (60, 1), but", _column(lambda tensor: tensor[:, None], "reward")),
    ("a transposed one", "sample", "observation has shape (2, 60), but", _column(torch.Tensor.t, "observation")),
    ("a wider one", "sample", "has shape (60, 4), but", _column(lambda t: torch.cat((t, t), 1), "observation")),
    ("doubles", "sample", "reward has dtype torch.float64, but", _column(torch.Tensor.double, "reward")),
    ("halves", "sample", "action has dtype torch.float16, but", _column(torch.Tensor.half, "action")),
    ("float flags", "sample", "terminated has dtype torch.float32, but", _column(torch.Tensor.float, "terminated")),
    ("NaN", "sample", "rows that are not finite", _column(_poisoned(torch.nan), "reward")),
    ("NaN in observations", "sample", "rows that are not finite", _column(_poisoned(torch.nan), "next_observation")),
    ("infinity", "sample", "rows that are not finite", _column(_poisoned(torch.inf), "action")),
    ("nowhere", "sample", "", _column(lambda tensor: tensor.to("meta"), "reward")),
    ("no state", "state_dict", "state_dict returned NoneType; wanted a dict", lambda u, v: None),
    ("a list of states", "state_dict", "state_dict returned list; wanted a dict", lambda u, v: [v]),
    ("a live state", "state_dict", "returned what cannot be copied", lambda u, v: {**v, "x": (i for i in range(3))}),
    ("no configuration", "config", "config is None; wanted names and values", lambda u, v: None),
    ("a text of it", "config", "config is 'tiny'; wanted names and values", lambda u, v: "tiny"),
]
#: Odd, but no reason for a refresh to fail.
HARMLESS: list[tuple[str, str, Callable[[Any, Any], Any]]] = [
    ("a loss that is a tensor", "fit", lambda u, v: replace(v, loss=torch.tensor(0.5))),
    ("a loss that is not a number", "fit", lambda u, v: replace(v, loss=float("nan"))),
    ("its own memory", "sample", _writes_later),
    ("the rows it was given", "sample", _lends_training_rows),
    ("rows with a gradient", "sample", _column(_with_grad, "reward", "action")),
    ("rows of inference mode", "sample", _in_inference),
    ("expanded rows", "sample", _repeats_one),
    ("rows it was given, zeroed", "fit", _zeroes_its_rows),
    ("its own state", "state_dict", _lends_state),
    ("a configuration of its own", "config", lambda u, v: {"made of": object(), 3: {1, 2}}),
]


def draw(generator: np.random.Generator) -> Fault:
    """A fault of any kind; the kinds of a group are as frequent as each other."""
    group = generator.choice(["raises", "interrupts", "wrong", "harmless"], p=[0.35, 0.15, 0.35, 0.15])
    if group == "wrong":
        name, point, said, wrong = WRONG[generator.integers(len(WRONG))]
        return Fault(name, point, said or "failed", wrong=wrong)
    if group == "harmless":
        name, point, wrong = HARMLESS[generator.integers(len(HARMLESS))]
        return Fault(name, point, wrong=wrong)
    errors = EXCEPTIONS if group == "raises" else INTERRUPTS
    error = errors[generator.integers(len(errors))]
    said = "" if group == "interrupts" else type(error).__name__
    return Fault(type(error).__name__, str(generator.choice(POINTS)), said, error)


class Factory:
    """Makes upsamplers that draw the rows they learned, with their reward changed to minus the number of the refresh.

    Attributes:
        fault: what happens to those that are made from now on; None: nothing.
        drawn: copies of the rows of each draw, by the refresh that they were for.
        state: a copy of the state that the last upsampler told.
        lent: memory that upsamplers handed out and have kept.
    """

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self.drawn: dict[int, Transitions] = {}
        self.state: dict[str, Any] | None = None
        self.lent: list[Any] = []

    def __call__(self, spec: Any, *, device: Any, seed: int, progress_bar: bool) -> Any:
        made = Faulty(self, seed)
        return made.meets("make", made)

    def write(self) -> None:
        """Use the memory that was lent for something else."""
        for lent in self.lent:
            for tensor in [lent] if isinstance(lent, torch.Tensor) else lent.flat().values():
                tensor.zero_()


class Faulty:
    """An upsampler that trains in place, on the very tensors of the state that it was given."""

    def __init__(self, factory: Factory, seed: int) -> None:
        self.factory, self.seed = factory, seed
        self.weights = torch.zeros(3)
        self.num_fits = 0

    def meets(self, point: str, value: Any) -> Any:
        fault = self.factory.fault
        if fault is None or fault.point != point:
            return value
        if fault.error is not None:
            raise fault.error
        return fault.wrong(self, value)

    @property
    def config(self) -> Any:
        return self.meets("config", {"upsampler": "faulty"})

    def fit(self, transitions: Transitions, *, held_out: Transitions | None = None) -> Any:
        self.given, self.held_out = transitions, held_out
        self.learned = transitions[torch.arange(len(transitions))]
        self.num_fits += 1
        self.weights += 1.0
        return self.meets("fit", FitReport(loss=0.5, held_out_loss=0.5, steps=1, seconds=0.0, warm=False))

    def sample(self, num_samples: int) -> Any:
        generator = torch.Generator().manual_seed(self.seed + self.num_fits)
        rows = self.learned[torch.randint(len(self.learned), (num_samples,), generator=generator)]
        rows.reward = torch.full_like(rows.reward, -float(self.num_fits))
        returned = self.meets("sample", rows)
        if self.factory.fault is None or not self.factory.fault.said:
            self.factory.drawn[self.num_fits] = Transitions.from_flat(
                {name: torch.from_numpy(tensor.detach().numpy().copy()) for name, tensor in returned.flat().items()}
            )
        return returned

    def state_dict(self) -> Any:
        state = {"weights": self.weights, "num_fits": self.num_fits}
        self.factory.state = {"weights": self.weights.clone(), "num_fits": self.num_fits}
        return self.meets("state_dict", state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights, self.num_fits = state["weights"], state["num_fits"]
        self.weights.mul_(1.0)
        if self.factory.fault is not None and self.factory.fault.point == "load_state_dict":
            self.weights.fill_(-7.0)
            self.meets("load_state_dict", None)


class Core:
    """`SyntheticReplay` alone over rows in a list, in the words of the conformance suite's adapters."""

    name = "core"

    def make(self, size: int, observation_space: Any, action_space: Any, **kwargs: Any) -> Any:
        return Store(size, SyntheticReplay(None, **kwargs))

    def make_plain(self, size: int, observation_space: Any, action_space: Any) -> Any:
        return Store(size, None)

    def add(self, buffer: Any, rows: dict[str, np.ndarray]) -> None:
        buffer.add({name: torch.from_numpy(np.array(rows[name])) for name in rows if name != "truncated"})

    def sample(self, buffer: Any, batch_size: int) -> dict[str, np.ndarray]:
        return {name: tensor.numpy() for name, tensor in buffer.sample(batch_size).flat().items()}

    def stored(self, buffer: Any) -> dict[str, np.ndarray]:
        return {name: tensor.numpy() for name, tensor in buffer.all().flat().items()}

    def synthetic(self, buffer: Any) -> SyntheticReplay:
        return buffer.synthetic


class Store:
    """The newest rows, oldest first; a refresh gets them whole."""

    def __init__(self, size: int, synthetic: SyntheticReplay | None) -> None:
        self.size, self.synthetic = size, synthetic
        self.rows: list[dict[str, torch.Tensor]] = []
        self.num_added = 0

    def add(self, row: dict[str, torch.Tensor]) -> None:
        self.rows = [*self.rows, row][-self.size :]
        self.num_added += 1
        if self.synthetic is not None:
            self.synthetic.observe_total(self.num_added)

    def all(self) -> Transitions:
        return Transitions.from_flat({name: torch.cat([row[name] for row in self.rows]) for name in self.rows[0]})

    def sample(self, batch_size: int) -> Transitions:
        real = self.all()
        if self.synthetic.refresh_due:
            self.synthetic.refresh(real)
            assert equal(real, self.all())
        num_real, num_synthetic = self.synthetic.split(batch_size)
        parts = [real[torch.randint(len(real), (num_real,))]]
        if num_synthetic:
            parts.append(self.synthetic.sample(num_synthetic))
        columns = [part.flat() for part in parts]
        return Transitions.from_flat({name: torch.cat([column[name] for column in columns]) for name in columns[0]})
