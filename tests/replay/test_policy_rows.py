"""Synthetic rows with the current policy's actions: what they are, when they are drawn, and what goes wrong."""

import logging
import pickle
import random
import re
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toys import SPEC, TINY, Resampler, equal, gaussian

from synther_buffers import ConditioningConfig, SyntheticReplay, Transitions, TransitionSpec
from synther_buffers.replay.policy_rows import _repeated
from synther_buffers.replay.random_streams import kept_random_streams
from synther_buffers.replay.synthetic_set import SyntheticSet

#: Enough to learn s' = 0.9 s + 0.1 a + noise and r = s0.
LEARNED = replace(TINY, train_steps=600, warm_steps=100)
ROWS = gaussian(1_000)


def make(**options) -> SyntheticReplay:
    defaults = {
        "upsampler": TINY,
        "retrain_every": 200,
        "redraw_every": 50,
        "num_synthetic": 300,
        "policy_share": 0.5,
        "seed": 0,
        "progress_bar": False,
    }
    return SyntheticReplay(SPEC, **defaults | options)


def observe(replay: SyntheticReplay, total: int, rows: Transitions = ROWS) -> None:
    """What an adapter does when a batch is drawn."""
    replay.observe_total(total)
    real = rows[torch.arange(total)]
    if replay.refresh_due:
        replay.refresh(real)
    if replay.redraw_due:
        replay.redraw_policy_rows(real)


def half(observation: torch.Tensor) -> torch.Tensor:
    """a = s0 / 4, within the bounds for |s0| < 4."""
    return (observation[:, :1] / 4).float()


def policy_rows(replay: SyntheticReplay) -> Transitions:
    return replay.rows[len(replay.rows) - 150 :]  # half of 300


# -- what they are ---------------------------------------------------------------------------------------------------


def test_they_have_real_observations_the_policys_actions_and_the_models_outcomes():
    replay = make(upsampler=LEARNED)
    replay.bind_policy(half)
    observe(replay, 400)
    found = policy_rows(replay)
    real = {tuple(row) for row in ROWS.observation[:400].tolist()}
    assert all(tuple(row) in real for row in found.observation.tolist())
    assert torch.equal(found.action, half(found.observation))
    # The noise of s' is 0.1, and r = s0.
    expected = 0.9 * found.observation + 0.1 * found.action
    assert float((found.next_observation - expected).std()) < 0.2
    assert float(torch.corrcoef(torch.stack((found.reward.double(), found.observation[:, 0])))[0, 1]) > 0.85
    SPEC.check(found)
    # The other rows are those of the refresh: their actions are those of the data.
    others = replay.rows[:150]
    assert not torch.equal(others.action, half(others.observation))


def test_they_follow_the_policy_and_leave_the_other_rows_alone():
    replay = make()
    replay.bind_policy(half)
    observe(replay, 200)
    before = replay.rows
    replay.bind_policy(lambda observation: -half(observation))
    observe(replay, 249)
    assert replay.rows is before
    observe(replay, 250)
    assert replay.rows is not before  # adapters lay the set out anew when it is another object
    assert equal(replay.rows[:150], before[:150])
    assert torch.equal(policy_rows(replay).action, -half(policy_rows(replay).observation))


def test_the_same_seed_gives_the_same_rows():
    found = []
    for seed in (0, 0, 1):
        replay = make(seed=seed)
        replay.bind_policy(half)
        observe(replay, 250)
        found.append(policy_rows(replay))
    assert equal(found[0], found[1])
    assert not torch.equal(found[0].observation, found[2].observation)


def test_a_draw_has_their_share():
    served = SyntheticSet(torch.device("cpu"), seed=0)
    served.rows = gaussian(10)
    plain = served.draw_indices(20)
    again = SyntheticSet(torch.device("cpu"), seed=0)
    again.replace_rows(gaussian(10))
    assert torch.equal(again.draw_indices(20), plain)  # as ever where there are none
    served.replace_policy_rows(gaussian(3, seed=1), 0.25)
    assert len(served.rows) == 10
    assert equal(served.rows[7:], gaussian(3, seed=1))
    index = served.draw_indices(40_000)
    counts = torch.bincount(index, minlength=10) / 40_000
    # 0.25 over the last three, 0.75 over the first seven; five standard errors.
    assert counts[:7].tolist() == pytest.approx([0.75 / 7] * 7, abs=0.008)
    assert counts[7:].tolist() == pytest.approx([0.25 / 3] * 3, abs=0.008)
    for share, wanted in ((0.0, set(range(7))), (1.0, {7, 8, 9})):
        served.replace_policy_rows(gaussian(3), share)
        assert set(served.draw_indices(500).tolist()) == wanted


def test_the_policys_random_numbers_are_given_back():
    def noisy(observation):
        torch.rand(5), np.random.rand(5), random.random()  # noqa: NPY002
        return torch.rand(len(observation), 1) * 2 - 1

    replay = make()
    replay.bind_policy(noisy)
    replay.observe_total(200)
    replay.refresh(ROWS[:200])
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    replay.redraw_policy_rows(ROWS[:200])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
    assert policy_rows(replay).action.std() > 0.3


@pytest.mark.parametrize("kind", ["numpy", "gradient", "flat"])
def test_policies_return_what_they_like(kind):
    weight = torch.nn.Parameter(torch.tensor(0.25))
    forms = {
        "numpy": lambda observation: half(observation).numpy(),
        "gradient": lambda observation: (observation[:, :1] * weight).float(),
        "flat": lambda observation: half(observation)[:, 0],
    }
    replay = make()
    replay.bind_policy(forms[kind])
    observe(replay, 200)
    found = policy_rows(replay)
    assert torch.equal(found.action, half(found.observation))
    assert not found.action.requires_grad


# -- when ------------------------------------------------------------------------------------------------------------


def test_after_each_refresh_and_at_intervals():
    calls = []

    def policy(observation):
        calls.append(len(observation))
        return half(observation)

    replay = make()
    replay.bind_policy(policy)
    drawn_at = []
    for total in range(150, 451, 10):
        before = len(calls)
        observe(replay, total)
        drawn_at += [total] * (len(calls) - before)
    assert drawn_at == [200, 250, 300, 350, 400, 450]
    assert set(calls) == {150}


def test_the_default_is_a_fifth_of_the_interval():
    drawn_at = []
    replay = make(redraw_every=None)
    replay.bind_policy(half)
    for total in range(150, 451, 10):
        generation = replay.generation
        observe(replay, total)
        if replay.generation > generation:
            drawn_at.append(total)
    assert drawn_at == [200, 240, 280, 320, 360, 400, 440]


def test_none_are_drawn_where_none_are_wanted():
    replay = make(policy_share=0.0)
    replay.bind_policy(lambda observation: pytest.fail("asked"))
    observe(replay, 200)
    assert not replay.redraw_due
    assert replay.upsampler.settings.conditioning is None
    replay = make(synthetic_fraction=0.0)
    observe(replay, 200)
    assert not replay.redraw_due


def test_a_refresh_elsewhere_is_followed_by_a_draw():
    replay = make(refresh_on="process", refresh_lag=50)
    replay.bind_policy(half)
    observe(replay, 200)
    assert replay.rows is None
    observe(replay, 250)
    assert torch.equal(policy_rows(replay).action, half(policy_rows(replay).observation))


# -- what is saved ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["state", "pickle"])
def test_saved_and_loaded_it_goes_on_as_it_would_have(way):
    replay = make()
    replay.bind_policy(half)
    observe(replay, 220)
    if way == "pickle":
        loaded = pickle.loads(pickle.dumps(replay))
    else:
        loaded = make()
        loaded.load_state_dict(replay.state_dict())
    assert loaded.policy is None  # a policy is of the algorithm
    loaded.bind_policy(half)
    for total in (240, 250, 300):
        observe(replay, total)
        observe(loaded, total)
        assert equal(loaded.rows, replay.rows)
        assert torch.equal(loaded.draw_indices(50), replay.draw_indices(50))


def test_a_loaded_model_that_learned_no_conditions_is_replaced_and_its_rows_stay(caplog):
    caplog.set_level(logging.WARNING)
    older = make(policy_share=0.0)
    observe(older, 200)
    loaded = make(upsampler=TINY)
    loaded.load_state_dict(older.state_dict())
    assert "learned no conditions" in caplog.text
    assert equal(loaded.rows, older.rows)
    assert loaded.num_refreshes == 1
    loaded.bind_policy(half)
    observe(loaded, 400)
    assert torch.equal(policy_rows(loaded).action, half(policy_rows(loaded).observation))


def test_a_loaded_model_that_learned_a_guidance_alone_draws_none_until_the_next_refresh(caplog):
    caplog.set_level(logging.WARNING)
    guided = make(policy_share=0.0, guidance="novelty")
    observe(guided, 200)
    assert guided.upsampler.settings.conditioning.given_share == 0.0  # it was never given an observation
    loaded = make()
    loaded.bind_policy(half)
    loaded.load_state_dict(guided.state_dict())
    assert "learned no conditions" in caplog.text
    observe(loaded, 399)
    assert equal(loaded.rows, guided.rows)
    observe(loaded, 400)
    assert loaded.reports[-1].fit.reason == "first fit"
    assert torch.equal(policy_rows(loaded).action, half(policy_rows(loaded).observation))


def test_a_loaded_model_that_learned_given_values_goes_on_for_a_guidance(caplog):
    caplog.set_level(logging.WARNING)
    saved = make()
    observe(saved, 200)
    loaded = make(policy_share=0.0, guidance="novelty")
    loaded.load_state_dict(saved.state_dict())
    assert "The saved model" not in caplog.text
    observe(loaded, 400)
    assert loaded.reports[-1].fit.warm


def test_a_state_with_a_share_that_is_refused_now_loads(caplog):
    caplog.set_level(logging.WARNING)
    replay = make()
    replay.bind_policy(half)
    observe(replay, 220)
    state = replay.state_dict()
    state["config"]["conditioning"]["given_share"] = 1.0
    loaded = make()
    loaded.load_state_dict(state)
    assert equal(loaded.rows, replay.rows)
    assert not caplog.records


def test_a_loaded_set_has_the_share_of_the_options():
    replay = make()
    replay.bind_policy(half)
    observe(replay, 220)
    loaded = make(policy_share=0.0, upsampler=replace(TINY, conditioning=ConditioningConfig()))
    loaded.load_state_dict(replay.state_dict())
    assert int(loaded.draw_indices(500).max()) < 150


def test_an_older_file_has_none():
    replay = make(policy_share=0.0)
    observe(replay, 200)
    state = replay.state_dict()
    del state["next_redraw"], state["set"]["num_policy"]
    loaded = make(policy_share=0.0)
    loaded.load_state_dict(state)
    assert equal(loaded.rows, replay.rows)


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda observation: torch.zeros(len(observation), 3), r"actions of shape \(150, 3\); wanted \(150, 1\)"),
        (lambda observation: torch.full((len(observation), 1), 90.0), r"action\[0\] is 90 .* have -\S+ to [01]"),
        (lambda observation: torch.full((len(observation), 1), float("nan")), r"action\[0\] is nan"),
        (lambda observation: 1 / 0, "division by zero"),
    ],
)
def test_a_bad_policy_is_told_once_and_learning_goes_on(policy, message, caplog):
    caplog.set_level(logging.WARNING)
    replay = make()
    replay.bind_policy(half)
    observe(replay, 200)
    before = replay.rows
    replay.bind_policy(policy)
    for total in (250, 300, 350):
        observe(replay, total)
    assert replay.rows is before
    warnings = [record.getMessage() for record in caplog.records if "No rows with the policy" in record.getMessage()]
    assert len(warnings) == 1
    assert re.search(message, warnings[0])
    replay.bind_policy(half)
    observe(replay, 400)
    assert torch.equal(policy_rows(replay).action, half(policy_rows(replay).observation))


def test_a_few_actions_far_from_the_data_are_left_out(caplog):
    caplog.set_level(logging.WARNING)
    replay = make()

    def sometimes_far(observation):
        action = half(observation)
        action[::10] = 50.0
        return action

    replay.bind_policy(sometimes_far)
    observe(replay, 200)
    assert torch.equal(policy_rows(replay).action, half(policy_rows(replay).observation))
    assert not caplog.records


def test_actions_a_little_outside_the_action_space_end_at_its_bounds(caplog):
    caplog.set_level(logging.WARNING)
    replay = make()
    replay.bind_policy(lambda observation: 1.3 * torch.sign(observation[:, :1]).float())
    observe(replay, 200)
    found = policy_rows(replay)
    assert torch.equal(found.action, torch.sign(found.observation[:, :1]).float())
    assert not caplog.records
    unbounded = SyntheticReplay(
        None, upsampler=TINY, retrain_every=200, num_synthetic=300, policy_share=0.5, seed=0, progress_bar=False
    )
    unbounded.bind_policy(lambda observation: torch.full((len(observation), 1), 1.3))
    observe(unbounded, 200)
    assert torch.equal(policy_rows(unbounded).action, torch.full((150, 1), 1.3))


def test_whatever_fails_in_a_draw_stops_no_agent(caplog, monkeypatch):
    caplog.set_level(logging.WARNING)
    replay = make()
    replay.bind_policy(half)
    observe(replay, 200)
    before = replay.rows
    with monkeypatch.context() as patch:
        patch.setattr(SyntheticSet, "replace_policy_rows", lambda *args: (_ for _ in ()).throw(MemoryError("full")))
        observe(replay, 250)
    assert replay.rows is before
    assert "were drawn (full)" in caplog.text
    with torch.inference_mode():
        observe(replay, 300)
    assert not replay.rows.reward.is_inference()


def test_a_policy_that_is_bound_late_serves_at_the_next_batch():
    replay = make()
    observe(replay, 200)
    observe(replay, 210)
    replay.bind_policy(half)
    observe(replay, 211)
    assert torch.equal(policy_rows(replay).action, half(policy_rows(replay).observation))


def test_one_hot_actions_are_categories():
    spec = TransitionSpec.from_spaces(spaces.Box(-np.inf, np.inf, (2,), np.float64), spaces.Discrete(3))
    rows = replace(ROWS, action=torch.arange(1_000) % 3)
    replay = SyntheticReplay(
        spec, upsampler=TINY, retrain_every=200, num_synthetic=300, policy_share=0.5, seed=0, progress_bar=False
    )
    replay.bind_policy(lambda observation: torch.eye(3)[(observation[:, 0] > 0).long() + 1])
    observe(replay, 200, rows)
    found = policy_rows(replay)
    assert torch.equal(found.action, (found.observation[:, 0] > 0).long() + 1)
    assert found.action.dtype == rows.action.dtype


def test_in_another_thread_the_random_streams_are_left_alone():
    found = []

    def draw():
        with kept_random_streams():
            found.append(torch.rand(1))

    torch.manual_seed(0)
    thread = threading.Thread(target=draw)
    thread.start()
    thread.join()
    assert not torch.equal(torch.rand(1), found[0])


def test_without_a_policy_one_line_says_what_to_bind(caplog):
    caplog.set_level(logging.WARNING)
    replay = make()
    for total in (200, 250, 400):
        observe(replay, total)
    said = [record.getMessage() for record in caplog.records if "no policy is bound" in record.getMessage()]
    assert len(said) == 1
    assert "bind_policy" in said[0]
    assert replay._set.num_policy == 0
    with pytest.raises(TypeError, match="policy is 3"):
        replay.bind_policy(3)


def test_rows_that_the_model_does_not_know_are_not_used(caplog):
    caplog.set_level(logging.WARNING)
    replay = make()
    replay.bind_policy(half)
    observe(replay, 200)
    far = replace(ROWS, observation=ROWS.observation.clone())
    far.observation[200:240] += 1_000.0
    observe(replay, 250, far)
    assert float(policy_rows(replay).observation.abs().max()) < 10.0
    assert not caplog.records
    observe(replay, 300, replace(ROWS, observation=ROWS.observation + 1_000.0))
    assert "no real row lies within what the last model learned" in caplog.text


def test_n_step_rows_have_none(caplog):
    caplog.set_level(logging.WARNING)
    spec = replace(SPEC, discounts=(1.0, 0.99))
    rows = replace(ROWS, discount=torch.full((1_000,), 0.99))
    with pytest.raises(ValueError, match=r"policy_share is 0\.5, but the rows are n-step"):
        SyntheticReplay(spec, upsampler=TINY, policy_share=0.5, progress_bar=False)
    replay = SyntheticReplay(None, upsampler=TINY, policy_share=0.5, retrain_every=200, progress_bar=False)
    replay.bind_policy(half)
    replay.observe_total(200)
    replay.refresh(rows[:200])
    replay.redraw_policy_rows(rows[:200])
    assert replay.rows is not None
    assert "the rows are n-step rows" in caplog.text


def test_settings():
    assert make().upsampler.settings.conditioning == ConditioningConfig()
    own = replace(TINY, conditioning=ConditioningConfig(given_share=0.9))
    assert make(upsampler=own).upsampler.settings == own
    with pytest.raises(ValueError, match="policy_share needs a model that can be asked"):
        make(upsampler=Resampler)
    for value, error in ((1.5, ValueError), (-0.1, ValueError), ("half", TypeError)):
        with pytest.raises(error, match="policy_share"):
            make(policy_share=value)
    with pytest.raises(ValueError, match="redraw_every"):
        make(redraw_every=0)


def test_a_policy_of_arrays_ignores_the_default_device(caplog):
    caplog.set_level(logging.WARNING)
    replay = make()
    replay.bind_policy(lambda observation: half(observation).numpy())
    with torch.device("meta"):
        replay.observe_total(200)
        replay.refresh(ROWS[:200])
        replay.redraw_policy_rows(ROWS[:200])
    assert not caplog.records
    assert torch.equal(policy_rows(replay).action, half(policy_rows(replay).observation))


def test_rows_are_repeated_on_the_masks_device_whatever_the_default_one():
    mask = torch.tensor([False, True, False, True])
    with torch.device("meta"):
        assert _repeated(mask, 5).tolist() == [1, 3, 1, 3, 1]
