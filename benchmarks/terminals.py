"""Are synthetic terminals at the right rate and on the right rows? The flag against the environment's own rule.

    python benchmarks/terminals.py [--rows 20000] [--preset auto] [--seeds 3] [--toy]

On Hopper-v5 and Walker2d-v5 an episode terminates exactly when the next observation leaves documented ranges, so a
synthetic row's flag can be checked. Two controls: a coin flip of the data's rate, and the model's own terminal column
cut at 0.5, as the published code does it. Rows are those of a uniformly random policy.
"""

from __future__ import annotations

import argparse

import torch
from measuring import machine, toy, write
from refresh import random_transitions
from torch import Tensor

from synther_buffers import DiffusionUpsampler, UpsamplerConfig
from synther_buffers.upsampling.presets import resolve_config, resolve_device


def breaks_rule(env_id: str, observation: Tensor) -> Tensor:
    """True where the environment terminates on this (next) observation; its first columns are height and angle."""
    height, angle = observation[:, 0], observation[:, 1]
    if env_id == "Hopper-v5":
        return ~((height > 0.7) & (angle.abs() < 0.2) & (observation[:, 1:].abs() < 100).all(1))
    return ~((height > 0.8) & (height < 2.0) & (angle.abs() < 1.0))


def score(flag: Tensor, rule: Tensor) -> dict[str, float]:
    """Rate of the flag, and its precision and recall against the rule."""
    hits = float((flag & rule).sum())
    return {
        "rate": float(flag.double().mean()),
        "precision": hits / max(float(flag.sum()), 1.0),
        "recall": hits / max(float(rule.sum()), 1.0),
    }


def measure(env_id: str, num_rows: int, num_synthetic: int, config: UpsamplerConfig, seed: int) -> dict:
    """The three kinds of flag on one synthetic set."""
    spec, rows = random_transitions(env_id, num_rows)
    upsampler = DiffusionUpsampler(spec, config, seed=seed, progress_bar=True)
    upsampler.fit(rows)
    synthetic = upsampler.sample(num_synthetic).to("cpu")
    rule = breaks_rule(env_id, synthetic.next_observation)
    data_rate = float(rows.terminated.double().mean())
    coin = torch.rand(num_synthetic, generator=torch.Generator().manual_seed(seed)) < data_rate
    # The terminal column is the matrix's last; 0 in it is a half-way 0.5 in the published code's units.
    matrix = upsampler.model.denoising.sampler(num_synthetic, seed).draw(0, num_synthetic)
    return {
        "env": env_id,
        "seed": seed,
        "data_rate": data_rate,
        "rule_rate": float(rule.double().mean()),
        "drawn": score(synthetic.terminated, rule),
        "coin": score(coin, rule),
        "cut_at_half_rate": float((matrix[:, -1] > 0).double().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--synthetic", type=int, default=50_000)
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--toy", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--out", help="where to write the JSON (default: benchmarks/results/terminals.json)")
    args = parser.parse_args()
    if args.toy:
        args.rows, args.synthetic, args.seeds = 2_000, 2_000, 1
    config = resolve_config(args.preset, resolve_device("auto"))
    if args.toy:
        config = toy(config)
    print(machine())
    header = f"{'environment':<14}{'seed':>5}{'data rate':>11}{'rule rate':>11}{'drawn':>8}{'cut 0.5':>9}"
    print(f"\n{header}{'precision':>11}{'(coin)':>8}{'recall':>8}{'(coin)':>8}")
    table = []
    for env_id in ("Hopper-v5", "Walker2d-v5"):
        for seed in range(args.seeds):
            row = measure(env_id, args.rows, args.synthetic, config, seed)
            table.append(row)
            drawn, coin = row["drawn"], row["coin"]
            print(
                f"{env_id:<14}{seed:>5}{row['data_rate']:>11.4f}{row['rule_rate']:>11.4f}{drawn['rate']:>8.4f}"
                f"{row['cut_at_half_rate']:>9.4f}{drawn['precision']:>11.3f}{coin['precision']:>8.3f}"
                f"{drawn['recall']:>8.3f}{coin['recall']:>8.3f}",
                flush=True,
            )
    write("terminals", {"rows": args.rows, "preset": args.preset, "table": table}, args.out)


if __name__ == "__main__":
    main()
