"""The comparison with augmentations: what it measures on rows made on the fly, its arithmetic, and going on."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "augmentations.py"
_spec = importlib.util.spec_from_file_location("augmentations", BENCHMARK)
sys.path.insert(0, str(BENCHMARK.parent))  # as when it is run
benchmark = importlib.util.module_from_spec(_spec)
sys.modules["augmentations"] = benchmark  # dataclasses look their module up
_spec.loader.exec_module(benchmark)


def write_rows(path: Path, env: str, count: int, **about) -> Path:
    """Rows of a random policy, as `examples/collect.py` writes them."""
    made = gym.make(env)
    made.action_space.seed(0)
    observation, rows = made.reset(seed=0)[0], []
    for _ in range(count):
        action = made.action_space.sample()
        following, reward, terminated, truncated, _ = made.step(action)
        rows.append((observation, action, np.float32(reward), following, terminated, truncated))
        observation = made.reset()[0] if terminated or truncated else following
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    columns = dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))
    np.savez(path, **columns, about=json.dumps({"env": env, **about}))
    return path


def run(monkeypatch, *flags) -> None:
    monkeypatch.setattr(sys, "argv", ["augmentations.py", *map(str, flags)])
    benchmark.main()


@pytest.mark.slow
def test_toy_run(tmp_path, monkeypatch, capsys):
    data = write_rows(tmp_path / "hopper.npz", "Hopper-v5", 1_000)
    out, table, picture = tmp_path / "lines.jsonl", tmp_path / "docs" / "table.md", tmp_path / "images" / "picture.png"
    flags = ["--toy", "--data", data, "--seeds", "2", "--out", out, "--report", table, "--picture", picture]
    run(monkeypatch, *flags)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    # Twelve strengths, the model and the control for each seed; the held-out rows once.
    assert len(lines) == 2 * 14 + 1
    by_key = {(line["source"], line["strength"], line["seed"]): line for line in lines}
    assert len(by_key) == len(lines)
    control, real = by_key["bootstrap", None, 1], by_key["held-out real rows", None, 0]
    assert control["distance"] == [0.0, 0.0, 0.0]
    assert max(*control["dynamics_error"], *real["dynamics_error"]) < 1e-12
    assert (real["num_samples"], control["num_samples"]) == (100, 300)
    for seed in range(2):
        for scale in (0.03, 0.1, 0.3):
            line = by_key["dynamics noise", scale, seed]
            # The mean of 11 squared normal numbers has the median 10.34 / 11. Noise is in units of the
            # observation, errors in those of the next one, which differ a little.
            assert line["dynamics_error"][1] == pytest.approx(scale**2 * 10.34 / 11, rel=0.25)
            # And so far is a row from the one it was made of, which is the closest as long as the noise is small.
            if scale < 0.3:
                assert line["distance"][1] == pytest.approx(scale * 10.34**0.5, rel=0.2)
    for (source, strength, _), line in by_key.items():
        assert 0.0 < line["share_simulated"] <= 1.0
        in_picture = (source, strength) in {
            ("diffusion model", None), ("held-out real rows", None),
            ("Gaussian noise", 0.1), ("amplitude scaling", 0.2), ("dynamics noise", 0.1),
        }  # fmt: skip
        assert ("points" in line) == in_picture
    assert picture.stat().st_size > 50_000
    text = table.read_text()
    assert "](../images/picture.png)" in text
    assert text.count("| Hopper-v5 | ") == 3 + 15
    assert "| Hopper-v5 | bootstrap |  | 2 | 0 (0 to 0) | 0 to 0 |" in text

    # Nothing is measured twice.
    before = out.read_text()
    run(monkeypatch, *flags)
    assert out.read_text() == before

    # Cut off in its last line, the run goes on and comes to the same figures.
    out.write_text(before[:-100])
    run(monkeypatch, *flags)
    timings = ("generate_seconds", "measure_seconds", "machine")
    last = json.loads(out.read_text().splitlines()[-1])
    for key in timings:
        del last[key], lines[-1][key]
    assert last == lines[-1]

    # Fewer seeds are fewer in the tables.
    run(monkeypatch, *flags, "--seeds", "1")
    assert "| Hopper-v5 | bootstrap |  | 1 | 0 | 0 to 0 |" in table.read_text()

    # Other settings are not mixed in.
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(monkeypatch, *flags, "--num-samples", "200")
    assert "held-out real rows of Hopper-v5, seed 0, from other rows or settings" in capsys.readouterr().err


def test_the_held_out_rows_are_every_tenth():
    data = benchmark.ReplayData.toy()
    train, held_out = data.split()
    assert (len(data.rows), len(train), len(held_out)) == (1_000, 900, 100)
    assert torch.equal(held_out.observation[:2], data.rows.observation[[9, 19]])
    assert torch.equal(train.observation[8:11], data.rows.observation[[8, 10, 11]])


def line(distance: float, error: float, **more) -> dict:
    return {"distance": [0.0, distance, 0.0], "dynamics_error": [0.0, error, 0.0], **more}


def test_an_error_between_two_strengths_by_hand():
    lines = [line(100.0, 1e4), line(1.0, 1.0)]
    # On the line through (1, 1) and (100, 10^4) in logarithms, which is the square.
    assert benchmark.error_at(lines, 10.0) == pytest.approx(100.0)
    assert benchmark.error_at(lines, 3.0) == pytest.approx(9.0)
    assert benchmark.error_at(lines, 1.0) == pytest.approx(1.0)
    assert benchmark.error_at(lines, 0.9) is None
    assert benchmark.error_at(lines, 101.0) is None


def test_the_answer_by_hand():
    """The model at distance 10 with errors 50 and 200 against an augmentation's 100."""
    lines = []
    for seed, error in enumerate((50.0, 200.0)):
        key = {"env": "E", "seed": seed}
        lines.append(line(10.0, error, source="diffusion model", strength=None, **key))
        for name, (_, strengths) in benchmark.AUGMENTATIONS.items():
            for step, strength in enumerate(strengths):
                # Distances 1, 10, 100, 1000, the square as the error; amplitude scaling stays below 10.
                distance = 10.0**step if name != "amplitude scaling" else 1.0 + step
                lines.append(line(distance, distance**2, source=name, strength=strength, **key))
    head, _, noise, amplitude, dynamics = benchmark.answer(lines, ["E"]).splitlines()
    assert head.count("|") == noise.count("|") == amplitude.count("|")
    assert noise == "| E | Gaussian noise | 10 (10 to 10) | 125 (50 to 200) | 100 (100 to 100) | 1.25 (0.5 to 2) " \
                    "| 1 of 2 seeds |"  # fmt: skip
    assert amplitude == "| E | amplitude scaling | 10 (10 to 10) | 125 (50 to 200) | never so far: 16 at 4 |  |  |"
    assert dynamics.endswith("| 1 of 2 seeds |")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--data is missing; collect some rows with examples/collect.py"),
        (["--toy", "--seeds", "0"], "--seeds is 0; wanted at least 1"),
        (["--toy", "--num-samples", "99"], "--num-samples is 99; wanted at least 100"),
        (["--data", "nowhere.npz"], "--data nowhere.npz cannot be used: there is no file"),
        (["--data", "plain.npz"], "--data plain.npz cannot be used: it does not say its environment"),
        (["--data", "pole.npz"], "--data pole.npz cannot be used: env is 'CartPole-v1', which is no MuJoCo"),
        (["--data", "hopper.npz", "hopper.npz"], "--data holds rows of Hopper-v5, Hopper-v5; wanted one file per"),
        (["--data", "hopper.npz", "--out", "text.jsonl"], "--out text.jsonl holds other than lines of JSON"),
    ],
)
def test_errors(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written = write_rows(tmp_path / "hopper.npz", "Hopper-v5", 120)
    with np.load(written) as file:
        columns = {name: array for name, array in file.items() if name != "about"}
    np.savez("plain.npz", **columns)
    np.savez("pole.npz", **columns, about=json.dumps({"env": "CartPole-v1"}))
    Path("text.jsonl").write_text("no JSON\n")
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *flags)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
