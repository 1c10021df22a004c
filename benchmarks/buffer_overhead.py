"""Does mixing cost anything? `sample(256)` and adding a row, in each framework, against its own buffer in the same run.

    python benchmarks/buffer_overhead.py [--toy] [--out FILE]

The synthetic set is filled by resampling real rows: what is measured is serving rows, not learning them.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from measuring import alternate, machine, write
from stable_baselines3.common.buffers import ReplayBuffer
from synther_buffers.sb3 import SynthERBuffer
from synther_buffers.tianshou import SynthERReplayBuffer
from synther_buffers.torchrl import SynthERStorage
from tensordict import TensorDict
from tianshou.data import Batch, VectorReplayBuffer
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from synther_buffers import FitReport, Transitions

#: Observation and action sizes of Gymnasium's MuJoCo environments (float64 observations).
SIZES = {"HalfCheetah-v5": (17, 6), "Humanoid-v5": (348, 17)}
#: A buffer to measure: what samples a batch of 256, and what adds the row it was filled with.
Calls = dict[str, Callable[[], Any]]


class Resampler:
    """An upsampler that hands out real rows, so that a synthetic set is there at once."""

    def __init__(self, spec: Any, *, device: Any, seed: int, progress_bar: bool) -> None:
        self.rows: Transitions | None = None

    @property
    def config(self) -> dict[str, Any]:
        return {}

    def fit(self, transitions: Transitions, *, held_out: Transitions | None = None) -> FitReport:
        self.rows = transitions
        return FitReport(loss=0.0, held_out_loss=0.0, steps=0, seconds=0.0, warm=False)

    def sample(self, num_samples: int) -> Transitions:
        index = np.random.default_rng(0).integers(len(self.rows), size=num_samples)
        return self.rows[index]

    def state_dict(self) -> dict[str, Any]:
        return {}  # what is measured is one refresh; nothing has to outlive it

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def ours_with(size: int) -> dict[str, Any]:
    return {"upsampler": Resampler, "retrain_every": size, "num_synthetic": size, "progress_bar": False}


def random_row(obs_dim: int, action_dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observation, action and next observation of one environment."""
    rng = np.random.default_rng(0)
    action = rng.uniform(-1, 1, (1, action_dim)).astype(np.float32)
    return rng.normal(size=(1, obs_dim)), action, rng.normal(size=(1, obs_dim))


def sb3(ours: bool, size: int, obs_dim: int, action_dim: int) -> Calls:
    """Stable-Baselines3: a row of one environment at a time."""
    spaces_of = spaces.Box(-np.inf, np.inf, (obs_dim,), np.float64), spaces.Box(-1.0, 1.0, (action_dim,), np.float32)
    buffer = (
        SynthERBuffer(size, *spaces_of, device="cpu", **ours_with(size))
        if ours
        else ReplayBuffer(size, *spaces_of, device="cpu")
    )
    observation, action, following = random_row(obs_dim, action_dim)
    row = (observation, following, action, np.ones(1, np.float32), np.zeros(1, np.bool_), [{}])
    for _ in range(size):
        buffer.add(*row)
    buffer.sample(256)
    assert not ours or buffer.synthetic.split(256) == (128, 128), "the synthetic set is filled"
    return {"sample(256)": lambda: buffer.sample(256), "add": lambda: buffer.add(*row)}


def tianshou(ours: bool, size: int, obs_dim: int, action_dim: int) -> Calls:
    """Tianshou: a row of one environment at a time, as its Collector adds them."""
    buffer = SynthERReplayBuffer(size, 1, **ours_with(size)) if ours else VectorReplayBuffer(size, 1)
    observation, action, following = random_row(obs_dim, action_dim)
    flag = np.zeros(1, np.bool_)
    row = Batch(
        obs=observation, act=action, rew=np.ones(1), terminated=flag, truncated=flag, obs_next=following, info=Batch()
    )
    ids = np.zeros(1, int)
    for _ in range(size):
        buffer.add(row, buffer_ids=ids)
    buffer.sample(256)
    assert not ours or buffer.synthetic.split(256) == (128, 128), "the synthetic set is filled"
    return {"sample(256)": lambda: buffer.sample(256), "add": lambda: buffer.add(row, buffer_ids=ids)}


def torchrl(ours: bool, size: int, obs_dim: int, action_dim: int) -> Calls:
    """TorchRL: a collector's batch of one frame at a time."""
    storage = SynthERStorage(size, **ours_with(size)) if ours else LazyTensorStorage(size)
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=256)
    rows = {count: frames(count, obs_dim, action_dim) for count in (1, 1_000)}
    for _ in range(size // 1_000):
        buffer.extend(rows[1_000])
    buffer.sample()
    assert not ours or storage.synthetic.split(256) == (128, 128), "the synthetic set is filled"
    return {"sample(256)": buffer.sample, "extend": lambda: buffer.extend(rows[1])}


def frames(count: int, obs_dim: int, action_dim: int) -> TensorDict:
    """What a collector gives: the same row `count` times."""
    observation, action, following = (
        torch.from_numpy(part).repeat(count, 1) for part in random_row(obs_dim, action_dim)
    )
    flags = {name: torch.zeros(count, 1, dtype=torch.bool) for name in ("done", "terminated", "truncated")}
    return TensorDict(
        {
            "observation": observation,
            "action": action,
            **flags,
            "next": {
                "observation": following,
                "reward": torch.ones(count, 1),
                **{name: flag.clone() for name, flag in flags.items()},
            },
            "collector": {"traj_ids": torch.zeros(count, dtype=torch.int64)},
        },
        [count],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="a few calls only, to see that it runs")
    parser.add_argument("--out", help="where to write the JSON (default: benchmarks/results/buffer_overhead.json)")
    args = parser.parse_args()
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    size, repeats, rounds = (2_000, 20, 5) if args.toy else (100_000, 200, 41)
    print(machine())
    print(f"\n{'framework':<12}{'environment':<16}{'call':<14}{'its own us':>12}{'ours us':>10}{'ratio':>7}")
    table = []
    for make in (sb3, tianshou, torchrl):
        for name, dims in SIZES.items():
            plain, ours = make(False, size, *dims), make(True, size, *dims)
            for call in plain:
                theirs, mine = alternate(plain[call], ours[call], repeats, rounds)
                row = {"framework": make.__name__, "environment": name, "call": call}
                table.append({**row, "own_us": theirs * 1e6, "ours_us": mine * 1e6, "ratio": mine / theirs})
                print(
                    f"{make.__name__:<12}{name:<16}{call:<14}{theirs * 1e6:>12.1f}{mine * 1e6:>10.1f}"
                    f"{mine / theirs:>7.2f}",
                    flush=True,
                )
    write("buffer_overhead", {"batch": 256, "synthetic_fraction": 0.5, "rows": size, "table": table}, args.out)


if __name__ == "__main__":
    main()
