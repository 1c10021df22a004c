"""The queue of runs: order, going on where it stopped, and the page of what is there."""

from __future__ import annotations

import json
import os

import pytest
from benchmarks.learning.__main__ import main
from benchmarks.learning.lines import append, read, repair
from benchmarks.learning.prepare import HERE
from benchmarks.learning.report import agent_rows, render
from benchmarks.learning.run import settings
from benchmarks.learning.stages import STAGES, Job, Stage, jobs, missing, work

CORE = min(os.sched_getaffinity(0))


def line(task: str, arm: str, seed: int, area: float = 0.0) -> dict:
    """A line as a run writes it, with what the queue and the page read."""
    return {
        "task": task,
        "arm": arm,
        "seed": seed,
        "agent": "sbx",
        "settings": json.loads(json.dumps(settings(task, arm))),
        "evaluations": [[1000, -1.0], [1500, area]],
        "values": [[1000, 1.0, 2.0], [1500, 8.0, 3.0]],
        "final": area,
        "area": area,
        "cpu_seconds": 1800.0,
        "refresh_seconds": 12.0,
    }


def test_seeds_come_one_after_the_other():
    stage = Stage(("run", "jump"), ("utd1", "oracle"), (0, 1), "lines.jsonl")
    assert jobs(stage)[:5] == [
        Job("run", "utd1", 0),
        Job("run", "oracle", 0),
        Job("jump", "utd1", 0),
        Job("jump", "oracle", 0),
        Job("run", "utd1", 1),
    ]
    assert {job.agent for job in jobs(stage, "dqn")} == {"dqn"}


def test_a_torn_last_line_is_made_again(tmp_path):
    path = tmp_path / "lines.jsonl"
    append(path, line("toy", "utd1", 0))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"task": "toy", "ar')
    assert [found["arm"] for found in read(path)] == ["utd1"]
    wanted = [Job("toy", "utd1", 0), Job("toy", "utd10", 0)]
    assert missing(wanted, path) == [Job("toy", "utd10", 0)]
    repair(path)
    assert path.read_bytes() == whole
    append(path, line("toy", "utd10", 0))
    assert missing(wanted, path) == []


def test_a_line_cut_before_its_end_of_line_is_torn_too(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text(json.dumps(line("toy", "utd1", 0)))
    assert read(path) == []
    repair(path)
    assert path.read_text() == ""


def test_a_broken_line_in_the_middle_is_told_of(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"task": \n{"task": "toy"}\n')
    with pytest.raises(ValueError, match="line 1, is no JSON"):
        read(path)


def test_a_name_does_not_change_its_settings(tmp_path):
    path = tmp_path / "lines.jsonl"
    changed = line("toy", "utd1", 0)
    changed["settings"]["arm"]["utd"] = 2
    append(path, changed)
    with pytest.raises(ValueError, match="a name of their own"):
        missing([Job("toy", "utd1", 0)], path)


def test_a_run_that_fails_leaves_no_line_and_is_counted(tmp_path):
    path = tmp_path / "lines.jsonl"
    # Stable-Baselines3's SAC has no delay.
    assert work([Job("toy", "utd20-delay", 0, "sb3")], path, HERE, [CORE]) == 1
    assert read(path) == []


def test_stage_a_is_what_the_protocol_says():
    stage = STAGES["a"]
    assert len(jobs(stage)) == 4 * 6 * 5
    assert {"utd1", "utd10", "utd20-delay", "bootstrap", "oracle", "constant-budget"} == set(stage.arms)
    assert all(settings(job.task, job.arm)["task"]["steps"] <= 8_000 for job in jobs(stage))
    # A treatment has its control's rule; the default is as released but for when it refreshes.
    default, control = (settings("halfcheetah", arm)["arm"] for arm in ("constant-budget", "utd10"))
    assert (default["utd"], default["policy_delay"]) == (control["utd"], control["policy_delay"]) == (10, 1)
    assert (default["preset"], default["num_synthetic"]) == ("auto", None)
    assert (default["synthetic_fraction"], control["synthetic_fraction"]) == (0.5, 0.0)


def test_the_page_says_what_is_missing(tmp_path):
    path = tmp_path / STAGES["a"].file
    for arm, area in (("utd10", -400.0), ("oracle", -100.0), ("constant-budget", -250.0)):
        append(path, line("halfcheetah", arm, 0, area))
    append(tmp_path / STAGES["pilot"].file, line("halfcheetah", "utd10", 0, -380.0) | {"agent": "sb3"})
    render(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "**Partial: 3 of 120 runs are made.** 1.5 core-hours" in page
    # (-250 + 400) / (-100 + 400)
    assert "| `constant-budget` | control | 1 x 1 | 0.50 | one seed: none | 1.00 | too early |" in page
    # Which real-only arm is best cannot be said before all have run.
    assert "| `constant-budget` | best real-only arm | no pairs yet |" in page
    assert "| HalfCheetah-v5 | 5,000 | - | -400 (1) | -100 (1) | 300 | 300 | open: 1 of 3 seeds |" in page
    assert "| HalfCheetah-v5 | `utd10` | -380 (1) | -400 (1) | - | - |" in page


def test_another_agent_stands_beside_sac_on_the_same_seeds():
    found = {"hopper": {"utd10": {100: 30.0}, "default-often": {100: 70.0}}}
    plain = {"hopper": {"utd10": {100: 10.0, 101: 99.0}, "default-often": {100: 50.0}}}
    # 30 - 50, and 70 - 30 and 70 - 50; seed 101 has no run of the other agent.
    assert agent_rows(found, plain) == [
        ["Hopper-v5", "`utd10`", "30 (1)", "10 (1)", "-", "-20, 0 of 1"],
        ["Hopper-v5", "`default-often`", "70 (1)", "50 (1)", "40, 1 of 1", "20, 1 of 1"],
    ]


def test_another_agent_over_several_tasks_is_told_in_units_of_what_true_rows_gain(tmp_path):
    stage_a, choosing, others = (tmp_path / STAGES[name].file for name in ("a", "choosing", "c"))
    for task, unit in (("halfcheetah", 400.0), ("hopper", 100.0)):
        append(stage_a, line(task, "utd10", 0, 0.0))
        append(stage_a, line(task, "oracle", 0, unit))
        append(choosing, line(task, "default-often", 100, 10.0))
        append(others, line(task, "utd10", 100, 20.0) | {"agent": "layer-norm"})
        append(others, line(task, "default-often", 100, 220.0) | {"agent": "layer-norm"})
    render(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    # (220 - 20) / 400 and (220 - 20) / 100, and from 10 likewise; of two, the interquartile mean is the mean.
    assert "| its control | 2 x 1 | 1.25 | one seed: none | 1.00 | too early |" in page
    assert "| `default-often` of sbx's SAC | 2 x 1 | 1.31 | one seed: none | 1.00 | too early |" in page
    assert "| `utd1` of sbx's SAC | no pairs yet |" in page


def test_the_best_real_only_arm_is_that_of_the_highest_mean(tmp_path):
    path = tmp_path / STAGES["a"].file
    for arm, area in (
        ("utd1", -200.0),
        ("utd10", -400.0),
        ("utd20-delay", -300.0),
        ("oracle", 0.0),
        ("constant-budget", -100.0),
    ):
        append(path, line("halfcheetah", arm, 0, area))
    render(tmp_path, tmp_path / "page.md")
    # (-100 + 200) / (0 + 400)
    assert "| `constant-budget` | best real-only arm | 1 x 1 | 0.25 |" in (tmp_path / "page.md").read_text()


@pytest.mark.slow
def test_every_kind_of_arm_runs_from_end_to_end(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert main(["--toy", "--out", str(path)]) == 0
    lines = {(found["agent"], found["arm"]): found for found in read(path)}
    kinds = (
        "utd1",
        "utd20-delay",
        "bootstrap",
        "gaussian",
        "oracle",
        "oracle-delay",
        "oracle-dynamics",
        "constant-budget",
    )
    kinds += ("passes-delay", "policy-0.05", "guided-curiosity", "resampled-curiosity")
    assert set(lines) == {
        *(("sbx", arm) for arm in kinds),
        ("sb3", "oracle"),
        ("torchrl", "oracle"),
        ("layer-norm", "oracle"),
        ("crossq", "oracle"),
        ("dqn", "oracle"),
        ("dqn", "few-rows-passes"),
    }
    first = lines["sbx", "utd1"]
    for (agent, arm), found in lines.items():
        assert [step for step, _ in found["evaluations"]] == [100, 200, 300]
        assert len(found["refreshes"]) == (0 if arm.startswith("utd") else 2)
        assert found["commit"]
        assert found["shares_simulated"] == ([1.0, 1.0] if arm == "oracle-dynamics" else None)
        if agent == "sbx":
            # Paired: the same initial agent in the same episodes.
            assert found["evaluations"][0] == first["evaluations"][0]
            assert found["values"][0] == first["values"][0]
    # And from the first batch on they differ.
    assert len({found["area"] for found in lines.values()}) == len(lines)
    before = path.read_bytes()
    assert main(["--toy", "--out", str(path)]) == 0
    assert path.read_bytes() == before
