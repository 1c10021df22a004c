"""One agent, three tasks, one of them with a tenth of the data: synthetic rows that give the rare task its share.

    python examples/multi_task.py --synthetic rarity
    python examples/multi_task.py --synthetic plain
    python examples/multi_task.py --synthetic none

The tasks are HalfCheetah-v5 that runs forwards, backwards, and forwards under another gravity; the observation says
which. SAC of sbx learns all three. Of 20 episodes nine belong to each of the first two tasks and two to the third.
With ``rarity`` each task has a third of the synthetic rows, with ``plain`` they are like the data. The last line is
JSON: the mean return of each task over five episodes, and the tasks' shares of the synthetic rows.
"""

from __future__ import annotations

import argparse
import json
import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import gymnasium as gym
import numpy as np
from sbx import SAC
from synther_buffers.sb3 import SynthERBuffer

from synther_buffers import Rarity

TASKS = ("forwards", "backwards", "heavy")
#: Episodes of each task out of 20.
WEIGHTS = (9, 9, 2)
EPISODE = 200


def make_task(number: int) -> gym.Env:
    """One of the three, with changed parameters of Gymnasium's environment."""
    env = gym.make(
        "HalfCheetah-v5", max_episode_steps=EPISODE, forward_reward_weight=-1.0 if TASKS[number] == "backwards" else 1.0
    )
    if TASKS[number] == "heavy":
        env.unwrapped.model.opt.gravity[2] *= 1.5
    return env


class MultiTask(gym.Env):
    """An environment that is another task in each episode, with the task as three more elements of the observation."""

    def __init__(self) -> None:
        self.envs = [make_task(number) for number in range(len(TASKS))]
        self.episodes = np.zeros(len(TASKS))
        self.now = 0
        inner = self.envs[0].observation_space
        self.action_space = self.envs[0].action_space
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (inner.shape[0] + len(TASKS),), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Begin the episode of the task that lags most behind its share."""
        super().reset(seed=seed)
        self.now = int(np.argmin((self.episodes + 0.5) / np.array(WEIGHTS)))
        self.episodes[self.now] += 1
        observation, info = self.envs[self.now].reset(seed=int(self.np_random.integers(2**31)))
        return with_task(observation, self.now), info

    def step(self, action):
        """One step of the present task."""
        observation, *rest = self.envs[self.now].step(action)
        return with_task(observation, self.now), *rest


def with_task(observation: np.ndarray, number: int) -> np.ndarray:
    """The observation and which task it is of."""
    return np.concatenate((observation, np.eye(len(TASKS))[number])).astype(np.float32)


def evaluate(model: SAC, number: int, episodes: int) -> float:
    """Mean return of the deterministic policy."""
    env, total = make_task(number), 0.0
    for seed in range(episodes):
        observation, done = env.reset(seed=1_000 + seed)[0], False
        while not done:
            action, _ = model.predict(with_task(observation, number), deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, done = total + float(reward), terminated or truncated
    return total / episodes


def main() -> None:
    """Train and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--synthetic", choices=["none", "plain", "rarity"], default="rarity")
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--utd", type=int, default=10)
    parser.add_argument("--retrain-every", type=int, default=1_000)
    parser.add_argument(
        "--train-steps", type=int, help="of the upsampler, for 10,000 rows and more, in place of the preset's"
    )
    parser.add_argument("--episodes", type=int, default=5, help="of each task at the end")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    env = MultiTask()
    size = env.observation_space.shape[0]
    tasks = [f"observation[{size - len(TASKS) + number}]" for number in range(len(TASKS))]
    model = SAC(
        "MlpPolicy",
        env,
        learning_starts=min(1_000, args.steps // 3),
        gradient_steps=args.utd,
        buffer_size=args.steps,
        seed=args.seed,
        replay_buffer_class=SynthERBuffer,
        replay_buffer_kwargs={
            "retrain_every": args.retrain_every,
            "upsampler": {"train_steps": args.train_steps, "outcome_steps": args.train_steps}
            if args.train_steps
            else "auto",
            "synthetic_fraction": 0.0 if args.synthetic == "none" else 0.5,
            "guidance": Rarity(of=tasks) if args.synthetic == "rarity" else None,
        },
    )
    model.learn(args.steps)
    rows = model.replay_buffer.synthetic.rows
    shares = None if rows is None else rows.observation[:, -len(TASKS) :].mean(0).tolist()
    returns = {task: evaluate(model, number, args.episodes) for number, task in enumerate(TASKS)}
    print(json.dumps({"synthetic": args.synthetic, "seed": args.seed, "returns": returns, "shares": shares}))


if __name__ == "__main__":
    main()
