"""What a model knows, copies and costs, by the number of rows it learns.

    python examples/collect.py --env HalfCheetah-v5 --steps 12500       # likewise Walker2d-v5 and Hopper-v5
    python benchmarks/few_rows.py [--data FILE ...] [--rows N ...] [--seeds N ...] [--only NAME ...]

Of the first rows of a run, every fifth run of 25 rows is put aside to judge by: neither training nor early stopping
sees it. The others are learned and held out as a buffer does it. One line of JSON per file, number of rows, entry and
seed is appended as it is measured; what is there is not measured again. The tables are made from all lines.

Held-out losses are at fixed noise levels (P_mean -1.2, P_std 0.8) in the normalisation of the rows learned; an
untrained net has 1. ``copies`` is the share of synthetic rows closer to a training row than 95 % of the judging rows
(0.05 if nothing is copied), ``closest`` the ratio of the medians. Errors of new rows: see
`synther_buffers.evaluation.new_rows`; ``x`` is the model's error by the ensemble's.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, machine, toy
from replay_data import ReplayData

from synther_buffers import PRESETS, ConditioningConfig, DiffusionUpsampler, RowOrder, Transitions, UpsamplerConfig
from synther_buffers.diffusion.training import evaluate_denoiser
from synther_buffers.evaluation.metrics import evaluate
from synther_buffers.evaluation.new_rows import RegressionEnsemble, error_of_new_rows
from synther_buffers.replay.holdout import HoldOut
from synther_buffers.upsampling.budget import synthetic_rows
from synther_buffers.upsampling.presets import resolve_config

DOCS = Path(__file__).parent.parent / "docs" / "results"
#: Rows learned; a quarter as many more are put aside to judge by.
ROWS = (500, 1_000, 2_000, 5_000, 10_000)
_RUN = 25
#: Rows between two refreshes of a model that is trained as a buffer trains it.
_EVERY = 1_000


def entries() -> dict[str, UpsamplerConfig]:
    """What is measured, by name."""
    cpu, paper = resolve_config("cpu", torch.device("cpu")), PRESETS["paper-online"]
    plain = replace(cpu, budget=None, training=replace(cpu.training, weight_decay=0.0, dropout=0.0))
    rounded = replace(
        paper,
        train_steps=10_000,
        training=replace(paper.training, bfloat16=cpu.training.bfloat16),
        sampler=cpu.sampler,
        num_synthetic=20_000,
    )
    # As many weights as the paper's net; the learning rate is smaller by the factor by which it is wider.
    wide = replace(
        cpu,
        network=replace(cpu.network, width=640, embedding_dim=256),
        training=replace(cpu.training, learning_rate=1.2e-3),
    )
    return {
        "default": cpu,
        "default-warm": cpu,
        # The same net, as long and as free for any number of rows.
        "constant": plain,
        # The paper's net and a tenth of its steps, sampled by ours.
        "paper-10k": rounded,
        "wide": wide,
        # Longer, or as long with more rows in each step, which costs a GPU little.
        "wide-long": replace(wide, train_steps=20_000, warm_steps=7_000),
        # Half of the rows in each step are learned with a known observation, and draws can ask for one
        # (docs/conditions.md).
        "conditional": replace(cpu, conditioning=ConditioningConfig()),
        "wide-2048": replace(wide, training=replace(wide.training, batch_size=2_048)),
    }


def split(data: ReplayData, num_rows: int, seed: int) -> tuple[Transitions, Transitions]:
    """The rows of a buffer, and a quarter as many to judge by that nobody else sees."""
    if len(data.rows) < num_rows * 5 // 4:
        raise ValueError(f"{data.name} has {len(data.rows)} rows; {num_rows * 5 // 4} are needed to learn {num_rows}.")
    first = data.rows[: num_rows * 5 // 4]
    judged = torch.arange(len(first)) // _RUN % 5 == seed % 5
    return first[~judged], first[judged]


def measure(
    data: ReplayData, name: str, config: UpsamplerConfig, num_rows: int, seed: int, device: str
) -> dict[str, Any]:
    """One line. Where the name ends in ``-warm`` the model is refreshed every 1,000 rows, as a buffer's is."""
    buffer, judges = split(data, num_rows, seed)
    upsampler, hold_out = DiffusionUpsampler(data.spec, config, device, seed), HoldOut()
    for size in (*(range(_EVERY, num_rows, _EVERY) if name.endswith("-warm") else ()), num_rows):
        rows = buffer[:size]
        held = torch.from_numpy(hold_out.mask(RowOrder.appended(len(rows))))
        train = rows[~held]
        report = upsampler.fit(train, held_out=rows[held])
    count = synthetic_rows(config, len(train))
    start = time.perf_counter()
    rows = upsampler.sample(count).to("cpu")
    sample_seconds = time.perf_counter() - start
    figures = evaluate(judges, rows, data.spec, train=train, simulator=data.simulator, seed=seed)
    model = upsampler.model
    assert model is not None  # it was fitted
    levels = replace(config.training, p_mean=-1.2, p_std=0.8)
    losses = {
        key: evaluate_denoiser(
            model.denoising.denoiser,
            model.codec.encode(part, device),
            levels,
            torch.Generator(device).manual_seed(seed),
        )
        for key, part in (("train", train), ("judges", judges))
    }
    ensemble = _ensemble(train, data, seed)
    new = error_of_new_rows(judges, rows, train, data.spec, data.simulator, ensemble, seed=seed)
    real = error_of_new_rows(judges, judges, train, data.spec, data.simulator, ensemble, seed=seed)
    return {
        "machine": machine(),
        "device": device,
        "data": data.name,
        "digest": data.digest,
        "name": name,
        "rows": num_rows,
        "seed": seed,
        "train_steps": report.steps,
        "budget": report.budget,
        "best_step": report.best_step,
        "predicted": list(report.predicted),
        "fit_seconds": report.seconds,
        "phases": report.phases,
        "warm": report.warm,
        "sample_seconds": sample_seconds,
        "num_synthetic": count,
        "loss": losses,
        "figures": figures.to_dict(),
        "new_rows": asdict(new),
        "new_rows_real": asdict(real),
    }


_ensembles: dict[tuple[str, int], RegressionEnsemble] = {}


def _ensemble(train: Transitions, data: ReplayData, seed: int) -> RegressionEnsemble:
    """That of these rows; it takes longer than most models, which share it."""
    key = (replace(data, rows=train).digest, seed)
    if key not in _ensembles:
        _ensembles.clear()
        _ensembles[key] = RegressionEnsemble(train, data.spec, seed)
    return _ensembles[key]


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: means over the runs (seeds, and devices), by data, number of rows and entry."""

    def times(line: dict[str, Any], part: str) -> float:
        found = line["new_rows"][part]
        return found["dynamics"] / found["dynamics_expected"] if found["num_rows"] >= 20 else float("nan")

    columns = {
        # On a CPU; several models shared the GPU.
        "seconds": (
            lambda line: line["fit_seconds"] + line["sample_seconds"] if line["device"] == "cpu" else float("nan"),
            ".0f",
        ),
        "steps": (lambda line: line["train_steps"], ".0f"),
        "loss on rows learned": (lambda line: line["loss"]["train"], ".3f"),
        "on judging rows": (lambda line: line["loss"]["judges"], ".3f"),
        "copies": (lambda line: line["figures"]["closest"]["share_closer"], ".3f"),
        "closest": (lambda line: line["figures"]["closest"]["ratio"], ".2f"),
        "marginal": (lambda line: line["figures"]["fidelity"]["marginal"], ".3f"),
        "correlation": (lambda line: line["figures"]["fidelity"]["correlation"], ".3f"),
        "AUC": (lambda line: line["figures"]["auc"], ".3f"),
        "precision": (lambda line: line["figures"]["neighborhoods"]["precision"], ".3f"),
        "error x: near": (lambda line: times(line, "near"), ".2f"),
        "middle": (lambda line: times(line, "middle"), ".2f"),
        "far": (lambda line: times(line, "far"), ".2f"),
    }
    out = ["| data | rows | model | runs | " + " | ".join(columns) + " |", "|---|--:|---|--:|" + "--:|" * len(columns)]
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["data"], line["rows"], line["name"]), []).append(line)
    for (data, rows, name), group in sorted(groups.items()):
        cells = [data, f"{rows:,}", f"`{name}`", str(len(group))]
        for value, form in columns.values():
            found = [number for line in group if np.isfinite(number := value(line))]
            cells.append(format(mean(found), form) if found else "")
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="*", help="files of examples/collect.py (default: data/*-12500-*)")
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    parser.add_argument("--seeds", type=int, nargs="*", default=(0, 1, 2))
    parser.add_argument("--only", nargs="*", help="names of entries (default: default, default-warm and constant)")
    parser.add_argument("--device", default="cpu", help="that trains and samples")
    parser.add_argument("--toy", action="store_true", help="tiny data and trainings, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "few_rows.jsonl")
    args = parser.parse_args()
    known = entries()
    if args.toy:
        args.rows, args.seeds, args.data, args.only = (200,), (0,), [], ["default"]
        known["default"] = replace(toy(known["default"]), num_synthetic=500)
    paths = args.data if args.data or args.toy else sorted(Path("data").glob("*-12500-*.npz"))
    sets = [ReplayData.toy()] if args.toy else [ReplayData.read(path) for path in paths]
    if not sets:
        parser.error("there are no data: collect some with examples/collect.py, or give --data.")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    for seed in args.seeds:
        for data in sets:
            if any(line["data"] == data.name and line["digest"] != data.digest for line in lines):
                parser.error(f"{args.out} has results of other rows named {data.name}; give another --out.")
            for num_rows in args.rows:
                for name in args.only or ("default", "default-warm", "constant"):
                    key = (data.name, num_rows, name, seed, args.device)
                    if any(
                        tuple(line[part] for part in ("data", "rows", "name", "seed", "device")) == key
                        for line in lines
                    ):
                        continue
                    lines.append(measure(data, name, known[name], num_rows, seed, args.device))
                    with args.out.open("a") as file:
                        file.write(json.dumps(lines[-1]) + "\n")
                    print(table(lines[-1:]).splitlines()[-1], flush=True)
    if args.out.parent == RESULTS:
        (DOCS / "few_rows_table.md").write_text(table(lines))


if __name__ == "__main__":
    main()
