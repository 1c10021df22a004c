"""Does mixing cost anything? `sample(256)` and `add` of a filled buffer against Stable-Baselines3's own, in one run.

    python benchmarks/buffer_overhead.py [--toy] [--out FILE]

The synthetic set is filled by resampling real rows: what is measured is serving rows, not learning them.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from gymnasium import spaces
from measuring import alternate, machine, write
from stable_baselines3.common.buffers import ReplayBuffer
from synther_buffers.sb3 import SynthERBuffer

from synther_buffers import FitReport, Transitions

#: Observation and action sizes of Gymnasium's MuJoCo environments (float64 observations).
SIZES = {"HalfCheetah-v5": (17, 6), "Humanoid-v5": (348, 17)}


class Resampler:
    """An upsampler that hands out real rows, so that a synthetic set is there at once."""

    def __init__(self, spec: Any, *, device: Any, seed: int, progress_bar: bool) -> None:
        self.rows: Transitions | None = None

    def fit(self, transitions: Transitions, *, held_out: Transitions | None = None) -> FitReport:
        self.rows = transitions
        return FitReport(loss=0.0, held_out_loss=0.0, steps=0, seconds=0.0, warm=False)

    def sample(self, num_samples: int) -> Transitions:
        index = np.random.default_rng(0).integers(len(self.rows), size=num_samples)
        return self.rows[index]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def make(cls: type, size: int, obs_dim: int, action_dim: int, **kwargs: Any) -> tuple[ReplayBuffer, tuple[Any, ...]]:
    """A full buffer of random rows, and the arguments of one more `add`."""
    observation_space = spaces.Box(-np.inf, np.inf, (obs_dim,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (action_dim,), np.float32)
    buffer = cls(size, observation_space, action_space, device="cpu", **kwargs)
    rng = np.random.default_rng(0)
    row = (
        rng.normal(size=(1, obs_dim)),
        rng.normal(size=(1, obs_dim)),
        rng.uniform(-1, 1, (1, action_dim)).astype(np.float32),
        np.ones(1, np.float32),
        np.zeros(1, np.bool_),
        [{}],
    )
    for _ in range(size):
        buffer.add(*row)
    return buffer, row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="a few calls only, to see that it runs")
    parser.add_argument("--out", help="where to write the JSON (default: benchmarks/results/buffer_overhead.json)")
    args = parser.parse_args()
    size, repeats, rounds = (2_000, 20, 5) if args.toy else (100_000, 200, 41)
    print(machine())
    print(f"\n{'environment':<16}{'call':<14}{'SB3 us':>9}{'ours us':>9}{'ratio':>7}")
    table = []
    for name, dims in SIZES.items():
        plain, row = make(ReplayBuffer, size, *dims)
        ours, _ = make(
            SynthERBuffer, size, *dims,
            upsampler=Resampler, retrain_every=size, num_synthetic=size, progress_bar=False,
        )  # fmt: skip
        ours.sample(256)
        assert ours.synthetic.split(256) == (128, 128), "the synthetic set is filled"
        calls = {
            "sample(256)": (lambda buffer: lambda: buffer.sample(256)),
            "add": (lambda buffer: lambda: buffer.add(*row)),  # noqa: B023
        }
        for call, make_call in calls.items():
            theirs, mine = alternate(make_call(plain), make_call(ours), repeats, rounds)
            table.append({"environment": name, "call": call, "sb3_us": theirs * 1e6, "ours_us": mine * 1e6})
            print(f"{name:<16}{call:<14}{theirs * 1e6:>9.1f}{mine * 1e6:>9.1f}{mine / theirs:>7.2f}")
    write("buffer_overhead", {"batch": 256, "synthetic_fraction": 0.5, "rows": size, "table": table}, args.out)


if __name__ == "__main__":
    main()
