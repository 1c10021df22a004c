"""Saving and loading a `SyntheticReplay`: plain data for the frameworks' own files, and pickles."""

from __future__ import annotations

import logging
import pickle
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any, cast

import cloudpickle
import torch

from ..guidance.td_error import RecordedErrors
from ..transitions import TransitionSpec
from ..upsampling.checkpoint import config_from_file, weight_settings
from ..upsampling.factory import DiffusionFactory, make_upsampler
from ..upsampling.presets import UpsamplerConfig, resolve_device
from ..upsampling.protocol import Upsampler, UpsamplerFactory
from .holdout import HoldOut
from .migration import STATE_VERSION, migrate_pickle
from .options import SyntheticOptions
from .pending import PendingRefresh
from .reports import RefreshReport
from .schedule import RefreshSchedule
from .synthetic_set import SyntheticSet

logger = logging.getLogger(__name__)


class SavedReplay:
    """The part of `SyntheticReplay` that saves and loads it. The attributes are explained there."""

    options: SyntheticOptions
    spec: TransitionSpec | None
    reports: list[RefreshReport]
    num_synthetic: int
    _infers_spec: bool
    _factory: UpsamplerFactory
    _upsampler: Upsampler | None
    _state: dict[str, Any] | None
    _schedule: RefreshSchedule
    _set: SyntheticSet
    _hold_out: HoldOut
    _pending: PendingRefresh | None
    _share: float | None
    _num_batches: int
    _num_told: int
    _next_redraw: int
    _recorded: RecordedErrors
    _warned: set[str]
    _too_small: str | None
    _capacity: int | None
    _update_advice: str

    def reset(self) -> None:
        """Forget everything: counters, held-out rows, the synthetic set and the model."""
        raise NotImplementedError

    def _start_afresh(self, device: torch.device) -> None:
        raise NotImplementedError

    def _drop_pending(self) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The synthetic set, the model, counters and reports: CPU tensors and plain data, without the options."""
        return {
            "version": STATE_VERSION,
            "spec": None if self.spec is None else self.spec.to_dict(),
            "num_observed": self._schedule.num_observed,
            "next_refresh": self._schedule.next_refresh,
            "num_batches": self._num_batches,
            "hold_out": self._hold_out.state_dict(),
            "warned": sorted(self._warned),
            "reports": [report.to_dict() for report in self.reports],
            "set": self._set.state_dict(),
            "upsampler": self._state,
            "config": self._factory.config.to_dict() if isinstance(self._factory, DiffusionFactory) else None,
            "pending": None if self._pending is None else self._pending.state_dict(),
            "next_redraw": self._next_redraw,
            "td_errors": torch.from_numpy(self._recorded.errors.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        If it cannot be read, because it is damaged or of an unknown version, a warning says so; the model and the
        synthetic set are lost, and the next refresh trains from scratch.
        """
        try:
            if state.get("version") != STATE_VERSION:
                raise ValueError(f"it has version {state.get('version')!r}; this library reads version {STATE_VERSION}")
            self._restore(state)
        except Exception as error:  # a damaged state or a user's own upsampler can raise any error
            logger.warning(
                "The saved synthetic rows and their model cannot be read (%s). The real rows are all there; the next "
                "refresh trains anew.",
                error,
            )
            observed = self._schedule.num_observed
            self.reset()
            self._schedule.num_observed = observed

    def _restore(self, state: dict[str, Any]) -> None:
        spec = None if state["spec"] is None else TransitionSpec.from_dict(state["spec"])
        if not self._infers_spec and spec != self.spec:
            raise ValueError(f"it was saved for other transitions: {spec}, not {self.spec}")
        factory, model, waiting = self._factory, state["upsampler"], state.get("pending")
        if model is not None or waiting is not None:
            saved = None if state["config"] is None else config_from_file(state["config"])
            present = factory.config if isinstance(factory, DiffusionFactory) else None
            # The name of a preset may stand for another configuration here; the model goes on with its own.
            renamed = saved and present and isinstance(self.options.upsampler, str) and _shape(saved) != _shape(present)
            if saved and present and renamed:
                present = replace(saved, conditioning=present.conditioning)
            if why := why_unfit(saved, present):
                logger.warning(
                    "The saved model %s. The synthetic rows are kept, and the next refresh trains anew.", why
                )
                model = waiting = None
            elif saved and present:
                if renamed:
                    logger.warning(
                        "The saved model has another configuration than %r stands for here; it goes on with its own "
                        "(%d training steps, width %d).",
                        self.options.upsampler, saved.train_steps, saved.network.width,
                    )  # fmt: skip
                # A model that knows conditions which nobody asks for, because a guidance could not be read, is as good.
                factory = DiffusionFactory(replace(present, conditioning=present.conditioning or saved.conditioning))
        seed = self.options.seed or 0
        hold_out = HoldOut.from_state_dict(state["hold_out"])
        reports = [RefreshReport.from_dict(report) for report in state["reports"]]
        served = SyntheticSet(self._set.device, (seed + state["num_batches"]) % 2**64)
        served.load_state_dict(state["set"])
        served.policy_share = self.options.policy_share
        upsampler = None
        if spec is not None and model is not None:
            upsampler = make_upsampler(
                factory,
                spec,
                device=self.options.upsampler_device,
                seed=seed,
                progress_bar=self.options.progress_bar,
                state=model,
            )
        pending = None
        if waiting is not None and self.options.synthetic_fraction > 0:
            pending = PendingRefresh.from_state(waiting, factory, str(self.options.upsampler_device))
        self._drop_pending()
        self._pending = pending
        self.spec, self._factory, self._upsampler, self._state = spec, factory, upsampler, model
        self._set, self._hold_out, self.reports = served, hold_out, reports
        self._num_told, self._share = len(reports), None
        schedule = self._schedule
        schedule.num_observed = observed = state["num_observed"]
        # Not later than the present options say, which may be other ones.
        schedule.next_refresh = min(state["next_refresh"], max(schedule.first, observed + schedule.interval(observed)))
        self._num_batches, self._warned = state["num_batches"], set(state["warned"])
        # Older files have neither.
        self._next_redraw = state.get("next_redraw", 0)
        errors = state.get("td_errors")
        self._recorded = RecordedErrors(None if errors is None else errors.numpy().copy())

    def __getstate__(self) -> dict[str, Any]:
        """Options and `state_dict`, so that a pickle loads on a machine without this one's devices."""
        options = _without_executor(self.options)
        own = {name: getattr(options, name) for name in _LOST_WITHOUT}
        if isinstance(self._factory, DiffusionFactory):
            own["upsampler"] = None  # plain data, which stay in the options
        if lost := {name: _WITHOUT[name] for name, value in own.items() if value is not None}:
            options = replace(options, **lost)
        return {
            "options": options,
            **{name: _pickled_function(name, value) for name, value in own.items()},
            "spec": self.spec,
            "infers_spec": self._infers_spec,
            "num_synthetic": self.num_synthetic,
            "device": str(self._set.device),
            "too_small": self._too_small,
            "capacity": self._capacity,
            "update_advice": self._update_advice,
            "state": self.state_dict(),
        }

    def __setstate__(self, pickled: dict[str, Any]) -> None:
        pickled = migrate_pickle(pickled)
        device, options = pickled["device"], pickled["options"]
        if not _usable(options.upsampler_device):
            logger.warning("The upsampler's device %s is not here; it goes on on 'auto'.", options.upsampler_device)
            options = replace(options, upsampler_device="auto")
        read = {name: _read_function(name, pickled[name]) for name in _LOST_WITHOUT if pickled.get(name) is not None}
        if read := {name: value for name, value in read.items() if value is not None}:
            options = replace(options, **read)
        self.options, self.num_synthetic = options, pickled["num_synthetic"]
        self.spec, self._infers_spec = pickled["spec"], pickled["infers_spec"]
        self._too_small, self._capacity = pickled.get("too_small"), pickled.get("capacity")
        self._update_advice = pickled.get("update_advice", "")
        self._factory = options.factory()
        self._start_afresh(torch.device(device if _usable(device) else "cpu"))
        self.load_state_dict(pickled["state"])


#: Options that refer to a user's own functions and classes, and what is loaded does without them.
_LOST_WITHOUT = {
    "share_schedule": "batches have the full share",
    "guidance": "synthetic rows are like the data",
    "upsampler": "the next refresh trains the default model",
}
#: Their values there.
_WITHOUT: dict[str, Any] = {"share_schedule": None, "guidance": None, "upsampler": "auto"}


def _pickled_function(name: str, value: Any) -> bytes | None:
    """An option as a pickle of its own, so that one that cannot be read costs nothing else.

    cloudpickle has what is defined in a script by value.
    """
    if value is None:
        return None
    try:
        return cast(bytes, cloudpickle.dumps(value))
    except Exception as error:  # of whatever the function refers to
        logger.warning("%s cannot be saved (%s); in what is loaded, %s.", name, error, _LOST_WITHOUT[name])
        return None


def _read_function(name: str, pickled: bytes) -> Any:
    try:
        return pickle.loads(pickled)
    except Exception as error:
        logger.warning("The saved %s cannot be read (%s); %s.", name, error, _LOST_WITHOUT[name])
        return None


def _without_executor(options: SyntheticOptions) -> SyntheticOptions:
    """The options, with refreshes here if the executor cannot be pickled."""
    if isinstance(options.refresh_on, Executor):
        try:
            pickle.dumps(options.refresh_on)
        except Exception:  # pools hold locks and threads
            logger.warning(
                "The executor of refresh_on (a %s) cannot be saved; what is loaded refreshes in the agent's process.",
                type(options.refresh_on).__name__,
            )
            return replace(options, refresh_on="here", refresh_lag=None)
    return options


def why_unfit(saved: UpsamplerConfig | None, present: UpsamplerConfig | None) -> str:
    """Why a saved model cannot go on with the present configuration, as the end of a sentence; empty if it can.

    Args:
        saved: the model's configuration, None for an upsampler of a user's own.
        present: likewise, of the options.
    """
    if saved is None or present is None:
        # Whether a state is of another upsampler of the user's own shows where it is loaded.
        return "" if saved is present else "is not of the upsampler that the present settings ask for"
    learned, asked = saved.conditioning, present.conditioning
    # A guidance alone teaches relevance, and no given observations and actions.
    if asked is not None and (learned is None or learned.given_share == 0 < asked.given_share):
        return "learned no conditions, which the present settings ask for"
    return "" if _shape(saved) == _shape(present) else "has another configuration than the present settings"


def _shape(config: UpsamplerConfig) -> tuple[Any, ...]:
    """The settings that a model's weights depend on besides conditions; those of training and sampling may differ."""
    return config.network, weight_settings(config)


def _usable(device: str | torch.device) -> bool:
    try:
        resolve_device(device)
    except ValueError:
        return False
    return True
