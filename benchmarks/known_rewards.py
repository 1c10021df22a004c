"""Do generated rewards belong to their rows? Pusher-v5 tells: its reward is a known function of the row.

    python benchmarks/known_rewards.py [--rows 3000] [--toy]

Most of it is a cost of squared actions. A random policy collects the rows; the last 4 % are held out. Printed and
written for the `cpu` preset with and without its regression of outcomes (`outcome_steps`): the correlation of the
generated reward with the one that the environment's rule gives for the generated row, the root of the mean squared
error in standard deviations of the real rewards, and the elements that the regression predicts.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from measuring import toy, write

from synther_buffers import DiffusionUpsampler, Transitions, TransitionSpec
from synther_buffers.upsampling.presets import resolve_config

#: Rows that are generated and judged.
_JUDGED = 5_000
#: Steps for which the random policy keeps an action.
_REPEATS = 3


def collect(num_rows: int) -> tuple[TransitionSpec, Transitions]:
    """Rows of a random policy."""
    env = gym.make("Pusher-v5")
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    rows: list[tuple[Any, ...]] = []
    for step in range(num_rows):
        if step % _REPEATS == 0:
            action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        rows.append((observation, action, np.float32(reward), following, terminated))
        observation = env.reset()[0] if terminated or truncated else following
    columns = (torch.from_numpy(np.array(column)) for column in zip(*rows, strict=True))
    return TransitionSpec.from_spaces(env.observation_space, env.action_space), Transitions(*columns)


def rule(rows: Transitions) -> torch.Tensor:
    """The environment's reward: distances after the step, and a tenth of the squared action."""
    tip, thing, goal = rows.next_observation.double()[:, 14:].split(3, dim=1)
    cost = 0.1 * rows.action.double().square().sum(1)
    return -(thing - goal).norm(dim=1) - 0.5 * (thing - tip).norm(dim=1) - cost


def judge(rows: Transitions, scale: float) -> dict[str, float]:
    """Correlation and error of the rewards."""
    reward, right = rows.reward.double(), rule(rows)
    return {
        "correlation": float(torch.corrcoef(torch.stack((reward, right)))[0, 1]),
        "error": float((reward - right).square().mean().sqrt()) / scale,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=3_000)
    parser.add_argument("--toy", action="store_true", help="few rows and steps, to see that it runs")
    parser.add_argument("--out", help="where to write the JSON (default: benchmarks/results/known_rewards.json)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    spec, rows = collect(200 if args.toy else args.rows)
    held_out = len(rows) * 24 // 25
    scale = float(rows.reward.double().std())
    results: dict[str, Any] = {"rows": len(rows), "real": judge(rows, scale)}
    default = resolve_config("cpu", torch.device("cpu"))
    if args.toy:
        default = toy(default)
    for name, config in (("generated", replace(default, outcome_steps=0)), ("default", default)):
        upsampler = DiffusionUpsampler(spec, config, "cpu", seed=0)
        report = upsampler.fit(rows[:held_out], held_out=rows[held_out:])
        results[name] = judge(upsampler.sample(_JUDGED), scale)
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in results[name].items()), report.predicted)
        results[name]["predicted"] = list(report.predicted)
    write("known_rewards", results, args.out)


if __name__ == "__main__":
    main()
