"""Do offline learners learn more from a small dataset that was upsampled? TorchRL's IQL and TD3+BC on MuJoCo.

    python examples/collect.py --env Walker2d-v5 --steps 150000 --until-return 1000 --seed 1
    python examples/offline_upsampling.py --data data/Walker2d-v5-medium-replay-s1.npz
    python examples/offline_upsampling.py --data data/Walker2d-v5-medium-replay-s1.npz --report

The experiment of SynthER (Lu et al. 2023, section 4.1) at the size of a CPU. Each arm is a set of rows to learn from:

- full: all rows of the data;
- subset: 15 % of them, drawn uniformly, transition by transition;
- synther: the subset upsampled by the diffusion model to as many rows as `full` has;
- mixed: the rows of `subset` and of `synther`, half of each batch each, as a buffer of this library serves them;
- bootstrap, gaussian, amplitude, dynamics: the subset upsampled to the same number by an explicit augmentation.

But for `mixed`, a learner of upsampled rows sees none of the rows they were made from: that is the paper's protocol,
and the same for the augmentations. A seed is that of the subset, of the upsampler and of the learner, and all arms of a
seed start from one subset. IQL's reward scale is the full data's in every arm, as in the published code: rows without
trajectories do not tell one.

The score of a run is the mean of its last three evaluations, each the mean return of the deterministic policy over ten
episodes. `--report` aggregates scores as rliable does (Agarwal et al. 2021): the interquartile mean over seeds and its
95 % interval by a bootstrap that is stratified by learner.

A line of JSON is appended to the results per run as it is done, and what is there is not done again; nor is a set of
rows made again that lies under `--cache`. Processes may share both if each does other arms.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from offline_learners import LEARNERS, learn
from offline_report import write_report

from synther_buffers import Transitions, UpsamplerConfig
from synther_buffers.datasets import open_dataset, upsample, write_dataset
from synther_buffers.datasets.base import Dataset
from synther_buffers.transitions.transitions import concatenate
from synther_buffers.upsampling.augmentation import AUGMENTATIONS
from synther_buffers.upsampling.presets import PRESETS, resolve_config, resolve_device

#: In the order of the tables.
ARMS = ("full", "subset", "mixed", "synther", *AUGMENTATIONS)


@dataclass(frozen=True)
class Data:
    """The data and what its episodes say.

    Attributes:
        dataset: all rows.
        env: the id of the environment they come from.
        digest: of the file.
        returns: of the complete episodes, in the order of the file.
    """

    dataset: Dataset
    env: str
    digest: str
    returns: np.ndarray

    @property
    def reward_scale(self) -> float:
        """IQL's: 1,000 over the range of the returns (Kostrikov et al. 2022)."""
        return 1_000.0 / np.ptp(self.returns) if len(self.returns) > 1 and np.ptp(self.returns) > 0 else 1.0


def read(path: Path) -> Data:
    """Open a file of `examples/collect.py`.

    Raises:
        ValueError: another kind of file.
    """
    dataset = open_dataset(path)
    with np.load(path) as file:
        if not {"about", "timeouts"} <= set(file):
            raise ValueError(f"{path} has no 'about' and 'timeouts'; wanted a file that examples/collect.py wrote.")
        env = json.loads(str(file["about"]))["env"]
        ends = np.flatnonzero(file["terminals"] | file["timeouts"])
        totals = np.cumsum(file["rewards"], dtype=np.float64)[ends]
    return Data(dataset, env, hashlib.sha256(path.read_bytes()).hexdigest()[:12], np.diff(totals, prepend=0.0))


def make_envs(env: str, episodes: int) -> list[gym.Env]:
    """An environment per episode.

    Raises:
        ValueError: actions or observations that the learners do not take.
    """
    envs = [gym.make(env) for _ in range(episodes)]
    space = envs[0].action_space
    if not (isinstance(space, gym.spaces.Box) and (space.low == -1.0).all() and (space.high == 1.0).all()):
        raise ValueError(f"{env} has the action space {space}; wanted actions from -1 to 1, as in Walker2d-v5.")
    return envs


@dataclass(frozen=True)
class Sets:
    """The sets of rows to learn from; upsampled ones are made once and kept.

    Attributes:
        data: the full data.
        folder: where upsampled rows are kept; of these settings alone.
        num_subset: rows of a subset.
        num_samples: rows that it is upsampled to.
        upsampler: configuration of the diffusion model.
    """

    data: Data
    folder: Path
    num_subset: int
    num_samples: int
    upsampler: UpsamplerConfig

    def rows(self, arm: str, seed: int) -> tuple[Transitions, float]:
        """What an arm learns from, and the seconds that upsampling took, once for all learners."""
        dataset = self.data.dataset
        if arm == "full":
            return dataset.subset(len(dataset)), 0.0
        if arm == "subset":
            return dataset.subset(self.num_subset, seed), 0.0
        if arm == "mixed":
            synthetic, seconds = self.rows("synther", seed)
            subset = dataset.subset(self.num_subset, seed)
            # As many of each, so that a uniform draw has half of them real.
            return concatenate([subset[torch.arange(len(synthetic)) % len(subset)], synthetic]), seconds
        path = self.folder / f"{arm}-s{seed}.npz"
        timing = path.with_suffix(".json")
        if not timing.exists():
            path.unlink(missing_ok=True)
            # A file per arm: processes that do other arms at the same time do not meet.
            subset = self.folder / f"{arm}-s{seed}-subset.npz"
            if not subset.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                write_dataset(subset, dataset.subset(self.num_subset, seed))
            how = self.upsampler if arm == "synther" else AUGMENTATIONS[arm]
            report = upsample(open_dataset(subset), self.num_samples, path, upsampler=how, seed=seed, resume=True)
            timing.write_text(json.dumps(report.seconds))
        return open_dataset(path).subset(self.num_samples), json.loads(timing.read_text())


def runs(args: argparse.Namespace) -> Iterator[tuple[int, str, str]]:
    """Seed, arm and learner of every run; a seed is complete before the next one begins."""
    for seed in range(args.seeds):
        for arm in args.arms:
            for learner in args.learners:
                yield seed, arm, learner


def compare(args: argparse.Namespace, data: Data, sets: Sets, settings: dict[str, Any]) -> None:
    """Do the runs that are not in the results yet."""
    done = {(line["seed"], line["arm"], line["learner"]) for line in read_results(args.out, settings)}
    missing = [run for run in runs(args) if run not in done]
    print(
        f"{args.data.name}: {len(data.dataset):,} rows of {data.env}; {len(data.returns)} episodes with a mean return "
        f"of {data.returns.mean():.0f}. {len(missing)} of {len(list(runs(args)))} runs to do.",
        flush=True,
    )
    envs = make_envs(data.env, args.episodes)
    begun = time.perf_counter()
    for number, (seed, arm, learner) in enumerate(missing, 1):
        rows, seconds = sets.rows(arm, seed)
        result = learn(
            learner,
            rows,
            envs,
            num_steps=args.gradient_steps,
            eval_every=args.eval_every,
            reward_scale=data.reward_scale,
            seed=seed,
        )
        line = {
            "learner": learner,
            "arm": arm,
            "seed": seed,
            "num_rows": len(rows),
            "score": float(np.mean(result.returns[-3:])),
            "steps": result.steps,
            "returns": result.returns,
            "upsample_seconds": seconds,
            "learn_seconds": result.seconds,
            "settings": settings,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        left = (time.perf_counter() - begun) / number * (len(missing) - number) / 60
        print(
            f"seed {seed}, {arm:<9} {learner:<5} score {line['score']:7.1f}, {result.seconds:5.0f} s learning, "
            f"{seconds:5.0f} s upsampling; about {left:.0f} min left",
            flush=True,
        )


def read_results(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the results.

    Raises:
        ValueError: they are of other settings.
    """
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for line in lines:
        if differs := [key for key in settings if line["settings"].get(key) != settings[key]]:
            raise ValueError(f"{path} holds results with another {', '.join(differs)}; choose another --out.")
    return lines


def toy_data(path: Path) -> Path:
    """A few hundred rows of a random policy in Hopper-v5."""
    env = gym.make("Hopper-v5")
    env.action_space.seed(0)
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    rows: list[tuple[Any, ...]] = []
    observation, _ = env.reset(seed=0)
    for _ in range(1_000):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        rows.append((observation, action, np.float32(reward), following, terminated, truncated))
        observation = env.reset()[0] if terminated or truncated else following
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = dict(zip(names, (np.array(column) for column in zip(*rows, strict=True)), strict=True))
    np.savez(path, **columns, about=json.dumps({"env": "Hopper-v5"}))
    return path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a file of examples/collect.py")
    parser.add_argument("--learners", nargs="+", choices=LEARNERS, default=list(LEARNERS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--fraction", type=float, default=0.15, help="of the rows, in the subset")
    parser.add_argument("--num-samples", type=int, help="upsampled rows (default: as many as the data has)")
    parser.add_argument("--upsampler", choices=["auto", *PRESETS], default="auto", help="preset of the diffusion model")
    parser.add_argument("--gradient-steps", type=int, default=10_000)
    parser.add_argument("--eval-every", type=int, default=1_000, help="gradient steps between evaluations")
    parser.add_argument("--episodes", type=int, default=10, help="per evaluation")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/offline_upsampling.jsonl"))
    parser.add_argument("--cache", type=Path, default=Path("build/offline_upsampling"))
    parser.add_argument(
        "--report", nargs="?", const=Path("docs"), type=Path, metavar="FOLDER",
        help="write results/offline_table.md and images/offline_upsampling.png there (default: docs) from the results "
        "there are, and run nothing",
    )  # fmt: skip
    parser.add_argument("--toy", action="store_true", help="tiny data, trainings and evaluations, to see that it runs")
    args = parser.parse_args()
    if args.report is not None:
        if not args.out.exists():
            parser.error(f"--out is {args.out}, which does not exist; there is nothing to report before a run is done.")
        return args
    if args.toy:
        args.data = args.cache / "toy.npz"
        args.gradient_steps, args.eval_every, args.episodes = 12, 4, 2
    elif args.data is None or not args.data.exists():
        parser.error(f"--data is {args.data}; wanted a file that examples/collect.py wrote.")
    if args.seeds < 1:
        parser.error(f"--seeds is {args.seeds}; wanted at least 1.")
    if not 0.0 < args.fraction < 1.0:
        parser.error(f"--fraction is {args.fraction}; wanted a share of the rows, between 0 and 1.")
    if args.num_samples is not None and args.num_samples < 1:
        parser.error(f"--num-samples is {args.num_samples}; wanted at least 1.")
    if args.episodes < 1:
        parser.error(f"--episodes is {args.episodes}; wanted at least 1.")
    if args.eval_every < 1 or args.gradient_steps < 3 * args.eval_every:
        parser.error(
            f"--gradient-steps is {args.gradient_steps} and --eval-every is {args.eval_every}; a score is the mean of "
            "three evaluations, so wanted three times --eval-every or more steps."
        )
    return args


def main() -> None:
    args = parse_args()
    if args.report is not None:
        lines = [json.loads(line) for line in args.out.read_text().splitlines()]
        order = [*ARMS, *LEARNERS]  # processes that ran at the same time wrote in any order
        lines.sort(key=lambda line: (order.index(line["learner"]), order.index(line["arm"]), line["seed"]))
        write_report(lines, args.report)
        return
    torch.set_num_threads(1)  # the nets are small, and a second process is the better use of a second core
    data = read(toy_data(args.data) if args.toy else args.data)
    config = resolve_config(args.upsampler, resolve_device("auto"))
    if args.toy:
        config = replace(config, train_steps=20, terminal_steps=10, network=replace(config.network, width=32))
    sizes = {
        "num_subset": round(args.fraction * len(data.dataset)),
        "num_samples": args.num_samples or len(data.dataset),
    }
    made_of = {"data": data.digest, **sizes, "upsampler": config.to_dict()}
    folder = args.cache / hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:12]
    settings = {
        **made_of,
        "env": data.env,
        "num_rows": len(data.dataset),
        "behaviour_return": float(data.returns.mean()),
        "gradient_steps": args.gradient_steps,
        "eval_every": args.eval_every,
        "episodes": args.episodes,
    }
    # As it comes back from the file: tuples are lists there.
    compare(args, data, Sets(data, folder, **sizes, upsampler=config), json.loads(json.dumps(settings)))


if __name__ == "__main__":
    main()
