"""How much fidelity a second buys: presets, training budgets and solvers on the same replay data.

    python examples/collect.py --env Walker2d-v5 --steps 50000     # likewise HalfCheetah-v5 and Hopper-v5
    python benchmarks/fidelity_cost.py [--data data/Walker2d-v5-50000-s0.npz ...] [--seeds 3] [--only NAME ...]

Every model learns the same 90 % of the rows and is judged on the rest, which is held out in runs of 50 consecutive
rows. ``paper-10k`` is the reference on a CPU: the paper's net, training and sampler, for a tenth of its 100,000 steps.
A line of JSON per model and solver is appended to the results as it is measured, and what is there already is not
measured again; the table and the picture are made from all lines there are.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from measuring import RESULTS, machine

from synther_buffers import PRESETS, DiffusionUpsampler, SamplerConfig, Transitions, TransitionSpec, UpsamplerConfig
from synther_buffers.config import resolve_config
from synther_buffers.datasets import open_dataset
from synther_buffers.metrics import evaluate
from synther_buffers.plots import fidelity_cost
from synther_buffers.simulators import MujocoSimulator

NUM_SAMPLES = 20_000
#: What is measured: a configuration, and the solvers that sample from the model it trains.
Entry = tuple[UpsamplerConfig, dict[str, SamplerConfig]]
#: Environment, spec, rows in the order of writing, and simulator.
Data = tuple[str, TransitionSpec, Transitions, MujocoSimulator]
_RUN = 50


def entries() -> dict[str, Entry]:
    """Everything there is to measure, by name."""
    paper, cpu = PRESETS["paper-online"], resolve_config("cpu", torch.device("cpu"))
    heun = {"heun-255": paper.sampler}
    sde = {f"sde-{count}": replace(cpu.sampler, num_steps=count) for count in (8, 12, 16, 20, 32)}
    return {
        "paper-10k": (replace(paper, train_steps=10_000), {**heun, "sde-16": sde["sde-16"]}),
        "paper-1k": (replace(paper, train_steps=1_000), heun),
        "paper-300": (replace(paper, train_steps=300), heun),
        "cpu": (cpu, {**sde, **heun}),
        "cpu-1k": (replace(cpu, train_steps=1_000), {"sde-16": sde["sde-16"]}),
        "cpu-10k": (replace(cpu, train_steps=10_000), {"sde-16": sde["sde-16"]}),
    }


def split(rows: Transitions) -> tuple[Transitions, Transitions]:
    """Training rows, and every tenth run of 50 consecutive rows, which no model sees."""
    run = torch.arange(len(rows)) // _RUN
    return rows[run % 10 != 9], rows[run % 10 == 9]


def read(path: Path) -> Data:
    """A file of `examples/collect.py`."""
    dataset = open_dataset(path)
    parts = [chunk.flat() for chunk in dataset.chunks(100_000)]
    rows = Transitions.from_flat({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    env = json.loads(str(np.load(path)["about"]))["env"]
    return env, dataset.spec, rows, MujocoSimulator(env)


def toy_data() -> Data:
    """A few hundred rows of a random policy."""
    env = gym.make("HalfCheetah-v5")
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    rows: list[tuple[Any, ...]] = []
    for _ in range(600):
        action = env.action_space.sample()
        following, reward, terminated, _, _ = env.step(action)
        rows.append((observation, action, np.float32(reward), following, terminated))
        observation = following
    columns = (torch.from_numpy(np.array(column)) for column in zip(*rows, strict=True))
    spec = TransitionSpec.from_spaces(env.observation_space, env.action_space)
    return "HalfCheetah-v5", spec, Transitions(*columns), MujocoSimulator("HalfCheetah-v5")


def measure(data: Data, name: str, entry: Entry, seed: int, num_samples: int) -> Iterator[dict[str, Any]]:
    """A line of results for each solver of an entry."""
    env, spec, rows, simulator = data
    config, solvers = entry
    train, held_out = split(rows)
    upsampler = DiffusionUpsampler(spec, config, "cpu", seed)
    report = upsampler.fit(train, held_out=held_out)
    for solver, sampler in solvers.items():
        upsampler.config = replace(config, sampler=sampler)
        start = time.perf_counter()
        synthetic = upsampler.sample(num_samples)
        seconds = time.perf_counter() - start
        figures = evaluate(held_out, synthetic, spec, train=train, simulator=simulator, seed=seed)
        yield {
            "env": env,
            "name": name,
            "solver": solver,
            "seed": seed,
            "nfe": 2 * sampler.num_steps - 1 if sampler.solver == "stochastic-heun" else sampler.num_steps,
            "train_steps": config.train_steps,
            "fit_seconds": report.seconds,
            "sample_seconds": seconds,
            "num_samples": num_samples,
            "held_out_loss": report.held_out_loss,
            "figures": figures.to_dict(),
        }


#: Short names of the figures that make the table, where they are in an evaluation, and what is best.
FIGURES = {
    "marginal": ("fidelity", "marginal"),
    "correlation": ("fidelity", "correlation"),
    "dynamics mean": ("simulator", "dynamics_mean"),
    "dynamics median": ("simulator", "dynamics_median"),
    "reward mean": ("simulator", "reward_mean"),
    "closest record": ("closest", "ratio"),
    "AUC": ("auc",),
}


def figure(line: dict[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = line["figures"]
    for key in path:
        value = value[key]
    return value


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation of every figure over the seeds."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["env"], line["name"], line["solver"]), []).append(line)
    head = ["environment", "model", "solver", "NFE", "seeds", "train s", "sample s", *FIGURES]
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (env, name, solver), group in sorted(groups.items()):
        cells = [env, name, solver, str(group[0]["nfe"]), str(len(group))]
        cells += [f"{mean(line[key] for line in group):.0f}" for key in ("fit_seconds", "sample_seconds")]
        for path in FIGURES.values():
            values = [value for line in group if (value := figure(line, path)) is not None]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3f}{spread}" if values else "")
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="*", help="files of examples/collect.py (default: data/*-50000-*)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of entries (default: all)")
    parser.add_argument("--toy", action="store_true", help="tiny data and trainings, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "fidelity_cost.jsonl")
    args = parser.parse_args()
    if args.toy:
        run_toy(args.out)
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    paths = args.data or sorted(Path("data").glob("*-50000-*.npz"))
    if not paths:
        parser.error("there are no data: collect some with examples/collect.py, or give --data.")
    lines = [json.loads(line) for line in args.out.open()] if args.out.exists() else []
    done = {(line["env"], line["name"], line["seed"]) for line in lines}
    for seed in range(args.seeds):
        for path in paths:
            data = read(path)
            for name, entry in entries().items():
                if (data[0], name, seed) in done or name not in (args.only or entries()):
                    continue
                for line in measure(data, name, entry, seed, NUM_SAMPLES):
                    lines.append(line)
                    with args.out.open("a") as file:
                        file.write(json.dumps({"machine": machine(), **line}) + "\n")
                    print(table([line]).splitlines()[-1], flush=True)
    report(lines, args.out)


def report(lines: list[dict[str, Any]], out: Path) -> None:
    """The table and the picture."""
    print(table(lines))
    results: dict[str, list[dict[str, float | None]]] = {}
    for line in lines:
        point = {name: figure(line, path) for name, path in FIGURES.items()}
        seconds = line["fit_seconds"] + line["sample_seconds"]
        results.setdefault(f"{line['name']}, {line['solver']}", []).append({"seconds": seconds, **point})
    fidelity_cost(results).savefig(out.with_suffix(".png"), dpi=150)
    print(f"\nwritten to {out} and {out.with_suffix('.png')}")


def run_toy(out: Path) -> None:
    """One tiny model, so that the whole path runs in seconds."""
    config, solvers = entries()["cpu"]
    small = replace(config, train_steps=20, terminal_steps=10, network=replace(config.network, width=32))
    lines = list(measure(toy_data(), "toy", (small, {"sde-8": solvers["sde-8"]}), 0, 500))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps({"machine": machine(), **line}) + "\n" for line in lines))
    report(lines, out)


if __name__ == "__main__":
    main()
