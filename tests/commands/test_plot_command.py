"""`synther-buffers plot`: pictures as files."""

import sys

import pytest
from commands_helpers import run, run_json
from toys import gaussian

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


@pytest.mark.parametrize("arguments", [("plot", "-o", "pictures"), ("evaluate", "--html", "page.html")])
def test_a_missing_extra_is_told(real, monkeypatch, arguments):
    for name in [name for name in sys.modules if name.startswith("synther_buffers.plots")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("synther_buffers.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = run(*arguments, real, real, code=1).stderr
    assert 'pip install "synther-buffers[plots]"' in message
