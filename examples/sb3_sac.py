"""SAC with Stable-Baselines3 on a MuJoCo task, with or without synthetic transitions.

    python examples/sb3_sac.py --env HalfCheetah-v5 --steps 5000 --utd 10
    python examples/sb3_sac.py --env HalfCheetah-v5 --steps 5000 --utd 10 --no-synthetic

TensorBoard curves, the refresh log, the evaluations and a picture end up in --logdir.
"""

from __future__ import annotations

import argparse
import logging

import gymnasium as gym
from experiment import FIELDS, Record, parse_args, synther_arguments
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from synther_buffers.sb3 import SynthERBuffer, SynthERCallback


class RecordCallback(BaseCallback):
    """Evaluations and progress; the figures of the refreshes are `SynthERCallback`'s."""

    def __init__(self, args) -> None:
        super().__init__()
        self.record = Record(args, lambda obs: self.model.predict(obs, deterministic=True)[0], self._log)

    def _log(self, figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            self.logger.record(name, value)
        self.logger.dump(step)

    def _on_step(self) -> bool:
        self.record.step(self.num_timesteps)
        return True


def train(algorithm: type[OffPolicyAlgorithm], args: argparse.Namespace) -> None:
    """Train SAC with our buffer; sbx's has the same interface."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = algorithm(
        "MlpPolicy",
        Monitor(gym.make(args.env)),
        buffer_size=args.steps,
        replay_buffer_class=SynthERBuffer,  # the one change
        replay_buffer_kwargs=synther_arguments(args),
        learning_starts=args.learning_starts,
        train_freq=1,
        gradient_steps=args.utd,
        seed=args.seed,
        tensorboard_log=str(args.logdir),
    )
    callback = RecordCallback(args)
    model.learn(args.steps, callback=CallbackList([SynthERCallback(), callback]), log_interval=1)

    buffer = model.replay_buffer
    real = {name: getattr(buffer, f"{name}s")[: buffer.size(), 0] for name in FIELDS}
    callback.record.finish(buffer.synthetic, real)


if __name__ == "__main__":
    train(SAC, parse_args(__doc__.splitlines()[0], "runs/sb3_sac"))
