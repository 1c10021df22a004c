"""The options that every adapter takes: names, types, defaults, checks and meanings.

`SyntheticOptions` defines them. `SyntheticKeywords` repeats names and types, without the defaults, because type
checkers and editors need a `TypedDict` to understand ``**options: Unpack[SyntheticKeywords]``; a test compares the two.
`lists_options` adds names and defaults to what `inspect.signature`, ``help()`` and the documentation show.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypedDict, TypeVar

import torch

from ..guidance.base import Guidance, GuidanceOption, resolve_guidance
from ..guidance.names import NAMES
from ..public_paths import public
from ..upsampling.factory import UpsamplerOption, resolve_factory, with_conditions
from ..upsampling.presets import resolve_device
from ..upsampling.protocol import UpsamplerFactory
from ..validation import fraction, seed_number, suggestion, whole_number

P = ParamSpec("P")
R = TypeVar("R")

RefreshPlace = Literal["here", "process"] | Executor
ShareSchedule = Callable[[int], float]
RefreshLag = int | Literal["as-ready"] | None


class SyntheticKeywords(TypedDict, total=False):
    """The fields of `SyntheticOptions` as keywords."""

    upsampler: UpsamplerOption
    upsampler_device: str | torch.device
    retrain_every: int | None
    start_after: int | None
    num_synthetic: int | None
    synthetic_fraction: float
    seed: int | None
    progress_bar: bool
    refresh_log: str | Path | None
    refresh_on: RefreshPlace
    refresh_lag: RefreshLag
    quality_gate: bool
    share_schedule: ShareSchedule | None
    policy_share: float
    redraw_every: int | None
    guidance: GuidanceOption


@public
@dataclass(frozen=True, kw_only=True)
class SyntheticOptions:
    """The keywords that the buffers of all frameworks share.

    Args:
        upsampler: a preset's name (``auto`` picks by device), an `UpsamplerConfig`, a mapping of what differs from the
            device's preset (``{"train_steps": 2_000, "network": {"width": 64}}``), or a picklable factory
            ``(spec, *, device, seed, progress_bar) -> Upsampler``.
        upsampler_device: where it trains; ``auto`` is CUDA where there is one.
        retrain_every: real transitions between refreshes (the paper: 10,000); None for a tenth of the real rows that
            the buffer holds, at least 500 and at most 10,000, and never more than it can hold.
        start_after: real transitions before the first refresh; None for `retrain_every`, or where that is None for
            1,000, or as many as the buffer can hold.
        num_synthetic: rows of the synthetic set; None for ten times the number of real rows, at least 20,000 and at
            most `num_synthetic` of the upsampler's configuration, or for 100,000 with a factory of your own.
        synthetic_fraction: share of each batch that is synthetic, from 0 to 1 (the paper: 0.5). At 0 nothing is
            trained.
        seed: of everything random in the synthetic part; None for the seed that was last set in torch. The global
            random streams are neither read nor advanced.
        progress_bar: show that a refresh starts, how far it is, and what came out: a bar on terminals and in notebooks,
            a line every 30 s elsewhere, and a line at the start and the end where nobody configured logging.
        refresh_log: file to append a JSON line to at each refresh, or None.
        refresh_on: where refreshes run. ``"here"``: in the agent's process, which waits. ``"process"``: in a process of
            its own beside the agent, a `RefreshProcess`. Or any `concurrent.futures.Executor`.
        refresh_lag: real transitions from the start of a refresh elsewhere to its first batch, at most the interval to
            the next refresh; the agent waits if the refresh is late, so the same seed gives the same run however fast
            the other process is. None for half of the interval. ``"as-ready"`` serves it as soon as it is there, which
            no seed reproduces.
        quality_gate: let the share of synthetic rows follow the figures of the last refresh, from `synthetic_fraction`
            down to none for a model that learned nothing, copies, or generates rows whose outcomes are not theirs.
        share_schedule: share of `synthetic_fraction` that batches have at a number of real transitions, a function from
            that number to 0 to 1; with `quality_gate` the two are multiplied. None for all of it.
        policy_share: share of the synthetic rows of a batch that have an observation of a real row, the current
            policy's action for it and the model's outcome; needs a policy, see `SyntheticReplay.bind_policy`. The model
            then learns conditions as well (`ConditioningConfig`).
        redraw_every: real transitions between two draws of these rows; None for a fifth of the interval between
            refreshes.
        guidance: which rows are worth generating: a `Guidance` or its name (``curiosity``, ``novelty``, ``return``,
            ``td-error``), or a function from real rows (`Transitions`) to the relevance of each, ``[N]``. The set then
            has more rows like the relevant ones. None for rows like the data.

    Raises:
        ValueError: a value out of range, an unknown preset or an unusable device.
        TypeError: a value of the wrong type.
    """

    upsampler: UpsamplerOption = "auto"
    upsampler_device: str | torch.device = "auto"
    retrain_every: int | None = None
    start_after: int | None = None
    num_synthetic: int | None = None
    synthetic_fraction: float = 0.5
    seed: int | None = None
    progress_bar: bool = True
    refresh_log: str | Path | None = None
    refresh_on: RefreshPlace = "here"
    refresh_lag: RefreshLag = None
    quality_gate: bool = False
    share_schedule: ShareSchedule | None = None
    policy_share: float = 0.0
    redraw_every: int | None = None
    guidance: GuidanceOption = None

    def __post_init__(self) -> None:
        """Check every value.

        What follows from the upsampler or the rows may stay None: `num_synthetic`, and all that counts transitions.
        """
        every, start, redraw = (
            None if value is None else whole_number(name, value, 1)
            for name, value in (
                ("retrain_every", self.retrain_every),
                ("start_after", self.start_after),
                ("redraw_every", self.redraw_every),
            )
        )
        if not isinstance(self.refresh_log, str | Path | None):
            raise TypeError(f"refresh_log is {self.refresh_log!r}; wanted the path of a file, or None.")
        if not isinstance(self.progress_bar, bool):
            raise TypeError(f"progress_bar is {self.progress_bar!r}; wanted True or False.")
        if not isinstance(self.quality_gate, bool):
            raise TypeError(f"quality_gate is {self.quality_gate!r}; wanted True or False.")
        if self.share_schedule is not None and not callable(self.share_schedule):
            raise TypeError(
                f"share_schedule is {self.share_schedule!r}; wanted a function of the number of transitions, or None."
            )
        resolved = {
            "retrain_every": every,
            "start_after": start,
            "synthetic_fraction": fraction(
                "synthetic_fraction", self.synthetic_fraction, "between 0 (all real) and 1 (all synthetic)"
            ),
            # Reading torch's seed does not advance its stream.
            "seed": torch.initial_seed() if self.seed is None else seed_number("seed", self.seed),
            "refresh_log": None if self.refresh_log is None else Path(self.refresh_log),
            "refresh_lag": self._lag(every),
            "policy_share": fraction(
                "policy_share",
                self.policy_share,
                "between 0 (no synthetic row has the policy's action) and 1 (all have)",
            ),
            "redraw_every": redraw,
            "guidance": resolve_guidance(self.guidance, NAMES),
        }
        if self.num_synthetic is not None:
            resolved["num_synthetic"] = whole_number("num_synthetic", self.num_synthetic, 1)
        for name, value in resolved.items():
            object.__setattr__(self, name, value)
        self.factory()

    def _lag(self, retrain_every: int | None) -> RefreshLag:
        """`refresh_lag`, checked with `refresh_on`."""
        where, lag = self.refresh_on, self.refresh_lag
        if not isinstance(where, str | Executor):
            raise TypeError(
                f"refresh_on is {where!r}; wanted 'here', 'process' or an object of concurrent.futures.Executor."
            )
        if isinstance(where, str) and where not in ("here", "process"):
            raise ValueError(
                f"refresh_on is {where!r}; wanted 'here', 'process' or an executor.{suggestion(where, _PLACES)}"
            )
        if where == "here":
            if lag is not None:
                raise ValueError(
                    f"refresh_lag is {lag!r} while refresh_on is 'here', where a refresh serves at once; set "
                    "refresh_on='process' or leave refresh_lag out."
                )
            return None
        if lag is None or lag == "as-ready":
            return lag
        if isinstance(lag, str):
            raise ValueError(f"refresh_lag is {lag!r}; wanted a number of transitions, 'as-ready' or None.")
        lag = whole_number("refresh_lag", lag, 0)
        if retrain_every is not None and lag > retrain_every:
            raise ValueError(
                f"refresh_lag is {lag}, more than retrain_every={retrain_every}: the next refresh would start before "
                "this one serves. Lower refresh_lag or raise retrain_every."
            )
        return lag

    def factory(self) -> UpsamplerFactory:
        """The factory of the upsampler, with its configuration resolved for the device.

        Raises:
            ValueError: rows with the policy's actions or of a wanted relevance, from an upsampler that takes no
                conditions.
        """
        factory = resolve_factory(self.upsampler, resolve_device(self.upsampler_device))
        if self.policy_share > 0:
            return with_conditions(factory, "policy_share", "policy_share=0")
        if isinstance(self.guidance, Guidance) and self.guidance.by == "condition":
            return with_conditions(
                factory, "guidance by a condition", 'by="resampling" in the guidance', given_share=0.0
            )
        return factory


_PLACES = ("here", "process")
#: Names of the options, in order.
OPTIONS = tuple(field.name for field in fields(SyntheticOptions))


def split_keywords(owner: str, keywords: Mapping[str, Any], framework: Iterable[str] = ()) -> tuple[Any, Any]:
    """The keywords of a constructor: those of `SyntheticOptions`, and the framework's.

    Args:
        owner: the class, for the message.
        keywords: as the user gave them.
        framework: names that the framework's own class takes.

    Returns:
        ``(options, others)``, two dicts.

    Raises:
        TypeError: an unknown name, with a suggestion if it looks misspelt.
    """
    known = {*OPTIONS, *framework}
    for name in keywords:
        if name not in known:
            raise TypeError(
                f"{owner} does not know the keyword {name!r}.{suggestion(name, known)} "
                f"It takes {', '.join(OPTIONS)}, and the framework's own."
            )
    ours = {name: value for name, value in keywords.items() if name in OPTIONS}
    return ours, {name: value for name, value in keywords.items() if name not in OPTIONS}


def too_long_interval(retrain_every: int, store: str, argument: str) -> str:
    """What is wrong with an interval between refreshes of more rows than a store holds, whose size is `argument`."""
    return (
        f"retrain_every={retrain_every} is more than {store}: rows would be overwritten before a refresh could learn "
        f"them. Lower retrain_every or raise {argument}."
    )


def lists_options(function: Callable[P, R]) -> Callable[P, R]:
    """Show the options by name and default in a signature that takes them as ``**keywords``.

    The call itself is not changed; type checkers read the `TypedDict` instead.
    """
    shown = inspect.signature(function)
    *others, keywords = shown.parameters.values()
    options = inspect.signature(SyntheticOptions).parameters.values()
    function.__signature__ = shown.replace(parameters=[*others, *options, keywords])  # type: ignore[attr-defined]
    return function
