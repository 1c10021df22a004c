"""When refreshes are due: at intervals that were given, or that follow the rows in the buffer."""

import copy
import pickle
from concurrent.futures import Executor, Future

import pytest
from toys import SPEC, Resampler, fails_at, gaussian

from synther_buffers import SyntheticOptions, SyntheticReplay
from synther_buffers.replay.refresh import run_refresh
from synther_buffers.replay.schedule import RefreshSchedule


def due_at(schedule, totals):
    found = []
    for schedule.num_observed in totals:
        if schedule.due:
            found.append(schedule.num_observed)
            schedule.attempted()
    return found


def test_a_given_interval():
    assert due_at(RefreshSchedule(200), range(900)) == [200, 400, 600, 800]
    assert due_at(RefreshSchedule(200, 50), range(500)) == [50, 250, 450]


def test_several_missed_ones_become_one():
    assert due_at(RefreshSchedule(200), [900, 901, 1_099, 1_100]) == [900, 1_100]


def test_the_default_is_500_and_then_a_tenth_of_the_rows():
    wanted = [1_000, 1_500, 2_000, 2_500, 3_000, 3_500, 4_000, 4_500, 5_000, 5_500, 6_050, 6_655, 7_320]
    assert due_at(RefreshSchedule(None), range(7_500)) == wanted
    assert due_at(RefreshSchedule(None, 700), range(1_800)) == [700, 1_200, 1_700]


def test_the_default_is_never_more_than_10_000():
    schedule = RefreshSchedule(None)
    assert [schedule.interval(rows) for rows in (90_000, 100_000, 1_000_000)] == [9_000, 10_000, 10_000]


@pytest.mark.parametrize(
    ("capacity", "first", "interval"), [(300, 300, 300), (4_000, 1_000, 500), (20_000, 1_000, 2_000)]
)
def test_the_default_follows_what_the_buffer_holds(capacity, first, interval):
    schedule = RefreshSchedule(None, capacity=capacity)
    assert schedule.first == schedule.next_refresh == first
    assert schedule.interval(1_000_000) == interval


def make(**options):
    return SyntheticReplay(SPEC, **{"upsampler": Resampler, "num_synthetic": 50, "progress_bar": False} | options)


def observe(replay, total):
    """Whether the replay refreshed."""
    replay.observe_total(total)
    due = replay.refresh_due
    if due:
        replay.refresh(gaussian(min(total, 1_000)))
    return due


def test_a_small_buffer_refreshes_before_rows_are_lost():
    replay = make()
    replay.limit_capacity("buffer_size", 300, 300)
    assert replay.start_after == 300
    assert [total for total in range(0, 1_000, 10) if observe(replay, total)] == [300, 600, 900]


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda replay: pickle.loads(pickle.dumps(replay))], ids=["copy", "pickle"]
)
def test_the_capacity_outlives_a_reset_and_a_pickle(again):
    replay = make()
    replay.limit_capacity("buffer_size", 300, 300)
    observe(replay, 310)
    loaded = again(replay)
    assert not observe(loaded, 600)
    assert observe(loaded, 610)
    assert not observe(loaded, 900)
    assert observe(loaded, 910)
    loaded.reset()
    assert not observe(loaded, 290)
    assert observe(loaded, 300)


def test_the_first_refresh_serves_half_an_interval_later_elsewhere():
    assert make(refresh_on="process").first_served == 1_000 + 250
    assert make(refresh_on="process", retrain_every=300).first_served == 300 + 150
    assert make().first_served == 1_000


class AtOnce(Executor):
    """Does what it is given at once."""

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Never(Executor):
    """Takes what it is given, and does not come to it."""

    def submit(self, function, /, *args, **kwargs):
        return Future()


def first_line(replay, total, caplog):
    """What the first batch says, after an adapter observed `total` transitions."""
    observe(replay, total)
    caplog.clear()
    replay.split(256)
    return caplog.messages[-1]


def test_the_first_batch_announces_when_the_refresh_that_was_started_serves(caplog):
    caplog.set_level("INFO")
    # The rows were written before anything was sampled: started at 5,000, with a lag of half of 500.
    assert "up to 5,250 real transitions (now 5,000);" in first_line(make(refresh_on=AtOnce()), 5_000, caplog)
    as_ready = make(refresh_on=Never(), refresh_lag="as-ready")
    assert "all real up to the end of the refresh that is running; then 50 %" in first_line(as_ready, 5_000, caplog)


def test_the_first_batch_announces_the_attempt_after_one_that_failed(caplog):
    caplog.set_level("INFO")
    here = make(upsampler=fails_at(1, Resampler))
    assert "up to 1,500 real transitions (now 1,000);" in first_line(here, 1_000, caplog)
    elsewhere = make(upsampler=fails_at(1, Resampler), refresh_on=AtOnce(), refresh_lag=0)
    assert "up to 1,500 real transitions (now 1,000);" in first_line(elsewhere, 1_000, caplog)


def test_the_first_batch_announces_no_moment_that_has_passed(caplog):
    caplog.set_level("INFO")
    replay = make(refresh_on="process")
    replay.observe_total(5_000)
    replay.split(256)  # before anyone asked whether a refresh is due
    assert "up to 5,250 real transitions (now 5,000);" in caplog.text


def test_a_refresh_done_in_steps_is_not_due_again():
    replay = make()
    replay.observe_total(1_200)
    job = replay.prepare_refresh(gaussian(1_000))
    assert replay.refresh_due, "nothing serves yet"
    replay.observe_total(1_300)
    replay.commit(run_refresh(job))
    assert [total for total in range(1_300, 2_300, 100) if observe(replay, total)] == [1_700, 2_200]


@pytest.mark.parametrize(("lag", "served"), [(None, 21_000), (600, 20_600), (5_000, 22_000)])
def test_a_lag_is_half_the_interval_or_what_was_given_and_at_most_the_interval(lag, served):
    replay = make(refresh_on=AtOnce(), refresh_lag=lag)
    observe(replay, 20_000)
    assert replay._pending.serve_from == served


def test_a_long_wait_is_said_with_the_interval(caplog, monkeypatch):
    monkeypatch.setattr("synther_buffers.replay.refreshing._WORTH_A_LINE", -1.0)
    caplog.set_level("INFO")
    replay = make(refresh_on=AtOnce())
    observe(replay, 20_000)
    observe(replay, 21_000)
    assert "refresh_lag was 1000, and may be up to 2000" in caplog.text


def test_a_lag_is_no_longer_than_a_given_interval():
    with pytest.raises(ValueError, match="refresh_lag is 501, more than retrain_every=500"):
        SyntheticOptions(refresh_on="process", refresh_lag=501, retrain_every=500)


def test_a_buffer_too_small_for_any_refresh_is_refused_at_the_first_row():
    replay = make()
    replay.limit_capacity("buffer_size", 50, 50)
    with pytest.raises(ValueError, match=r"at least 100 rows, which is more than buffer_size=50\. Raise buffer_size"):
        replay.check_capacity()
    plain = make(synthetic_fraction=0.0)
    plain.limit_capacity("buffer_size", 50, 50)
    plain.check_capacity()


def test_a_state_of_a_longer_interval_follows_the_present_one():
    former = make(retrain_every=10_000)
    former.observe_total(3_000)
    replay = make()
    replay.load_state_dict(former.state_dict())
    assert not observe(replay, 3_499)
    assert observe(replay, 3_500)
