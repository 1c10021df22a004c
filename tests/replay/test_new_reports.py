"""Reports for a logger: each refresh is told once."""

from __future__ import annotations

import copy
import pickle

import pytest
from toys import SPEC, Resampler, walk

from synther_buffers import SyntheticReplay


def refresh(replay, total):
    replay.observe_total(total)
    assert replay.refresh(walk(total)) is not None


@pytest.fixture
def replay():
    return SyntheticReplay(SPEC, upsampler=Resampler, retrain_every=200, num_synthetic=300, progress_bar=False)


def test_each_report_is_returned_once(replay):
    assert replay.new_reports() == []
    refresh(replay, 200)
    refresh(replay, 400)
    assert [report.refresh for report in replay.new_reports()] == [1, 2]
    assert replay.new_reports() == []
    refresh(replay, 600)
    assert [report.refresh for report in replay.new_reports()] == [3]
    assert [report.refresh for report in replay.reports] == [1, 2, 3]


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("way", ["pickle", "deepcopy", "state_dict"])
def test_what_was_loaded_is_not_new(replay, way, told):
    refresh(replay, 200)
    if told:
        replay.new_reports()
    if way == "state_dict":
        again = SyntheticReplay(SPEC, upsampler=Resampler, retrain_every=200, num_synthetic=300, progress_bar=False)
        again.load_state_dict(replay.state_dict())
    else:
        again = copy.deepcopy(replay) if way == "deepcopy" else pickle.loads(pickle.dumps(replay))
    assert again.num_refreshes == 1
    assert again.new_reports() == []
    refresh(again, 400)
    assert [report.refresh for report in again.new_reports()] == [2]


def test_after_a_reset_the_first_refresh_is_new_again(replay):
    refresh(replay, 200)
    replay.new_reports()
    replay.reset()
    assert replay.new_reports() == []
    refresh(replay, 200)
    assert [report.refresh for report in replay.new_reports()] == [1]


def test_metrics_with_a_prefix(replay):
    refresh(replay, 200)
    (report,) = replay.new_reports()
    assert report.metrics("synther/") == {f"synther/{name}": value for name, value in report.metrics().items()}
