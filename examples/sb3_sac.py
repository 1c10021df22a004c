"""SAC with Stable-Baselines3 on a MuJoCo task, with or without synthetic transitions.

    python examples/sb3_sac.py --env HalfCheetah-v5 --steps 5000 --utd 10
    python examples/sb3_sac.py --env HalfCheetah-v5 --steps 5000 --utd 10 --no-synthetic

Evaluations, TensorBoard curves, the refresh log and some real and synthetic rows end up in --logdir.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.monitor import Monitor
from synther_buffers.sb3 import SynthERBuffer, SynthERCallback

from synther_buffers.config import resolve_config, resolve_device


class ProgressLines(BaseCallback):
    """Prints where the run is and how long it will still take, a line every so many steps."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self.learning_since: tuple[float, int] | None = None

    def _on_step(self) -> bool:
        total = self.model._total_timesteps
        if self.learning_since is None and self.num_timesteps > self.model.learning_starts:
            self.learning_since = (time.perf_counter(), self.num_timesteps)
        if self.num_timesteps % self.every == 0 and self.learning_since is not None:
            start, first = self.learning_since
            done = max(self.num_timesteps - first, 1)
            left = (time.perf_counter() - start) / done * (total - self.num_timesteps)
            print(f"step {self.num_timesteps:,} of {total:,}, about {left / 60:.1f} min left", flush=True)
        return True


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--steps", type=int, default=5_000, help="environment steps")
    parser.add_argument("--utd", type=int, default=10, help="gradient steps per environment step")
    parser.add_argument("--no-synthetic", action="store_true", help="plain replay at the same UTD")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logdir", type=Path, default=Path("runs/sb3_sac"))
    parser.add_argument("--retrain-every", type=int, default=1_000, help="environment steps between refreshes")
    parser.add_argument("--num-synthetic", type=int, default=50_000)
    parser.add_argument("--train-steps", type=int, help="the upsampler's gradient steps (default: the preset's)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.logdir.mkdir(parents=True, exist_ok=True)

    upsampler = "auto"
    if args.train_steps:
        preset = resolve_config("auto", resolve_device("auto"))
        upsampler = replace(preset, train_steps=args.train_steps, warm_steps=max(2 * args.train_steps // 3, 1))
    # The one change: the buffer's class. At fraction 0 it is Stable-Baselines3's own, batch for batch.
    model = SAC(
        "MlpPolicy",
        Monitor(gym.make(args.env)),
        replay_buffer_class=SynthERBuffer,
        replay_buffer_kwargs={
            "upsampler": upsampler,
            "retrain_every": args.retrain_every,
            "num_synthetic": args.num_synthetic,
            "synthetic_fraction": 0.0 if args.no_synthetic else 0.5,
            "refresh_log": args.logdir / "refreshes.jsonl",
        },
        learning_starts=min(1_000, args.steps // 3),
        train_freq=1,
        gradient_steps=args.utd,
        seed=args.seed,
        tensorboard_log=str(args.logdir),
    )
    evaluation = EvalCallback(
        Monitor(gym.make(args.env)),
        eval_freq=max(args.steps // 10, 1),
        n_eval_episodes=3,
        log_path=str(args.logdir),
        verbose=0,
    )
    model.learn(
        args.steps,
        callback=CallbackList([SynthERCallback(), evaluation, ProgressLines(max(args.steps // 20, 1))]),
        log_interval=1,
    )

    synthetic, buffer = model.replay_buffer.synthetic, model.replay_buffer
    if synthetic.rows is not None:
        size = buffer.size()
        real = np.random.default_rng(0).integers(size, size=5_000)
        drawn = synthetic.sample(5_000).to("cpu")
        np.savez(
            args.logdir / "marginals.npz",
            **{f"real_{name}": getattr(buffer, stored)[:size, 0][real] for name, stored in FIELDS.items()},
            **{f"synthetic_{name}": getattr(drawn, name).numpy() for name in FIELDS},
        )
    print(f"final evaluation: {np.load(args.logdir / 'evaluations.npz')['results'][-1].mean():.0f}", flush=True)


#: Name of a field in a transition, and of the buffer's array that holds it.
FIELDS = {
    "observation": "observations",
    "action": "actions",
    "reward": "rewards",
    "next_observation": "next_observations",
}

if __name__ == "__main__":
    main()
