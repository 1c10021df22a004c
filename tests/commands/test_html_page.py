"""The page of an evaluation: one file, complete, and safe whatever columns are called."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import h5py
import pytest
from commands_helpers import run, run_json
from PIL import Image
from toys import gaussian

from synther_buffers.commands import html_page
from synther_buffers.commands.html_page import render_page
from synther_buffers.commands.pictures import PICTURES
from synther_buffers.datasets import write_dataset
from synther_buffers.evaluation.meanings import FIGURES, Explained

#: Elements without an end.
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags, cells of tables, pictures and all text; every element must end in the right order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.pictures, self.open, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        if tag == "img":
            self.pictures.append(dict(attributes))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "td":
            self.rows[-1][-1] += data


def test_the_page_holds_every_figure_column_and_picture():
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    for name, first in (("train", 0), ("real", 1), ("synthetic", 2)):
        write_dataset(f"{name}.npz", gaussian(300, seed=first))
    arguments = ("evaluate", "real.npz", "synthetic.npz", "--train", "train.npz")
    assert "page: page.html" in run(*arguments, "--html", "page.html").stdout
    figures = run_json(*arguments)
    page = Page(Path("page.html").read_text(encoding="utf-8"))
    rows = {row[0]: row[1:] for row in page.rows if row}
    for figure in FIGURES:
        if not figure.key.startswith("simulator"):
            assert rows[figure.name][2] == figure.meaning
    assert rows["two-sample AUC"][:2] == [f"{figures['auc']:.4f}", "good"]
    assert rows["errors in a simulator"][0] == "not measured"
    # The columns begin with the worst one.
    worst = figures["fidelity"]["worst_column"]
    assert rows[worst] == [f"{figures['fidelity']['worst_marginal']:.4f}"]
    columns = [row[0] for row in page.rows if len(row) == 2]
    assert columns[0] == worst
    assert len(columns) == 2 + 1 + 1 + 2 + 1
    assert [picture["alt"] for picture in page.pictures] == list(PICTURES)
    for picture in page.pictures:
        head, content = picture["src"].split(",")
        assert head == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(content, validate=True))).verify()
    assert "http" not in page.text


def test_nothing_is_fetched():
    page = Page(render_page("r", "s", [], {}, {"marginals": b"png"}, "0"))
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object")
        assert attributes.get("src", "data:").startswith("data:")
        assert "href" not in attributes


def test_names_are_escaped():
    bad = "<script>alert('x')</script>&\"q"
    line = Explained("fidelity.worst_column", bad, bad, "good", bad)
    page = Page(render_page(bad, bad, [line], {bad: 0.5}, {bad: b"png", "projection": bad}, bad))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.rows[1] == [bad, bad, "good", bad]
    assert [bad, "0.5000"] in page.rows
    assert page.pictures[0]["alt"] == bad
    assert f"projection: not drawn ({bad})" in page.text


def test_a_column_of_that_name_goes_all_the_way():
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    for name, seed in (("real", 0), ("synthetic", 1)):
        rows = gaussian(200, seed=seed)
        with h5py.File(f"{name}.hdf5", "w") as file:
            for key, values in (("observations", rows.observation), ("next_observations", rows.next_observation)):
                file.create_group(key)["<script>"] = values.numpy()
            file["actions"], file["rewards"] = rows.action.numpy(), rows.reward.numpy()
            file["terminals"] = rows.terminated.numpy()
    run("evaluate", "real.hdf5", "synthetic.hdf5", "--html", "page.html")
    page = Page(Path("page.html").read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert any("<script>" in row[0] for row in page.rows if len(row) == 2)


def test_a_picture_that_cannot_be_drawn_is_told():
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    write_dataset("real.npz", gaussian(200))
    constant = gaussian(200, seed=1)
    constant.observation[:], constant.next_observation[:], constant.reward[:] = 0.0, 0.0, 0.0
    write_dataset("constant.npz", constant)
    run("evaluate", "real.npz", "constant.npz", "--html", "page.html")
    page = Page(Path("page.html").read_text(encoding="utf-8"))
    assert "correlations: not drawn (1 continuous columns vary in both sets" in page.text
    assert [picture["alt"] for picture in page.pictures] == ["marginals", "projection"]


def test_json_beside_a_page_is_the_same_as_without():
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    for name, seed in (("real", 0), ("synthetic", 1)):
        write_dataset(f"{name}.npz", gaussian(200, seed=seed))
    arguments = ("evaluate", "real.npz", "synthetic.npz")
    assert run_json(*arguments, "--html", "page.html") == run_json(*arguments)
    assert Path("page.html").is_file()


def test_what_has_the_name_stays(tmp_path, monkeypatch):
    taken = tmp_path / "taken.html"
    taken.write_text("mine")
    with pytest.raises(ValueError, match="appeared while"):
        html_page.write_page(taken, "page")
    assert taken.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["taken.html"]
