"""SyntheticReplay: the schedule, the mixing, refreshes that go wrong, and the invariants."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import SPEC, TINY, Resampler, equal, fails_at, gaussian, global_state, walk

from synther_buffers import PRESETS, ConditioningConfig, RowBudget, RowOrder, Transitions
from synther_buffers.replay.reports import RefreshReport
from synther_buffers.replay.saving import why_unfit
from synther_buffers.replay.synthetic_replay import SyntheticReplay

#: Learns given observations and actions, and relevance alone.
GIVEN = replace(TINY, conditioning=ConditioningConfig())
ASKED = replace(TINY, conditioning=ConditioningConfig(given_share=0.0))


def make(upsampler=Resampler, **kwargs) -> SyntheticReplay:
    return SyntheticReplay(
        SPEC, **{"upsampler": upsampler, "retrain_every": 200, "num_synthetic": 300, "progress_bar": False} | kwargs
    )


def refreshed(upsampler=Resampler, rows=None, **kwargs) -> SyntheticReplay:
    replay = make(upsampler, **kwargs)
    rows = walk(400) if rows is None else rows
    replay.observe_total(len(rows))
    assert replay.refresh(rows) is not None
    return replay


# -- schedule --------------------------------------------------------------------------------------------------------


def test_refreshes_are_due_on_schedule():
    replay = make(retrain_every=100, start_after=250)
    due = []
    for total in range(0, 601, 10):
        replay.observe_total(total)
        replay.observe_total(total)  # absolute: saying it twice changes nothing
        if replay.refresh_due:
            due.append(total)
            replay.refresh(walk(max(total, 150)))
    assert due == [250, 350, 450, 550]


def test_a_refresh_ignores_the_default_device():
    rows = walk(400)
    with torch.device("meta"):
        replay = refreshed(TINY, rows)
        assert replay.sample(5).reward.tolist() == [1.0] * 5


def test_one_refresh_makes_up_for_missed_ones():
    replay = make(retrain_every=100)
    replay.observe_total(1_000)
    assert replay.refresh_due
    replay.refresh(walk(1_000))
    assert not replay.refresh_due
    replay.observe_total(1_099)
    assert not replay.refresh_due
    replay.observe_total(1_100)
    assert replay.refresh_due


def test_the_first_refresh_is_after_retrain_every_by_default():
    assert make(retrain_every=123).start_after == 123


def test_at_fraction_zero_nothing_is_ever_due():
    replay = make(synthetic_fraction=0.0)
    replay.observe_total(10**9)
    assert not replay.refresh_due


# -- mixing ----------------------------------------------------------------------------------------------------------


def test_splits_are_exact():
    replay = make()
    assert replay.split(33) == (33, 0)  # before the first refresh
    replay = refreshed()
    assert [replay.split(size) for size in (33, 33, 256, 1, 2)] == [(17, 16), (17, 16), (128, 128), (1, 0), (1, 1)]
    assert refreshed(synthetic_fraction=0.3).split(10) == (7, 3)
    assert refreshed(synthetic_fraction=1.0).split(10) == (0, 10)


@given(st.integers(0, 5_000), st.floats(0, 1))
def test_splits_add_up_and_never_exceed_the_fraction(batch_size, fraction):
    replay = make(synthetic_fraction=fraction)
    replay._set.rows = walk(10)
    real, synthetic = replay.split(batch_size)
    assert real + synthetic == batch_size
    assert real >= 0
    assert synthetic <= batch_size * fraction + 1e-6
    assert synthetic > batch_size * fraction - 1


def test_samples_come_from_the_synthetic_set():
    replay = refreshed()
    drawn = replay.sample(1_000)
    assert len(drawn) == 1_000
    known = set(replay.rows.observation[:, 0].tolist())
    assert set(drawn.observation[:, 0].tolist()) <= known
    # Rows stay together: s' is one step after s.
    assert (drawn.next_observation[:, 0] == drawn.observation[:, 0] + 1).all()


def test_sampling_before_the_first_refresh_is_an_error():
    with pytest.raises(RuntimeError, match="no synthetic rows before the first refresh"):
        make().sample(1)


# -- invariants ------------------------------------------------------------------------------------------------------


def test_1_a_refresh_leaves_the_real_rows_alone():
    rows, reference = gaussian(400), gaussian(400)
    refreshed(TINY, rows)
    assert equal(rows, reference)


def test_3_every_finite_row_is_learned_or_held_out():
    replay = refreshed(rows=walk(1_000))
    learned, held = replay.upsampler.rows, replay.upsampler.held_out
    seen = torch.cat((learned.observation[:, 0], held.observation[:, 0])).sort().values
    assert torch.equal(seen, torch.arange(1_000, dtype=torch.float64))
    assert 0 < len(held) <= 50


def test_3_held_out_rows_stay_held_out_while_a_ring_wraps():
    replay = make(retrain_every=100)
    learned_ever: set[float] = set()
    held_ever: set[float] = set()
    for total in range(500, 2_000, 130):
        # A ring of 500: slot i holds the newest row whose number is i modulo 500.
        writes = np.arange(total - 500, total)
        writes = writes[np.argsort(writes % 500)]
        rows = walk(2_000)[torch.from_numpy(writes)]
        order = RowOrder(writes, np.zeros(500, np.int64), rows.terminated.numpy())
        replay.observe_total(total)
        assert replay.refresh(rows, order) is not None
        learned_ever |= set(replay.upsampler.rows.observation[:, 0].tolist())
        held_ever |= set(replay.upsampler.held_out.observation[:, 0].tolist())
    assert held_ever
    assert not learned_ever & held_ever


def test_3_n_step_rows_that_reach_into_held_out_ones_are_not_learned():
    spec = replace(SPEC, discounts=(0.9, 0.81, 0.729))
    replay = SyntheticReplay(spec, upsampler=Resampler, retrain_every=200, num_synthetic=300, progress_bar=False)
    rows = replace(walk(1_000), discount=torch.full((1_000,), 0.729))
    replay.observe_total(1_000)
    assert replay.refresh(rows) is not None
    held = set(replay.upsampler.held_out.observation[:, 0].tolist())
    learned = set(replay.upsampler.rows.observation[:, 0].tolist())
    assert held
    for row in learned:
        assert not {row, row + 1, row + 2} & held


def test_1_an_upsampler_that_writes_into_its_rows_does_not_reach_the_buffers():
    class Writes(Resampler):
        def fit(self, transitions, *, held_out=None):
            transitions.reward.zero_()
            held_out.reward.zero_()
            return super().fit(transitions, held_out=held_out)

    rows = walk(400)
    refreshed(Writes, rows)
    assert (rows.reward == 1).all()


def test_4_synthetic_rows_are_legal():
    rows = refreshed(TINY, gaussian(500)).rows
    SPEC.check(rows)
    assert rows.action.abs().max() <= 1
    assert set(rows.terminated.unique().tolist()) <= {False, True}
    assert all(torch.isfinite(tensor).all() for tensor in rows.flat().values())


def test_5_a_failed_refresh_leaves_the_last_set_in_service(caplog):
    replay = refreshed(fails_at(2, Resampler))
    last = replay.rows
    replay.observe_total(800)
    with caplog.at_level(logging.ERROR):
        assert replay.refresh(walk(800)) is None
    assert replay.rows is last
    assert replay.num_refreshes == 1
    (record,) = caplog.records
    assert "Synthetic refresh at 800 real transitions failed; the last synthetic set stays in service" in record.message
    assert "planted failure" in caplog.text
    assert "Traceback" in caplog.text  # once; a failure that repeats is a line each time
    # The next attempt comes on schedule, not at every batch.
    assert not replay.refresh_due


def test_5_a_failed_first_refresh_leaves_batches_real(caplog):
    replay = make(fails_at(1, Resampler))
    replay.observe_total(400)
    with caplog.at_level(logging.ERROR):
        assert replay.refresh(walk(400)) is None
    assert replay.split(10) == (10, 0)
    assert "Synthetic refresh at 400 real transitions failed" in caplog.text


def test_rewards_whose_variance_float32_cannot_hold_are_learned():
    rows = gaussian(400)
    rows.reward = torch.full((400,), torch.finfo(torch.float32).max)
    rows.reward[::2] *= -1
    replay = refreshed(TINY, rows)
    assert replay.split(10) == (5, 5)
    assert all(torch.isfinite(tensor).all() for tensor in replay.rows.flat().values())


def test_a_column_too_large_to_learn_fails_the_refresh_by_name(caplog):
    rows = gaussian(400)
    rows.observation *= 1e300
    replay = make(TINY)
    replay.observe_total(400)
    assert replay.refresh(rows) is None
    assert replay.split(10) == (10, 0)
    assert "observation[0]" in caplog.text
    assert "at most 1e+150 in magnitude" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda rows, n: rows[: n - 1], "was asked for 300 rows and gave 299"),
        (lambda rows, n: replace(rows, reward=torch.full((n,), torch.nan)), "generated rows that are not finite"),
        (lambda rows, n: replace(rows, reward=rows.reward.double()), "reward has dtype torch.float64"),
    ],
)
def test_5_a_new_set_that_is_not_valid_never_serves(wrong, message, caplog):
    class Wrong(Resampler):
        def sample(self, num_samples):
            rows = super().sample(num_samples)
            return rows if self.num_fits == 1 else wrong(rows, num_samples)

    replay = refreshed(Wrong)
    last = replay.rows
    with caplog.at_level(logging.ERROR):
        assert replay.refresh(walk(400)) is None
    assert message in caplog.text
    assert replay.rows is last


def test_5_rows_that_cannot_be_read_are_a_failed_refresh(caplog):
    def read():
        raise MemoryError("no room for the rows")

    replay = refreshed()
    last = replay.rows
    assert replay.refresh(read) is None
    assert replay.rows is last
    assert "no room for the rows" in caplog.text


def test_6_the_process_is_left_as_it_was():
    before = global_state()
    replay = refreshed(TINY, gaussian(400))
    replay.sample(10)
    assert global_state() == before


def test_6_same_seed_same_rows():
    batches = [refreshed(TINY, gaussian(400), seed=seed).sample(50) for seed in (3, 3, 4)]
    assert equal(batches[0], batches[1])
    assert not equal(batches[0], batches[2])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_6_the_callers_grad_mode_does_not_matter(mode):
    reference = refreshed(TINY, gaussian(400)).sample(20)
    with mode():
        drawn = refreshed(TINY, gaussian(400)).sample(20)
    assert equal(drawn, reference)


def test_6_rows_made_in_inference_mode_can_be_learned():
    with torch.inference_mode():
        rows = gaussian(400)
    refreshed(TINY, rows)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda replay: pickle.loads(pickle.dumps(replay))])
def test_7_a_copy_goes_on_where_the_original_stopped(duplicate):
    replay = refreshed(TINY, gaussian(400))
    replay.sample(10)
    twin = duplicate(replay)
    assert equal(twin.rows, replay.rows)
    assert equal(twin.sample(64), replay.sample(64))
    for each in (replay, twin):
        each.observe_total(600)
        assert each.refresh_due
        assert each.refresh(gaussian(600)).fit.warm
    assert equal(twin.rows, replay.rows)
    assert [report.refresh for report in twin.reports] == [1, 2]


def test_7_a_pickle_holds_no_live_model():
    # 32-wide net: the state dict is a few kB; the pickle must not hold optimisers or the rows twice.
    replay = refreshed(TINY, gaussian(400))
    assert len(pickle.dumps(replay)) < replay.rows.nbytes + 100_000


def test_7_a_pickle_loads_where_a_presets_name_means_another_configuration(monkeypatch):
    monkeypatch.setitem(PRESETS, "cpu", TINY)
    replay = refreshed("auto", gaussian(400), upsampler_device="cpu")
    stored = pickle.dumps(replay)
    monkeypatch.setitem(PRESETS, "cpu", replace(TINY, network=replace(TINY.network, width=48)))
    assert equal(pickle.loads(stored).upsampler.sample(10), replay.upsampler.sample(10))


def test_7_a_loaded_model_of_the_same_shape_goes_on_with_the_presets_present_training(monkeypatch, caplog):
    monkeypatch.setitem(PRESETS, "cpu", TINY)
    replay = refreshed("auto", gaussian(400), upsampler_device="cpu")
    stored = pickle.dumps(replay)
    present = replace(TINY, train_steps=60, budget=RowBudget(), training=replace(TINY.training, weight_decay=0.5))
    monkeypatch.setitem(PRESETS, "cpu", present)
    loaded = pickle.loads(stored)
    assert loaded.upsampler.settings == present
    assert equal(loaded.upsampler.sample(10), replay.upsampler.sample(10))
    assert "another configuration" not in caplog.text


def test_7_a_model_with_conditions_and_of_another_shape_goes_on_too(monkeypatch, caplog):
    monkeypatch.setitem(PRESETS, "cpu", TINY)
    saved = refreshed("auto", gaussian(400), upsampler_device="cpu", policy_share=0.5)
    monkeypatch.setitem(PRESETS, "cpu", replace(TINY, network=replace(TINY.network, width=48)))
    loaded = SyntheticReplay(SPEC, upsampler="auto", upsampler_device="cpu", retrain_every=200, seed=0)
    loaded.load_state_dict(saved.state_dict())
    assert "another configuration" in caplog.text
    assert equal(loaded.rows, saved.rows)
    assert equal(loaded.upsampler.sample(10), saved.upsampler.sample(10))


@pytest.mark.parametrize(
    "changes",
    [{"sigma_data": 0.5}, {"next_observation_change": False}, {"network": replace(TINY.network, width=48)}],
)
@pytest.mark.parametrize("says_so", [True, False])
def test_7_a_model_of_another_configuration_is_replaced_and_its_rows_stay(changes, says_so, caplog):
    saved = refreshed(TINY, gaussian(400), refresh_lag=None)
    state = saved.state_dict()
    if not says_so:
        state["upsampler"]["model"].pop("settings", None)
    loaded = make(replace(TINY, **changes))
    loaded.load_state_dict(state)
    assert "The saved model has another configuration than the present settings" in caplog.text
    assert equal(loaded.rows, saved.rows)
    assert loaded.num_refreshes == 1
    loaded.observe_total(600)
    report = loaded.refresh(gaussian(600))
    assert (report.refresh, report.fit.warm, report.fit.reason) == (2, False, "first fit")


def test_7_a_refresh_that_waits_for_another_configuration_is_dropped(caplog):
    saved = make(TINY, refresh_on="process", refresh_lag=50)
    saved.observe_total(200)
    saved.refresh(gaussian(200))
    state = saved.state_dict()
    assert state["pending"] is not None
    loaded = make(replace(TINY, sigma_data=0.5), refresh_on="process", refresh_lag=50)
    loaded.load_state_dict(state)
    assert "The saved model has another configuration than the present settings" in caplog.text
    assert loaded.state_dict()["pending"] is None


@pytest.mark.parametrize(("before", "now"), [(Resampler, TINY), (TINY, Resampler)], ids=["to ours", "to their own"])
@pytest.mark.parametrize("pending", [False, True])
def test_7_rows_outlive_a_change_between_a_preset_and_an_upsampler_of_ones_own(before, now, pending, caplog):
    saved = refreshed(before, gaussian(400), seed=0)
    state = saved.state_dict()
    if pending:
        waiting = make(before, refresh_on="process", refresh_lag=50)
        waiting.observe_total(200)
        waiting.refresh(gaussian(200))
        state["pending"] = waiting.state_dict()["pending"]
        waiting.reset()
    loaded = make(now)
    loaded.load_state_dict(state)
    assert caplog.messages == [
        "The saved model is not of the upsampler that the present settings ask for. The synthetic rows are kept, and "
        "the next refresh trains anew."
    ]
    assert equal(loaded.rows, saved.rows)
    assert loaded.reports == saved.reports
    assert loaded.state_dict()["hold_out"].keys() == state["hold_out"].keys()
    assert loaded.num_observed == 400
    assert not loaded.refresh_due
    loaded.observe_total(600)
    assert loaded.refresh(gaussian(600)).refresh == 2


def test_7_where_nothing_was_learned_yet_no_model_is_missed(monkeypatch, caplog):
    monkeypatch.setitem(PRESETS, "cpu", TINY)
    states = [make(upsampler).state_dict() for upsampler in (Resampler, TINY)]
    wider = replace(TINY, network=replace(TINY.network, width=48))
    monkeypatch.setitem(PRESETS, "cpu", wider)
    for state in states:
        loaded = make("cpu", upsampler_device="cpu")
        loaded.load_state_dict(state)
        assert loaded.upsampler.settings == wider
    assert not caplog.messages


@pytest.mark.parametrize(
    ("saved", "present", "why"),
    [
        (None, None, ""),
        (None, TINY, "is not of the upsampler"),
        (TINY, None, "is not of the upsampler"),
        (TINY, replace(TINY, train_steps=60), ""),
        (TINY, replace(TINY, sigma_data=0.5), "has another configuration"),
        (GIVEN, TINY, ""),
        (GIVEN, ASKED, ""),
        (TINY, ASKED, "learned no conditions"),
        (ASKED, GIVEN, "learned no conditions"),
        (ASKED, ASKED, ""),
    ],
)
def test_7_which_model_goes_on_under_which_configuration(saved, present, why):
    found = why_unfit(saved, present)
    assert found.startswith(why)
    assert bool(found) == bool(why)


def test_7_resetting_a_loaded_replay_goes_back_to_the_preset(monkeypatch, caplog):
    monkeypatch.setitem(PRESETS, "cpu", TINY)
    stored = pickle.dumps(refreshed("auto", gaussian(400), upsampler_device="cpu"))
    wider = replace(TINY, network=replace(TINY.network, width=48))
    monkeypatch.setitem(PRESETS, "cpu", wider)
    loaded = pickle.loads(stored)
    assert "The saved model has another configuration than 'auto' stands for here" in caplog.text
    loaded.reset()
    assert loaded.upsampler.settings == wider


def test_7_a_pickle_loads_where_its_devices_are_missing(caplog):
    replay = refreshed(TINY, gaussian(400))
    # As it would have been written on another machine.
    object.__setattr__(replay.options, "upsampler_device", "cuda:77")
    replay._set.device = torch.device("cuda:77")
    loaded = pickle.loads(pickle.dumps(replay))
    assert loaded.device == torch.device("cpu")
    assert len(loaded.sample(4)) == 4
    assert "The upsampler's device cuda:77 is not here; it goes on on 'auto'." in caplog.text


def test_8_a_batch_costs_a_draw_and_nothing_else(monkeypatch):
    replay = refreshed(TINY, gaussian(400))
    monkeypatch.setattr(replay, "_factory", None)  # nothing of the model is touched
    for _ in range(3):
        replay.sample(10)


@pytest.mark.cuda
def test_moves_to_another_device_and_back():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    replay = refreshed()
    assert replay.to("cuda").sample(4).device.type == "cuda"
    assert equal(replay.to("cpu").rows, refreshed().rows)


def test_moving_to_the_device_where_it_is_changes_no_draw():
    assert equal(refreshed().to("cpu").sample(50), refreshed().sample(50))


def test_reset_forgets_everything():
    replay = refreshed(TINY, gaussian(400), seed=5)
    first = replay.rows
    replay.reset()
    assert replay.rows is None
    assert replay.num_observed == replay.num_refreshes == 0
    assert replay.split(4) == (4, 0)
    replay.observe_total(400)
    replay.refresh(gaussian(400))
    assert equal(replay.rows, first)


# -- data that cannot be learned -------------------------------------------------------------------------------------


def test_rows_that_are_not_finite_are_left_out_and_named_once(caplog):
    rows = walk(1_000)
    rows.observation[3, 1] = torch.nan
    rows.reward[8] = torch.inf
    replay = refreshed(rows=rows)
    replay.refresh(rows)
    learned = replay.upsampler.rows
    assert len(learned) + len(replay.upsampler.held_out) == 998
    assert replay.reports[0].num_dropped == 2
    assert not {3.0, 8.0} & set(learned.observation[:, 0].tolist())
    messages = [record.message for record in caplog.records if "NaN or infinity" in record.message]
    assert messages == [
        "1 real rows have NaN or infinity in observation[1]; such rows are not learned.",
        "1 real rows have NaN or infinity in reward; such rows are not learned.",
    ]


def test_too_many_rows_that_are_not_finite_skip_the_refresh(caplog):
    replay = refreshed()
    last = replay.rows
    rows = walk(400)
    rows.observation[:5] = torch.nan
    assert replay.refresh(rows) is None
    assert replay.rows is last
    assert "Synthetic refresh skipped: 5 of 400 real rows are not finite, more than 1 %." in caplog.text


def test_too_few_rows_are_skipped_and_logged_once(caplog):
    replay = make()
    for _ in range(2):
        assert replay.refresh(walk(50)) is None
    messages = [record.message for record in caplog.records]
    assert messages == ["Synthetic refresh skipped: 50 real rows are too few to learn from, wanted 100."]


def test_rows_of_another_spec_fail_without_stopping_the_agent(caplog):
    rows = walk(400)
    assert make().refresh(replace(rows, action=rows.action.long())) is None
    assert "action has dtype torch.int64, but the spec wants torch.float32" in caplog.text


# -- reports ---------------------------------------------------------------------------------------------------------


def test_a_report_says_what_was_done():
    replay = make(TINY)
    replay.observe_total(1_000)
    report = replay.refresh(gaussian(1_000))
    assert report.num_real + report.num_held_out == 1_000
    assert report.num_synthetic == 300
    assert report.num_observed == 1_000
    assert report.seconds >= report.fit_seconds > 0
    assert 0 < report.fidelity.marginal <= 1
    assert report.fidelity_real.marginal > 0.7
    assert report.metrics()["synthetic_rows"] == 300
    assert report.metrics()["refresh"] == 1


def test_each_refresh_appends_a_line_to_the_log(tmp_path):
    replay = refreshed(TINY, gaussian(1_000), refresh_log=tmp_path / "new" / "refreshes.jsonl", seed=9)
    replay.refresh(gaussian(1_200))
    lines = [json.loads(line) for line in (tmp_path / "new" / "refreshes.jsonl").read_text().splitlines()]
    assert [line["refresh"] for line in lines] == [1, 2]
    assert lines[0]["seed"] == 9
    assert lines[0]["config"]["train_steps"] == TINY.train_steps
    assert lines[0]["fit"]["held_out_loss"] > 0
    assert lines[0]["fidelity"]["marginal"] > 0
    assert set(lines[0]["versions"]) == {"synther-buffers", "torch", "numpy", "python"}


def test_a_log_that_cannot_be_written_is_no_reason_to_stop(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    replay = refreshed(refresh_log=tmp_path / "file" / "log.jsonl")
    assert replay.num_refreshes == 1
    assert "cannot be written" in caplog.text


def test_a_wide_fidelity_gap_is_warned_about(caplog):
    class Far(Resampler):
        def sample(self, num_samples):
            rows = super().sample(num_samples)
            return replace(rows, observation=rows.observation * 3 + 1_000)

    refreshed(Far, gaussian(2_000))
    assert "The synthetic rows are far from the real ones: marginal similarity" in caplog.text
    assert "worst column: observation[" in caplog.text


def test_copies_are_reported_and_warned_about(caplog):
    # A resampler gives training rows back: each at distance 0 from one.
    replay = refreshed(Resampler, gaussian(2_000))
    assert replay.reports[-1].closest.share_closer == 1.0
    assert replay.reports[-1].closest.ratio == 0.0
    assert replay.reports[-1].metrics()["copy_share"] == 1.0
    assert "The model copies: 100 % of the synthetic rows lie closer to a training row" in caplog.text
    assert RefreshReport.from_dict(replay.reports[-1].to_dict()) == replay.reports[-1]


def test_new_rows_are_not_called_copies(caplog):
    class Fresh(Resampler):
        def sample(self, num_samples):
            return gaussian(num_samples, seed=5)

    replay = refreshed(Fresh, gaussian(2_000))
    assert replay.reports[-1].closest.share_closer < 0.25
    assert "copies" not in caplog.text


def test_figures_that_were_not_measured_are_not_printed(caplog):
    caplog.set_level(logging.INFO)
    replay = refreshed(Resampler, gaussian(200))  # 8 rows held out
    report = replay.reports[-1]
    assert report.closest is None
    assert not {"copy_share", "closest_record_ratio", "marginal_similarity"} & set(report.metrics())
    assert all(math.isfinite(value) for value in report.metrics().values())
    assert "too few held-out rows to compare with" in caplog.text
    assert "nan" not in caplog.text


def test_a_faithful_set_is_not_warned_about(caplog):
    refreshed(Resampler, gaussian(2_000))
    assert "far from the real ones" not in caplog.text


# -- telling the user ------------------------------------------------------------------------------------------------


def test_the_first_batch_says_when_mixing_starts(caplog):
    replay = make(start_after=5_000)
    with caplog.at_level(logging.INFO):
        replay.split(32)
        replay.split(32)
    messages = [record.message for record in caplog.records]
    assert messages == ["Batches are all real up to 5,000 real transitions (now 0); then 50 % of each is synthetic."]


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"synthetic_fraction": 1.5}, ValueError, r"synthetic_fraction is 1.5; it must lie between 0 \(all real\)"),
        ({"synthetic_fraction": -0.1}, ValueError, "synthetic_fraction is -0.1"),
        ({"synthetic_fraction": float("nan")}, ValueError, "synthetic_fraction is nan"),
        (
            {"synthetic_fraction": "half"},
            TypeError,
            r"synthetic_fraction is 'half' \(str\); wanted a number from 0 to 1",
        ),
        ({"retrain_every": 0}, ValueError, "retrain_every is 0; it must be at least 1"),
        ({"retrain_every": 1e4}, TypeError, r"retrain_every is 10000.0 \(float\); wanted a whole number"),
        ({"start_after": -5}, ValueError, "start_after is -5; it must be at least 1"),
        ({"num_synthetic": -1}, ValueError, "num_synthetic is -1; it must be at least 1"),
        ({"progress_bar": "yes"}, TypeError, "progress_bar is 'yes'; wanted True or False"),
        ({"refresh_log": 5}, TypeError, "refresh_log is 5; wanted the path of a file, or None"),
        ({"seed": "x"}, TypeError, r"seed is 'x' \(str\)"),
        ({"upsampler": "papers"}, ValueError, "unknown preset 'papers'; known presets: auto, cpu, gpu"),
        ({"upsampler_device": "cuda:99"}, ValueError, "the device 'cuda:99' cannot be used here"),
        ({"upsampler_device": "toaster"}, ValueError, "the device 'toaster' cannot be used here"),
        ({"device": "toaster"}, ValueError, "the device 'toaster' cannot be used here"),
    ],
)
def test_arguments_out_of_range(kwargs, error, message):
    with pytest.raises(error, match=message):
        make(**kwargs)


def test_transitions_index_like_tensors():
    rows = walk(10)
    assert rows[2:4].observation[:, 0].tolist() == [2.0, 3.0]
    assert len(rows[torch.tensor([True] * 3 + [False] * 7)]) == 3
    assert isinstance(rows[[1, 5]], Transitions)


# -- without a spec --------------------------------------------------------------------------------------------------


def numbered(actions) -> Transitions:
    """Row i: observation i, the given action, reward 1."""
    actions = torch.as_tensor(actions)
    index = torch.arange(len(actions), dtype=torch.float32)[:, None]
    return Transitions(index, actions, torch.ones(len(actions)), index + 1, torch.zeros(len(actions), dtype=torch.bool))


def unspecified(upsampler=Resampler, **kwargs) -> SyntheticReplay:
    return SyntheticReplay(
        None, **{"upsampler": upsampler, "retrain_every": 200, "num_synthetic": 300, "progress_bar": False} | kwargs
    )


def test_the_first_refresh_infers_the_spec():
    replay = unspecified()
    assert replay.spec is None
    replay.observe_total(200)
    assert replay.refresh(numbered(torch.arange(200) % 3)) is not None
    assert replay.spec.action.num_categories == (3,)
    assert len(replay.rows) == 300


def test_new_categories_widen_the_spec_and_start_afresh(caplog):
    replay = unspecified()
    replay.refresh(numbered(torch.arange(200) % 3))
    replay.refresh(numbered(torch.arange(200) % 2))
    assert replay.upsampler.num_fits == 2  # what was seen once stays possible
    with caplog.at_level(logging.INFO):
        assert replay.refresh(numbered(torch.arange(200) % 5)) is not None
    assert replay.upsampler.num_fits == 1
    assert replay.spec.action.num_categories == (5,)
    assert "new categories; the upsampler starts afresh" in caplog.text
    assert int(replay.rows.action.max()) == 4


@pytest.mark.parametrize("refreshes", [0, 1])
def test_7_a_replay_without_a_spec_copies(refreshes):
    replay = unspecified(TINY)
    for _ in range(refreshes):
        assert replay.refresh(numbered(torch.arange(200) % 3)) is not None
    again = pickle.loads(pickle.dumps(replay))
    assert again.spec == replay.spec
    left, right = (part.refresh(numbered(torch.arange(200) % 3)) for part in (replay, again))
    assert left.fit.loss == right.fit.loss
    assert left.fit.warm == bool(refreshes)
    assert equal(replay.rows, again.rows)
    replay.reset()
    assert replay.spec is None


@pytest.mark.parametrize(("upsampler", "rows"), [("paper-online", 1_000_000), (TINY, 200), (Resampler, 100_000)])
def test_the_size_of_the_set_is_known_from_the_start(upsampler, rows):
    assert unspecified(upsampler, num_synthetic=None).num_synthetic == rows
    assert make(upsampler, num_synthetic=None).num_synthetic == rows


@pytest.mark.parametrize(
    ("upsampler", "error", "message"),
    [("huge", ValueError, "unknown preset 'huge'"), (3, TypeError, "upsampler is 3"), (None, TypeError, "is None")],
)
def test_without_a_spec_the_upsampler_is_checked_all_the_same(upsampler, error, message):
    with pytest.raises(error, match=message):
        unspecified(upsampler)


@pytest.mark.parametrize(
    ("given", "capacity", "message"),
    [
        (199, 199, r"retrain_every=200 is more than size=199: .* raise size\."),
        (201, 198, r"retrain_every=200 is more than the 198 rows that size=201 holds: .* raise size\."),
    ],
)
def test_a_store_smaller_than_a_refresh_is_refused_at_the_first_row(given, capacity, message):
    replay = make()
    replay.limit_capacity("size", given, capacity)
    replay.observe_total(0)
    for copied in (replay, pickle.loads(pickle.dumps(replay))):
        with pytest.raises(ValueError, match=message):
            copied.observe_total(1)


@pytest.mark.parametrize(("fraction", "capacity"), [(0.5, 200), (0.0, 1)])
def test_a_store_that_holds_a_refresh_is_not_refused(fraction, capacity):
    replay = make(synthetic_fraction=fraction)
    replay.limit_capacity("size", capacity, capacity)
    replay.observe_total(1)
    assert replay.num_observed == 1


def test_extra_fields_are_learned_and_generated():
    rows = numbered(torch.arange(300) % 3)
    rows.extra = {"phase": torch.arange(300) % 4, "length": torch.full((300, 2), 0.5)}
    replay = unspecified(TINY)
    assert replay.refresh(rows) is not None
    assert set(replay.rows.extra["phase"].tolist()) <= {0, 1, 2, 3}
    assert replay.rows.extra["phase"].dtype == torch.int64
    assert torch.equal(replay.rows.extra["length"], torch.full((300, 2), 0.5))


def test_7_an_upsampler_of_a_script_is_saved_with_the_buffer():
    class Local(Resampler):
        pass

    replay = refreshed(Local)
    loaded = pickle.loads(pickle.dumps(replay))
    assert loaded.options.upsampler.__qualname__ == Local.__qualname__
    assert equal(loaded.rows, replay.rows)


def test_7_a_buffer_whose_upsampler_cannot_be_read_keeps_everything_else(caplog):
    replay = refreshed(Resampler)
    stored = replay.__getstate__() | {"upsampler": b"of a module that is not here"}
    loaded = object.__new__(SyntheticReplay)
    loaded.__setstate__(stored)
    assert "The saved upsampler cannot be read" in caplog.text
    assert "the next refresh trains the default model" in caplog.text
    assert loaded.options.upsampler == "auto"
    assert equal(loaded.rows, replay.rows)
    assert len(loaded.reports) == 1
