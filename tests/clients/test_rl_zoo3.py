"""rl-zoo3: train from a YAML file, go on, and watch the agent; with the file and the commands of docs/clients.md."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

pytest.importorskip("rl_zoo3", reason="needs synther-buffers[clients]")

import yaml
from clients_helpers import TINY, log_of
from stable_baselines3.common.save_util import load_from_pkl
from synther_buffers.sb3 import SynthERBuffer

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text().split("## rl-zoo3")[1]


def block(language):
    return re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[1]


@pytest.mark.filterwarnings("ignore")
def test_the_pages_file_and_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = yaml.safe_load(block("yaml"))
    kwargs = settings["Pendulum-v1"]["replay_buffer_kwargs"]
    kwargs = kwargs.replace("retrain_every=1_000", "retrain_every=100").replace("{'train_steps': 5_000}", repr(TINY))
    settings["Pendulum-v1"] |= {"n_timesteps": 220, "gradient_steps": 1, "replay_buffer_kwargs": kwargs}
    settings["Pendulum-v1"] |= {"buffer_size": 1_000, "batch_size": 32, "policy_kwargs": "dict(net_arch=[16])"}
    Path("sac.yml").write_text(yaml.safe_dump(settings))

    train, go_on, enjoy = (shlex.split(line) for line in block("bash").replace("\\\n", " ").splitlines())
    run(monkeypatch, [*train, "--eval-freq", "-1", "--seed", "1"])
    buffer = load_from_pkl(Path("logs/sac/Pendulum-v1_1/replay_buffer.pkl"))
    assert type(buffer) is SynthERBuffer
    assert (buffer.size(), buffer.synthetic.num_refreshes) == (220, 2)

    run(monkeypatch, [*go_on, "--eval-freq", "-1", "--seed", "1"])
    buffer = load_from_pkl(Path("logs/sac/Pendulum-v1_2/replay_buffer.pkl"))
    assert (buffer.size(), buffer.synthetic.num_refreshes) == (440, 4)
    refreshes = log_of(Path("refreshes.jsonl"))
    # learning_starts=100: the first batch comes at step 101. The zoo counts steps from 0 when it goes on, so no
    # batch is drawn from 220 to 320.
    assert [line["num_observed"] for line in refreshes] == [101, 201, 321, 421]
    assert [line["refresh"] for line in refreshes] == [1, 2, 3, 4]

    capsys.readouterr()
    run(monkeypatch, [*enjoy, "-n", "210"])
    assert "Episode Reward: " in capsys.readouterr().out


def run(monkeypatch, command):
    """``python -m module arguments`` in this process, which has everything imported already."""
    assert command[:2] == ["python", "-m"]
    monkeypatch.setattr(sys, "argv", command[2:])
    monkeypatch.delitem(sys.modules, command[2], raising=False)
    runpy.run_module(command[2], run_name="__main__")
