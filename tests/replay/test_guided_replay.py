"""A replay whose synthetic rows are chosen by a guidance: when it is asked, what travels, what goes wrong."""

import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toys import SPEC, TINY, Resampler, equal, gaussian, global_state

from synther_buffers import (
    Curiosity,
    FunctionGuidance,
    Guidance,
    Novelty,
    Rarity,
    ReturnToGo,
    RowOrder,
    SyntheticOptions,
    SyntheticReplay,
    TDError,
    Transitions,
    TransitionSpec,
)
from synther_buffers.guidance import drawing
from synther_buffers.replay.quality_gate import judge

ROWS = gaussian(1_000)


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """A regression that is good enough for r = s0."""
    monkeypatch.setattr(drawing, "_REGRESSION_STEPS", 60)


def first(rows: Transitions) -> torch.Tensor:
    return rows.observation[:, 0]


def make(**options) -> SyntheticReplay:
    defaults = {
        "upsampler": Resampler,
        "guidance": FunctionGuidance(function=first, by="resampling"),
        "retrain_every": 400,
        "num_synthetic": 300,
        "seed": 0,
        "progress_bar": False,
    }
    return SyntheticReplay(SPEC, **defaults | options)


def refreshed(replay: SyntheticReplay, total: int = 400, rows: Transitions = ROWS) -> SyntheticReplay:
    replay.observe_total(total)
    replay.refresh(rows[torch.arange(total, device="cpu")])
    return replay


def mean_of(replay: SyntheticReplay) -> float:
    return float(replay.rows.observation[:, 0].mean())


def test_a_function_of_rows_is_a_guidance():
    plain, guided = refreshed(make(guidance=None)), refreshed(make())
    assert mean_of(guided) > mean_of(plain) + 0.5
    assert guided.reports[-1].guidance == "FunctionGuidance"
    assert plain.reports[-1].guidance == ""
    conditioned = make(upsampler=replace(TINY, train_steps=400), guidance=first)
    assert conditioned.options.guidance.by == "condition"
    assert mean_of(refreshed(conditioned)) > mean_of(plain) + 0.5


def test_a_model_that_is_asked_by_condition_learns_relevance_alone():
    factory = make(upsampler=TINY, guidance="curiosity").options.factory()
    assert factory.config.conditioning.given_share == 0.0
    both = make(upsampler=TINY, guidance="curiosity", policy_share=0.5).options.factory()
    assert both.config.conditioning.given_share == 0.5


def test_an_upsampler_that_takes_no_conditions_is_refused_at_once():
    with pytest.raises(ValueError, match=r'guidance by a condition needs a model .* by="resampling"'):
        make(guidance="curiosity")


@pytest.mark.parametrize("guidance", [Curiosity(steps=5, by="resampling"), Novelty(by="resampling")])
def test_a_guidance_knows_the_fields_of_the_replay(guidance):
    # Seen without the spec, single integers are categories, here more of them than a model takes.
    spec = TransitionSpec.from_spaces(
        spaces.Dict({key: spaces.Box(0, 1_000, (1,), np.int32) for key in "abc"}), spaces.Box(-1.0, 1.0, (1,))
    )
    draws = torch.Generator().manual_seed(0)
    observation, following = (
        {key: torch.randint(1_000, (400, 1), generator=draws, dtype=torch.int32) for key in "abc"} for _ in range(2)
    )
    rows = replace(ROWS[:400], observation=observation, next_observation=following)
    replay = SyntheticReplay(spec, upsampler=Resampler, guidance=guidance, retrain_every=400, progress_bar=False)
    replay.observe_total(400)
    assert replay.prepare_refresh(rows).guided is not None


def test_a_guidance_sees_finite_rows_in_their_order_and_the_relevance_stays_with_its_row():
    rows = Transitions.from_flat({name: tensor.clone() for name, tensor in ROWS[:400].flat().items()})
    rows.observation[7] = torch.nan
    seen = {}

    class Spy(Guidance):
        def relevance(self, transitions, order):
            seen["rows"], seen["order"] = transitions, order
            return transitions.observation[:, 0]

    replay = make(guidance=Spy(by="resampling"))
    replay.observe_total(400)
    job = replay.prepare_refresh(rows, RowOrder.appended(400))
    assert len(seen["rows"]) == 399
    assert seen["order"].write_index.tolist() == [*range(7), *range(8, 400)]
    assert torch.equal(job.guided.relevance.argsort(), job.train.observation[:, 0].argsort())
    assert len(job.train) < 399  # some are held out


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda rows: rows.reward[:5], "wanted a number for each row"),
        (lambda rows: torch.full((len(rows),), torch.nan), "not finite"),
        (lambda rows: torch.ones(len(rows)), "in all rows"),
        (lambda rows: 1 / 0, "division by zero"),
        (lambda rows: "high", "wanted a number for each row"),
    ],
)
def test_a_guidance_that_does_not_work_is_said_once_and_the_agent_goes_on(function, reason, caplog):
    replay = make(guidance=FunctionGuidance(function=function, by="resampling"))
    with caplog.at_level(logging.WARNING):
        refreshed(refreshed(replay), 800)
    (message,) = [record.message for record in caplog.records if "guidance" in record.message]
    assert reason in message
    assert "the synthetic rows are like the data meanwhile" in message
    assert equal(replay.rows, refreshed(refreshed(make(guidance=None)), 800).rows)
    assert replay.reports[-1].guidance == ""


def test_a_missing_column_or_quota_is_a_warning_too(caplog):
    with caplog.at_level(logging.WARNING):
        refreshed(make(guidance=Rarity(of="observation[4]", by="resampling")))
    assert "observation[4]" in caplog.text


@pytest.mark.parametrize("by", ["resampling", "condition"])
def test_quotas_are_met_in_the_set(by):
    # The shares of the classes differ between all rows and those that are learned.
    rows = ROWS[:400]
    task = (torch.arange(400) % 10 == 0).double()
    observation = torch.stack((rows.observation[:, 0], task), 1)
    following = torch.stack((rows.next_observation[:, 0], task), 1)
    rows = Transitions(observation, rows.action, rows.reward, following, rows.terminated)
    upsampler = Resampler if by == "resampling" else replace(TINY, train_steps=200)
    replay = refreshed(make(upsampler=upsampler, guidance=Rarity(of="observation[1]", by=by)), 400, rows)
    assert replay.rows.observation[:, 1].sum() == 150


@pytest.mark.parametrize("by", ["resampling", "condition"])
def test_classes_of_the_same_size_have_quotas_too(by):
    rows = ROWS[:400]
    task = torch.cat((torch.zeros(200), torch.ones(200))).double()
    observation = torch.stack((rows.observation[:, 0], task), 1)
    following = torch.stack((rows.next_observation[:, 0], task), 1)
    rows = Transitions(observation, rows.action, rows.reward, following, rows.terminated)
    replay = make(upsampler=TINY, guidance=Rarity(of="observation[1]", quotas={0: 0.9, 1: 0.1}, by=by))
    replay.observe_total(400)
    # Nothing is held out, so that the classes are of the same size.
    replay._hold_out.mask = lambda order: np.zeros(400, np.bool_)
    replay.refresh(rows)
    assert replay.rows.observation[:, 1].sum() == 30


def test_guided_rows_are_not_judged_by_how_they_differ_from_the_data(caplog):
    with caplog.at_level(logging.WARNING):
        replay = refreshed(make(guidance=FunctionGuidance(function=first, by="resampling", strength=3.0)), 1_000)
    report = replay.reports[-1]
    assert report.fidelity_real.marginal - report.fidelity.marginal > 0.1
    assert "far from the real ones" not in caplog.text
    assert "similarity" not in judge(report).reason


@pytest.mark.parametrize("guidance", [Curiosity(steps=5), Curiosity(steps=5, by="resampling"), Rarity(of="terminated")])
def test_another_default_device_changes_nothing(guidance):
    plain = refreshed(make(upsampler=TINY, guidance=guidance))
    with torch.device("meta"):
        other = refreshed(make(upsampler=TINY, guidance=guidance))
    assert other.reports[-1].guidance
    assert equal(plain.rows, other.rows)


def test_a_model_that_learned_conditions_goes_on_where_nothing_asks_for_them():
    guided = refreshed(make(upsampler=TINY, guidance=FunctionGuidance(function=first)))
    plain = make(upsampler=TINY, guidance=None)
    plain.load_state_dict(guided.state_dict())
    assert equal(plain.rows, guided.rows)
    assert refreshed(plain, 800).reports[-1].fit.warm


def test_what_an_algorithm_reports_cannot_stop_it(caplog):
    replay = make(guidance=TDError(by="resampling"))
    replay.record_td_errors(np.array([0, -1]), torch.tensor([1.0, 9.0], dtype=torch.bfloat16, requires_grad=True))
    assert replay.recorded_td_errors([0]).tolist() == [1]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            replay.record_td_errors([0, 1], torch.ones(3))
            replay.record_td_errors([0], ["high"])
    assert caplog.text.count("cannot be kept") == 2


def test_an_unbound_td_error_says_what_to_bind_once(caplog):
    replay = make(guidance=TDError(by="resampling"))
    with caplog.at_level(logging.WARNING):
        refreshed(refreshed(replay), 800)
    assert caplog.text.count("synthetic.bind_td_error(function), in SB3 pass callback=SynthERCallback()") == 1
    replay.bind_td_error(first)
    replay.observe_total(1_000)
    replay.refresh(ROWS)
    assert replay.reports[-1].guidance == "TDError"
    assert mean_of(replay) > 0.5
    with pytest.raises(TypeError, match="function is 3"):
        replay.bind_td_error(3)


def test_a_guidance_may_draw_random_numbers_and_the_agents_streams_go_on():
    def noisy(rows):
        np.random.rand(3)  # noqa: NPY002
        return torch.randn(len(rows))

    replay, before = make(guidance=FunctionGuidance(function=noisy, by="resampling")), global_state()
    refreshed(replay)
    assert replay.reports[-1].guidance
    assert global_state() == before


def test_it_is_saved_and_goes_on_as_if_nothing_had_happened():
    replay = refreshed(make())
    again = pickle.loads(pickle.dumps(replay))
    assert again.options.guidance == replay.options.guidance
    assert equal(refreshed(replay, 800).rows, refreshed(again, 800).rows)


def test_a_function_of_a_script_is_saved_and_one_that_cannot_be_is_left_out(caplog):
    again = pickle.loads(
        pickle.dumps(make(guidance=FunctionGuidance(function=lambda rows: rows.reward, by="resampling")))
    )
    assert torch.equal(again.options.guidance.function(ROWS), ROWS.reward)
    lock = __import__("threading").Lock()
    broken = FunctionGuidance(function=lambda rows: lock, by="resampling")
    with caplog.at_level(logging.WARNING):
        again = pickle.loads(pickle.dumps(make(guidance=broken)))
    assert again.options.guidance is None
    assert "guidance cannot be saved" in caplog.text
    assert "synthetic rows are like the data" in caplog.text


def test_reported_td_errors_are_saved():
    replay = refreshed(make(guidance=TDError(by="resampling")))
    replay.record_td_errors([0, 2], [1.0, -3.0])
    again = pickle.loads(pickle.dumps(replay))
    assert again.recorded_td_errors([0, 1, 2]).tolist() == [1, 2, 3]
    assert again.td_error is None
    again.reset()
    with pytest.raises(RuntimeError, match="no TD error"):
        again.recorded_td_errors([0])


def test_a_refresh_that_is_saved_in_flight_has_its_relevance():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        replay = make(refresh_on=pool, refresh_lag=100)
        refreshed(replay)
        state = replay.state_dict()
        assert state["pending"]["guided"]["name"] == "FunctionGuidance"
        replay.observe_total(500)
        assert replay.refresh_due
        replay.refresh(ROWS[:500])
        loaded = make(refresh_on=pool, refresh_lag=100)
        loaded.load_state_dict(state)
        loaded.observe_total(500)
        assert loaded.refresh_due
        loaded.refresh(ROWS[:500])
    assert equal(loaded.rows, replay.rows)
    assert equal(loaded.rows, refreshed(make()).rows)


def test_in_a_process_the_rows_are_the_same():
    options = {"upsampler": TINY, "guidance": Curiosity(steps=20)}
    here = refreshed(make(**options))
    there = refreshed(make(**options, refresh_on="process", refresh_lag=0))
    assert equal(here.rows, there.rows)
    assert there.reports[-1].guidance == "Curiosity"


def test_n_step_rows_and_return_to_go_fall_back(caplog):
    spec = replace(SPEC, discounts=(0.9, 0.81))
    rows = Transitions.from_flat({**ROWS[:400].flat(), "discount": torch.full((400,), 0.9)})
    replay = SyntheticReplay(
        spec, upsampler=TINY, guidance=ReturnToGo(), retrain_every=400, num_synthetic=200, seed=0, progress_bar=False
    )
    with caplog.at_level(logging.WARNING):
        refreshed(replay, 400, rows)
    assert "does not take n-step rows" in caplog.text
    assert replay.rows is not None


def test_names_stand_for_guidances():
    assert SyntheticOptions(guidance="td-error").guidance == TDError()
    assert SyntheticOptions(guidance="return").guidance == ReturnToGo()
