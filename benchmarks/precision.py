"""Does bfloat16 cost fidelity, and what does it save? The same fit in float32 and in bfloat16, several seeds.

python benchmarks/precision.py [--env Walker2d-v5] [--rows 20000] [--steps 1000] [--seeds 3] [--toy]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from measuring import machine, toy, write
from refresh import random_transitions

from synther_buffers import PRESETS, DiffusionUpsampler, measure_fidelity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="Walker2d-v5")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--toy", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--out", help="where to write the JSON (default: benchmarks/results/precision.json)")
    args = parser.parse_args()
    if args.toy:
        args.rows, args.steps, args.seeds = 2_000, 20, 1
    spec, rows = random_transitions(args.env, args.rows)
    train, held = rows[: -args.rows // 10], rows[-args.rows // 10 :]
    print(machine())
    header = f"{'precision':<11}{'seed':>5}{'held-out loss':>15}{'marginal':>10}{'correlation':>13}"
    print(f"\n{header}{'train s':>9}{'sample s':>10}")
    table = []
    for seed in range(args.seeds):
        for bfloat16 in (False, True):
            preset = toy(PRESETS["cpu"]) if args.toy else PRESETS["cpu"]
            config = replace(
                preset,
                train_steps=args.steps,
                training=replace(preset.training, bfloat16=bfloat16),
                sampler=replace(preset.sampler, bfloat16=bfloat16),
            )
            upsampler = DiffusionUpsampler(spec, config, "cpu", seed)
            report = upsampler.fit(train, held_out=held)
            start = time.perf_counter()
            fidelity = measure_fidelity(held, upsampler.sample(len(train)), spec)
            row = {
                "precision": "bfloat16" if bfloat16 else "float32",
                "seed": seed,
                "held_out_loss": report.held_out_loss,
                "marginal": fidelity.marginal,
                "correlation": fidelity.correlation,
                "train_seconds": report.phases["train"],
                "sample_seconds": time.perf_counter() - start,
            }
            table.append(row)
            print(
                f"{row['precision']:<11}{seed:>5}{row['held_out_loss']:>15.4f}{row['marginal']:>10.4f}"
                f"{row['correlation']:>13.4f}{row['train_seconds']:>9.1f}{row['sample_seconds']:>10.1f}",
                flush=True,
            )
    write("precision", {"env": args.env, "rows": args.rows, "steps": args.steps, "table": table}, args.out)


if __name__ == "__main__":
    main()
