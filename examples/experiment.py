"""What the examples share: flags, evaluation, progress and the picture of a run. No user of the library needs it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from synther_buffers import SyntheticReplay, UpsamplerConfig
from synther_buffers.upsampling.presets import resolve_config, resolve_device

COLOURS = {"with synthetic": "#0072B2", "without": "#D55E00"}  # colour-blind safe (Okabe and Ito)
STYLES = {"with synthetic": "-", "without": "--"}
FIELDS = ("observation", "action", "reward", "next_observation")


def parse_args(description: str, logdir: str) -> argparse.Namespace:
    """The flags of every example."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--steps", type=int, default=5_000, help="environment steps")
    parser.add_argument("--utd", type=int, default=10, help="gradient steps per environment step")
    parser.add_argument("--no-synthetic", action="store_true", help="plain replay at the same UTD")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logdir", type=Path, default=Path(logdir))
    parser.add_argument("--retrain-every", type=int, default=1_000, help="environment steps between refreshes")
    parser.add_argument("--num-synthetic", type=int, help="rows of the synthetic set (default: by the number of rows)")
    parser.add_argument(
        "--train-steps", type=int, help="of each part of the upsampler, at most (default: by the number of rows)"
    )
    args = parser.parse_args()
    args.logdir.mkdir(parents=True, exist_ok=True)
    args.learning_starts = min(1_000, args.steps // 3)
    # No refresh comes before the first update.
    args.start_after = max(args.retrain_every, args.learning_starts)
    return args


def synther_arguments(args: argparse.Namespace) -> dict:
    """The keywords that every buffer of this library takes."""
    upsampler: str | UpsamplerConfig = "auto"
    if args.train_steps:
        preset = resolve_config("auto", resolve_device("auto"))
        upsampler = replace(
            preset,
            train_steps=args.train_steps,
            warm_steps=max(2 * args.train_steps // 3, 1),
            terminal_steps=min(args.train_steps, preset.terminal_steps),
            outcome_steps=min(args.train_steps, preset.outcome_steps),
            budget=None,
        )
    return {
        "upsampler": upsampler,
        "retrain_every": args.retrain_every,
        "start_after": args.start_after,
        "num_synthetic": args.num_synthetic,
        # At fraction 0 the buffer is the framework's own, batch for batch.
        "synthetic_fraction": 0.0 if args.no_synthetic else 0.5,
        "refresh_log": args.logdir / "refreshes.jsonl",
    }


class Record:
    """Evaluates the agent ten times in a run, says how far the run is, and keeps what the picture needs.

    Args:
        args: the example's flags.
        act: the agent's deterministic action, in the environment's units, for one observation.
        log: writes figures at an environment step into the framework's own logger.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        act: Callable[[np.ndarray], np.ndarray],
        log: Callable[[dict[str, float], int], None],
    ) -> None:
        self.args, self.act, self.log = args, act, log
        self.env = gym.make(args.env)
        self.steps: list[int] = []
        self.returns: list[list[float]] = []
        self.learning_since: tuple[float, int] | None = None
        (args.logdir / "refreshes.jsonl").unlink(missing_ok=True)

    def step(self, step: int, synthetic: SyntheticReplay | None = None) -> None:
        """After each environment step; with `synthetic`, the figures of new refreshes are logged too."""
        args = self.args
        for report in [] if synthetic is None else synthetic.new_reports():
            self.log(report.metrics("synther/"), step)
        if step % max(args.steps // 10, 1) == 0:
            self.steps.append(step)
            self.returns.append([self._episode(seed) for seed in range(3)])
            self.log({"eval/mean_reward": float(np.mean(self.returns[-1]))}, step)
        if self.learning_since is None and step > args.learning_starts:
            self.learning_since = (time.perf_counter(), step)
        if step % max(args.steps // 20, 1) == 0 and self.learning_since is not None:
            start, first = self.learning_since
            left = (time.perf_counter() - start) / max(step - first, 1) * (args.steps - step)
            print(f"step {step:,} of {args.steps:,}, about {left / 60:.1f} min left", flush=True)

    def _episode(self, seed: int) -> float:
        observation, _ = self.env.reset(seed=self.args.seed + 1_000 + seed)
        total, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = self.env.step(self.act(observation))
            total, over = total + float(reward), terminated or truncated
        return total

    def finish(self, synthetic: SyntheticReplay, real: dict[str, np.ndarray]) -> None:
        """Write the evaluations, some real and synthetic rows, and the picture.

        Args:
            synthetic: the buffer's.
            real: all real rows by field, ``[N, ...]``.
        """
        logdir = self.args.logdir
        np.savez(logdir / "evaluations.npz", timesteps=self.steps, results=self.returns)
        if synthetic.rows is not None:
            index = np.random.default_rng(0).integers(len(real["reward"]), size=5_000)
            drawn = synthetic.sample(5_000).to("cpu")
            np.savez(
                logdir / "marginals.npz",
                **{f"real_{name}": np.asarray(real[name])[index] for name in FIELDS},
                **{f"synthetic_{name}": getattr(drawn, name).numpy() for name in FIELDS},
            )
            print(f"the picture is {draw({'with synthetic': logdir}, self.args, logdir / 'result.png')}")
        print(f"final evaluation: {np.mean(self.returns[-1]):.0f}", flush=True)


def read_refreshes(logdir: Path) -> list[dict]:
    """The refresh log of a run."""
    log = logdir / "refreshes.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def draw(
    runs: dict[str, Path],
    args: argparse.Namespace,
    path: Path,
    caption: str = "",
    recorded: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Path:
    """The picture: returns of the runs over environment steps, and real against synthetic marginals.

    Args:
        runs: folder of each run; that of ``with synthetic`` has the marginals.
        args: the flags of the runs.
        path: of the picture.
        caption: lines below the returns.
        recorded: other runs by name, ``[runs, evaluations, (step, return)]``; each is a thin line.
    """
    refreshes = read_refreshes(runs["with synthetic"])
    rows = np.load(runs["with synthetic"] / "marginals.npz")
    figure, axes = plt.subplots(2, 4, figsize=(12, 6.2), layout="constrained")
    grid = axes[0, 0].get_gridspec()
    for axis in axes[:, :2].ravel():
        axis.remove()
    returns = figure.add_subplot(grid[:, :2])
    for name, curves in recorded.items():
        for number, curve in enumerate(curves):
            label = f"recorded runs {name}: {len(curves)}" if number == 0 else None
            returns.plot(*curve.T, STYLES[name], color=COLOURS[name], alpha=0.35, linewidth=0.8, label=label)
    ends = []
    for name, folder in runs.items():
        evaluations = np.load(folder / "evaluations.npz")
        steps, results = evaluations["timesteps"], evaluations["results"]
        returns.plot(steps, results.mean(1), STYLES[name], color=COLOURS[name], label=f"this run {name}", linewidth=2.5)
        ends.append(f"{results[-1].mean():.0f} {name}")
        # The single episodes, because a shaded range would look like an interval of several runs.
        returns.plot(np.repeat(steps, results.shape[1]), results.ravel(), ".", color=COLOURS[name], alpha=0.4)
    for number, refresh in enumerate(refreshes):
        label = "refresh" if number == 0 else None
        returns.axvline(refresh["num_observed"], color="0.6", linewidth=0.8, linestyle=":", label=label)
    returns.set_ylabel(f"return of {results.shape[1]} evaluation episodes, and their mean")
    returns.set_title("this seed ends at " + ", ".join(ends), fontsize=11)
    returns.legend(frameon=False, loc="best")
    returns.set_xlabel("environment steps")

    columns = [("observation", 0), ("observation", 5), ("reward", None), ("action", 0)]
    for axis, (field, index) in zip(axes[:, 2:].ravel(), columns, strict=True):
        real, synthetic = (rows[f"{kind}_{field}"].reshape(5_000, -1) for kind in ("real", "synthetic"))
        index = None if index is None else min(index, real.shape[1] - 1)
        real, synthetic = real[:, index or 0], synthetic[:, index or 0]
        bins = np.linspace(*np.quantile(real, [0.005, 0.995]), 41) if np.ptp(real) else np.array([-1.0, 0.0, 1.0])
        axis.hist(real, bins, density=True, color="0.75", label="real")
        axis.hist(
            synthetic,
            bins,
            density=True,
            histtype="step",
            linewidth=1.6,
            color=COLOURS["with synthetic"],
            label="synthetic",
        )
        axis.set_title(field if index is None else f"{field}[{index}]", fontsize=10)
        axis.set_yticks([])
    axes[0, 2].legend(frameon=False, fontsize=8)
    figure.suptitle(f"SAC on {args.env}, UTD {args.utd}, seed {args.seed}, {len(refreshes)} refreshes", fontsize=12)
    if caption:
        figure.supxlabel(caption, x=0.01, ha="left", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
