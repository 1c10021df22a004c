"""Do synthetic rows keep structure across columns? Sentinels, rare penalties, unit quaternions and one-hot tasks.

    python benchmarks/joint_structure.py [--rows 20000] [--preset auto] [--seeds 1] [--toy]

Each data set holds one kind of structure that is known exactly, so that a synthetic row can be checked:

* ``lidar``: a distance in [0, 1] that is 999 where another column is above 0.95;
* ``penalty``: a reward in [-0.1, 0.1] that is -1e6 where an observation is above its 99.7 % quantile;
* ``quaternion``: four columns uniform on the unit sphere, measured as decoded and without restoring the norm;
* ``task``: a float one-hot of five columns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from measuring import machine, toy, write

from synther_buffers import DiffusionUpsampler, UpsamplerConfig
from synther_buffers.transitions import Transitions, TransitionSpec
from synther_buffers.upsampling.presets import resolve_config, resolve_device

SPEC = TransitionSpec.from_spaces(spaces.Box(-np.inf, np.inf, (6,)), spaces.Box(-1.0, 1.0, (2,)))


def rows_of(state: np.ndarray, after: np.ndarray, reward: np.ndarray, rng: np.random.Generator) -> Transitions:
    """Rows that never end, with random actions."""
    rows = SPEC.empty(len(state))
    rows.observation.copy_(torch.as_tensor(state))
    rows.next_observation.copy_(torch.as_tensor(after))
    rows.action.copy_(torch.as_tensor(rng.uniform(-1.0, 1.0, (len(state), 2))))
    rows.reward.copy_(torch.as_tensor(reward))
    rows.terminated.zero_()
    return rows


def walk(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The next state: a small step."""
    return state + 0.05 * rng.normal(size=state.shape)


def lidar(num_rows: int, rng: np.random.Generator) -> Transitions:
    state = rng.random((num_rows, 6))
    after = np.clip(walk(state, rng), 0.0, 1.0)
    for value in (state, after):
        value[:, 1] = np.where(value[:, 0] > 0.95, 999.0, value[:, 1])
    return rows_of(state, after, rng.normal(size=num_rows), rng)


def penalty(num_rows: int, rng: np.random.Generator) -> Transitions:
    state = rng.normal(size=(num_rows, 6))
    reward = np.where(state[:, 0] > 2.748, -1e6, 0.1 * np.tanh(state[:, 1]))  # 0.3 % of a normal distribution
    return rows_of(state, walk(state, rng), reward, rng)


def quaternion(num_rows: int, rng: np.random.Generator) -> Transitions:
    state = rng.normal(size=(num_rows, 6))
    after = walk(state, rng)
    for value in (state, after):
        value[:, :4] /= np.linalg.norm(value[:, :4], axis=1, keepdims=True)
    return rows_of(state, after, rng.normal(size=num_rows), rng)


def task(num_rows: int, rng: np.random.Generator) -> Transitions:
    state = rng.normal(size=(num_rows, 6))
    after = walk(state, rng)
    state[:, :5] = after[:, :5] = np.eye(5)[rng.integers(0, 5, num_rows)]
    return rows_of(state, after, rng.normal(size=num_rows), rng)


def on_rows(found: torch.Tensor, rule: torch.Tensor) -> dict[str, float]:
    """Rate, precision and recall of a value against the rule that sets it."""
    hits = float((found & rule).sum())
    return {
        "rate": float(found.double().mean()),
        "precision": hits / max(float(found.sum()), 1.0),
        "recall": hits / max(float(rule.sum()), 1.0),
    }


def of_lidar(rows: Transitions) -> dict[str, float]:
    distance = rows.observation[:, 1]
    between = (distance > 1.0) & (distance < 999.0)
    return {**on_rows(distance > 500.0, rows.observation[:, 0] > 0.95), "between": float(between.double().mean())}


def of_penalty(rows: Transitions) -> dict[str, float]:
    hit, small = rows.reward < -5e5, rows.reward.abs() <= 0.1
    error = (rows.reward - 0.1 * torch.tanh(rows.observation[:, 1])).abs()[~hit]
    return {
        **on_rows(hit, rows.observation[:, 0] > 2.748),
        "between": float((~hit & ~small).double().mean()),
        "error": float(error.median()),
    }


def of_quaternion(rows: Transitions) -> dict[str, float]:
    off = [(value[:, :4].norm(dim=1) - 1.0).abs() for value in (rows.observation, rows.next_observation)]
    return {"norm_off": float(off[0].median()), "next_norm_off": float(off[1].median())}


def of_task(rows: Transitions) -> dict[str, float]:
    flags = rows.observation[:, :5]
    legal = ((flags == 0) | (flags == 1)).all(1) & (flags.sum(1) == 1)
    return {"illegal": float((~legal).double().mean())}


DATA: dict[str, tuple[Callable, Callable]] = {
    "lidar": (lidar, of_lidar),
    "penalty": (penalty, of_penalty),
    "quaternion": (quaternion, of_quaternion),
    "task": (task, of_task),
}


def without_norms(state: Any) -> Any:
    """A saved state that restores no norms."""
    if isinstance(state, dict):
        return {key: () if key == "norms" else without_norms(value) for key, value in state.items()}
    return state


def measure(name: str, num_rows: int, num_synthetic: int, config: UpsamplerConfig, seed: int) -> dict[str, Any]:
    """Figures of one data set: of the synthetic rows, and of them without restored norms."""
    make, score = DATA[name]
    rows = make(num_rows, np.random.default_rng(seed))
    upsampler = DiffusionUpsampler(SPEC, config, seed=seed)
    report = upsampler.fit(rows)
    raw = DiffusionUpsampler(SPEC, config, seed=seed)
    raw.load_state_dict(without_norms(upsampler.state_dict()))
    result = {"data": name, "seed": seed, "rows": num_rows, "seconds": report.seconds, "real": score(rows)}
    result["synthetic"] = score(upsampler.sample(num_synthetic).to("cpu"))
    if name == "quaternion":
        result["norms_not_restored"] = score(raw.sample(num_synthetic).to("cpu"))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--synthetic", type=int, default=50_000)
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--steps", type=int, help="training steps in place of the preset's")
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--toy", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--out", help="where to write the JSON (default: benchmarks/results/joint_structure.json)")
    args = parser.parse_args()
    if args.toy:
        args.rows, args.synthetic, args.seeds = 1_000, 1_000, 1
    config = replace(resolve_config(args.preset, resolve_device("auto")), model_terminals=False)
    if args.steps:
        config = replace(config, train_steps=args.steps)
    if args.toy:
        config = toy(config)
    print(machine())
    results = []
    for name in args.data:
        for seed in range(args.seeds):
            results.append(measure(name, args.rows, args.synthetic, config, seed))
            print(results[-1], flush=True)
    write("joint_structure", {"preset": args.preset, "steps": args.steps, "table": results}, args.out)


if __name__ == "__main__":
    main()
