"""``estimate`` and ``compare``: what they print, and their exit codes."""

import json

import pytest
from typer.testing import CliRunner

from synther_buffers.commands.app import app

#: Without frames and line breaks.
WIDE = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=WIDE)
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


class TestEstimate:
    def test_text(self):
        text = run("estimate", "--env", "Pendulum-v1", "--steps", 3_000, "--retrain-every", 1_000).stdout
        assert text.startswith("refreshes: 3 in 3,000 steps, ")
        assert "MiB beyond the buffer itself" in text
        assert "in the environment itself" in text

    def test_json(self):
        found = json.loads(
            run("estimate", "--env", "CartPole-v1", "--steps", 1_000, "--retrain-every", 1_000, "--json").stdout
        )
        assert (found["num_refreshes"], found["num_synthetic"], found["device"]) == (1, 20_000, "cpu")
        assert found["seconds"] > 0

    def test_no_refresh(self):
        text = run("estimate", "--env", "Pendulum-v1", "--steps", 999).stdout
        assert text == "no refresh in 999 steps: the first one would come at 1,000\n"
        text = run("estimate", "--env", "Pendulum-v1", "--steps", 999, "--retrain-every", 5_000).stdout
        assert text.endswith("the first one would come at 5,000\n")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--env", "Nothing-v0"), "--env is 'Nothing-v0'"),
            (("--env", "Pendulum-v1", "--preset", "huge"), "unknown preset 'huge'"),
            (("--env", "Pendulum-v1", "--device", "tpu"), "the device 'tpu' cannot be used here"),
            (
                ("--env", "Pendulum-v1", "--retrain-every", 2_000, "--buffer-size", 1_000),
                "retrain_every=2000 is more than buffer_size=1000",
            ),
        ],
    )
    def test_wrong_usage(self, arguments, message):
        assert message in run("estimate", "--steps", 20_000, *arguments, code=2).stderr


class TestCompare:
    @pytest.fixture(autouse=True)
    def _script(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine.py").write_text(
            "def train(seed, synthetic_fraction):\n"
            "    return [(100, seed), (200, seed + 2 + (seed + 1) * synthetic_fraction)]\n"
        )

    def test_text_and_picture(self, tmp_path):
        done = run("compare", "mine.py:train", "--seeds", 3, "--picture", "gain.png")
        # Scores are the means of the two returns: seed + 1, and with synthetic rows (seed + 1) / 4 more.
        assert "0                 1           1.25        +0.25" in done.stdout
        assert "mean difference +0.5, 95 % interval -0.121 to +1.121" in done.stdout
        assert "higher in 3 of 3 seeds: no difference is shown; the interval of the mean contains 0." in done.stdout
        assert done.stderr.count("seed 2, ") == 2
        assert (tmp_path / "gain.png").stat().st_size > 5_000

    def test_json(self):
        found = json.loads(run("compare", "mine.py:train", "--seeds", 1, "--json").stdout)
        assert (found["differences"], found["low"]) == ([0.25], None)

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (("mine.py",), 2, "names no function; wanted SCRIPT.py:FUNCTION"),
            (("mine.py:train", "-o", "gain.txt"), 2, "ends in .png, .pdf or .svg"),
            (("mine.py:train", "-o", "nowhere/gain.png"), 2, "its folder is not there"),
            (("mine.py:train", "--fraction", 2), 2, "--fraction is 2.0; wanted a share above 0, at most 1"),
            (("theirs.py:train",), 1, "there is no such file"),
            (("mine.py:absent",), 1, "has no function 'absent'"),
        ],
    )
    def test_errors(self, arguments, code, message):
        assert message in run("compare", *arguments, code=code).stderr
