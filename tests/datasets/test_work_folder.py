"""The folder of an upsampling that is not finished: nothing in it is trusted that is not provably of this run."""

import json
import os

import numpy as np
import pytest
from datasets_helpers import TINY, rows

from synther_buffers.datasets import hdf5, npz, open_dataset, upsample, upsampling, write_dataset
from synther_buffers.datasets.files import new_file, place
from synther_buffers.datasets.workfolder import WorkFolder
from synther_buffers.upsampling.augmentation import Bootstrap

PARTS = ("settings.json", "fit.json", "model.safetensors", "rows-000000.safetensors", "rows-000001.safetensors")


@pytest.fixture
def ours(tmp_path):
    """Observations 0 to 299."""
    return open_dataset(write_dataset(tmp_path / "ours.npz", rows(300)))


@pytest.fixture
def others(tmp_path):
    """Observations 1,000 to 1,299."""
    return open_dataset(write_dataset(tmp_path / "others.npz", rows(300, first=1_000)))


def start(dataset, output, upsampler=TINY, **settings):
    settings = {"chunk_rows": 60, "device": "cpu", "progress_bar": False} | settings
    return upsample(dataset, 120, output, upsampler=upsampler, **settings)


@pytest.fixture
def interrupted(tmp_path, ours, monkeypatch):
    """The work folder of a run that was cut off when all rows were drawn, and its output's path."""
    output = tmp_path / "out.npz"

    def cut(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(upsampling, "write_rows", cut)
        with pytest.raises(KeyboardInterrupt):
            start(ours, output)
    folder = tmp_path / "out.npz.partial"
    assert sorted(os.listdir(folder)) == sorted((*PARTS, "lock"))
    return folder, output


def observed(output):
    return open_dataset(output).subset(10**6).observation[:, 0].numpy()


@pytest.mark.parametrize("resume", [False, True])
def test_rows_without_settings_are_nobodys(interrupted, others, resume):
    """What a clean-up leaves that was cut short file by file: the old rows must not become those of other data."""
    folder, output = interrupted
    (folder / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"fit\.json, model\.safetensors, rows-000000\.safetensors but no settings\.j"):
        start(others, output, resume=resume)
    assert not output.exists()
    assert (folder / "rows-000001.safetensors").exists()


def test_a_removal_that_was_cut_short_is_finished(interrupted, others):
    """The folder has another name before its first file goes, so that half of it is never taken for a run."""
    folder, output = interrupted
    removing = folder.rename(f"{folder}.removing")
    (removing / "settings.json").unlink()
    start(others, output)
    assert observed(output).min() >= 1_000
    assert not removing.exists()


def test_an_output_that_is_complete_is_reported_when_resumed(tmp_path, ours, others, monkeypatch):
    """The kill came after the last rename and before the folder was removed."""
    output = tmp_path / "out.npz"
    with monkeypatch.context() as patch:
        patch.setattr(WorkFolder, "remove", lambda self: None)
        first = start(ours, output)
    before = output.read_bytes()
    again = start(ours, output, resume=True)
    assert (again.num_resumed, again.fit.loss) == (120, first.fit.loss)
    assert output.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["others.npz", "ours.npz", "out.npz"]
    with pytest.raises(ValueError, match="of a run with other settings: dataset was"):
        start(others, output, resume=True)
    with pytest.raises(ValueError, match=r"others\.npz exists already, and no run of these settings wrote it"):
        start(ours, others.path, resume=True)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["out.npz.partial", "out.npz.partial.removing"])
def test_a_link_in_its_place_is_not_followed(tmp_path, ours, name, resume):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "rows-000000.safetensors").write_bytes(b"precious")
    (tmp_path / name).symlink_to(elsewhere)
    with pytest.raises(ValueError, match=rf"{name} is in the way: it is no folder of an upsampling but a link"):
        start(ours, tmp_path / "out.npz", resume=resume)
    assert (elsewhere / "rows-000000.safetensors").read_bytes() == b"precious"


def test_a_file_in_its_place_is_left_alone(tmp_path, ours):
    (tmp_path / "out.npz.partial").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"out\.npz\.partial is in the way: it is no folder of an upsampling but a fi"):
        start(ours, tmp_path / "out.npz")
    assert (tmp_path / "out.npz.partial").read_bytes() == b"precious"


@pytest.mark.parametrize("name", [*PARTS, "settings.json.tmp", "rows-000001.safetensors.tmp", "lock", "output"])
@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_is_no_plain_file_within_it_is_not_used(tmp_path, interrupted, ours, name, kind):
    folder, output = interrupted
    if kind == "folder" and name == "output":
        pytest.skip("a Minari output is a folder")
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(victim) if kind == "link" else (folder / name).mkdir()
    with pytest.raises(ValueError, match=rf"is in the way: its {name} is no plain file"):
        start(ours, output, resume=True)
    assert victim.read_bytes() == b"precious"
    assert not output.exists()


def test_a_folder_of_something_else_is_refused(tmp_path, ours):
    (tmp_path / "out.npz.partial").mkdir()
    (tmp_path / "out.npz.partial" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is in the way: it holds notes\.txt, which no upsampling writes"):
        start(ours, tmp_path / "out.npz", resume=True)
    assert (tmp_path / "out.npz.partial" / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", [None, "model.safetensors"])
def test_another_users_folder_is_refused(interrupted, ours, name):
    folder, output = interrupted
    os.chown(folder if name is None else folder / name, 12_345, -1)
    with pytest.raises(ValueError, match="belongs to another user"):
        start(ours, output, resume=True)
    assert not output.exists()


@pytest.mark.parametrize("resume", [False, True])
def test_one_process_at_a_time(tmp_path, ours, resume):
    """A lock ends with its process, so that it is never left over; here the other process is this one."""
    other = WorkFolder.claim(tmp_path / "out.npz.partial", {"seed": 1}, resume=False)
    with pytest.raises(ValueError, match=r"another process works on .*out\.npz\.partial"):
        start(ours, tmp_path / "out.npz", resume=resume)
    other.remove()
    start(ours, tmp_path / "out.npz", resume=resume)


def test_what_appears_while_rows_are_written_is_left_as_it_is(tmp_path, ours, monkeypatch):
    output, write = tmp_path / "out.npz", upsampling.write_rows

    def meanwhile(*args):
        write(*args)
        output.write_bytes(b"someone else's")

    monkeypatch.setattr(upsampling, "write_rows", meanwhile)
    with pytest.raises(ValueError, match=r"out\.npz appeared while its rows were written; it was left as it is"):
        start(ours, output)
    assert output.read_bytes() == b"someone else's"


@pytest.mark.parametrize("kind", ["file", "folder", "link to nothing"])
@pytest.mark.parametrize("made", ["file", "folder"])
def test_place_never_replaces(tmp_path, made, kind):
    unfinished, target = tmp_path / "unfinished", tmp_path / "target"
    for path, what in ((unfinished, made), (target, kind)):
        if what == "file":
            path.write_bytes(path.name.encode())
        elif what == "folder":
            path.mkdir()
            (path / "data").write_bytes(path.name.encode())
        else:
            path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="appeared"):
        place(unfinished, target)
    assert unfinished.exists()
    assert (tmp_path / "nowhere").exists() is False
    if kind != "link to nothing":
        assert (target if kind == "file" else target / "data").read_bytes() == b"target"


def test_new_files_are_new(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"precious")
    for name in ("link", "file"):
        with pytest.raises(FileExistsError), new_file(tmp_path / name):
            pass
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "file").read_bytes() == b"precious"


@pytest.mark.parametrize("output", ["out.npz", "out.hdf5"])
def test_what_was_written_is_read_before_it_gets_its_name(tmp_path, ours, output, monkeypatch):
    """A disk that lost a part of it, without an error."""
    module, function = (npz, "write_npz") if output.endswith("npz") else (hdf5, "write_hdf5")
    write = getattr(module, function)

    def cut(path, *args, **kwargs):
        write(path, *args, **kwargs)
        os.truncate(path, os.path.getsize(path) // 2)

    monkeypatch.setattr(module, function, cut)
    with pytest.raises(OSError, match=rf"what was written for .*{output} cannot be read back"):
        start(ours, tmp_path / output)
    assert not (tmp_path / output).exists()


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("settings.json", b"{", r"settings\.json is damaged"),
        ("settings.json", b"[1]", r"settings\.json is damaged \(no JSON object\)"),
        ("fit.json", b"", r"fit\.json is damaged"),
        ("fit.json", b'{"los": 1}', r"fit\.json is damaged"),
        ("fit.json", json.dumps({"loss": 1}).encode(), r"fit\.json is damaged"),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}      ", r"model\.safetensors"),
        ("rows-000001.safetensors", b"\xff" * 100, r"rows-000001\.safetensors is damaged .*; remove it and resume"),
    ],
)
def test_a_damaged_part_is_named(interrupted, ours, name, content, match):
    folder, output = interrupted
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=match):
        start(ours, output, resume=True)
    assert not output.exists()


def test_rows_of_other_data_are_never_delivered(interrupted, others):
    """Each way of going on with the folder of another dataset ends in an error or in rows of the new one."""
    folder, output = interrupted
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"unfinished run"):
            start(others, output, upsampler=Bootstrap, resume=resume)
    for name in os.listdir(folder):
        (folder / name).unlink()
    start(others, output, upsampler=Bootstrap)
    assert np.isin(observed(output), np.arange(1_000, 1_300)).all()
