"""Puts the figures of each refresh into Stable-Baselines3's logger."""

from __future__ import annotations

import logging

from stable_baselines3.common.callbacks import BaseCallback

from ..replay import SyntheticReplay

logger = logging.getLogger(__name__)


class SynthERCallback(BaseCallback):
    """Records ``synther/...`` after each refresh: loss, seconds, rows and fidelity, as curves in TensorBoard.

    ``model.learn(100_000, callback=SynthERCallback())``. Stable-Baselines3 writes recorded values at its next log
    (`log_interval` episodes); of two refreshes in between the later one is seen.
    """

    def __init__(self, verbose: int = 0) -> None:
        super().__init__(verbose)
        self._num_recorded = 0

    def _replay(self) -> SyntheticReplay | None:
        # Looked up each time: loading a replay buffer replaces the object.
        return getattr(getattr(self.model, "replay_buffer", None), "synthetic", None)

    def _on_training_start(self) -> None:
        replay = self._replay()
        if replay is None:
            logger.warning(
                "SynthERCallback has nothing to record: the replay buffer is %s. Pass replay_buffer_class=SynthERBuffer.",
                type(getattr(self.model, "replay_buffer", None)).__name__,
            )
            return
        self._num_recorded = len(replay.reports)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        replay = self._replay()
        if replay is None or len(replay.reports) == self._num_recorded:
            return
        self._num_recorded = len(replay.reports)
        for name, value in replay.reports[-1].metrics().items():
            self.logger.record(f"synther/{name}", value)

    def _on_training_end(self) -> None:
        self._on_rollout_start()
