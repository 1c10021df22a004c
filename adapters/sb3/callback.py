"""Puts the figures of each refresh into Stable-Baselines3's logger."""

from __future__ import annotations

import logging

from stable_baselines3.common.callbacks import BaseCallback

from ..replay import RefreshReport, SyntheticReplay

logger = logging.getLogger(__name__)


class SynthERCallback(BaseCallback):
    """Records ``synther/...`` after each refresh: loss, seconds, rows and fidelity, as curves in TensorBoard.

    ``model.learn(100_000, callback=SynthERCallback())``. Stable-Baselines3 writes recorded values at its next log
    (`log_interval` episodes); of two refreshes in between the later one is seen.
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
            logger.warning(
                "SynthERCallback has nothing to record: the replay buffer is %s. "
                "Pass replay_buffer_class=SynthERBuffer.",
                type(getattr(self.model, "replay_buffer", None)).__name__,
            )
            return
        self._recorded = _latest(replay)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        latest = _latest(self._replay())
        if latest is None or latest is self._recorded:
            return
        self._recorded = latest
        for name, value in latest.metrics().items():
            self.logger.record(f"synther/{name}", value)

    def _on_training_end(self) -> None:
        self._on_rollout_start()


def _latest(replay: SyntheticReplay | None) -> RefreshReport | None:
    return replay.reports[-1] if replay is not None and replay.reports else None
