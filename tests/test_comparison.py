"""A user's training with and without synthetic rows: the arithmetic by hand, real processes, what ends it."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from synther_buffers.comparison import Run, compare, summarize

#: Its score is 10 * seed, and with synthetic rows 3 more; its curve ends there.
SCRIPT = """
import os

def train(seed, synthetic_fraction):
    with open("calls", "a") as file:
        file.write(f"{seed} {synthetic_fraction} {os.getpid()}\\n")
    return 10.0 * seed + 6 * synthetic_fraction

def curve(seed, synthetic_fraction):
    return [(100, 0.0), (200, 10.0 * seed + 6 * synthetic_fraction)]

def number_of_numpy(seed, synthetic_fraction):
    import numpy as np
    return np.float32(seed)

def nothing(seed, synthetic_fraction):
    pass

def nan(seed, synthetic_fraction):
    return float("nan")

class RobotFell(Exception):
    pass

def fails_at_one(seed, synthetic_fraction):
    if seed == 1:
        raise RobotFell("hard")
    return 1.0

def gives_up(seed, synthetic_fraction):
    raise SystemExit(0)

def dies(seed, synthetic_fraction):
    os.kill(os.getpid(), 9)

def talks(seed, synthetic_fraction):
    print("hello from the training")
    return 1.0

def waits(seed, synthetic_fraction):
    import time
    with open("calls", "a") as file:
        file.write("started ")
    time.sleep(60)

if __name__ == "__main__":
    raise SystemExit("this must not run")
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SCRIPT)
    return "mine.py"


def runs(real, mixed):
    return [
        Run(seed, share, score, [], 1.0 + share)
        for seed, pair in enumerate(zip(real, mixed, strict=True))
        for share, score in zip((0.0, 0.5), pair, strict=True)
    ]


class TestArithmetic:
    def test_differences_are_paired_by_seed(self):
        found = summarize(runs([1.0, 10.0, 100.0], [3.0, 12.5, 103.0]), 0.5)
        assert found.differences == (2.0, 2.5, 3.0)
        # t(0.975, 2) is 4.303, the standard deviation 0.5.
        margin = 4.303 * 0.5 / 3**0.5
        assert (found.low, found.mean, found.high) == pytest.approx((2.5 - margin, 2.5, 2.5 + margin), abs=1e-3)
        assert found.verdict == (
            "with synthetic rows the score is higher in 3 of 3 seeds: a gain, as far as 3 seeds can tell."
        )
        assert (found.seconds(0.0), found.seconds(0.5)) == (1.0, 1.5)

    def test_no_difference(self):
        found = summarize(runs([1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 4.0, 3.0]), 0.5)
        assert found.mean == 0.0
        assert "no difference is shown" in found.verdict

    def test_a_loss(self):
        assert "a loss" in summarize(runs([3.0, 3.0, 3.0], [1.0, 2.0, 1.5]), 0.5).verdict

    def test_one_seed_says_nothing(self):
        found = summarize(runs([1.0], [2.0]), 0.5)
        assert math.isnan(found.low)
        assert "one seed says nothing" in found.verdict

    def test_two_seeds_have_an_interval_as_wide_as_it_is(self):
        # t(0.975, 1) is 12.706; differences 1 and 2 have a standard deviation of sqrt(1/2).
        found = summarize(runs([1.0, 2.0], [2.0, 4.0]), 0.5)
        assert found.high == pytest.approx(1.5 + 12.706 * 0.5, abs=1e-3)
        assert "no difference is shown" in found.verdict

    def test_equal_differences_have_an_interval_of_no_width(self):
        found = summarize(runs([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]), 0.5)
        assert (found.low, found.high) == (1.0, 1.0)

    def test_the_interval_holds_the_truth_as_often_as_it_says(self):
        # Normal differences with mean 1: of 1,000 intervals of three seeds 950 hold it, give or take 3 * 6.9.
        rng = np.random.default_rng(0)
        held = 0
        for _ in range(1_000):
            found = summarize(runs(np.zeros(3), 1.0 + rng.normal(size=3)), 0.5)
            held += found.low <= 1.0 <= found.high
        assert 929 <= held <= 971


class TestProcesses:
    def test_each_training_has_a_process_of_its_own(self, script, tmp_path):
        found = compare(script, seeds=(0, 1, 2))
        assert found.scores(0.0) == [0.0, 10.0, 20.0]
        assert found.differences == (3.0, 3.0, 3.0)
        calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
        assert sorted((int(seed), float(share)) for seed, share, _ in calls) == [
            (seed, share) for seed in range(3) for share in (0.0, 0.5)
        ]
        assert len({process for *_, process in calls}) == 6

    def test_a_curve_counts_by_its_mean(self, script):
        found = compare(script, "curve", seeds=(2,))
        assert found.scores(0.5) == [11.5]
        assert found.runs[1].curve == [[100.0, 0.0], [200.0, 23.0]]

    def test_a_number_of_numpy(self, script):
        assert compare(script, "number_of_numpy", seeds=(4,)).scores(0.0) == [4.0]

    def test_results_are_kept_and_not_made_again(self, script, tmp_path):
        compare(script, seeds=(0, 1), results="runs.jsonl")
        lines = (tmp_path / "runs.jsonl").read_text()
        (tmp_path / "runs.jsonl").write_text(lines[:-20])  # a kill cut the last line short
        again = compare(script, seeds=(0, 1, 2), results="runs.jsonl")
        assert again.differences == (3.0, 3.0, 3.0)
        assert len((tmp_path / "calls").read_text().splitlines()) == 4 + 1 + 2
        assert len([json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]) == 6

    def test_a_training_that_fails_is_named_with_its_traceback_and_the_others_are_kept(self, script, tmp_path):
        with pytest.raises(RuntimeError, match=r"fails_at_one\(seed=1, synthetic_fraction=0.0\) failed") as failed:
            compare(script, "fails_at_one", seeds=(0, 1, 2), results="runs.jsonl")
        assert 'raise RobotFell("hard")' in str(failed.value)
        kept = [json.loads(line)["seed"] for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
        assert kept[:2] == [0, 0]

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            ("gives_up", "SystemExit"),
            ("dies", "exit code -9 before it returned"),
            ("absent", "has no function 'absent'"),
            ("nothing", "nothing returned None; wanted a number, or a curve"),
            ("nan", "wanted finite numbers"),
        ],
    )
    def test_what_fails_says_why(self, script, function, message):
        with pytest.raises(RuntimeError, match=message) as failed:
            compare(script, function, seeds=(3,))
        assert f"{function}(seed=3, synthetic_fraction=0.0)" in str(failed.value)

    def test_what_a_training_prints_stays_off_stdout(self, script, capfd):
        compare(script, "talks", seeds=(0,))
        printed = capfd.readouterr()
        assert printed.out == ""
        assert printed.err.count("hello from the training") == 2

    def test_seeds_of_numpy(self, script):
        compare(script, seeds=np.arange(2), results="runs.jsonl")
        assert compare(script, seeds=(0, 1), results="runs.jsonl").seeds == (0, 1)

    def test_a_whole_last_line_without_its_end_counts(self, script, tmp_path):
        compare(script, seeds=(0,), results="runs.jsonl")
        (tmp_path / "runs.jsonl").write_text((tmp_path / "runs.jsonl").read_text()[:-1])
        compare(script, seeds=(0, 1), results="runs.jsonl")
        assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 4
        assert len((tmp_path / "calls").read_text().splitlines()) == 4

    def test_an_interrupt_ends_them_all(self, script, tmp_path):
        code = "from synther_buffers.comparison import compare; compare('mine.py', 'waits', seeds=range(4))"
        process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)
        calls, deadline = tmp_path / "calls", time.monotonic() + 60
        while not calls.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) != 0
        assert calls.read_text() == "started "

    def test_a_script_that_has_changed(self, script, tmp_path):
        compare(script, seeds=(0,), results="runs.jsonl")
        (tmp_path / script).write_text(SCRIPT + "\n")
        with pytest.raises(ValueError, match=r"mine\.py has changed since"):
            compare(script, seeds=(0, 1), results="runs.jsonl")


class TestErrors:
    @pytest.mark.parametrize(
        ("keywords", "message"),
        [
            ({"script": "theirs.py"}, "no such file"),
            ({"seeds": ()}, "wanted one or more"),
            ({"seeds": (1, 1)}, "each once"),
            ({"fraction": 0.0}, "above 0"),
            ({"fraction": 1.5}, "at most 1"),
            ({"jobs": 0}, "1 or more"),
            ({"results": "nowhere/runs.jsonl"}, "its folder is not there"),
        ],
        ids=str,
    )
    def test_arguments(self, script, keywords, message):
        with pytest.raises(ValueError, match=message):
            compare(**{"script": script, "seeds": (0,), **keywords})

    def test_results_of_another_script(self, script):
        compare(script, seeds=(0,), results="runs.jsonl")
        with pytest.raises(ValueError, match="Write to another file"):
            compare(script, "curve", seeds=(0,), results="runs.jsonl")

    def test_a_file_that_is_none(self, script, tmp_path):
        (tmp_path / "runs.jsonl").write_text('{"seed": 1}\n')
        with pytest.raises(ValueError, match=r"line 1 of runs\.jsonl is no result of a comparison"):
            compare(script, results="runs.jsonl")

    @pytest.mark.parametrize("text", ['{"score": 3}', '{"script": "theirs.py"', "notes"])
    def test_a_file_of_something_else_is_left_as_it_is(self, script, tmp_path, text):
        (tmp_path / "runs.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"line 1 of runs\.jsonl is no result of a comparison"):
            compare(script, results="runs.jsonl")
        assert (tmp_path / "runs.jsonl").read_text() == text

    @pytest.mark.parametrize("kept", [1, 20, -20])
    def test_a_first_line_that_a_kill_cut_short_is_ours(self, script, tmp_path, kept):
        compare(script, seeds=(0,), results="runs.jsonl")
        (tmp_path / "runs.jsonl").write_text((tmp_path / "runs.jsonl").read_text().splitlines()[0][:kept])
        compare(script, seeds=(0,), results="runs.jsonl")
        assert len([json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]) == 2
