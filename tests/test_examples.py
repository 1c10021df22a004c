"""Each framework's example runs on a MuJoCo task with a small budget, refreshes twice, and leaves what it promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, logdir: Path, *flags: str) -> str:
    command = [sys.executable, EXAMPLES / script, "--logdir", logdir, "--seed", "0", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MUJOCO_GL": "disable", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3_000:]
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", ["sb3_sac.py", "tianshou_sac.py", "torchrl_sac.py"])
def test_an_example_runs_and_leaves_its_picture(script, tmp_path):
    flags = ["--env", "InvertedPendulum-v5", "--steps", "400", "--utd", "2"]
    flags += ["--retrain-every", "150", "--train-steps", "40", "--num-synthetic", "1000"]
    output = run(script, tmp_path, *flags)
    assert "step 400 of 400" in output
    assert "final evaluation: " in output
    refreshes = [json.loads(line) for line in (tmp_path / "refreshes.jsonl").read_text().splitlines()]
    assert [line["num_observed"] for line in refreshes] == [150, 300]
    with np.load(tmp_path / "evaluations.npz") as evaluations:
        assert evaluations["timesteps"][-1] == 400
        assert evaluations["results"].shape[1] == 3
    assert (tmp_path / "result.png").stat().st_size > 10_000
    assert list(tmp_path.rglob("events.out.tfevents*")), "TensorBoard logs"


@pytest.mark.slow
@pytest.mark.parametrize("script", ["sb3_sac.py", "tianshou_sac.py", "torchrl_sac.py"])
def test_an_example_runs_without_synthetic_rows(script, tmp_path):
    output = run(script, tmp_path, "--env", "InvertedPendulum-v5", "--steps", "150", "--utd", "1", "--no-synthetic",
                 "--retrain-every", "50")  # fmt: skip
    assert "final evaluation: " in output
    assert not (tmp_path / "refreshes.jsonl").exists()
    assert not (tmp_path / "result.png").exists()


@pytest.mark.slow
def test_the_rare_task_gets_its_share():
    pytest.importorskip("sbx")
    command = [sys.executable, EXAMPLES / "multi_task.py", "--steps", "1200", "--utd", "1", "--retrain-every", "1100"]
    command += ["--train-steps", "40", "--episodes", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MUJOCO_GL": "disable", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3_000:]
    found = json.loads(result.stdout.splitlines()[-1])
    np.testing.assert_allclose(found["shares"], [1 / 3] * 3, atol=1e-3)
    assert set(found["returns"]) == {"forwards", "backwards", "heavy"}
