"""The command that proves the GPU path, in a small size on whatever is here."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_benchmark"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_step_runs_and_its_line_is_kept(gpu, tmp_path):
    assert gpu.run(tmp_path, 400.0, [], toy=True) == 0
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(gpu.LIMITS)
    assert not [line for line in lines if "failed" in line or "skipped" in line]
    assert "| target | measured |" in gpu.page([{**line, "gpu": "none"} for line in lines if line["step"] != "wide"])


def test_a_step_that_fails_takes_no_other_along(gpu, tmp_path, monkeypatch):
    (tmp_path / "step.py").write_text("import sys; sys.exit('planted')")
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "step.py"))
    monkeypatch.setattr(gpu, "LIMITS", {"machine": 30, "paper": 30})
    assert gpu.run(tmp_path / "out", 100.0, [], toy=True) == 0  # only a failed test is a failure
    lines = [json.loads(line) for line in (tmp_path / "out" / "gpu.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == ["machine", "paper"]
    assert all("planted" in line["failed"] for line in lines)


def test_a_step_that_hangs_is_ended(gpu, tmp_path, monkeypatch):
    (tmp_path / "step.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "step.py"))
    result = gpu.run_step("machine", tmp_path, 1.0, True)
    assert result["failed"] == "ran past 1 s"


def test_what_the_budget_does_not_allow_is_left_out(gpu, tmp_path):
    gpu.run(tmp_path, 0.0, ["machine"], toy=True)
    assert "of the budget were left" in json.loads((tmp_path / "gpu.jsonl").read_text())["skipped"]


def test_without_results_the_page_says_so(gpu):
    assert "No GPU has run this yet" in gpu.page([])


def test_the_page_is_that_of_the_recorded_results(gpu):
    lines = [json.loads(line) for line in gpu.RESULTS.read_text().splitlines()]
    assert gpu.PAGE.read_text() == gpu.page(lines)
