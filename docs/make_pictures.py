"""Makes the pictures of these pages; a few minutes on one core for each of the two parts.

    python examples/collect.py --env Walker2d-v5 --steps 50000
    python docs/make_pictures.py --only model --data data/Walker2d-v5-50000-s0.npz
    python docs/make_pictures.py --only refreshes

``model``: nine tenths of the rows are learned with the preset `cpu`; the rest is what the marginals are compared with.
``refreshes``: `examples/sb3_sac.py` runs on InvertedPendulum-v5, and its refresh log becomes the picture.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

from synther_buffers import DiffusionUpsampler
from synther_buffers.datasets import open_dataset
from synther_buffers.plots import generation_strip, marginals, refreshes

IMAGES = Path(__file__).parent / "images"
ROOT = Path(__file__).parents[1]
#: Forward speed of the torso, and the reward, which is mostly that speed.
FOLLOWED = ("observation[8]", "reward")
SHOWN = ("observation[0]", "observation[8]", "action[0]", "reward")


#: An online run with a refresh every 1,000 steps, each with the default preset.
RUN = ("--env", "InvertedPendulum-v5", "--steps", "5000", "--utd", "1", "--retrain-every", "1000",
       "--num-synthetic", "20000")  # fmt: skip


def draw_model(data: Path, seed: int) -> None:
    """Train once, draw how rows are generated and how they are distributed."""
    dataset = open_dataset(data)
    rows = dataset.subset(len(dataset))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    held_out, train = rows[order[: len(rows) // 10]], rows[order[len(rows) // 10 :]]
    upsampler = DiffusionUpsampler(dataset.spec, "cpu", device="cpu", seed=seed)
    upsampler.fit(train)
    generation_strip(upsampler, columns=FOLLOWED).savefig(IMAGES / "generation.png", dpi=150)
    figure = marginals(held_out, upsampler.sample(20_000), dataset.spec, columns=SHOWN)
    figure.savefig(IMAGES / "marginals.png", dpi=150)


def draw_refreshes(logdir: Path, seed: int) -> None:
    """Train an agent online, draw the loss and the fidelity over its refreshes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MUJOCO_GL": "disable", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, ROOT / "examples" / "sb3_sac.py", *RUN, "--seed", seed, "--logdir", logdir]
    subprocess.run([str(part) for part in command], env=environment, check=True)
    refreshes(logdir / "refreshes.jsonl").savefig(IMAGES / "refreshes.png", dpi=150)


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["model", "refreshes"], help="default: both")
    parser.add_argument("--data", type=Path, default=Path("data/Walker2d-v5-50000-s0.npz"))
    parser.add_argument("--logdir", type=Path, default=Path("runs/refreshes"), help="of the online run")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.only != "refreshes":
        draw_model(args.data, args.seed)
    if args.only != "model":
        draw_refreshes(args.logdir, args.seed)


if __name__ == "__main__":
    main()
