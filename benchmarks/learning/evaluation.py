"""What an agent is worth: the return of deterministic episodes, and what its critic believed of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .agents import Q_ROWS, Agent
from .tasks import Task

#: Of the first evaluation episode; the others count on. No training environment has these seeds.
FIRST_SEED = 10_000


@dataclass(frozen=True)
class Evaluation:
    """One look at the agent.

    Attributes:
        mean_return: undiscounted, over the episodes.
        value: mean of the smaller critic's value at states of the episodes.
        discounted_return: mean of what followed there, discounted; at a time limit the critic's value of the last
            step stands for the rest. That value, like every one of the critic's, holds the entropy bonus of the
            future; the rewards that followed do not.
    """

    mean_return: float
    value: float
    discounted_return: float

    @property
    def q_bias(self) -> float:
        """How much the critic promises beyond what came."""
        return self.value - self.discounted_return


def evaluate(agent: Agent, task: Task) -> Evaluation:
    """Play the task's evaluation episodes side by side, one forward pass for a step of all of them."""
    envs = [task.make() for _ in range(task.eval_episodes)]
    observation = np.stack([env.reset(seed=FIRST_SEED + index)[0] for index, env in enumerate(envs)])
    running = list(range(len(envs)))
    episodes: list[list[tuple[np.ndarray, np.ndarray, float]]] = [[] for _ in envs]
    terminated = [False] * len(envs)
    while running:
        action = agent.act(observation)
        for index in list(running):
            before = observation[index].copy()
            following, reward, terminated[index], truncated, _ = envs[index].step(action[index])
            episodes[index].append((before, agent.stored(action[index]), float(reward)))
            observation[index] = following
            if terminated[index] or truncated:
                running.remove(index)
    for env in envs:
        env.close()
    return summarize(agent, episodes, terminated, agent.gamma)


def summarize(
    agent: Agent,
    episodes: list[list[tuple[np.ndarray, np.ndarray, float]]],
    terminated: list[bool],
    gamma: float,
) -> Evaluation:
    """The figures of episodes of ``(observation, stored action, reward)``, and whether each ended in a terminal."""
    last = np.array([len(episode) for episode in episodes]).cumsum() - 1
    steps = [step for episode in episodes for step in episode]
    observations, actions = np.stack([step[0] for step in steps]), np.stack([step[1] for step in steps])
    # As many rows each time, so that nothing is compiled anew.
    ends = agent.values(observations[last], actions[last])
    returns = np.concatenate(
        [
            discounted([reward for _, _, reward in episode], gamma, None if ended else float(value))
            for episode, ended, value in zip(episodes, terminated, ends, strict=True)
        ]
    )
    picked = np.linspace(0, len(steps) - 1, Q_ROWS).astype(int)
    return Evaluation(
        float(np.mean([sum(reward for _, _, reward in episode) for episode in episodes])),
        float(agent.values(observations[picked], actions[picked]).mean()),
        float(returns[picked].mean()),
    )


def discounted(rewards: list[float], gamma: float, last_value: float | None) -> np.ndarray:
    """The discounted return from each step on, ``[n]``.

    Args:
        rewards: of the steps.
        gamma: discount per step.
        last_value: None where the last step was terminal; otherwise the value of the last step, which stands for its
            reward and all that would have come.
    """
    returns = np.array(rewards, np.float64)
    if last_value is not None:
        returns[-1] = last_value
    for step in range(len(returns) - 2, -1, -1):
        returns[step] += gamma * returns[step + 1]
    return returns
