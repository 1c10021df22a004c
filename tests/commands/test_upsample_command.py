"""`synther-buffers upsample` does what the Python function does, and goes on after an interruption."""

import json

import h5py
import numpy as np
import pytest
from commands_helpers import open_exists, run, run_json
from toys import TINY, equal, gaussian

from synther_buffers.commands.names import AUGMENTATIONS
from synther_buffers.datasets import open_dataset, upsample, upsampling, write_dataset


def test_upsample_does_what_the_function_does(real):
    report = run_json(
        "upsample",
        real,
        "-o",
        "cli.npz",
        "-n",
        "1_50",
        "--config",
        "tiny.json",
        "--device",
        "cpu",
        "--seed",
        3,
        "--quiet",
    )
    assert (report["output"], report["num_synthetic"], report["fit"]["held_out_loss"]) == ("cli.npz", 150, None)
    upsample(open_dataset(real), 150, "python.npz", upsampler=TINY, device="cpu", seed=3)
    with open("cli.npz", "rb") as left, open("python.npz", "rb") as right:
        assert left.read() == right.read()


def test_the_number_of_rows_is_the_presets(real):
    assert run_json("upsample", real, "-o", "cli.npz", "--config", "tiny.json")["num_synthetic"] == TINY.num_synthetic


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_augmentations(real, name):
    text = run("upsample", real, "-o", "cli.npz", "-n", 100, "--augmentation", name, "--include-real", "-q").stdout
    assert "cli.npz: 400 real and 100 synthetic rows" in text
    assert "next: synther-buffers evaluate real.hdf5 cli.npz" in text
    assert equal(open_dataset("cli.npz").subset(500)[:400], gaussian(400))


def test_minari_in_and_out(real):
    import minari

    write_dataset("toys/real-v0", gaussian(120))
    report = run_json(
        "upsample", "toys/real-v0", "-o", "toys/synthetic-v0", "-n", 20, "--augmentation", "gaussian", "--resume"
    )
    assert report["format"] == "minari"
    assert minari.load_dataset("toys/synthetic-v0").total_episodes == 20


def test_a_large_minari_output_wants_confirmation(real):
    arguments = ("upsample", real, "-o", "toys/large-v0", "-n", "200_000", "--augmentation", "bootstrap")
    assert "confirm with --yes" in run(*arguments, code=2).stderr
    assert not open_exists("toys/large-v0")


def test_messages_go_to_stderr(real):
    result = run("upsample", real, "-o", "cli.npz", "-n", 100, "--augmentation", "bootstrap", "--json")
    assert "Learning 400 of 400 rows" in result.stderr
    json.loads(result.stdout)


def test_an_interrupted_run_goes_on(real, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    arguments = ("upsample", real, "-o", "cli.npz", "-n", 100, "--config", "tiny.json", "--device", "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(upsampling, "draw_here", interrupt)
        assert "goes on with --resume" in run(*arguments, code=130).stderr
    assert "--resume" in run(*arguments, code=1).stderr
    assert json.loads(run(*arguments, "--resume", "--json").stdout)["num_rows"] == 100


def test_timeouts_by_option(real):
    arguments = ("upsample", real, "--config", "tiny.json", "--device", "cpu")
    run(*arguments, "-o", "with.hdf5", "-n", "50")
    run(*arguments, "-o", "without.hdf5", "-n", "50", "--no-timeouts")
    with h5py.File("with.hdf5") as theirs, h5py.File("without.hdf5") as ours:
        assert set(theirs) - set(ours) == {"timeouts"}
        assert np.array_equal(theirs["observations"][()], ours["observations"][()])
    assert "--no-timeouts" in run(*arguments, "-o", "x.npz", "--no-timeouts", code=2).stderr


def test_the_format_of_the_output_can_be_named(real):
    arguments = ("upsample", real, "-o", "rows.data", "-n", 50, "--augmentation", "bootstrap")
    assert "suffix tells no format" in run(*arguments, code=2).stderr
    assert run_json(*arguments, "--input-format", "hdf5", "--output-format", "npz")["format"] == "npz"
    assert open_dataset("rows.data").format == "npz"


@pytest.mark.parametrize("words", [["--ray"], ["--ray", "--quiet"]])
def test_ray_without_an_address_is_the_cluster_of_this_machine(real, words):
    # There is none, or Ray is not installed; both say so.
    done = run("upsample", real, "-o", "cli.npz", "-n", 100, "--config", "tiny.json", *words, code=1)
    assert "Ray" in done.stderr
    assert "requires an argument" not in done.stderr
