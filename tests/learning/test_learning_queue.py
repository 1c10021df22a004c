"""The queue of runs: order, going on where it stopped, and the page of what is there."""

from __future__ import annotations

import json
import os
import shlex

import pytest
from benchmarks.learning import __main__ as command
from benchmarks.learning import report
from benchmarks.learning.__main__ import main
from benchmarks.learning.lines import append, read, repair
from benchmarks.learning.prepare import HERE
from benchmarks.learning.report import agent_rows, render
from benchmarks.learning.run import settings
from benchmarks.learning.stages import CHOSEN, STAGES, Job, Stage, jobs, missing, work

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
        "refreshes": [],
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


def test_an_arm_may_run_on_some_of_the_tasks_and_seeds_alone():
    stage = Stage(("run", "jump"), ("utd1", "oracle"), (0, 1), "lines.jsonl", only={"oracle": (("jump",), (1,))})
    assert jobs(stage) == [
        Job("run", "utd1", 0),
        Job("jump", "utd1", 0),
        Job("run", "utd1", 1),
        Job("jump", "utd1", 1),
        Job("jump", "oracle", 1),
    ]


def test_the_reporting_stage_is_what_the_protocol_says():
    wanted = jobs(STAGES["reporting"])
    by_arm = {arm: [job for job in wanted if job.arm == arm] for arm in STAGES["reporting"].arms}
    # Three arms on four tasks and ten seeds, bootstrap on five, and the last one on one task.
    assert {arm: len(found) for arm, found in by_arm.items()} == {
        "utd1": 40,
        "utd10": 40,
        CHOSEN: 40,
        "bootstrap": 20,
        "utd20-delay": 5,
    }
    assert {job.seed for job in by_arm["bootstrap"]} == {100, 101, 102, 103, 104}
    assert by_arm["utd20-delay"] == [Job("hopper", "utd20-delay", seed) for seed in range(100, 105)]


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


@pytest.mark.parametrize(("number", "verdict"), [(2, "too early"), (4, "better")])
def test_another_agent_gets_a_verdict_from_five_seeds_on_all_tasks_alone(tmp_path, number, verdict):
    for task in STAGES["reporting"].tasks[:number]:
        append(tmp_path / STAGES["a"].file, line(task, "utd10", 0, 0.0))
        append(tmp_path / STAGES["a"].file, line(task, "oracle", 0, 100.0))
        for seed in range(100, 105):
            for arm, area in (("utd10", 20.0), (CHOSEN, 70.0)):
                append(tmp_path / STAGES["c"].file, line(task, arm, seed, area) | {"agent": "layer-norm"})
    render(tmp_path, tmp_path / "page.md")
    # (70 - 20) / 100
    wanted = f"| its control | {number} x 5 | 0.50 | [0.50, 0.50] | 1.00 | {verdict} |"
    assert wanted in (tmp_path / "page.md").read_text()


def reporting_lines(tmp_path):
    """Two choosing seeds that give units of 100 on each task, and two reporting seeds, the second on a GPU."""
    for task in STAGES["reporting"].tasks:
        for seed in (0, 1):
            for arm, area in (("utd1", 10.0), ("utd10", 0.0), ("utd20-delay", 5.0), ("oracle", 50.0 + 100.0 * seed)):
                append(tmp_path / STAGES["a"].file, line(task, arm, seed, area))
        for seed, gpu in ((100, None), (101, "a GPU")):
            more = {"commit": "209ad70" + 33 * "0"}
            reporting = tmp_path / STAGES["reporting"].file
            append(reporting, line(task, "utd1", seed, 30.0) | more | {"gpu": None, "cpu_seconds": 50.0})
            append(reporting, line(task, "utd10", seed, 20.0) | more | {"gpu": None, "cpu_seconds": 200.0})
            cost = 150.0 if gpu else 400.0
            append(reporting, line(task, CHOSEN, seed, 120.0) | more | {"gpu": gpu, "cpu_seconds": cost})


def test_the_reporting_seeds_have_final_returns_and_costs_beside_the_gain(tmp_path):
    reporting_lines(tmp_path)
    render(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "**Partial: 24 of 145 runs.**" in page
    # A line's last return is its area here; of the chosen arm one run had no GPU.
    assert "| Hopper-v5 | 30; 50 (2) | 20; 200 (2) | 120; 400 (1) | - | - |" in page
    # 400 / 200 and 400 / 50 on four tasks.
    assert "2.0 times those of its control (median of 4 pairs; 2.0 to 2.0) and 8.0 times those of `utd1`" in page
    assert "Their choosing seeds, task by task: `utd1` 2, 2, 2, 2; `utd10` 2, 2, 2, 2; `utd20-delay`" in page
    assert f"The lines of `{CHOSEN}` are of the commits 209ad70. All of these come before heavy-tailed columns" in page


def test_the_primary_comparison_has_the_units_uncertainty_beside_it(tmp_path):
    reporting_lines(tmp_path)
    render(tmp_path, tmp_path / "page.md")
    (row,) = [row for row in (tmp_path / "page.md").read_text().splitlines() if row.startswith("| control | 4 x 2")]
    # 100 in units of 100; drawn anew, a unit is 50, 100 or 150, so that a task has 2, 1 or 2/3 of it.
    assert row.startswith("| control | 4 x 2 | 1.00 | [1.00, 1.00] | [0.6")
    assert row.endswith("| 1.00 | too early |")


def test_the_commands_of_the_page_ask_for_runs_that_there_are(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "prepare", lambda: None)
    monkeypatch.setattr(command, "prepared", lambda: HERE)
    monkeypatch.setattr(
        command, "work", lambda wanted, path, runner, cores: asked.append((len(wanted), path.name)) or 0
    )
    monkeypatch.setattr(report, "render", lambda results, page: asked.append("report"))
    blocks = [block for block in report._again() if block.startswith("```")]
    for text in blocks[0].splitlines()[1:-1]:
        python, flag, module, *flags = shlex.split(text)
        assert (python, flag, module) == ("python", "-m", "benchmarks.learning")
        assert main(flags) == 0
    assert asked[-1] == "report"
    assert all(number > 0 for number, _ in asked[:-1])
    assert (145, STAGES["reporting"].file) in asked
    # Noise instead of a model, on two tasks and five seeds.
    assert (10, STAGES["reporting"].file) in asked


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
