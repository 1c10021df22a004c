"""The protocol's arithmetic against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.learning.evaluation import Q_ROWS, discounted, summarize
from benchmarks.learning.run import area
from benchmarks.learning.statistics import (
    Comparison,
    compare,
    differences,
    headroom,
    interval,
    interval_with_units,
    paired,
    rank_correlation,
    student_interval,
    told,
)

CONTROL = {"run": "utd10", "jump": "utd10", "swim": "utd10"}
SCORES = {
    # Oracle gains 6 and 10, so the unit is 8.
    "run": {
        "utd10": {0: 4.0, 1: 2.0},
        "oracle": {0: 10.0, 1: 12.0},
        "model": {0: 8.0, 1: 0.0},
        "utd1": {1: 5.0},
    },
    # Oracle loses, so there is no unit.
    "jump": {"utd10": {0: 5.0, 1: 5.0}, "oracle": {0: 4.0, 1: 4.0}, "model": {0: 9.0, 1: 9.0}},
}


UNITS = {"run": 8.0, "jump": -1.0}


def test_headroom_is_the_mean_of_paired_gains():
    assert headroom(SCORES, "run", "utd10") == 8.0
    assert headroom(SCORES, "jump", "utd10") == -1.0
    # Only seed 1 has both: 12 - 5.
    assert headroom(SCORES, "run", "utd1") == 7.0
    assert np.isnan(headroom(SCORES, "swim", "utd10"))


def test_pairs_are_the_seeds_that_both_have():
    assert paired(SCORES, "run", "model", "utd1") == [(0.0, 5.0)]
    assert paired(SCORES, "run", "model", "bootstrap") == []


def test_differences_are_in_units_of_headroom_and_leave_out_tasks_without():
    tasks, table = differences(SCORES, "model", CONTROL, UNITS)
    assert tasks == ("run",)
    np.testing.assert_array_equal(table, [[0.5], [-0.25]])  # (8 - 4) / 8 and (0 - 2) / 8


def test_differences_use_as_many_seeds_as_the_poorest_task_has():
    scores = SCORES | {"swim": {"utd10": {0: 0.0, 1: 0.0}, "model": {1: 3.0}}}
    tasks, table = differences(scores, "model", CONTROL, {"run": 8.0, "swim": 2.0})
    assert tasks == ("run", "swim")
    np.testing.assert_array_equal(table, [[0.5, 1.5]])


def test_the_interquartile_mean_drops_the_outer_quarters():
    mean, low, high = interval(np.array([[0.0], [1.0], [2.0], [9.0]]), 2_000)
    assert mean == 1.5
    assert 0.0 <= low < 1.5 < high <= 9.0


def test_the_interval_of_two_seeds_is_their_range():
    # Two draws of two: the means are 0, 1/2 and 1 with probabilities 1/4, 1/2 and 1/4.
    assert interval(np.array([[0.0], [1.0]]), 2_000) == (0.5, 0.0, 1.0)


def test_one_seed_has_no_interval():
    mean, low, high = interval(np.array([[0.0, 1.0, 2.0, 9.0]]))
    assert mean == 1.5
    assert np.isnan(low)
    assert np.isnan(high)
    assert Comparison(("run",), 1, mean, low, high, 0.5).verdict == "not shown"


def test_seeds_are_drawn_within_a_task():
    # Drawn across tasks, the values of one would replace the other's.
    assert interval(np.array([[0.0, 1.0], [0.0, 1.0]]), 500) == (0.5, 0.5, 0.5)


def test_the_interval_with_units_draws_the_units_too():
    # Units of 1 stay 1: as without them, the means are 0, 1/2 and 1.
    assert interval_with_units(np.array([[0.0], [1.0]]), [[1.0, 1.0]], 2_000) == (0.0, 1.0)
    # A difference of 6 in units of 1, 2 or 3.
    assert interval_with_units(np.array([[6.0], [6.0]]), [[1.0, 3.0]], 2_000) == (2.0, 6.0)
    # Each task has its own unit, always 2 and 3 here: 3, 3, 4 and 4, and the middle half of them is 3 and 4.
    assert interval_with_units(np.array([[6.0, 12.0], [6.0, 12.0]]), [[2.0], [3.0]], 100) == (3.5, 3.5)


@pytest.mark.parametrize(
    ("table", "gains"), [([[6.0]], [[1.0, 3.0]]), ([[6.0], [6.0]], [[1.0, 0.0]]), ([[6.0], [6.0]], [[4.0, -1.0]])]
)
def test_one_seed_or_a_unit_about_zero_has_no_interval_with_units(table, gains):
    assert np.isnan(interval_with_units(np.array(table), gains, 100)).all()


def test_the_interval_leaves_the_global_random_stream_alone():
    np.random.seed(3)  # noqa: NPY002
    wanted = np.random.random()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    interval(np.array([[0.0], [1.0]]), 100)
    assert np.random.random() == wanted  # noqa: NPY002


def test_a_comparison_by_hand():
    found = compare(SCORES, "model", CONTROL, UNITS, 2_000)
    assert found is not None
    assert (found.tasks, found.seeds, found.mean) == (("run",), 2, 0.125)
    assert (found.low, found.high) == (-0.25, 0.5)
    # 8 beats 4 and 2, 0 beats neither.
    assert found.improvement == 0.5
    assert compare(SCORES, "model", {"run": "bootstrap"}, {"run": 8.0}) is None


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.5, "better"),
        (0.0, 0.5, "no worse"),
        (-0.04, 0.5, "no worse"),
        (-0.05, 0.5, "not shown"),
        (-0.04, -0.01, "worse"),
    ],
)
def test_verdicts(low, high, verdict):
    assert Comparison(("run",), 10, 0.0, low, high, 0.5).verdict == verdict


def test_area_counts_what_comes_after_the_first_update():
    assert area([[500, 90.0], [1000, 90.0], [1500, 2.0], [2000, 4.0]], 1000) == 3.0


def test_discounted_returns():
    np.testing.assert_array_equal(discounted([1.0, 2.0, 3.0], 0.5, None), [2.75, 3.5, 3.0])
    # 10 stands for the last reward and all that would have come.
    np.testing.assert_array_equal(discounted([1.0, 2.0, 3.0], 0.5, 10.0), [4.5, 7.0, 10.0])


class Believes:
    """A critic that values an observation at itself."""

    model = None

    def explore(self, observation, seed):
        raise NotImplementedError

    def values(self, observation, action):
        return observation[:, 0]


def test_q_bias_is_what_the_critic_promises_beyond_what_came():
    action = np.zeros(1)
    # One terminal episode: the returns are 1.5 and 1.0, the values 3 and 2; half the picked rows are of each step.
    episode = [(np.array([3.0]), action, 1.0), (np.array([2.0]), action, 1.0)]
    look = summarize(Believes(), [episode], [True], 0.5)
    share = np.mean(np.linspace(0, 1, Q_ROWS).astype(int) == 0)
    assert look.mean_return == 2.0
    assert look.value == pytest.approx(3.0 * share + 2.0 * (1 - share))
    assert look.q_bias == pytest.approx(1.5 * share + 1.0 * (1 - share))


def test_a_time_limit_is_no_end():
    step = (np.array([7.0]), np.zeros(1), 1.0)
    assert summarize(Believes(), [[step]], [False], 0.5).q_bias == 0.0
    assert summarize(Believes(), [[step]], [True], 0.5).q_bias == 6.0


def test_students_interval_of_three_values():
    """Mean 2, standard deviation 1, and 4.303 standard errors of 1 / sqrt(3)."""
    assert student_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.0 - 2.484, 2.0 + 2.484), abs=1e-3)
    mean, low, high = student_interval([5.0])
    assert mean == 5.0
    assert np.isnan([low, high]).all()


def test_rank_correlation():
    assert rank_correlation([1, 2, 3, 4, 5], [2, 4, 9, 16, 25]) == "1.00 [1.00, 1.00], 5"
    # Ranks 1 to 5 against 2, 1, 4, 3, 5: 1 - 6 * 4 / (5 * 24) = 0.8; atanh 1.0986 less and more 1.96 * sqrt(1.32 / 2).
    assert rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == "0.80 [-0.46, 0.99], 5"
    assert rank_correlation([1, 2], [1, 2]) == "-"


def test_the_page_tells_differences_task_by_task_and_those_of_runs_with_a_gpu():
    from benchmarks.learning.report import _on_gpu
    from benchmarks.learning.stages import CHOSEN, STAGES

    assert told([1.0, 2.0, 3.0]) == "2 [-0.484, 4.48], 3 of 3"
    assert told([-1.0]) == "-1, 0 of 1"
    assert told([]) == "-"
    lines = [
        {"task": "pusher", "agent": "sbx", "arm": arm, "seed": seed, "area": area, "gpu": gpu}
        for arm, seed, area, gpu in [
            ("utd10", 100, 1.0, None),
            (CHOSEN, 100, 3.0, None),
            ("utd10", 103, 1.0, None),
            (CHOSEN, 103, 8.0, "a GPU"),
        ]
    ]
    words, table = _on_gpu(lines, STAGES["reporting"])
    assert words.startswith(f"On seeds 103 `{CHOSEN}` refreshed on a GPU")
    assert "| Pusher-v5 | 7, 1 of 1 | 2, 1 of 1 |" in table
    assert _on_gpu(lines[:2], STAGES["reporting"]) == []


def test_the_page_tells_what_the_critic_believes_and_what_the_model_copies():
    from benchmarks.learning.stages import CHOSEN
    from benchmarks.learning.why import why

    def line(arm, seed, value, followed, area, copies=()):
        return {
            "task": "pusher",
            "agent": "sbx",
            "arm": arm,
            "seed": seed,
            "area": area,
            "settings": {"task": {"learning_starts": 1_000}},
            # The first look, before the first update, does not count.
            "values": [[1_000, 99.0, 99.0], [1_500, value, followed]],
            "refreshes": [{"copy_share": share} for share in copies],
        }

    blocks = why(
        [
            line("utd10", 0, 10.0, 1.0, 0.0),
            line("utd10", 1, 12.0, 2.0, 0.0),
            line(CHOSEN, 0, 11.0, 4.0, 5.0, [0.1, 0.3]),
            line(CHOSEN, 1, 12.5, 5.0, 6.0, [0.0, 0.02]),
            # Another's seed without a control has no gain, and a model that copies is left out.
            line("default", 7, 0.0, 0.0, 0.0, [0.9]),
            line("constant-budget", 0, 0.0, 0.0, 9.0, [1.0]),
        ],
        ["pusher"],
    )
    tables = [block.splitlines()[-1].split(" | ") for block in blocks if block.startswith("| task")]
    believed, excess, value, model = ([cell.strip("| ") for cell in row] for row in tables)
    # In the order of utd1, utd10, bootstrap, gaussian, the chosen arm, oracle; the control is left out of differences.
    assert believed[5] == "11.8 (4.5), 2"
    # Excesses of 7 and 7.5 against 9 and 10: -2 and -2.5. Values: 1 and 0.5 more.
    assert excess[4] == "-2.25 [-5.43, 0.927], 0 of 2"
    assert value[4] == "0.75 [-2.43, 3.93], 2 of 2"
    assert model[1] == "-"
    # (0.1 + 0.3) / 2 and (0 + 0.02) / 2
    assert "The mean share of copies of a run is 0.01 to 0.20 (0.05" in "\n".join(blocks)
