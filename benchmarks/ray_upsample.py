"""How well does drawing rows spread over the workers of a Ray cluster? The same rows by one worker, and by two.

    python benchmarks/ray_upsample.py [--rows 300000] [--workers 0 1 2] [--repeats 1] [--toy] [--out FILE]

The model is that of the default preset, trained briefly: what it has learned does not change the time of a draw. Each
run is drawn by a cluster of its own on this machine, with as many CPUs as workers; the clock starts when the cluster
answers, and stops when the last chunk is written. 0 workers are one process without Ray. Beside it, how fast one
process puts chunks together into one file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


def draw(folder: Path, workers: int, num_rows: int, chunk_rows: int) -> float:
    """Seconds of drawing all rows, by so many workers of a cluster, or by none in this process."""
    from synther_buffers import DiffusionUpsampler
    from synther_buffers.datasets.chunks import draw_here
    from synther_buffers.datasets.ray_chunks import draw_on_ray
    from synther_buffers.datasets.workfolder import WorkFolder

    work = WorkFolder(folder, -1)
    model = DiffusionUpsampler.load(folder / "model.safetensors", device="cpu")
    start = time.perf_counter()
    if workers:
        import ray

        ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
        start = time.perf_counter()
        draw_on_ray("local", model.spec, work, num_rows, chunk_rows, "cpu", False)
    else:
        draw_here(model, model.spec, work, num_rows, chunk_rows, False)
    return time.perf_counter() - start


def put_together(num_chunks: int, chunk_rows: int) -> dict[str, float]:
    """Rows per second of putting chunks together into one file, by format."""
    import torch

    from synther_buffers.datasets.chunks import draw_chunk, read_chunk
    from synther_buffers.datasets.registry import write_rows
    from synther_buffers.transitions import Transitions, TransitionSpec
    from synther_buffers.upsampling.augmentation import Bootstrap

    observation = torch.randn(chunk_rows, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    action, reward = observation[:, :6].float().tanh(), observation[:, 0].float()
    rows = Transitions(observation, action, reward, observation + 0.1, observation[:, 0] > 2.0)
    spec = TransitionSpec.infer(rows)
    model = Bootstrap(spec)
    model.fit(rows)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"rows-{index:06d}.safetensors" for index in range(num_chunks)]
        for file in files:
            draw_chunk(model, spec, file, chunk_rows)
        for format in ("hdf5", "npz"):
            start = time.perf_counter()
            target = Path(folder) / f"rows.{format}"
            chunks = lambda: (read_chunk(file, spec) for file in files)  # noqa: E731
            write_rows(target, str(target), format, chunks, spec, num_chunks * chunk_rows, {}, None, True)
            found[format] = num_chunks * chunk_rows / (time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--chunk-rows", type=int, default=25_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--toy", action="store_true", help="a few rows, to see that it works")
    parser.add_argument("--draw", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", help="where to write the JSON (default: benchmarks/results/ray_upsample.json)")
    args = parser.parse_args()
    if args.toy:
        args.rows, args.chunk_rows, args.workers = 4_000, 1_000, [0, 2]
    if args.folder:
        print("seconds", draw(args.folder, args.draw, args.rows, args.chunk_rows))
        return
    from measuring import machine, write
    from refresh import random_transitions

    from synther_buffers import DiffusionUpsampler
    from synther_buffers.upsampling.presets import resolve_config, resolve_device

    print(machine())
    spec, rows = random_transitions("HalfCheetah-v5", 2_000)
    model = DiffusionUpsampler(
        spec, replace(resolve_config("cpu", resolve_device("cpu")), train_steps=50, outcome_steps=0), "cpu", seed=0
    )
    model.fit(rows)
    found: dict[str, Any] = {"rows": args.rows, "columns": sum(t[0].numel() for t in rows.flat().values()), "runs": []}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    for _ in range(args.repeats):
        for workers in args.workers:
            with tempfile.TemporaryDirectory() as folder:
                model.save(Path(folder) / "model.safetensors")
                command = [sys.executable, __file__, "--draw", str(workers), "--folder", folder]
                command += ["--rows", str(args.rows), "--chunk-rows", str(args.chunk_rows)]
                done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            (line,) = [line for line in done.stdout.splitlines() if line.startswith("seconds ")]
            found["runs"].append({"workers": workers, "seconds": float(line.split()[1])})
            print(found["runs"][-1], flush=True)
    seconds = {
        workers: median(run["seconds"] for run in found["runs"] if run["workers"] == workers)
        for workers in args.workers
    }
    least = min((workers for workers in args.workers if workers), default=0)
    found["rows_per_second"] = {str(workers): args.rows / value for workers, value in seconds.items()}
    found["efficiency"] = {
        str(workers): seconds[least] * least / (value * workers) for workers, value in seconds.items() if workers
    }
    found["put_together"] = put_together(4 if args.toy else 24, args.chunk_rows)
    print({name: found[name] for name in ("rows_per_second", "efficiency", "put_together")})
    write("ray_upsample", found, args.out)


if __name__ == "__main__":
    main()
