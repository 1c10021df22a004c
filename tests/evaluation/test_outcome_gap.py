"""Whether outcomes belong to their rows, on rows whose outcomes are known functions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toys import SPEC, gaussian, walk

from synther_buffers import Transitions, TransitionSpec
from synther_buffers.evaluation.outcome_gap import outcome_gap

TRAIN, HELD_OUT, NEW = (gaussian(count, seed) for count, seed in ((1_000, 0), (60, 1), (2_000, 2)))


def gap(synthetic: Transitions, real: Transitions = HELD_OUT, train: Transitions = TRAIN) -> float:
    return outcome_gap(real, synthetic, train, SPEC)


def test_true_rows_have_none() -> None:
    assert gap(NEW) < 0.05


def test_rewards_of_other_rows_have_a_gap() -> None:
    """The reward alone counts as much as all elements of the next observation."""
    wrong = replace(NEW, reward=NEW.reward.roll(1))
    assert gap(wrong) > 0.9


def test_next_observations_of_other_rows_have_a_gap() -> None:
    train, real, new = (_large_steps(count, seed) for count, seed in ((1_000, 0), (60, 1), (2_000, 2)))
    assert gap(new, real, train) < 0.05
    assert gap(replace(new, next_observation=new.next_observation.roll(1, 0)), real, train) > 0.9
    assert gap(replace(new, next_observation=2 * new.observation - new.next_observation), real, train) > 0.9


def _large_steps(count: int, seed: int) -> Transitions:
    """s' = s + a, in both elements."""
    rows = gaussian(count, seed)
    return replace(rows, next_observation=rows.observation + rows.action.double())


@pytest.mark.parametrize("num_goals", [0, 4, 20])
def test_elements_that_never_change_dilute_nothing(num_goals: int) -> None:
    """Goals, beside two elements that move; the outcomes are of other rows."""
    box = spaces.Box(-np.inf, np.inf, (2 + num_goals,), np.float64)
    spec = TransitionSpec.from_spaces(box, spaces.Box(-1, 1, (1,), np.float32))

    def with_goals(rows: Transitions, following: float = 3.0) -> Transitions:
        parts = [torch.full((len(rows), num_goals), value, dtype=torch.float64) for value in (3.0, following)]
        return replace(
            rows,
            observation=torch.cat((rows.observation, parts[0]), dim=1),
            next_observation=torch.cat((rows.next_observation, parts[1]), dim=1),
        )

    train, real, new = (_large_steps(count, seed) for count, seed in ((1_000, 0), (60, 1), (2_000, 2)))
    wrong = replace(new, next_observation=new.next_observation.roll(1, 0))
    assert outcome_gap(with_goals(real), with_goals(new), with_goals(train), spec) < 0.05
    assert outcome_gap(with_goals(real), with_goals(wrong), with_goals(train), spec) > 0.9
    if num_goals:  # a goal that moves is wrong by itself
        assert outcome_gap(with_goals(real), with_goals(new, 3.5), with_goals(train), spec) > 0.9


def test_what_never_changes_must_not_change() -> None:
    """`walk` always goes one step on and gets a reward of 1, which says nothing; a step of 1.5 is wrong."""
    train, real = walk(300), walk(60, first=300)
    assert math.isnan(gap(walk(100, first=50), real, train))
    new = walk(100, first=50)
    wrong = replace(new, next_observation=new.observation + torch.tensor([1.5, -1.5], dtype=torch.float64))
    assert gap(wrong, real, train) == 1.0
    assert gap(replace(new, reward=new.reward + 0.5), real, train) == 1.0


def test_chance_tells_nothing() -> None:
    def noise(count: int, seed: int) -> Transitions:
        draws = torch.Generator().manual_seed(seed)
        rows = gaussian(count, seed)
        return replace(
            rows,
            reward=torch.randn(count, generator=draws),
            next_observation=rows.observation + torch.randn(count, 2, generator=draws, dtype=torch.float64),
        )

    assert math.isnan(gap(noise(2_000, 2), noise(60, 1), noise(1_000, 0)))


def test_categories_are_inputs_and_no_outcomes() -> None:
    spec = TransitionSpec.from_spaces(spaces.Discrete(4), spaces.Discrete(3))
    index = torch.arange(600)
    rows = Transitions(
        observation=index % 4, action=index % 3, reward=(index % 3).float(), next_observation=(index + 1) % 4,
        terminated=torch.zeros(600, dtype=torch.bool),
    )  # fmt: skip
    assert outcome_gap(rows[:100], rows[100:300], rows[300:], spec) < 0.05
    assert outcome_gap(rows[:100], replace(rows, reward=rows.reward.roll(1))[100:300], rows[300:], spec) > 0.9


def test_each_category_is_an_input_of_its_own() -> None:
    """r is a random number for each of 18 actions."""
    spec = TransitionSpec.from_spaces(spaces.Discrete(3), spaces.Discrete(18))
    draws = torch.Generator().manual_seed(0)
    table, action = torch.randn(18, generator=draws), torch.randint(18, (4_000,), generator=draws)
    rows = Transitions(action % 3, action, table[action], action % 3, torch.zeros(4_000, dtype=torch.bool))
    parts = rows[:100], rows[100:2_000], rows[2_000:]
    assert outcome_gap(*parts, spec) < 0.05
    assert outcome_gap(parts[0], replace(parts[1], reward=parts[1].reward.roll(1)), parts[2], spec) > 0.9


@pytest.mark.parametrize("seed", range(6))
def test_crashes_too_rare_to_be_held_out_are_no_gap(seed: int) -> None:
    """A chance reward of -100 in 0.2 % of the rows; all three sets are of one distribution."""
    rows = gaussian(7_100, seed)
    crash = torch.rand(7_100, generator=torch.Generator().manual_seed(seed)) < 0.002
    rows = replace(rows, reward=torch.where(crash, -100.0, rows.reward))
    found = outcome_gap(rows[:100], rows[100:5_100], rows[5_100:], SPEC)
    assert math.isnan(found) or found < 0.2


def test_units_do_not_matter() -> None:
    def scaled(rows: Transitions) -> Transitions:
        return replace(rows, reward=rows.reward * 1e6, observation=rows.observation * 1e-4,
                       next_observation=rows.next_observation * 1e-4)  # fmt: skip

    wrong = replace(NEW, reward=NEW.reward.roll(1))
    assert gap(scaled(wrong), scaled(HELD_OUT), scaled(TRAIN)) == pytest.approx(gap(wrong), abs=1e-3)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="synthetic has 0 rows"):
        gap(NEW[:0])
    with pytest.raises(ValueError, match="synthetic holds NaN or infinity in reward"):
        gap(replace(NEW, reward=torch.full_like(NEW.reward, np.nan)))
