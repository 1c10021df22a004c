"""Are learned rows closer to the truth than perturbed ones? SynthER's figure 5 (Lu et al. 2023) on replay data.

    python examples/collect.py --env Walker2d-v5 --steps 50000     # likewise HalfCheetah-v5 and Hopper-v5
    python benchmarks/augmentations.py --data data/Walker2d-v5-50000-s0.npz

Of each generated row two things are measured: its distance to the closest real row that was learned (is it new?), and
how far its next observation is from the simulator's (is it true?). The diffusion model and the augmentations learn the
same nine of ten rows; the tenth is held out and tells what new real rows look like.
Rows that the simulator cannot be set to are counted and left out.

An augmentation's strength is a free choice, and a weaker one is always truer and less new. So each is measured at
several, and compared where its rows are as far from the data as the model's.

A line of JSON per source and seed is appended to the results as it is measured; what is there already is not measured
again. The tables and the picture are of the environments and seeds asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import machine
from pictures import strength_sweeps
from replay_data import ReplayData

from synther_buffers import PRESETS, DiffusionUpsampler, UpsamplerConfig
from synther_buffers.evaluation.fidelity import measure_fidelity
from synther_buffers.evaluation.metrics import closest_distance, simulate
from synther_buffers.upsampling.augmentation import AmplitudeScaling, Bootstrap, DynamicsNoise, GaussianNoise
from synther_buffers.upsampling.presets import resolve_config, resolve_device
from synther_buffers.upsampling.protocol import Upsampler

ROOT = Path(__file__).parents[1]
#: Rows of each line that are kept for the picture, where the seeds are pooled.
_KEPT = 500
QUARTILES = (0.25, 0.5, 0.75)

MODEL, REAL, BOOTSTRAP = "diffusion model", "held-out real rows", "bootstrap"
Factory = Callable[..., Upsampler]
#: Each augmentation at several strengths, and the library's default among them.
AUGMENTATIONS: dict[str, tuple[float, dict[float, Factory]]] = {
    "Gaussian noise": (0.1, {scale: partial(GaussianNoise, scale=scale) for scale in (0.03, 0.1, 0.3, 1.0)}),
    "amplitude scaling": (
        0.2,
        {width: partial(AmplitudeScaling, low=1 - width, high=1 + width) for width in (0.05, 0.2, 0.5, 0.9)},
    ),
    "dynamics noise": (0.1, {scale: partial(DynamicsNoise, scale=scale) for scale in (0.03, 0.1, 0.3, 1.0)}),
}
Line = dict[str, Any]


def sources(config: UpsamplerConfig) -> dict[tuple[str, float | None], Factory | None]:
    """Where rows come from, by name and strength; None for the held-out rows."""
    found: dict[tuple[str, float | None], Factory | None] = {
        (REAL, None): None,
        (BOOTSTRAP, None): Bootstrap,
        (MODEL, None): partial(DiffusionUpsampler, config=config),
    }
    for name, (_, strengths) in AUGMENTATIONS.items():
        found |= {(name, strength): factory for strength, factory in strengths.items()}
    return found


def measure(data: ReplayData, factory: Factory | None, seed: int, num_samples: int) -> Line:
    """The figures of one source's rows, and some of the rows as points for the picture.

    Raises:
        ValueError: none of its rows can be simulated.
    """
    train, held_out = data.split()
    start = time.perf_counter()
    if factory is None:
        order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(seed))
        drawn = held_out[order[:num_samples]]
    else:
        upsampler = factory(data.spec, seed=seed)
        upsampler.fit(train, held_out=held_out)
        drawn = upsampler.sample(num_samples).to("cpu")
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    distance = closest_distance(drawn, train, data.spec, train)
    simulated = simulate(drawn, data.spec, data.simulator, train)
    known = simulated.simulated
    if not known.any():
        raise ValueError(f"none of {len(drawn)} rows can be simulated.")
    points = torch.stack((distance, simulated.dynamics_error))[:, known]
    fidelity = measure_fidelity(held_out, drawn, data.spec)
    distances, errors = points.quantile(torch.tensor(QUARTILES, dtype=torch.float64), dim=1).T.tolist()
    return {
        "generate_seconds": round(seconds, 2),
        "measure_seconds": round(time.perf_counter() - start, 2),
        "num_samples": len(drawn),
        "distance": distances,
        "dynamics_error": errors,
        "share_simulated": float(known.double().mean()),
        "marginal": fidelity.marginal,
        "correlation": fidelity.correlation,
        "points": [[float(f"{value:.4g}") for value in axis] for axis in points[:, :_KEPT].tolist()],
    }


def read_lines(path: Path) -> list[Line]:
    """The results so far; a last line that was cut off is dropped from the file."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def pick(lines: list[Line], env: str, source: str, strength: float | None) -> list[Line]:
    """The lines of a source, by seed."""
    key = (env, source, strength)
    found = [line for line in lines if (line["env"], line["source"], line["strength"]) == key]
    return sorted(found, key=lambda line: line["seed"])


def error_at(lines: list[Line], distance: float) -> float | None:
    """An augmentation's median error where its median distance is the given one; None where it is never so far.

    Args:
        lines: one seed's, one for each strength.
        distance: to look up, between the strengths on a straight line of logarithms.
    """
    medians = np.log(sorted((line["distance"][1], line["dynamics_error"][1]) for line in lines))
    if not medians[0, 0] <= np.log(distance) <= medians[-1, 0]:
        return None
    return float(np.exp(np.interp(np.log(distance), medians[:, 0], medians[:, 1])))


def spread(values: list[float]) -> str:
    """Mean and range."""
    mean = f"{np.mean(values):.3g}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3g} to {max(values):.3g})"


def table(lines: list[Line], envs: list[str]) -> str:
    """Markdown: every source of every environment."""
    out = [
        "| environment | source | strength | seeds | distance: median | quartiles | dynamics error: median | quartiles "
        "| simulated | marginal | correlation |",
        "|" + "---|" * 11,
    ]
    for env in envs:
        for source, strength in dict.fromkeys((line["source"], line["strength"]) for line in lines):
            group = pick(lines, env, source, strength)
            cells = [env, source, "" if strength is None else f"{strength:g}", str(len(group))]
            for key in ("distance", "dynamics_error"):
                low, middle, high = ([line[key][index] for line in group] for index in range(3))
                cells += [spread(middle), f"{np.mean(low):.3g} to {np.mean(high):.3g}"]
            cells += [f"{100 * np.mean([line['share_simulated'] for line in group]):.0f} %"]
            cells += [spread([line[key] for line in group]) for key in ("marginal", "correlation")]
            out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def answer(lines: list[Line], envs: list[str]) -> str:
    """Markdown: the augmentations at the distance of the model's rows."""
    out = [
        "| environment | augmentation | distance of the model's rows | the model's error | the augmentation's error "
        "there | ratio | larger than the model's |",
        "|" + "---|" * 7,
    ]
    for env in envs:
        model = pick(lines, env, MODEL, None)
        for name, (_, strengths) in AUGMENTATIONS.items():
            errors, ratios, farthest = [], [], []
            for line in model:
                curve = [x for strength in strengths for x in pick(lines, env, name, strength)]
                curve = [x for x in curve if x["seed"] == line["seed"]]
                farthest.append(max((x["distance"][1], x["dynamics_error"][1]) for x in curve))
                error = error_at(curve, line["distance"][1])
                if error is not None:
                    errors.append(error)
                    ratios.append(error / line["dynamics_error"][1])
            cells = [env, name, *(spread([line[key][1] for line in model]) for key in ("distance", "dynamics_error"))]
            if errors:
                cells += [spread(errors), spread(ratios)]
                cells.append(f"{sum(ratio > 1 for ratio in ratios)} of {len(ratios)} seeds")
                if len(errors) < len(model):
                    cells[-1] += f"; not so far in {len(model) - len(errors)}"
            else:
                distance, error = np.mean(farthest, axis=0)
                cells += [f"never so far: {error:.3g} at {distance:.3g}", "", ""]
            out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def draw(lines: list[Line], envs: list[str], path: Path) -> None:
    """The picture, at the width of a paper's page."""
    environments = {}
    for env in envs:
        clouds = {MODEL: pick(lines, env, MODEL, None)}
        curves = {MODEL: [medians(lines, env, MODEL, None)]}
        for name, (default, strengths) in AUGMENTATIONS.items():
            clouds[f"{name} {default:g}"] = pick(lines, env, name, default)
            curves[f"{name} {default:g}"] = [medians(lines, env, name, strength) for strength in strengths]
        # Not the resampled rows, which have no distance and no error.
        clouds[REAL] = pick(lines, env, REAL, None)
        results = {
            name: tuple(np.concatenate([line["points"][axis] for line in group]) for axis in range(2))
            for name, group in clouds.items()
        }
        environments[env] = (results, curves)
    path.parent.mkdir(parents=True, exist_ok=True)
    strength_sweeps(environments, width=6.5).savefig(path, dpi=200)


def medians(lines: list[Line], env: str, source: str, strength: float | None) -> list[float]:
    """Median distance and error, mean over the seeds."""
    group = pick(lines, env, source, strength)
    return [float(np.mean([line[key][1] for line in group])) for key in ("distance", "dynamics_error")]


def report(lines: list[Line], datasets: list[ReplayData], picture: Path, path: Path) -> None:
    """Both tables, with what one has to know to read them."""
    envs = [data.env for data in datasets]
    seconds = sum(line["generate_seconds"] + line["measure_seconds"] for line in lines if line["env"] in envs)
    files = " ".join(f"data/{data.name}.npz" for data in datasets)
    model = pick(lines, envs[0], MODEL, None)[0]
    text = f"""# Diversity and truth: the diffusion model and augmentations

Median distance of generated rows to the closest real row that was learned, and median dynamics error against the
simulator, both in standard deviations (the error squared); means over the seeds, and in brackets their range.
{model["num_samples"]:,} rows per source and seed. The model is trained for {model["config"]["train_steps"]:,} steps.

![Distance against dynamics error]({Path(os.path.relpath(picture, path.parent)).as_posix()})

Each row of panels is an environment. Left: the areas hold half of a source's rows, the lines 90 %, the markers are
medians; the rows of all seeds, at the library's default strengths. Right: medians at every strength. Where the dotted
line at the model's distance crosses an augmentation's line, both are as far from the data.

## At the distance of the model's rows

An augmentation's error between its strengths is interpolated, linearly in the logarithms of distance and error.
A ratio above 1: the augmentation pays with a larger error for rows that are as far from the data.

{answer(lines, envs)}

## Every source

Distances and errors are of the rows that can be simulated, whose share is given: velocities at the limit to which
Hopper's and Walker2d's observations are clipped are not known. A strength is the noise in standard deviations; of
amplitude scaling, the factor is uniform in 1 ± strength. The similarities are those with the held-out rows.

{table(lines, envs)}

Measured on one core of {model["machine"]["cpu"]}, PyTorch {model["machine"]["torch"]}, {model["machine"]["date"]}, in
{seconds / 60:.0f} minutes. The files are named by the environment, steps and seed that `examples/collect.py` was given.

```text
OMP_NUM_THREADS=1 python benchmarks/augmentations.py --data {files}
```
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f"{answer(lines, envs)}\n\n{table(lines, envs)}\n\nwritten to {path} and {picture}")


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", help="files of examples/collect.py, one per environment")
    parser.add_argument("--seeds", type=int, help="of the upsamplers (default: 3)")
    parser.add_argument("--num-samples", type=int, help="rows per source and seed (default: 10000)")
    parser.add_argument("--upsampler", choices=["auto", *PRESETS], default="auto", help="preset of the model")
    parser.add_argument("--out", type=Path, help="results (default: benchmarks/results/augmentation_comparison.jsonl)")
    parser.add_argument("--report", type=Path, help="tables (default: docs/results/augmentation_table.md)")
    parser.add_argument("--picture", type=Path, help="default: docs/images/augmentation_comparison.png")
    parser.add_argument("--toy", action="store_true", help="a tiny model and few rows, to see that it runs")
    args = parser.parse_args()
    toy = ROOT / "build" / "augmentation_comparison"
    args.seeds = (2 if args.toy else 3) if args.seeds is None else args.seeds
    args.num_samples = (300 if args.toy else 10_000) if args.num_samples is None else args.num_samples
    # Toy figures must not get among the real ones.
    args.out = args.out or (toy if args.toy else ROOT / "benchmarks" / "results") / "augmentation_comparison.jsonl"
    args.report = args.report or (toy if args.toy else ROOT / "docs" / "results") / "augmentation_table.md"
    args.picture = args.picture or (toy if args.toy else ROOT / "docs" / "images") / "augmentation_comparison.png"
    if args.seeds < 1:
        parser.error(f"--seeds is {args.seeds}; wanted at least 1.")
    if args.num_samples < 100:
        parser.error(f"--num-samples is {args.num_samples}; wanted at least 100, for medians that mean something.")
    if not args.data and not args.toy:
        parser.error("--data is missing; collect some rows with examples/collect.py, or look at --toy.")
    return parser, args


def main() -> None:
    parser, args = parse_args()
    config = resolve_config(args.upsampler, resolve_device("auto"))
    if args.toy:
        config = replace(config, train_steps=30, terminal_steps=10, network=replace(config.network, width=32, depth=2))
    datasets: list[ReplayData] = []
    for path in args.data or []:
        try:
            datasets.append(ReplayData.read(path))
        except (ValueError, TypeError, OSError) as error:
            parser.error(f"--data {path} cannot be used: {error}")
    datasets = datasets or [ReplayData.toy()]
    envs = [data.env for data in datasets]
    if len(set(envs)) < len(envs):
        parser.error(f"--data holds rows of {', '.join(envs)}; wanted one file per environment.")

    try:
        lines = read_lines(args.out)
    except ValueError as error:
        parser.error(f"--out {args.out} holds other than lines of JSON ({error}); give another file.")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for data in datasets:
        measure_all(parser, args, data, config, lines)
    lines = [line for line in lines if line["seed"] < args.seeds]
    draw(lines, envs, args.picture)
    report(lines, datasets, args.picture, args.report)


def measure_all(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    data: ReplayData,
    config: UpsamplerConfig,
    lines: list[Line],
) -> None:
    """Append what is missing of an environment to the lines, and to their file."""
    for seed in range(args.seeds):
        for (source, strength), factory in sources(config).items():
            if source == REAL and seed > 0:
                continue  # the same rows for every seed
            asked = {"rows": len(data.rows), "asked": args.num_samples}
            asked |= {"config": config.to_dict()} if source == MODEL else {}
            done = [line for line in pick(lines, data.env, source, strength) if line["seed"] == seed]
            if done:
                # Tuples are lists in JSON.
                if any(done[0][key] != json.loads(json.dumps(value)) for key, value in asked.items()):
                    parser.error(
                        f"{args.out} has the {source} of {data.env}, seed {seed}, from other rows or settings; "
                        "give another --out, or remove the file."
                    )
                continue
            try:
                figures = measure(data, factory, seed, args.num_samples)
            except ValueError as error:
                parser.error(f"{data.env}, {source}, strength {strength}, seed {seed}: {error}")
            default = AUGMENTATIONS[source][0] if source in AUGMENTATIONS else None
            if strength != default or source == BOOTSTRAP:
                del figures["points"]  # not in the picture
            line = {"env": data.env, "source": source, "strength": strength, "seed": seed, **asked, **figures}
            line["machine"] = machine()
            lines.append(line)
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(
                f"{data.env}, seed {seed}, {source} {'' if strength is None else strength}: distance "
                f"{line['distance'][1]:.3g}, error {line['dynamics_error'][1]:.3g}, simulated "
                f"{100 * line['share_simulated']:.0f} % ({line['generate_seconds'] + line['measure_seconds']:.0f} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
