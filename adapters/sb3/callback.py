"""Puts the figures of each refresh into Stable-Baselines3's logger."""

from __future__ import annotations

import logging
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from ..guidance.td_error import TDError
from ..replay.reports import RefreshReport
from ..replay.synthetic_replay import SyntheticReplay
from .mixing import SynthERMixin
from .of_algorithm import may_replace
from .policy import policy_of
from .td_error import td_error_of

logger = logging.getLogger(__name__)


class SynthERCallback(BaseCallback):
    """Records ``synther/...`` after each refresh: loss, seconds, rows and fidelity, as curves in TensorBoard.

    ``model.learn(100_000, callback=SynthERCallback())``. It writes the logger right after each refresh, as SB3's
    `EvalCallback` does after an evaluation, so that every refresh is logged. It also warns at the start of a run that
    is too short for a refresh, and binds the algorithm's policy for `policy_share` and its critic's error for the
    guidance `TDError`, unless one of the user's is bound.
    """

    def __init__(self, verbose: int = 0) -> None:
        super().__init__(verbose)
        self._recorded: RefreshReport | None = None

    def _replay(self) -> SyntheticReplay | None:
        # Looked up each time: loading a replay buffer replaces the object.
        return getattr(getattr(self.model, "replay_buffer", None), "synthetic", None)

    def _on_training_start(self) -> None:
        replay = self._replay()
        if replay is None:
            self._warn_of_a_plain_buffer()
            return
        self._recorded = _latest(replay)
        self._warn_of_loaded_options(replay)
        if may_replace(replay.policy, self.model):
            replay.bind_policy(policy_of(self.model))
        self._bind_td_error(replay)
        replay.update_size = getattr(self.model, "batch_size", None)
        # Rows that were written without `add` are not counted before the first batch.
        buffer: Any = self.model.replay_buffer  # type: ignore[attr-defined]
        total = max(replay.num_observed, buffer.size() * buffer.n_envs)
        total += self.model._total_timesteps - self.model.num_timesteps
        first, served = replay.start_after, replay.first_served
        if replay.synthetic_fraction > 0 and replay.num_refreshes == 0 and total < served:
            later = served > first  # it runs elsewhere
            logger.warning(
                "This run ends after %d transitions, before the first refresh at start_after=%d%s: it will see no "
                "synthetic rows. Lower start_after%s, or run longer.",
                total,
                first,
                f" serves, from {served} on" if later else "",
                ", retrain_every or refresh_lag" if later else " or retrain_every",
            )

    def _bind_td_error(self, replay: SyntheticReplay) -> None:
        if isinstance(replay.options.guidance, TDError) and may_replace(replay.td_error, self.model):
            try:
                replay.bind_td_error(td_error_of(self.model))
            except TypeError as error:
                logger.warning("No TD error is bound: %s", error)

    def _warn_of_loaded_options(self, replay: SyntheticReplay) -> None:
        """`load_replay_buffer` puts the file's buffer in place of the model's, with the options it was saved with."""
        asked = getattr(self.model, "replay_buffer_kwargs", None) or {}
        differ = [
            f"{name}={getattr(replay.options, name)!r} (not {value!r})"
            for name, value in asked.items()
            if isinstance(value, int | float) and getattr(replay.options, name, value) != value
        ]
        if differ:
            logger.warning(
                "The replay buffer has other options than replay_buffer_kwargs asks for: %s. load_replay_buffer keeps "
                'those of the file (docs/sb3.md, "Saving and restoring").',
                ", ".join(differ),
            )

    def _warn_of_a_plain_buffer(self) -> None:
        found = type(getattr(self.model, "replay_buffer", None)).__name__
        wanted = getattr(self.model, "replay_buffer_class", None)
        if isinstance(wanted, type) and issubclass(wanted, SynthERMixin):
            logger.warning(
                "No batch will have synthetic rows: the model was made with replay_buffer_class=%s, but its replay "
                "buffer is a %s. load_replay_buffer has put it there, from a file that a plain buffer was saved in. "
                "Leave the loading out, load a file that %s saved, or copy the plain buffer's arrays into the model's "
                'own buffer (docs/sb3.md, "Saving and restoring").',
                wanted.__name__, found, wanted.__name__,
            )  # fmt: skip
            return
        logger.warning(
            "SynthERCallback has nothing to record: the replay buffer is %s. Pass replay_buffer_class=SynthERBuffer.",
            found,
        )

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        latest = _latest(self._replay())
        if latest is None or latest is self._recorded:
            return
        self._recorded = latest
        for name, value in latest.metrics("synther/").items():
            self.logger.record(name, value)
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    def _on_training_end(self) -> None:
        self._on_rollout_start()


def _latest(replay: SyntheticReplay | None) -> RefreshReport | None:
    return replay.reports[-1] if replay is not None and replay.reports else None
