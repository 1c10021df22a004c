"""Makes the pictures of these pages from a small model of Walker2d-v5 rows; two to three minutes on one core.

    python examples/collect.py --env Walker2d-v5 --steps 50000
    python docs/make_pictures.py --data data/Walker2d-v5-50000-s0.npz

Nine tenths of the rows are learned with the preset `cpu`; the rest is what the marginals are compared with.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from synther_buffers import DiffusionUpsampler
from synther_buffers.datasets import open_dataset
from synther_buffers.plots import generation_strip, marginals

IMAGES = Path(__file__).parent / "images"
#: Forward speed of the torso, and the reward, which is mostly that speed.
FOLLOWED = ("observation[8]", "reward")
SHOWN = ("observation[0]", "observation[8]", "action[0]", "reward")


def main() -> None:
    """Train once, draw both pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/Walker2d-v5-50000-s0.npz"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    dataset = open_dataset(args.data)
    rows = dataset.subset(len(dataset))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed))
    held_out, train = rows[order[: len(rows) // 10]], rows[order[len(rows) // 10 :]]
    upsampler = DiffusionUpsampler(dataset.spec, "cpu", device="cpu", seed=args.seed)
    upsampler.fit(train)
    generation_strip(upsampler, columns=FOLLOWED).savefig(IMAGES / "generation.png", dpi=150)
    figure = marginals(held_out, upsampler.sample(20_000), dataset.spec, columns=SHOWN)
    figure.savefig(IMAGES / "marginals.png", dpi=150)


if __name__ == "__main__":
    main()
