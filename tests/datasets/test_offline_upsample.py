"""Upsampling a dataset: what is written, from which rows, and going on after a kill."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets_helpers import TINY, equal, rows

from synther_buffers import DiffusionUpsampler
from synther_buffers.datasets import open_dataset, upsample, upsampling, workfolder, write_dataset
from synther_buffers.upsampling.augmentation import Bootstrap

SMALL = {"device": "cpu", "chunk_rows": 60, "progress_bar": False}


@pytest.fixture(autouse=True)
def _store(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(write_dataset(tmp_path / "real.hdf5", rows(300)))


def read(path):
    return open_dataset(path).subset(10**9)


class Killed(BaseException):
    """What a signal does, in the middle of Python code."""


def dies(*args, **kwargs):
    raise Killed


class Mortal(Bootstrap):
    """An upsampler that this library cannot save: it is fitted again, and its draws are repeated."""


SAMPLE = {cls: cls.sample for cls in (DiffusionUpsampler, Mortal)}


def dies_in(config, draw, monkeypatch):
    """Die in the draw of this number, counted from 1; None: never."""
    cls = DiffusionUpsampler if config is TINY else Mortal
    count = itertools.count(1)
    original = SAMPLE[cls]
    monkeypatch.setattr(cls, "sample", lambda self, n: dies() if next(count) == draw else original(self, n))


@pytest.mark.parametrize("output", ["synthetic.hdf5", "synthetic.npz"])
def test_the_same_seed_gives_the_same_file(tmp_path, dataset, output):
    first = tmp_path / "a" / output
    second = tmp_path / "b" / output
    for path, seed in ((first, 3), (second, 3), (tmp_path / output, 4)):
        path.parent.mkdir(exist_ok=True)
        report = upsample(dataset, 200, path, upsampler=TINY, seed=seed, **SMALL)
    assert first.read_bytes() == second.read_bytes()
    assert not equal(read(first), read(tmp_path / output))
    assert (report.num_rows, report.num_synthetic, report.num_real, report.num_train) == (200, 200, 0, 300)
    assert report.fit.steps == TINY.train_steps
    assert open_dataset(first).spec == dataset.spec
    assert not list(tmp_path.rglob("*.partial"))


def test_the_rows_are_new_and_in_range(tmp_path, dataset):
    upsample(dataset, 200, tmp_path / "synthetic.npz", upsampler=TINY, **SMALL)
    found = read(tmp_path / "synthetic.npz")
    assert len(found.observation[:, 0].unique()) > 150
    assert found.observation.min() >= 0
    assert found.observation.max() <= 299


def test_real_rows_come_first(tmp_path, dataset):
    report = upsample(dataset, 100, tmp_path / "mixed.hdf5", upsampler=Bootstrap, include_real=True, **SMALL)
    found = read(tmp_path / "mixed.hdf5")
    assert (report.num_real, report.num_rows, len(found)) == (300, 400, 400)
    assert equal(found[:300], rows(300))


def test_training_rows_are_a_seeded_subset(tmp_path, dataset):
    upsample(dataset, 500, tmp_path / "few.npz", upsampler=Bootstrap, train_rows=120, seed=7, **SMALL)
    drawn = set(read(tmp_path / "few.npz").observation[:, 0].tolist())
    assert drawn <= set(dataset.subset(120, seed=7).observation[:, 0].tolist())
    assert 100 < len(drawn) <= 120


def test_minari_output(tmp_path, dataset):
    import minari

    upsample(dataset, 30, "toys/synthetic-v0", upsampler=Bootstrap, **SMALL)
    assert minari.load_dataset("toys/synthetic-v0").total_steps == 30
    assert list(minari.list_local_datasets()) == ["toys/synthetic-v0"]
    assert sorted(file.name for file in (tmp_path / "store/toys").iterdir()) == [
        "namespace_metadata.json",
        "synthetic-v0",
    ]


def test_global_streams_are_left_alone(tmp_path, dataset):
    before = (torch.get_rng_state().tolist(), str(np.random.get_state()))  # noqa: NPY002
    upsample(dataset, 100, tmp_path / "synthetic.npz", upsampler=TINY, **SMALL)
    assert before == (torch.get_rng_state().tolist(), str(np.random.get_state()))  # noqa: NPY002


# -- interruptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["{}.hdf5", "{}.npz", "toys/{}-v0"])
@pytest.mark.parametrize("config", [TINY, Mortal])
def test_going_on_gives_what_an_uninterrupted_run_gives(tmp_path, dataset, output, config, monkeypatch):
    plain, killed = (
        output.format(name) if "/" in output else tmp_path / output.format(name) for name in ("plain", "killed")
    )
    upsample(dataset, 200, plain, upsampler=config, **SMALL)
    dies_in(config, 3, monkeypatch)
    with pytest.raises(Killed):
        upsample(dataset, 200, killed, upsampler=config, **SMALL)
    with pytest.raises(ValueError, match="there is no"):
        open_dataset(killed)
    with pytest.raises(ValueError, match="unfinished run; go on with resume=True"):
        upsample(dataset, 200, killed, upsampler=config, **SMALL)
    with pytest.raises(ValueError, match="other settings: seed was 0 and is 1"):
        upsample(dataset, 200, killed, upsampler=config, resume=True, seed=1, **SMALL)
    dies_in(config, None, monkeypatch)
    report = upsample(dataset, 200, killed, upsampler=config, resume=True, **SMALL)
    assert report.num_resumed == 120
    assert equal(read(plain), read(killed))
    if "/" not in output:
        assert plain.read_bytes() == killed.read_bytes()
    assert not list(tmp_path.rglob("*.partial"))


def test_a_trained_model_is_not_trained_again(tmp_path, dataset, monkeypatch):
    dies_in(TINY, 1, monkeypatch)
    with pytest.raises(Killed):
        upsample(dataset, 200, tmp_path / "synthetic.npz", upsampler=TINY, **SMALL)
    dies_in(TINY, None, monkeypatch)
    monkeypatch.setattr(DiffusionUpsampler, "fit", None)
    report = upsample(dataset, 200, tmp_path / "synthetic.npz", upsampler=TINY, resume=True, **SMALL)
    assert report.fit.steps == TINY.train_steps


def test_a_kill_while_the_output_is_written(tmp_path, dataset, monkeypatch):
    upsample(dataset, 200, tmp_path / "plain.npz", upsampler=TINY, **SMALL)

    def die(path, *args):
        Path(path).write_bytes(b"half")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("synther_buffers.datasets.npz.write_npz", die)
        with pytest.raises(Killed):
            upsample(dataset, 200, tmp_path / "killed.npz", upsampler=TINY, **SMALL)
    assert not (tmp_path / "killed.npz").exists()
    upsample(dataset, 200, tmp_path / "killed.npz", upsampler=TINY, resume=True, **SMALL)
    assert (tmp_path / "killed.npz").read_bytes() == (tmp_path / "plain.npz").read_bytes()


def test_a_kill_between_the_last_two_steps(tmp_path, dataset, monkeypatch):
    """The output has its name, but the folder is still there."""
    with monkeypatch.context() as patch:
        patch.setattr("synther_buffers.datasets.workfolder.WorkFolder.remove", dies)
        with pytest.raises(Killed):
            upsample(dataset, 200, tmp_path / "synthetic.npz", upsampler=TINY, **SMALL)
    finished = (tmp_path / "synthetic.npz").read_bytes()
    report = upsample(dataset, 200, tmp_path / "synthetic.npz", upsampler=TINY, resume=True, **SMALL)
    assert (tmp_path / "synthetic.npz").read_bytes() == finished
    assert report.num_rows == 200
    assert not (tmp_path / "synthetic.npz.partial").exists()


def test_sigkill(tmp_path, dataset):
    """A process that is killed for real, by the operating system, while it draws."""
    output, work = tmp_path / "killed.hdf5", tmp_path / "killed.hdf5.partial"
    settings = {"upsampler": TINY, "device": "cpu", "chunk_rows": 10, "progress_bar": False}
    upsample(dataset, 2_000, tmp_path / "plain.hdf5", **settings)
    (tmp_path / "tiny.json").write_text(json.dumps(TINY.to_dict()))
    process = subprocess.Popen(
        [
            sys.executable, "-m", "synther_buffers.commands", "upsample", str(dataset.path), "--output", str(output),
            "--num-samples", "2_000", "--chunk-rows", "10", "--config", str(tmp_path / "tiny.json"), "--device", "cpu",
        ],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (work / "rows-000003.safetensors").exists():
            assert process.poll() is None, "the process ended before it could be killed"
            assert time.monotonic() < deadline, "no row within two minutes"
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not output.exists()
    done = len(list(work.glob("rows-*.safetensors")))
    assert 4 <= done < 200
    report = upsample(dataset, 2_000, output, resume=True, **settings)
    assert report.num_resumed == 10 * done
    assert output.read_bytes() == (tmp_path / "plain.hdf5").read_bytes()


def test_a_damaged_chunk_is_named(tmp_path, dataset, monkeypatch):
    dies_in(TINY, 3, monkeypatch)
    with pytest.raises(Killed):
        upsample(dataset, 200, tmp_path / "synthetic.npz", upsampler=TINY, **SMALL)
    dies_in(TINY, None, monkeypatch)
    chunk = tmp_path / "synthetic.npz.partial" / "rows-000001.safetensors"
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"rows-000001.*damaged.*remove it and resume"):
        upsample(dataset, 200, tmp_path / "synthetic.npz", upsampler=TINY, resume=True, **SMALL)
    chunk.unlink()
    upsample(dataset, 200, tmp_path / "synthetic.npz", upsampler=TINY, resume=True, **SMALL)
    upsample(dataset, 200, tmp_path / "plain.npz", upsampler=TINY, **SMALL)
    assert equal(read(tmp_path / "synthetic.npz"), read(tmp_path / "plain.npz"))


def test_a_changed_dataset_is_noticed(tmp_path, dataset, monkeypatch):
    dies_in(TINY, 2, monkeypatch)
    with pytest.raises(Killed):
        upsample(dataset, 200, tmp_path / "synthetic.npz", upsampler=TINY, **SMALL)
    dataset.path.unlink()
    changed = open_dataset(write_dataset(dataset.path, rows(310)))
    with pytest.raises(ValueError, match="other settings: dataset was"):
        upsample(changed, 200, tmp_path / "synthetic.npz", upsampler=TINY, resume=True, **SMALL)


# -- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_samples": 0}, "num_samples is 0"),
        ({"train_rows": 0}, "train_rows is 0"),
        ({"chunk_rows": True}, "chunk_rows is True"),
        ({"output": "rows.csv"}, "suffix tells no format"),
        ({"output": "toys/large-v0", "num_samples": 100_001}, "confirm with allow_large_minari"),
        ({"upsampler": "magic"}, "unknown preset"),
        ({"num_samples": 10**15}, "up to [0-9]+ TiB are needed"),
    ],
)
def test_bad_arguments(tmp_path, dataset, changes, match, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=match):
        upsample(**{"dataset": dataset, "num_samples": 10, "output": "new.npz", "upsampler": TINY} | changes)
    assert {file.name for file in tmp_path.iterdir()} <= {"real.hdf5", "store"}
    assert not list((tmp_path / "store").glob("*"))


@pytest.mark.parametrize("output", ["new.hdf5", "toys/new-v0"])
def test_keys_with_a_slash_are_refused_before_anything_is_learned(tmp_path, output):
    given = rows(300)
    given.observation, given.next_observation = {"arm/pos": given.observation}, {"arm/pos": given.next_observation}
    dataset = open_dataset(write_dataset(tmp_path / "real.npz", given))
    with pytest.raises(ValueError, match=r"observation\.arm/pos has a '/' .*write \.npz, or rename the key"):
        upsample(dataset, 10, output if output.startswith("toys") else tmp_path / output, upsampler=TINY)
    assert [path.name for path in tmp_path.rglob("*") if path.name not in ("store", "toys")] == ["real.npz"]


def test_too_few_rows(tmp_path):
    few = open_dataset(write_dataset(tmp_path / "few.npz", rows(99)))
    with pytest.raises(ValueError, match="99 rows, too few"):
        upsample(few, 10, tmp_path / "new.npz", upsampler=TINY)


def test_an_existing_output_is_left_alone(tmp_path, dataset):
    write_dataset(tmp_path / "there.npz", rows(3))
    with pytest.raises(ValueError, match="exists already"):
        upsample(dataset, 10, tmp_path / "there.npz", upsampler=TINY)
    assert len(open_dataset(tmp_path / "there.npz")) == 3


@pytest.mark.parametrize("resume", [False, True])
def test_another_process_finishes_right_before_the_folder_is_free(tmp_path, dataset, monkeypatch, resume):
    """It had the folder when this one looked for the output, and is done when this one gets the folder."""
    target, claim = tmp_path / "out.npz", workfolder.WorkFolder.claim
    settings = {"upsampler": Bootstrap, "seed": 3, "progress_bar": False}

    def after_the_other(path, wanted, going_on):
        monkeypatch.setattr(workfolder.WorkFolder, "claim", claim)
        upsample(dataset, 50, target, **settings)
        return claim(path, wanted, going_on)

    monkeypatch.setattr(workfolder.WorkFolder, "claim", after_the_other)
    trained = Counted(upsampling._trained)  # by the other process, and not again
    monkeypatch.setattr(upsampling, "_trained", trained)
    if resume:
        assert upsample(dataset, 50, target, resume=True, **settings).num_resumed == 50
    else:
        with pytest.raises(ValueError, match="exists already"):
            upsample(dataset, 50, target, **settings)
    assert trained.calls == 1
    assert not list(tmp_path.glob("out.npz.partial*"))


class Counted:
    """A function that counts its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *arguments):
        self.calls += 1
        return self.function(*arguments)
