"""`synther-buffers info`: what it prints."""

import numpy as np
import pytest
from commands_helpers import run, run_json
from toys import gaussian

from synther_buffers.datasets import write_dataset


def test_info(real):
    told = run_json("info", real)
    assert (told["format"], told["num_rows"], told["num_dropped"]) == ("hdf5", 400, 0)
    assert told["terminal_rate"] == gaussian(400).terminated.double().mean().item()
    fields = {field["name"]: field for field in told["fields"]}
    assert fields["observation"]["shape"] == [2]
    assert fields["reward"]["max"] == gaussian(400).reward.max().item()
    assert fields["observation"]["mean"] == pytest.approx(gaussian(400).observation.mean().item())
    text = run("info", real).stdout
    assert "real.hdf5: hdf5, 400 rows" in text
    assert "next_observation" in text


def test_the_format_can_be_named(real):
    assert run_json("info", real, "--input-format", "hdf5")["num_rows"] == 400
    assert "real.hdf5 is no saved Tianshou buffer" in run("info", real, "--input-format", "tianshou", code=1).stderr


def test_names_and_missing_terminals_by_option():
    rows = gaussian(200).flat()
    np.savez(
        "others.npz", x=rows["observation"].numpy(), act=rows["action"].numpy(), rew=rows["reward"].numpy(),
        y=rows["next_observation"].numpy(),
    )  # fmt: skip
    assert "--key FIELD=NAME" in run("info", "others.npz", code=1).stderr
    keys = ("--key", "observation=x", "--key", "next_observation=y")
    assert "--no-terminals" in run("info", "others.npz", *keys, code=1).stderr
    told = run_json("info", "others.npz", *keys, "--no-terminals")
    assert (told["num_rows"], told["terminal_rate"]) == (200, 0.0)
    assert "wanted FIELD=NAME, once for each of observation" in run("info", "others.npz", "--key", "x", code=2).stderr
    twice = (*keys, "--key", "observation=y")
    assert "--key is 'observation=y'; wanted" in run("info", "others.npz", *twice, code=2).stderr
    write_dataset("synthetic.npz", gaussian(200, seed=1))
    evaluated = run_json("evaluate", "others.npz", "synthetic.npz", *keys, "--no-terminals")
    assert evaluated["terminals"]["real_rate"] == 0.0
