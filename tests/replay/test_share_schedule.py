"""The share of synthetic rows as a function of the real transitions so far."""

import logging
import pickle
import threading

import pytest
import torch
from toys import SPEC, Resampler, gaussian

from synther_buffers import SyntheticReplay

ROWS = gaussian(1_000)


def ramp(seen):
    """Nothing up to 200, all from 600 on."""
    return min(max((seen - 200) / 400, 0.0), 1.0)


def make(**options):
    defaults = {"upsampler": Resampler, "retrain_every": 100, "num_synthetic": 50, "seed": 0, "progress_bar": False}
    replay = SyntheticReplay(SPEC, **defaults | options)
    observe(replay, 100)
    return replay


def observe(replay, total):
    replay.observe_total(total)
    if replay.refresh_due:
        replay.refresh(ROWS[torch.arange(total)])


def test_batches_follow_it():
    replay = make(share_schedule=ramp)
    found = {}
    for total in (150, 200, 300, 400, 600, 900):
        observe(replay, total)
        found[total] = replay.split(64)
    # Half of 64 at the most: 0, 0, 1/4, 1/2, 1 and 1 of 32.
    assert found == {150: (64, 0), 200: (64, 0), 300: (56, 8), 400: (48, 16), 600: (32, 32), 900: (32, 32)}
    assert replay.num_refreshes == 6  # one at each of these, but 150, and at 100: learning does not depend on it


def test_the_quality_gate_has_its_part(monkeypatch):
    from synther_buffers.replay import synthetic_replay
    from synther_buffers.replay.quality_gate import Verdict

    monkeypatch.setattr(synthetic_replay, "judge", lambda report: Verdict(0.5, "bad"))
    replay = make(share_schedule=ramp, quality_gate=True)
    replay.observe_total(400)
    assert replay.share_served == 0.5 * 0.5 * 0.5
    assert replay.split(64) == (56, 8)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda seen: 1.5, "its value is 1.5"),
        (lambda seen: "much", "its value is 'much'"),
        (lambda seen: 1 / 0, "division by zero"),
    ],
)
def test_one_that_does_not_work_is_told_once(schedule, message, caplog):
    caplog.set_level(logging.WARNING)
    replay = make(share_schedule=schedule)
    assert replay.split(64) == (32, 32)
    assert replay.split(64) == (32, 32)
    (record,) = (record for record in caplog.records if "share_schedule(100) does not work" in record.getMessage())
    assert message in record.getMessage()


def test_no_function_is_refused():
    with pytest.raises(TypeError, match=r"share_schedule is 0\.5; wanted a function"):
        make(share_schedule=0.5)


def test_it_is_saved_if_it_can_be(caplog):
    caplog.set_level(logging.WARNING)
    for schedule in (ramp, lambda seen: 0.25):
        loaded = pickle.loads(pickle.dumps(make(share_schedule=schedule)))
        assert loaded.options.share_schedule(250) == schedule(250)
    assert "share_schedule" not in caplog.text
    lock = threading.Lock()
    loaded = pickle.loads(pickle.dumps(make(share_schedule=lambda seen: float(lock.locked()))))
    assert loaded.options.share_schedule is None
    assert "share_schedule cannot be saved" in caplog.text
    assert loaded.rows is not None


def test_one_that_cannot_be_read_costs_nothing_else(caplog):
    caplog.set_level(logging.WARNING)
    replay = make(share_schedule=ramp)
    state = replay.__getstate__() | {"share_schedule": b"nothing"}
    loaded = SyntheticReplay.__new__(SyntheticReplay)
    loaded.__setstate__(state)
    assert loaded.options.share_schedule is None
    assert loaded.num_refreshes == 1
    assert "saved share_schedule cannot be read" in caplog.text
