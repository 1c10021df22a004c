"""Collect replay data with a SAC agent, for offline upsampling and for the benchmarks.

    python examples/collect.py --env Walker2d-v5 --steps 50000
    python examples/collect.py --env Walker2d-v5 --until-return 2000

The first keeps the replay of a fixed number of steps. The second stops at the first evaluation whose mean return is
above the given one, and keeps everything up to there: a "medium-replay" dataset, from random to half-way good. Either
way every row the agent has seen is in the file, in order, with D4RL's names: observations, actions, rewards,
next_observations, terminals, timeouts.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor


class StopAtReturn(BaseCallback):
    """Evaluates every so many steps, says how far the run is, and ends it above a return."""

    def __init__(self, env: gym.Env, every: int, episodes: int, until: float | None) -> None:
        super().__init__()
        self.env, self.every, self.episodes, self.until = env, every, episodes, until
        self.history: list[tuple[int, float]] = []
        self.start = time.perf_counter()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every:
            return True
        returns, _ = evaluate_policy(self.model, self.env, self.episodes, return_episode_rewards=True)
        self.history.append((self.num_timesteps, float(np.mean(returns))))
        minutes = (time.perf_counter() - self.start) / 60
        print(f"step {self.num_timesteps:,}: return {np.mean(returns):.0f}, {minutes:.1f} min", flush=True)
        return self.until is None or np.mean(returns) < self.until


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
    stop = StopAtReturn(Monitor(gym.make(args.env)), args.eval_every, 5, args.until_return)
    model.learn(args.steps, callback=stop)

    buffer = model.replay_buffer
    size = buffer.size()
    timeouts = buffer.timeouts[:size, 0] > 0
    about = {
        "env": args.env,
        "seed": args.seed,
        "steps": size,
        "until_return": args.until_return,
        "evaluations": stop.history,
        "minutes": round((time.perf_counter() - stop.start) / 60, 1),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        observations=buffer.observations[:size, 0],
        # SB3 stores actions scaled to [-1, 1]; the file has the environment's.
        actions=model.policy.unscale_action(buffer.actions[:size, 0]),
        rewards=buffer.rewards[:size, 0],
        next_observations=buffer.next_observations[:size, 0],
        terminals=(buffer.dones[:size, 0] > 0) & ~timeouts,
        timeouts=timeouts,
        about=json.dumps(about),
    )
    print(f"{size:,} rows in {path}; {about['minutes']} minutes")


if __name__ == "__main__":
    main()
