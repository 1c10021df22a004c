"""`synther-buffers plot`: pictures as files."""

import json
import sys
from pathlib import Path

import pytest
from commands_helpers import run, run_json
from toys import gaussian

from synther_buffers.commands.pictures import PICTURES
from synther_buffers.datasets import write_dataset


def test_plot(real):
    pytest.importorskip("matplotlib")
    pytest.importorskip("synther_buffers.plots")
    write_dataset("synthetic.npz", gaussian(200, seed=1))
    pictures = run_json("plot", real, "synthetic.npz", "--output", "pictures")["pictures"]
    assert len(pictures) == 3
    for picture in pictures:
        with open(picture, "rb") as file:
            assert file.read(4) == b"\x89PNG"


def test_other_pictures(real):
    pytest.importorskip("matplotlib")
    arguments = ("plot", real, real, "-o", "pictures", "--input-format", "hdf5", "--image-format", "svg")
    (first, *_) = run_json(*arguments)["pictures"]
    assert first.endswith("marginals.svg")
    with open(first) as file:
        assert "<svg" in file.read()


def test_a_picture_that_cannot_be_drawn_is_told_and_the_others_are_there(real):
    pytest.importorskip("matplotlib")
    constant = gaussian(200, seed=1)
    constant.observation[:], constant.next_observation[:], constant.reward[:] = 0.0, 0.0, 0.0
    write_dataset("constant.npz", constant)
    done = run("plot", real, "constant.npz", "-o", "pictures", "--json")
    drawn = ["marginals.png", "projection.png"]
    assert [Path(picture).name for picture in json.loads(done.stdout)["pictures"]] == drawn
    assert sorted(path.name for path in Path("pictures").iterdir()) == drawn
    assert "correlations: not drawn (1 continuous columns vary in both sets" in done.stderr


def test_no_picture_at_all_is_a_failure(real, monkeypatch):
    plots = pytest.importorskip("synther_buffers.plots")

    def refuse(*_):
        raise ValueError("nothing to see")

    for name in PICTURES:
        monkeypatch.setattr(plots, name, refuse)
    message = run("plot", real, real, "-o", "pictures", code=1).stderr
    assert "projection: not drawn (nothing to see)" in message
    assert "error: none of the pictures could be drawn" in message


@pytest.mark.parametrize("arguments", [("plot", "-o", "pictures"), ("evaluate", "--html", "page.html")])
def test_a_missing_extra_is_told(real, monkeypatch, arguments):
    for name in [name for name in sys.modules if name.startswith("synther_buffers.plots")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("synther_buffers.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = run(*arguments, real, real, code=1).stderr
    assert 'pip install "synther-buffers[plots]"' in message
