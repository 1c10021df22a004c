"""The command line: what it prints, its exit codes, and that it does what the Python functions do."""

import json
import sys

import numpy as np
import pytest
import torch
from toys import TINY, equal, gaussian
from typer.testing import CliRunner

from synther_buffers import __version__
from synther_buffers.cli import AUGMENTATIONS, app
from synther_buffers.datasets import open_dataset, upsample, upsampling, write_dataset

#: Help texts are checked as one line, without the frames and breaks of the terminal.
WIDE = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


@pytest.fixture(autouse=True)
def _store(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def real(tmp_path):
    write_dataset("real.hdf5", gaussian(400))
    (tmp_path / "tiny.json").write_text(json.dumps(TINY.to_dict()))
    return "real.hdf5"


def run(*arguments, code=0, answer=None):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=answer, env=WIDE)
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def run_json(*arguments):
    """The one object on stdout; everything else must have gone to stderr."""
    return json.loads(run(*arguments, "--json").stdout)


# -- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["info", "upsample", "evaluate", "plot"])
def test_help_explains_the_command(command):
    text = run(command, "--help").stdout
    assert f"synther-buffers {command} walker2d" in text  # an example
    assert "--allow-pickle" in text


def test_help_of_the_whole():
    text = run("--help").stdout
    for word in ("info", "upsample", "evaluate", "plot", "Exit codes: 0 done, 1 failed, 2 wrong usage"):
        assert word in text


def test_version():
    assert run("--version").stdout.strip() == __version__


# -- info ------------------------------------------------------------------------------------------------------------


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


# -- upsample --------------------------------------------------------------------------------------------------------


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


def open_exists(path):
    try:
        open_dataset(path)
    except ValueError:
        return False
    return True


def test_messages_go_to_stderr(real):
    result = run("upsample", real, "-o", "cli.npz", "-n", 100, "--augmentation", "bootstrap", "--json")
    assert "Learning 400 of 400 rows" in result.stderr
    json.loads(result.stdout)


# -- evaluate and plot -----------------------------------------------------------------------------------------------


def test_evaluate():
    pytest.importorskip("sklearn")
    for name, first in (("train", 0), ("real", 1), ("good", 2)):
        write_dataset(f"{name}.npz", gaussian(300, seed=first))
    bad = gaussian(300, seed=3)
    bad.observation += 5
    write_dataset("bad.hdf5", bad)
    good = run_json("evaluate", "real.npz", "good.npz", "--train", "train.npz")
    worse = run_json("evaluate", "real.npz", "bad.hdf5", "--rows", 200)
    assert good["auc"] < 0.65 < 0.95 < worse["auc"]
    assert (good["num_train"], good["closest"] is None, worse["closest"]) == (300, False, None)
    assert worse["num_real"] == 200
    text = run("evaluate", "real.npz", "good.npz").stdout
    assert f"{'auc':<36} {good['auc']:.4f}" in text
    assert "fidelity: marginal" in text


def test_evaluate_against_a_simulator():
    pytest.importorskip("sklearn")
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("mujoco")
    from synther_buffers import Transitions

    env = gymnasium.make("InvertedPendulum-v5")
    env.action_space.seed(0)
    steps = []
    observation, _ = env.reset(seed=0)
    for _ in range(150):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        steps.append((observation, action, reward, following, terminated))
        observation = env.reset()[0] if terminated or truncated else following
    observations, actions, rewards, followings, ends = (np.array(column) for column in zip(*steps, strict=True))
    rows = Transitions(
        torch.from_numpy(observations), torch.from_numpy(actions), torch.from_numpy(rewards).float(),
        torch.from_numpy(followings), torch.from_numpy(ends),
    )  # fmt: skip
    write_dataset("pendulum.npz", rows)
    told = run_json("evaluate", "pendulum.npz", "pendulum.npz", "--env", "InvertedPendulum-v5")
    assert told["simulator"]["share_simulated"] == 1.0
    assert "nothing-v0" in run("evaluate", "pendulum.npz", "pendulum.npz", "--env", "nothing-v0", code=2).stderr


def test_other_fields_are_told(real):
    other = gaussian(100)
    other.observation = other.next_observation = torch.zeros(100, 3, dtype=torch.float64)
    write_dataset("other.npz", other)
    message = run("evaluate", real, "other.npz", code=1).stderr
    assert "other.npz has other fields than real.hdf5: next_observation has rows of shape (3,), there (2,)" in message


def test_plot(real):
    pytest.importorskip("matplotlib")
    pytest.importorskip("synther_buffers.plots")
    write_dataset("synthetic.npz", gaussian(200, seed=1))
    pictures = run_json("plot", real, "synthetic.npz", "--output", "pictures")["pictures"]
    assert len(pictures) == 3
    for picture in pictures:
        with open(picture, "rb") as file:
            assert file.read(4) == b"\x89PNG"


# -- exit codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Usage"),
        (("nonsense",), "No such command"),
        (("upsample",), "Missing"),
        (("upsample", "real.hdf5"), "--output"),
        (("upsample", "real.hdf5", "-o", "x.npz", "-n", "0"), "--num-samples"),
        (("upsample", "real.hdf5", "-o", "x.npz", "-n", "many"), "--num-samples"),
        (("upsample", "real.hdf5", "-o", "x.npz", "--preset", "magic"), "unknown preset 'magic'; known presets"),
        (("upsample", "real.hdf5", "-o", "x.npz", "--device", "abacus"), "cannot be used here"),
        (("upsample", "real.hdf5", "-o", "x.csv"), "suffix tells no format"),
        (("upsample", "real.hdf5", "-o", "x.npz", "--format", "csv"), "formats that can be written"),
        (("upsample", "real.hdf5", "-o", "x.npz", "--input-format", "csv"), "known formats"),
        (("upsample", "real.hdf5", "-o", "x.npz", "--augmentation", "blur"), "known ones: bootstrap"),
        (("upsample", "real.hdf5", "-o", "x.npz", "--augmentation", "gaussian", "--preset", "cpu"), "leave out"),
        (("upsample", "real.hdf5", "-o", "x.npz", "--config", "missing.json"), "is no JSON"),
        (("plot", "real.hdf5", "real.hdf5", "-o", "pictures", "--format", "gif"), "wanted png, pdf or svg"),
    ],
)
def test_wrong_usage_is_2(real, arguments, message):
    result = run(*arguments, code=2)
    assert message in result.stderr + (result.stdout if not arguments else "")
    assert not open_exists("x.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train_step": 5}, "wrong.json: unknown train_step. Did you mean 'train_steps'? Known: network, training"),
        ({"network": {"depht": 2}}, "unknown network.depht. Did you mean 'depth'? Known: width"),
        ({"network": 3}, "network is 3; wanted names and values"),
        ([1], "the whole is [1]; wanted names and values"),
        ({"train_steps": 0}, "train_steps is 0"),
        ({"train_steps": "many"}, "train_steps is 'many'"),
    ],
)
def test_wrong_configurations_are_told(real, tmp_path, content, message):
    (tmp_path / "wrong.json").write_text(json.dumps(content))
    assert message in run("upsample", real, "-o", "x.npz", "--config", "wrong.json", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "missing.hdf5"), "there is no file or local Minari dataset missing.hdf5"),
        (("info", "broken.hdf5"), "cannot be read as HDF5"),
        (("info", "buffer.pkl"), "run any code that is in it"),
        (("upsample", "real.hdf5", "-o", "real.hdf5"), "exists already"),
        (("upsample", "real.hdf5", "-o", "missing/x.npz"), "there is no folder missing"),
        (("evaluate", "real.hdf5", "broken.hdf5"), "broken.hdf5 cannot be read"),
    ],
)
def test_failures_are_1_and_end_in_one_line(real, tmp_path, arguments, message):
    (tmp_path / "broken.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (tmp_path / "buffer.pkl").write_bytes(b"\x80\x04K\x01.")
    result = run(*arguments, code=1)
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_extra_is_told(real, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("synther_buffers.plots")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("synther_buffers.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = run("plot", real, real, "-o", "pictures", code=1).stderr
    assert 'pip install "synther-buffers[plots]"' in message


def test_an_interrupted_run_goes_on(real, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    arguments = ("upsample", real, "-o", "cli.npz", "-n", 100, "--config", "tiny.json", "--device", "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(upsampling, "_draw", interrupt)
        assert "goes on with --resume" in run(*arguments, code=130).stderr
    assert "--resume" in run(*arguments, code=1).stderr
    assert json.loads(run(*arguments, "--resume", "--json").stdout)["num_rows"] == 100
