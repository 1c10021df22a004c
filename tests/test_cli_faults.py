"""The command line where things go wrong in the middle: one line that says what, exit code 1, and it can go on."""

import json
import resource
import subprocess
import sys
from collections import namedtuple

import h5py
import numpy as np
import pytest
from toys import TINY, gaussian
from typer.testing import CliRunner

from synther_buffers.cli import app
from synther_buffers.datasets import files, open_dataset, write_dataset

WIDE = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    write_dataset("real.npz", gaussian(400))
    (tmp_path / "tiny.json").write_text(json.dumps(TINY.to_dict()))


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=WIDE)
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


UPSAMPLE = ("upsample", "real.npz", "--config", "tiny.json", "--device", "cpu", "--chunk-rows", "100")


@pytest.mark.parametrize(
    ("output", "limit"),
    [
        ("out.hdf5", 1_000),  # settings.json has 1.3 kB
        ("out.hdf5", 30_000),  # the model has 38 kB
        ("out.hdf5", 60_000),  # the output has more than 100 kB
        ("out.npz", 45_000),
    ],
)
def test_a_full_disk_is_one_line(output, limit):
    """Beyond its limit a process gets an error from a write, as from a full disk. HDF5 must not crash at the end."""
    arguments = (*UPSAMPLE, "-o", output, "-n", "1500")
    done = subprocess.run(
        [sys.executable, "-m", "synther_buffers.cli", *arguments],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "File too large" in last
    with pytest.raises(ValueError, match="there is no file"):
        open_dataset(output)
    assert json.loads(run(*arguments, "--resume", "--json").stdout)["num_rows"] == 1_500


@pytest.mark.parametrize(
    ("free", "said"),
    [
        (0, "has 0 bytes free, but up to 3.0 KiB are needed until out.npz is complete"),
        (1_000, "has 1000 bytes free, but up to 3.0 KiB are needed until out.npz is complete"),
        (2_000, "has 2.0 KiB free, but up to 3.0 KiB are needed until out.npz is complete"),
    ],
)
def test_too_little_space_is_told_in_units_that_show_it(monkeypatch, free, said):
    """A row has 16 + 4 + 4 + 16 + 1 bytes; it lies on the disk twice for a moment, once with a byte more."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: usage(10**12, 0, free))
    assert said in run(*UPSAMPLE, "-o", "out.npz", "-n", "37", code=1).stderr


def test_sizes_are_written_with_a_few_digits():
    sizes = (0, 999, 1_024, 150 * 1_024, 1_536 * 1_024, 5 * 2**30, 3 * 2**50)
    assert [files.size_text(size) for size in sizes] == [
        "0 bytes", "999 bytes", "1.0 KiB", "150 KiB", "1.5 MiB", "5.0 GiB", "3072 TiB",
    ]  # fmt: skip


def test_a_damaged_tianshou_buffer_is_one_line():
    with h5py.File("buffer.hdf5", "w") as file:
        file.attrs.update({"_size": 3, "maxsize": np.inf, "stack_num": np.array([1, 2])})
        file["last_index"] = np.array([2])
        file.create_group("_meta")
    stderr = run("info", "buffer.hdf5", code=1).stderr
    assert stderr == "error: buffer.hdf5: a damaged Tianshou buffer: stack_num has 2 values; wanted one.\n"


def test_names_and_missing_terminals_by_option():
    rows = gaussian(200).flat()
    np.savez(
        "others.npz", x=rows["observation"].numpy(), act=rows["action"].numpy(), rew=rows["reward"].numpy(),
        y=rows["next_observation"].numpy(),
    )  # fmt: skip
    assert "--key FIELD=NAME" in run("info", "others.npz", code=1).stderr
    keys = ("--key", "observation=x", "--key", "next_observation=y")
    assert "--no-terminals" in run("info", "others.npz", *keys, code=1).stderr
    told = json.loads(run("info", "others.npz", *keys, "--no-terminals", "--json").stdout)
    assert (told["num_rows"], told["terminal_rate"]) == (200, 0.0)
    assert "wanted FIELD=NAME, once for each of observation" in run("info", "others.npz", "--key", "x", code=2).stderr
    twice = (*keys, "--key", "observation=y")
    assert "--key is 'observation=y'; wanted" in run("info", "others.npz", *twice, code=2).stderr
    evaluated = run("evaluate", "others.npz", "real.npz", *keys, "--no-terminals", "--json")
    assert json.loads(evaluated.stdout)["terminals"]["real_rate"] == 0.0


def test_timeouts_by_option():
    run(*UPSAMPLE, "-o", "with.hdf5", "-n", "50")
    run(*UPSAMPLE, "-o", "without.hdf5", "-n", "50", "--no-timeouts")
    with h5py.File("with.hdf5") as theirs, h5py.File("without.hdf5") as ours:
        assert set(theirs) - set(ours) == {"timeouts"}
        assert np.array_equal(theirs["observations"][()], ours["observations"][()])
    assert "--no-timeouts" in run(*UPSAMPLE, "-o", "x.npz", "--no-timeouts", code=2).stderr
