"""How true synthetic rows with the policy's actions are: against Pendulum's own equations, beside the ordinary rows.

    python benchmarks/policy_rows.py [--seeds 0 1] [--toy] [--out FILE]

SAC learns Pendulum-v1, whose reward and next angular velocity are known functions of observation and action. A refresh
learns the first 700 rows; the figures are root mean squared errors of the rows that serve at the end of the run.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from measuring import write
from stable_baselines3 import SAC
from synther_buffers.sb3 import SynthERBuffer, SynthERCallback

from synther_buffers import Transitions

_STEPS, _REFRESH_AT = 1_000, 700


def errors(rows: Transitions) -> dict[str, float]:
    """Root mean squared errors of reward and angular velocity, and the standard deviations of what is right."""
    observation = rows.observation
    assert isinstance(observation, torch.Tensor)
    angle, speed = torch.atan2(observation[:, 1], observation[:, 0]), observation[:, 2]
    torque = 2.0 * rows.action[:, 0]
    reward = -(angle.square() + 0.1 * speed.square() + 0.001 * torque.square())
    # gymnasium's Pendulum: g = 10, m = l = 1, dt = 0.05.
    following = (speed + (15.0 * torch.sin(angle) + 3.0 * torque) * 0.05).clamp(-8.0, 8.0)
    assert isinstance(rows.next_observation, torch.Tensor)
    return {
        "reward": float((rows.reward - reward).square().mean().sqrt()),
        "reward_deviation": float(reward.std()),
        "speed": float((rows.next_observation[:, 2] - following).square().mean().sqrt()),
        "speed_change_deviation": float((following - speed).std()),
    }


def measure(steps: int, refresh_at: int, seed: int) -> dict[str, Any]:
    """The errors of both kinds of rows."""
    model = SAC(
        "MlpPolicy",
        "Pendulum-v1",
        learning_starts=100,
        gradient_steps=2,
        policy_kwargs={"net_arch": [64, 64]},
        seed=seed,
        device="cpu",
        replay_buffer_class=SynthERBuffer,
        replay_buffer_kwargs={
            "retrain_every": refresh_at,
            "redraw_every": 200,
            "policy_share": 0.5,
            "seed": seed,
            "progress_bar": False,
        },
    )
    model.learn(steps, callback=SynthERCallback())
    rows = model.replay_buffer.synthetic.rows
    others = len(rows) - min(2_048, len(rows) // 2)
    return {"seed": seed, "policy": errors(rows[others:]), "ordinary": errors(rows[:others])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=(0, 1))
    parser.add_argument("--toy", action="store_true", help="one short run, to see that it runs")
    parser.add_argument("--out", help="where to write the JSON (default: benchmarks/results/policy_rows.json)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for seed in (0,) if args.toy else args.seeds:
        runs.append(measure(250, 120, seed) if args.toy else measure(_STEPS, _REFRESH_AT, seed))
        print(json.dumps(runs[-1]), flush=True)
    write("policy_rows", {"runs": runs}, args.out)


if __name__ == "__main__":
    main()
