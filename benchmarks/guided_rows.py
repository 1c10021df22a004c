"""What the two mechanisms of a guidance do to the synthetic rows of a robot: how relevant they are, and how true.

    python examples/collect.py --env HalfCheetah-v5 --steps 12500
    python benchmarks/guided_rows.py [--data FILE] [--rows 2000] [--seeds 0 1] [--toy] [--out FILE]

Two relevances that can be told of any row: the robot's forward speed, and the error of a curiosity module that is
trained on the real rows. ``rank`` is the mean rank of the synthetic rows' relevance among that of the real ones,
``target`` that of the real rows if they were drawn with the weights of the guidance (strength 1). Squared errors of new
rows against the simulator, in units of a regression's on the same rows: see `synther_buffers.evaluation.new_rows`.
``copies`` is the share of rows closer to a training row than 95 % of real ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from few_rows import split
from measuring import machine, toy, write
from replay_data import ReplayData
from torch import Tensor

from synther_buffers import ConditioningConfig, Curiosity, DiffusionUpsampler, Transitions
from synther_buffers.evaluation.copies import closest_record
from synther_buffers.evaluation.new_rows import RegressionEnsemble, error_of_new_rows
from synther_buffers.guidance.drawing import Draw, GuidedDraw
from synther_buffers.upsampling.presets import UpsamplerConfig, resolve_config
from synther_buffers.upsampling.relevance import RelevanceScale

#: Forward speed of HalfCheetah-v5, and the bins of the picture's densities.
_SPEED, _BINS = 8, 60


def relevances(train: Transitions, seed: int) -> dict[str, Callable[[Transitions], Tensor]]:
    """What tells the relevance of any rows, by name."""
    return {
        "speed": lambda rows: rows.flat()["observation"][:, _SPEED].double(),
        "curiosity": Curiosity().trained(train, seed),
    }


def draw_of(upsampler: DiffusionUpsampler) -> Draw:
    """What a guided draw calls."""
    return lambda count, condition: upsampler.sample(count, condition=condition)


def measure(data: ReplayData, config: UpsamplerConfig, num_rows: int, num_drawn: int, seed: int) -> dict[str, Any]:
    """All sets of one seed."""
    buffer, judges = split(data, num_rows, seed)
    held = torch.arange(len(buffer)) % 25 == 24
    train, held_out = buffer[~held], buffer[held]
    ensemble = RegressionEnsemble(train, data.spec, seed)
    found: dict[str, Any] = {"seed": seed, "rows": num_rows, "drawn": num_drawn, "sets": []}

    def judge(name: str, by: str, rows: Transitions, seconds: dict[str, float], told: Any, real: Tensor) -> None:
        value, ordered = told(rows).double().contiguous(), real.double().sort().values
        new = error_of_new_rows(judges, rows, train, data.spec, data.simulator, ensemble, seed=seed)
        low, high = float(ordered[len(ordered) // 200]), float(ordered[-len(ordered) // 200])
        density, edges = np.histogram(value.numpy(), _BINS, (low, high), density=True)
        found["sets"].append(
            {
                "relevance": name,
                "by": by,
                "rank": float((torch.searchsorted(ordered, value) / len(ordered)).mean()),
                "copies": closest_record(judges, rows, train, data.spec, seed=seed).share_closer,
                "error": {
                    name: part.dynamics / part.dynamics_expected
                    for name, part in (("near", new.near), ("middle", new.middle), ("far", new.far))
                    if part.num_rows
                },
                "seconds": seconds,
                "density": density.tolist(),
                "edges": edges.tolist(),
            }
        )
        print({key: value for key, value in found["sets"][-1].items() if key not in ("density", "edges")}, flush=True)

    start = time.perf_counter()
    plain = DiffusionUpsampler(data.spec, config, "cpu", seed)
    plain.fit(train, held_out=held_out)
    fit_seconds = time.perf_counter() - start
    like_data = plain.sample(num_drawn)
    for name, told in relevances(train, seed).items():
        real = told(train).double()
        scores = RelevanceScale.measure(real).scores(real)
        weights = scores.double().exp()
        rank = torch.empty(len(real), dtype=torch.float64)
        rank[real.argsort()] = (torch.arange(len(real), dtype=torch.float64) + 0.5) / len(real)
        found.setdefault("target", {})[name] = float((weights * rank).sum() / weights.sum())
        judge(name, "real", judges, {}, told, real)
        judge(name, "none", like_data, {"fit": fit_seconds}, told, real)

        start = time.perf_counter()
        rows = GuidedDraw(name, scores, 1.0, "resampling").rows(draw_of(plain), train, data.spec, num_drawn, seed)
        judge(name, "resampling", rows, {"draw": time.perf_counter() - start}, told, real)
        asked = DiffusionUpsampler(
            data.spec, replace(config, conditioning=ConditioningConfig(given_share=0.0)), "cpu", seed
        )
        guided = GuidedDraw(name, scores, 1.0, "condition")
        start = time.perf_counter()
        guided.fit(asked, train, held_out)
        fitted = time.perf_counter()
        rows = guided.rows(draw_of(asked), train, data.spec, num_drawn, seed)
        seconds = {"fit": fitted - start, "draw": time.perf_counter() - fitted}
        judge(name, "condition", rows, seconds, told, real)
        judge(name, "condition, none asked", asked.sample(num_drawn), {}, told, real)
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/HalfCheetah-v5-12500-s0.npz"))
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--drawn", type=int, default=5_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--toy", action="store_true", help="a few steps, to see that it works")
    parser.add_argument("--out", help="where to write the JSON (default: benchmarks/results/guided_rows.json)")
    args = parser.parse_args()
    print(machine())
    config = resolve_config("cpu", torch.device("cpu"))
    if args.toy:
        config = toy(config)
        args.rows, args.drawn, args.seeds = 700, 200, [0]
    data = ReplayData.toy() if args.toy else ReplayData.read(args.data)
    runs = [measure(data, config, args.rows, args.drawn, seed) for seed in args.seeds]
    write("guided_rows", {"data": data.name, "runs": runs}, args.out)


if __name__ == "__main__":
    main()
