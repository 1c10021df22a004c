"""Makes the pictures of these pages.

    python examples/collect.py --env Walker2d-v5 --steps 50000
    python docs/make_pictures.py --only model --data data/Walker2d-v5-50000-s0.npz
    make demo && python docs/make_pictures.py --only demo
    python docs/make_pictures.py --only guidance

``model``: nine tenths of the rows are learned with the preset `cpu`; the rest is what the marginals are compared with.
``demo``: the pictures of the run that `make demo` left in ``runs/demo``. ``guidance``: from what
`benchmarks/guided_rows.py` has measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from synther_buffers import DiffusionUpsampler
from synther_buffers.datasets import open_dataset
from synther_buffers.plots import generation_strip, marginals, refreshes

IMAGES = Path(__file__).parent / "images"
ROOT = Path(__file__).parents[1]
#: Forward speed of the torso, and the reward, which is mostly that speed.
FOLLOWED = ("observation[8]", "reward")
SHOWN = ("observation[0]", "observation[8]", "action[0]", "reward")


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


def draw_demo(logdir: Path) -> None:
    """What `make demo` left: its picture, and the loss and the fidelity over the refreshes of its run."""
    shutil.copy(logdir / "demo.png", IMAGES / "demo.png")
    refreshes(logdir / "with-synthetic" / "refreshes.jsonl").savefig(IMAGES / "refreshes.png", dpi=150)


def draw_guidance() -> None:
    """Where guided rows lie: the forward speed of real rows, and of synthetic ones by what they were chosen by."""
    run = json.loads((ROOT / "benchmarks" / "results" / "guided_rows.json").read_text())["runs"][0]
    names = {"none": "like the data", "condition": "by condition", "resampling": "by resampling"}
    colours = {"none": "#999999", "condition": "#0072B2", "resampling": "#D55E00"}
    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for found in run["sets"]:
        if found["relevance"] == "speed" and found["by"] in names:
            axes.stairs(found["density"], found["edges"], label=names[found["by"]], color=colours[found["by"]], lw=1.5)
        elif found["relevance"] == "speed" and found["by"] == "real":
            axes.stairs(found["density"], found["edges"], label="real rows", color="#dddddd", fill=True)
    axes.set_xlabel("forward speed, the relevance (m/s)")
    axes.set_ylabel("density")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(IMAGES / "guidance.png", dpi=150)


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["model", "demo", "guidance"], help="default: all")
    parser.add_argument("--data", type=Path, default=Path("data/Walker2d-v5-50000-s0.npz"))
    parser.add_argument("--logdir", type=Path, default=Path("runs/demo"), help="of the demo")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.only in (None, "model"):
        draw_model(args.data, args.seed)
    if args.only in (None, "demo"):
        draw_demo(args.logdir)
    if args.only in (None, "guidance"):
        draw_guidance()


if __name__ == "__main__":
    main()
