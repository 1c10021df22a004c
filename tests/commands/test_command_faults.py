"""The command line where things go wrong in the middle: one line that says what, exit code 1, and it can go on."""

import json
import resource
import subprocess
import sys
from collections import namedtuple

import h5py
import numpy as np
import pytest
from commands_helpers import run
from toys import TINY, gaussian

from synther_buffers.datasets import files, open_dataset, write_dataset


@pytest.fixture(autouse=True)
def _data(tmp_path, _folder):
    write_dataset("real.npz", gaussian(400))
    (tmp_path / "tiny.json").write_text(json.dumps(TINY.to_dict()))


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
        [sys.executable, "-m", "synther_buffers.commands", *arguments],
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
