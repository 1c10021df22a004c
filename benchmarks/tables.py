"""The tables of the documentation from the results: ``python benchmarks/tables.py`` after any benchmark.

The table of presets needs no benchmark. `fidelity_cost.py`, `augmentations.py` and the offline example write their own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from measuring import COLUMNS, RESULTS, num_weights

from synther_buffers import PRESETS, UpsamplerConfig

TABLES = Path(__file__).parent.parent / "docs" / "results"


def read(name: str) -> dict[str, Any] | None:
    """The results of a benchmark, if it was run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def where(results: dict[str, Any]) -> str:
    """What the figures were measured on."""
    machine = results["machine"]
    device = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    return f"Measured on {machine['date']}: {device}; PyTorch {machine['torch']}, Python {machine['python']}."


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def arithmetic(config: UpsamplerConfig, weights: int, steps: int) -> float:
    """Operations of a refresh: six per weight and row learned, two per weight, row drawn and evaluation."""
    learned = 6 * weights * config.training.batch_size * steps
    evaluations = config.sampler.solver.num_function_evaluations
    return learned + 2 * weights * evaluations * config.num_synthetic


def presets() -> str:
    """What the presets are, and what a refresh of each computes."""
    rows = torch.zeros((1, COLUMNS))
    cells = []
    for name, config in PRESETS.items():
        weights = num_weights(config, rows)
        solver = config.sampler.solver
        cells.append(
            [
                f"`{name}`",
                f"{config.network.width} x {config.network.depth}, {config.network.activation}",
                f"{weights / 1e6:.1f}",
                f"{config.training.batch_size:,}",
                f"{config.training.learning_rate:g}",
                f"{config.train_steps:,} / {config.warm_steps:,}" if config.warm_start else f"{config.train_steps:,}",
                f"{solver.name}, {solver.num_function_evaluations}",
                f"{config.num_synthetic:,}",
                f"{arithmetic(config, weights, config.train_steps) / 1e12:,.0f}",
            ]
        )
    head = [
        "preset",
        "width x depth, activation",
        "million weights",
        "batch",
        "learning rate",
        "training steps (warm)",
        "solver, evaluations a row",
        "synthetic rows",
        "TFLOP a refresh",
    ]
    return markdown(head, cells)


def refresh(results: dict[str, Any]) -> str:
    """Seconds by phase, in steps of the paper, and against the budget."""
    phases = list(results["scratch"]["phases"])
    rows = []
    for name, label in (("scratch", "from scratch"), ("warm", "warm")):
        part = results[name]
        cells = [f"{part['phases'][phase]:.1f}" for phase in phases]
        rows.append([label, *cells, f"{part['seconds']:.1f}", f"{part['paper_steps']:.0f}", f"{part['budget']:.2f}"])
    head = ["seconds", *phases, "in all", "in eager steps of the paper's preset", "share of the budget"]
    sizes = f"{results['rows']:,} rows into {results['synthetic']:,} at {results['nfe']} evaluations each. "
    unit = f"One eager step of the paper's preset took {results['paper_step_seconds']['mean']:.4f} s in the same run."
    return f"{markdown(head, rows)}\n\n{sizes}{unit}\n{where(results)}"


def training_step(results: dict[str, Any]) -> str:
    """Milliseconds of a step and microseconds of a row's evaluation, by plain PyTorch and by the library."""
    rows = [
        [
            f"`{name}`",
            f"{part['plain_seconds'] * 1e3:.1f}",
            f"{part['our_seconds'] * 1e3:.1f}",
            f"{part['ratio']:.2f}",
            f"{part['over_floor']:.2f}",
            f"{part['module_row_seconds'] * 1e6:.1f}",
            f"{part['block_row_seconds'] * 1e6:.1f}",
            f"{part['evaluation_ratio']:.2f}",
        ]
        for name, part in results.items()
        if isinstance(part, dict) and "ratio" in part
    ]
    head = [
        "preset's sizes",
        "plain step, ms",
        "ours, ms",
        "ratio",
        "ours / arithmetic floor",
        "evaluation of a row by the module, µs",
        "in blocks, µs",
        "ratio",
    ]
    text = f"{markdown(head, rows)}\n\n{where(results)}"
    if compiled := results.get("compiled"):
        text += (
            f" `torch.compile` on the default's plain step: {compiled['compile_seconds']:.0f} s to compile, then "
            f"{compiled['compiled_ratio']:.2f} times as long as ours."
        )
    return text


def published(results: dict[str, Any]) -> str:
    """Seconds of the published code and of ours."""
    rows = [
        [name, f"{part['published_seconds']:.3g}", f"{part['our_seconds']:.3g}", f"{part['ratio']:.2f}"]
        for name, part in results["timings"].items()
    ]
    head = ["what: our preset", "published, s", "ours, s", "published / ours"]
    commit = f"Published code at commit `{results['commit'][:7]}`. "
    return f"{markdown(head, rows)}\n\n{commit}{where(results)}"


def main() -> None:
    TABLES.mkdir(parents=True, exist_ok=True)
    (TABLES / "presets_table.md").write_text(presets() + "\n")
    for name, table in {"refresh": refresh, "training_step": training_step, "published": published}.items():
        results = read(name)
        if results is not None:
            (TABLES / f"{name}_table.md").write_text(table(results) + "\n")
            print(f"written: {TABLES / f'{name}_table.md'}")


if __name__ == "__main__":
    main()
