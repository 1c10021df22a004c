"""What a refresh that fails, or is interrupted, leaves behind; tests/faults draws many more such failures."""

import json
import logging
import pickle
import threading
from dataclasses import replace

import pytest
import torch
from gymnasium import spaces
from toys import SPEC, TINY, Resampler, equal, gaussian, walk

from synther_buffers import SyntheticReplay, TransitionSpec
from synther_buffers.datasets import open_dataset, upsample, write_dataset


def make(upsampler, spec=SPEC, **kwargs):
    options = {"upsampler": upsampler, "retrain_every": 200, "num_synthetic": 300, "progress_bar": False}
    return SyntheticReplay(spec, **options | kwargs)


def refresh(replay, num_rows):
    replay.observe_total(num_rows)
    return replay.refresh(walk(num_rows))


class Second(Resampler):
    """Resamples at first; each test says what the second one does instead."""

    @property
    def second(self):
        return self.num_fits == 2


@pytest.mark.parametrize("wrong", [None, "done", {"loss": 0.5}])
def test_a_fit_without_a_report_never_serves(wrong, caplog):
    class NoReport(Second):
        def fit(self, transitions, *, held_out=None):
            report = super().fit(transitions, held_out=held_out)
            return wrong if self.second else report

    replay = make(NoReport)
    refresh(replay, 400)
    last, model = replay.rows, replay.upsampler.state_dict()["num_fits"]
    with caplog.at_level(logging.ERROR):
        assert refresh(replay, 600) is None
    assert f"NoReport.fit returned {wrong!r}; wanted a FitReport." in caplog.text
    assert replay.rows is last
    assert replay.upsampler.state_dict()["num_fits"] == model == 1
    assert len(replay.reports) == 1


@pytest.mark.parametrize(("changes", "loss"), [({"loss": torch.tensor(0.25)}, 0.25), ({"loss": 1, "steps": True}, 1.0)])
def test_a_report_has_plain_numbers(changes, loss, tmp_path):
    """A tensor would reach the refresh log, the logger of the framework and every saved buffer."""

    class Odd(Resampler):
        def fit(self, transitions, *, held_out=None):
            return replace(super().fit(transitions, held_out=held_out), **changes)

    report = refresh(make(Odd, refresh_log=tmp_path / "log.jsonl"), 400)
    assert type(report.fit.loss) is float
    assert report.fit.loss == loss
    assert type(report.fit.steps) is int
    assert json.loads((tmp_path / "log.jsonl").read_text())["fit"]["loss"] == loss


@pytest.mark.parametrize("when", ["fit", "sample"])
def test_an_interrupted_refresh_is_due_again(when):
    """At 210 rows, not at 410. The next one is 200 rows after the one that was done."""

    class Interrupted(Resampler):
        times = 1

    def interrupt(self, *args, **kwargs):
        if Interrupted.times:
            Interrupted.times = 0
            raise KeyboardInterrupt
        return getattr(Resampler, when)(self, *args, **kwargs)

    setattr(Interrupted, when, interrupt)
    replay = make(Interrupted)
    with pytest.raises(KeyboardInterrupt):
        refresh(replay, 210)
    assert replay.refresh_due
    assert replay.split(10) == (10, 0)
    assert refresh(replay, 210).num_observed == 210
    due = {}
    for total in (211, 409, 410):
        replay.observe_total(total)
        due[total] = replay.refresh_due
    assert due == {211: False, 409: False, 410: True}


def test_an_upsamplers_own_memory_is_not_the_set_in_service():
    class Reuses(Resampler):
        memory = SPEC.empty(300)

        def sample(self, num_samples):
            for name, tensor in super().sample(num_samples).flat().items():
                self.memory.flat()[name].copy_(tensor)
            return self.memory

    replay = make(Reuses)
    refresh(replay, 400)
    before = replay.rows[:]
    before = type(before).from_flat({name: tensor.clone() for name, tensor in before.flat().items()})
    for tensor in Reuses.memory.flat().values():
        tensor.zero_()
    assert equal(replay.rows, before)


class InPlace(Second):
    """Trains on the very tensor that its state came in."""

    weights = torch.zeros(2)

    def fit(self, transitions, *, held_out=None):
        self.weights += 1
        report = super().fit(transitions, held_out=held_out)
        if self.second:
            raise RuntimeError("diverged")
        return report

    def state_dict(self):
        return super().state_dict() | {"weights": self.weights}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.weights = state["weights"]


def test_a_training_in_place_that_fails_leaves_the_last_model(monkeypatch):
    monkeypatch.setattr(InPlace, "weights", torch.zeros(2))
    replay = make(InPlace)
    refresh(replay, 400)
    refresh(replay, 600)
    assert replay.upsampler.weights.tolist() == [1, 1]
    replay.upsampler.weights.fill_(9.0)  # the user's copy
    assert replay.state_dict()["upsampler"]["weights"].tolist() == [1, 1]


class Unloadable(Resampler):
    """A module of PyTorch raises a RuntimeError where weights do not fit."""

    error = None

    def load_state_dict(self, state):
        if self.error is not None:
            raise self.error("the weights do not fit")
        super().load_state_dict(state)


@pytest.mark.parametrize("error", [RuntimeError, IndexError, AssertionError, OSError, ValueError])
def test_a_saved_model_that_cannot_be_loaded_costs_itself_alone(error, monkeypatch, caplog):
    """With an exception from here a framework's loading would fail, and its real rows would be out of reach."""
    replay = make(Unloadable)
    refresh(replay, 400)
    saved = pickle.dumps(replay)
    with monkeypatch.context() as patch:
        patch.setattr(Unloadable, "error", error)
        loaded = pickle.loads(saved)
    loaded.observe_total(400)  # the buffer counts its rows
    assert loaded.split(10) == (10, 0)
    (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert "cannot be read (the weights do not fit). The real rows are all there" in record.getMessage()
    assert loaded.refresh_due
    assert refresh(loaded, 410) is not None
    assert loaded.split(10) == (5, 5)


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (spaces.Discrete(4), 4, "generated 4 in action; wanted 0 to 3"),
        (spaces.Discrete(4, start=-1), -2, "generated -2 in action; wanted -1 to 2"),
        (spaces.MultiDiscrete([3, 2]), 2, r"generated 2 in action\[1\]; wanted 0 to 1"),
        (spaces.MultiBinary(2), -1, r"generated -1 in action\[0\]; wanted 0 to 1"),
    ],
)
def test_a_category_that_does_not_exist_never_serves(space, value, message, caplog):
    """An agent would index with it."""

    class Beyond(Resampler):
        def sample(self, num_samples):
            rows = super().sample(num_samples)
            return replace(rows, action=rows.action.clone().fill_(value)) if self.num_fits == 2 else rows

    spec = TransitionSpec.from_spaces(spaces.Box(-9.0, 9.0, (2,), dtype="float64"), space)
    legal = torch.zeros((400, *space.shape), dtype=getattr(torch, str(space.dtype)))  # 0 is a category of each
    rows = replace(walk(400), action=legal)
    replay = make(Beyond, spec)
    replay.observe_total(400)
    replay.refresh(rows)
    last = replay.rows
    assert last is not None
    assert replay.refresh(rows) is None
    assert replay.rows is last
    assert message.replace("\\", "") in caplog.text


def test_a_line_of_the_log_that_was_cut_short_swallows_no_other(tmp_path):
    """By a kill or a full disk."""
    log = tmp_path / "log.jsonl"
    replay = make(Resampler, refresh_log=log)
    refresh(replay, 400)
    whole = log.read_bytes()
    log.write_bytes(whole + whole[:30])
    refresh(replay, 600)
    refresh(replay, 800)
    first, torn, second, third = log.read_text().splitlines()
    assert torn == whole[:30].decode()
    assert [json.loads(line)["refresh"] for line in (first, second, third)] == [1, 2, 3]


def test_no_thread_of_progress_bars_is_started(tmp_path):
    """tqdm starts one for the whole process at its first bar, even at one that is disabled."""
    before = set(threading.enumerate())
    for shown in (False, True):
        replay = make(TINY, progress_bar=shown)
        replay.observe_total(400)
        assert replay.refresh(gaussian(400)) is not None
        dataset = open_dataset(write_dataset(tmp_path / f"{shown}.npz", gaussian(200)))
        upsample(dataset, 50, tmp_path / f"{shown}-out.npz", upsampler=TINY, progress_bar=shown)
        assert set(threading.enumerate()) == before


def first_rows_are_constant():
    """More of them than an estimate reads, and then rows that vary."""
    rows = gaussian(1_200)
    for column in rows.flat().values():
        column[:600] = column[0].clone()
    return rows


@pytest.mark.parametrize("rows", [gaussian(400), first_rows_are_constant()], ids=["gaussian", "constant at first"])
def test_the_estimate_of_the_first_refresh_costs_no_refresh(rows, caplog):
    replay = make(replace(TINY, outcome_steps=5), progress_bar=True)
    replay.observe_total(len(rows))
    with caplog.at_level(logging.INFO), torch.no_grad():
        assert replay.refresh(rows) is not None
    assert "rows, which takes about" in caplog.text


def test_a_failing_estimate_costs_no_refresh(caplog, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no clock")

    monkeypatch.setattr("synther_buffers.upsampling.cost.measure_speed", broken)
    replay = make(TINY, progress_bar=True)
    replay.observe_total(400)
    with caplog.at_level(logging.INFO):
        assert replay.refresh(gaussian(400)) is not None
    assert "learning 384 rows." in caplog.text
