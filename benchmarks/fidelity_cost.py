"""How much fidelity a second buys: presets, training budgets and solvers on the same replay data.

    python examples/collect.py --env Walker2d-v5 --steps 50000     # likewise HalfCheetah-v5 and Hopper-v5
    python benchmarks/fidelity_cost.py [--data FILE ...] [--seeds 3] [--only NAME ...] [--solvers NAME ...]

Every model learns the same nine of ten rows and is judged on the tenth. ``paper-10k`` is the reference on a CPU: the
paper's net, training and sampler, for a tenth of its 100,000 steps; ``paper-10k-bf16`` is the same in bfloat16, which
takes a CPU that has instructions for it about half of the time. A line of JSON per model and solver is appended to
the results as it is measured, and what is there already is not measured again, nor is a model trained again that is
still under ``--models``. The table and the picture are made from all lines there are.

Trainings take hours, which no shared machine stays quiet for, so what a model costs is measured apart, by ``--timing``:
a few steps and samples of every entry in turn, several times, in one run of minutes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, machine, use_settings
from pictures import fidelity_cost
from replay_data import ReplayData

from synther_buffers import PRESETS, DiffusionUpsampler, SamplerConfig, UpsamplerConfig
from synther_buffers.evaluation.metrics import evaluate
from synther_buffers.upsampling.presets import resolve_config

#: Rows per model and solver, of which the figures look at 5,000 (`synther_buffers.evaluation.metrics.MAX_ROWS`).
NUM_SAMPLES = 20_000
DOCS = Path(__file__).parent.parent / "docs"
#: Tables of models beside one another: a file in docs/results, and label, entry and solver of its lines.
COMPARISONS = {
    "fidelity_reference.md": (
        ("reference: `paper-10k-bf16`, 255 NFE", "paper-10k-bf16", "heun-255"),
        ("the same in float32", "paper-10k", "heun-255"),
        ("the reference's net, 16 NFE", "paper-10k-bf16", "sde-16"),
        ("`cpu` preset from scratch, 16 NFE", "cpu", "sde-16"),
        ("`cpu` preset, fourth warm refresh, 16 NFE", "cpu-warm", "sde-16"),
    ),
    # As many seconds of training.
    "fidelity_equal_seconds.md": (
        ("`cpu` preset, 16 NFE", "cpu", "sde-16"),
        ("paper's net after 1,500 steps, 255 NFE", "paper-1500-bf16", "heun-255"),
        ("the same net, 16 NFE", "paper-1500-bf16", "sde-16"),
    ),
    # One choice of the default taken back.
    "fidelity_choices.md": (
        ("`cpu` preset", "cpu", "sde-16"),
        ("4,500 steps", "cpu-4500", "sde-16"),
        ("plain layers, as many weights", "cpu-relu", "sde-16"),
    ),
}
#: Lines of the picture: entries and solvers.
CURVES = {
    "paper, 255 NFE": [(f"paper-{steps}-bf16", "heun-255") for steps in ("1500", "10k")],
    "paper, 16 NFE": [(f"paper-{steps}-bf16", "sde-16") for steps in ("1500", "10k")],
    "cpu, 16 NFE": [(name, "sde-16") for name in ("cpu-4500", "cpu")],
    "cpu, 8 to 32 NFE": [("cpu", f"sde-{count}") for count in (8, 12, 16, 32)],
    "cpu, warm refresh": [("cpu-warm", "sde-16")],
}
#: Rows between the refreshes of an entry that is trained as a buffer trains, on data that grow.
ROWS_PER_REFRESH = 10_000


@dataclass(frozen=True)
class Entry:
    """What is measured: a configuration, and the solvers that sample from the model it trains.

    Where it is `warm`, the model is trained from scratch on the first `ROWS_PER_REFRESH` rows and goes on from there
    whenever there are as many more, like a buffer's; otherwise it is trained once, from scratch, on all of them.
    """

    config: UpsamplerConfig
    solvers: dict[str, SamplerConfig]
    warm: bool = False


def entries() -> dict[str, Entry]:
    """Everything there is to measure, by name."""
    paper, cpu = PRESETS["paper-online"], resolve_config("cpu", torch.device("cpu"))
    heun = {"heun-255": paper.sampler}
    sde = {
        f"sde-{count}": replace(cpu.sampler, solver=replace(cpu.sampler.solver, num_steps=count))
        for count in (8, 12, 16, 32)
    }
    ours = {"sde-16": sde["sde-16"]}
    rounded = replace(
        paper, training=replace(paper.training, bfloat16=True), sampler=replace(paper.sampler, bfloat16=True)
    )
    heun_rounded = {"heun-255": rounded.sampler}
    return {
        "paper-10k": Entry(replace(paper, train_steps=10_000), {**heun, **ours}),
        "paper-10k-bf16": Entry(replace(rounded, train_steps=10_000), {**heun_rounded, **ours}),
        # About as many seconds of training as the default takes.
        "paper-1500-bf16": Entry(replace(rounded, train_steps=1_500), {**heun_rounded, **ours}),
        "cpu": Entry(cpu, {**sde, **heun}),
        "cpu-warm": Entry(cpu, ours, warm=True),
        "cpu-4500": Entry(replace(cpu, train_steps=4_500), ours),
        # Plain layers of such a width have as many weights.
        "cpu-relu": Entry(replace(cpu, network=replace(cpu.network, activation="relu", width=332)), ours),
    }


def fitted(data: ReplayData, name: str, entry: Entry, seed: int, models: Path) -> tuple[DiffusionUpsampler, Any]:
    """An entry's model and what its last training cost: that of an earlier run, or a new one, which is kept."""
    config = entry.config
    path = models / f"{data.name}-{data.digest}-{name}-s{seed}.safetensors"
    costs = path.with_suffix(".json")
    if costs.exists():
        kept = DiffusionUpsampler.load(path, spec=data.spec, device="cpu")
        if replace(kept.settings, sampler=config.sampler) == config:
            use_settings(kept, config)
            return kept, json.loads(costs.read_text())
    upsampler = DiffusionUpsampler(data.spec, config, "cpu", seed)
    for num_rows in range(ROWS_PER_REFRESH, len(data.rows), ROWS_PER_REFRESH) if entry.warm else ():
        train, held_out = data.split(num_rows)
        upsampler.fit(train, held_out=held_out)
    train, held_out = data.split()
    report = upsampler.fit(train, held_out=held_out)
    models.mkdir(parents=True, exist_ok=True)
    upsampler.save(path)
    spent = {
        "fit_seconds": report.seconds,
        "fit_steps": report.steps,
        "held_out_loss": report.held_out_loss,
        "machine": machine(),
    }
    costs.write_text(json.dumps(spent))
    return upsampler, spent


def measure(
    data: ReplayData, name: str, entry: Entry, seed: int, num_samples: int, models: Path, done: Container[str] = ()
) -> Iterator[dict[str, Any]]:
    """A line of results for each solver of an entry that is not done yet."""
    config = entry.config
    solvers = {solver: sampler for solver, sampler in entry.solvers.items() if solver not in done}
    if not solvers:
        return
    train, held_out = data.split()
    upsampler, spent = fitted(data, name, entry, seed, models)
    for solver, sampler in solvers.items():
        use_settings(upsampler, replace(config, sampler=sampler))
        start = time.perf_counter()
        synthetic = upsampler.sample(num_samples)
        seconds = time.perf_counter() - start
        figures = evaluate(held_out, synthetic, data.spec, train=train, simulator=data.simulator, seed=seed)
        yield {
            "data": data.name,
            "digest": data.digest,
            "name": name,
            "solver": solver,
            "seed": seed,
            "nfe": sampler.solver.num_function_evaluations,
            "train_steps": spent["fit_steps"],
            "fit_seconds": spent["fit_seconds"],
            "sample_seconds": seconds,
            "num_samples": num_samples,
            "held_out_loss": spent["held_out_loss"],
            "figures": figures.to_dict(),
        }


def time_entries(data: ReplayData, rounds: int, steps: int, num_rows: int) -> dict[str, Any]:
    """Seconds of a training step, of the rest of a fit, and of an evaluation of the net per row, of every entry.

    The entries are timed in turn, and that `rounds` times, so that a drifting machine hits them alike; medians.
    """
    seen: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(rounds):
        for name, entry in entries().items():
            sampler = next(iter(entry.solvers.values()))
            sampler = replace(sampler, solver=replace(sampler.solver, num_steps=2))
            upsampler = DiffusionUpsampler(data.spec, replace(entry.config, train_steps=steps, sampler=sampler), "cpu")
            phases = upsampler.fit(data.rows).phases
            start = time.perf_counter()
            upsampler.sample(num_rows)
            nfe = sampler.solver.num_function_evaluations
            evaluation = (time.perf_counter() - start) / (num_rows * nfe)
            seen.setdefault(name, []).append(
                (phases["train"] / steps, phases["normalize"] + phases["terminals"], evaluation)
            )
    names = ("step", "rest", "evaluation")
    return {
        name: dict(zip(names, np.median(np.array(times), axis=0).tolist(), strict=True)) for name, times in seen.items()
    }


def cost(line: dict[str, Any], timing: dict[str, Any]) -> tuple[float, float]:
    """Seconds of the training and of `NUM_SAMPLES` rows of a line; what was timed apart, or else what it took."""
    if line["name"] not in timing:
        return line["fit_seconds"], line["sample_seconds"] * NUM_SAMPLES / line["num_samples"]
    seconds = timing[line["name"]]
    fit = seconds["rest"] + line["train_steps"] * seconds["step"]
    return fit, NUM_SAMPLES * line["nfe"] * seconds["evaluation"]


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


def table(lines: list[dict[str, Any]], timing: dict[str, Any]) -> str:
    """Markdown: mean and standard deviation of every figure over the seeds."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["data"], line["name"], line["solver"]), []).append(line)
    head = ["data", "model", "solver", "NFE", "seeds", "train s", "sample s", *FIGURES]
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (data, name, solver), group in sorted(groups.items()):
        cells = [data, name, solver, str(group[0]["nfe"]), str(len(group))]
        cells += [f"{mean(seconds):.0f}" for seconds in zip(*(cost(line, timing) for line in group), strict=True)]
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
    parser.add_argument("--solvers", nargs="*", help="names of solvers, heun-255 or sde-16 for example (default: all)")
    parser.add_argument("--samples", type=int, default=NUM_SAMPLES, help="rows per model and solver; at least 5,000")
    parser.add_argument("--timing", action="store_true", help="time steps and samples of all entries, and train none")
    parser.add_argument("--toy", action="store_true", help="tiny data and trainings, to see that it runs")
    parser.add_argument("--models", type=Path, default=Path("build/fidelity"), help="where trained models are kept")
    parser.add_argument("--out", type=Path, default=RESULTS / "fidelity_cost.jsonl")
    args = parser.parse_args()
    if args.toy:
        run_toy(args.out, args.models)
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    paths = args.data or sorted(Path("data").glob("*-50000-*.npz"))
    if not paths:
        parser.error("there are no data: collect some with examples/collect.py, or give --data.")
    if args.timing:
        timing = {"machine": machine(), "entries": time_entries(ReplayData.read(paths[0]), 3, 10, 4_096)}
        timing_path(args.out).write_text(json.dumps(timing, indent=2) + "\n")
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    for seed in range(0 if args.timing else args.seeds):
        for path in paths:
            data = ReplayData.read(path)
            if any(line["data"] == data.name and line["digest"] != data.digest for line in lines):
                parser.error(f"{args.out} has results of other rows named {data.name}; give another --out.")
            for name, entry in entries().items():
                if name not in (args.only or entries()):
                    continue
                key = (data.name, name, seed)
                done = {line["solver"] for line in lines if (line["data"], line["name"], line["seed"]) == key}
                done |= set(entry.solvers) - set(args.solvers or entry.solvers)
                for line in measure(data, name, entry, seed, args.samples, args.models, done):
                    lines.append(line)
                    with args.out.open("a") as file:
                        file.write(json.dumps({"machine": machine(), **line}) + "\n")
                    print(table([line], {}).splitlines()[-1], flush=True)
    report(lines, args.out)


def over_seeds(lines: list[dict[str, Any]], path: tuple[str, ...]) -> str:
    """Mean and standard deviation of a figure over lines that differ in their seeds."""
    values = [value for line in lines if (value := figure(line, path)) is not None]
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{spread}" if values else ""


def side_by_side(
    lines: list[dict[str, Any]], timing: dict[str, Any], comparison: tuple[tuple[str, str, str], ...]
) -> str:
    """Markdown: models beside one another, figure by figure, on the data that have more than one of them."""
    out = [
        "| data | | seeds | training, s | sampling, s | " + " | ".join(FIGURES) + " |",
        "|---|---|--:|--:|--:|" + "--:|" * len(FIGURES),
    ]
    for data in sorted({line["data"] for line in lines}):
        rows = []
        for label, name, solver in comparison:
            key = (data, name, solver)
            group = [line for line in lines if (line["data"], line["name"], line["solver"]) == key]
            if group:
                fit, sample = (mean(part) for part in zip(*(cost(line, timing) for line in group), strict=True))
                cells = [data, label, str(len(group)), f"{fit:,.0f}", f"{sample:,.0f}"]
                cells += [over_seeds(group, path) for path in FIGURES.values()]
                rows.append("| " + " | ".join(cells) + " |")
        out += rows if len(rows) > 1 else []
    return "\n".join(out)


def curves(lines: list[dict[str, Any]], timing: dict[str, Any]) -> dict[str, list[dict[str, float | None]]]:
    """Points for the picture, means over the seeds, by what is varied."""
    results: dict[str, list[dict[str, float | None]]] = {}
    for label, keys in CURVES.items():
        for key in keys:
            group = [line for line in lines if (line["name"], line["solver"]) == key]
            if group:
                point: dict[str, float | None] = {"seconds": mean(sum(cost(line, timing)) for line in group)}
                for name, path in FIGURES.items():
                    values = [value for line in group if (value := figure(line, path)) is not None]
                    point[name] = mean(values) if values else None
                results.setdefault(label, []).append(point)
    return results


def report(lines: list[dict[str, Any]], out: Path) -> None:
    """The tables and a picture per file of data, in the documentation or, if the results are elsewhere, beside them."""
    timing = read_timing(out)
    tables, pictures = (DOCS / "results", DOCS / "images") if out.parent == RESULTS else (out.parent, out.parent)
    tables.mkdir(parents=True, exist_ok=True)
    for name, comparison in COMPARISONS.items():
        text = side_by_side(lines, timing, comparison)
        (tables / name).write_text(text + "\n")
        print(text, end="\n\n")
    (tables / "fidelity_all.md").write_text(table(lines, timing) + "\n")
    print(table(lines, timing))
    for data in sorted({line["data"] for line in lines}):
        points = curves([line for line in lines if line["data"] == data], timing)
        if any(len(curve) > 1 for curve in points.values()):
            fidelity_cost(points).savefig(pictures / f"fidelity_cost_{data}.png", dpi=150)


def timing_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}_timing.json")


def read_timing(out: Path) -> dict[str, Any]:
    path = timing_path(out)
    return json.loads(path.read_text())["entries"] if path.exists() else {}


def run_toy(out: Path, models: Path) -> None:
    """One tiny model, so that the whole path runs in seconds."""
    default = entries()["cpu"]
    network = replace(default.config.network, width=32)
    small = replace(default.config, train_steps=20, terminal_steps=10, network=network)
    entry = Entry(small, {"sde-16": default.solvers["sde-16"]})
    lines = list(measure(ReplayData.toy(), "cpu", entry, 0, 500, models))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps({"machine": machine(), **line}) + "\n" for line in lines))
    report(lines, out)


if __name__ == "__main__":
    main()
