"""Collect replay data with a SAC agent, for offline upsampling and for the benchmarks.

    python examples/collect.py --env Walker2d-v5 --steps 50000
    python examples/collect.py --env Walker2d-v5 --steps 150000 --until-return 1000

The first keeps the replay of a fixed number of steps. The second stops at the first evaluation whose mean return is
above the given one, and keeps everything up to there: a "medium-replay" dataset, from random to half-way good. Either
way every row the agent has seen is in the file, in order, with D4RL's names: observations, actions, rewards,
next_observations, terminals, timeouts. The file is written at every evaluation, so that a run that is broken off leaves
what it had.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor


class StopAtReturn(BaseCallback):
    """Evaluates every so many steps, keeps the replay, says how far the run is, and ends it above a return.

    Args:
        env: to evaluate in.
        every: steps between evaluations.
        episodes: of an evaluation.
        until: mean return that ends the run; None for none.
        path: of the file that keeps the replay.
        about: what the file says of itself.
    """

    def __init__(
        self, env: gym.Env, every: int, episodes: int, until: float | None, path: Path, about: dict[str, Any]
    ) -> None:
        super().__init__()
        self.env, self.every, self.episodes, self.until = env, every, episodes, until
        self.path, self.about = path, about
        self.history: list[tuple[int, float]] = []
        self.start = time.perf_counter()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every:
            return True
        returns, _ = evaluate_policy(self.model, self.env, self.episodes, return_episode_rewards=True)
        self.history.append((self.num_timesteps, float(np.mean(returns))))
        reached = self.until is not None and np.mean(returns) >= self.until
        # This step's transition is stored after this call; a run that ends here keeps all up to the step before.
        self.save()
        print(f"step {self.num_timesteps:,}: return {np.mean(returns):.0f}, {self.minutes:.1f} min", flush=True)
        return not reached

    @property
    def minutes(self) -> float:
        return (time.perf_counter() - self.start) / 60

    def save(self) -> int:
        """Write what the buffer holds; the number of its rows."""
        model = self.model
        assert isinstance(model, SAC)
        assert model.replay_buffer is not None
        buffer = model.replay_buffer
        size = buffer.size()
        timeouts = buffer.timeouts[:size, 0] > 0
        about = {**self.about, "steps": size, "evaluations": self.history, "minutes": round(self.minutes, 1)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f"{self.path.stem}.part.npz")
        np.savez(
            unfinished,
            observations=buffer.observations[:size, 0],
            # SB3 stores actions scaled to [-1, 1]; the file has the environment's.
            actions=model.policy.unscale_action(buffer.actions[:size, 0]),
            rewards=buffer.rewards[:size, 0],
            next_observations=buffer.next_observations[:size, 0],
            terminals=(buffer.dones[:size, 0] > 0) & ~timeouts,
            timeouts=timeouts,
            about=json.dumps(about),
        )
        unfinished.replace(self.path)
        return size


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="Walker2d-v5")
    parser.add_argument("--steps", type=int, default=50_000, help="environment steps, at most, with --until-return")
    parser.add_argument("--until-return", type=float, help="stop at the first evaluation above it")
    parser.add_argument("--eval-every", type=int, default=5_000, help="steps between evaluations of 5 episodes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; one is fastest for nets of this size")
    parser.add_argument("--out", type=Path, help="default: data/ENV-STEPS-sSEED.npz")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    what = "medium-replay" if args.until_return is not None else args.steps
    path = args.out or Path("data") / f"{args.env}-{what}-s{args.seed}.npz"
    model = SAC("MlpPolicy", Monitor(gym.make(args.env)), buffer_size=args.steps, seed=args.seed)
    about = {"env": args.env, "seed": args.seed, "until_return": args.until_return}
    stop = StopAtReturn(Monitor(gym.make(args.env)), args.eval_every, 5, args.until_return, path, about)
    model.learn(args.steps, callback=stop)
    print(f"{stop.save():,} rows in {path}; {stop.minutes:.1f} minutes")


if __name__ == "__main__":
    main()
