"""Errors of new rows against a simulator that is known exactly: s' = 0.9 s + 0.1 a, r = s0."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toys import SPEC, global_state

from synther_buffers import Transitions, TransitionSpec
from synther_buffers.evaluation.new_rows import RegressionEnsemble, error_of_new_rows


class Linear:
    def step(self, observation, action):
        return 0.9 * observation + 0.1 * action, observation[:, 0], np.zeros(len(observation), bool)


def true_rows(num_rows: int, seed: int, scale: float = 1.0) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    observation = scale * torch.randn(num_rows, 2, generator=generator, dtype=torch.float64)
    action = torch.rand(num_rows, 1, generator=generator) * 2 - 1
    following = 0.9 * observation + 0.1 * action
    return Transitions(
        observation, action, observation[:, 0].float(), following, torch.zeros(num_rows, dtype=torch.bool)
    )


STEPS = 600
TRAIN, HELD_OUT = true_rows(2_000, 0), true_rows(1_000, 1)


@pytest.fixture(scope="module")
def ensemble() -> RegressionEnsemble:
    return RegressionEnsemble(TRAIN, SPEC, num_steps=STEPS)


def test_the_ensemble_learns_what_the_rows_tell(ensemble: RegressionEnsemble) -> None:
    before = global_state()
    answer = ensemble.predict(HELD_OUT)
    assert global_state() == before
    assert float((answer.next_observation - HELD_OUT.next_observation).abs().mean()) < 0.02
    assert float((answer.reward - HELD_OUT.reward).abs().mean()) < 0.02
    assert torch.equal(answer.observation, HELD_OUT.observation)
    assert torch.equal(answer.action, HELD_OUT.action)


def test_the_same_seed_gives_the_same_ensemble(ensemble: RegressionEnsemble) -> None:
    again = RegressionEnsemble(TRAIN, SPEC, num_steps=STEPS).predict(HELD_OUT)
    assert torch.equal(again.next_observation, ensemble.predict(HELD_OUT).next_observation)


def test_true_rows_have_no_error_and_wrong_ones_theirs(ensemble: RegressionEnsemble) -> None:
    fresh = true_rows(1_000, 2)
    shift = HELD_OUT.next_observation.std(0, correction=0) / 2  # half a standard deviation in every column
    wrong = replace(fresh, next_observation=fresh.next_observation + shift)
    for rows, dynamics in ((fresh, 0.0), (wrong, 0.25)):
        found = error_of_new_rows(HELD_OUT, rows, TRAIN, SPEC, Linear(), ensemble)
        assert sum(part.num_rows for part in (found.near, found.middle, found.far)) == 1_000
        # Rows that are shifted off the data lie far from all of it.
        for part in (found.near, found.middle) if dynamics == 0.0 else (found.far,):
            assert part.dynamics == pytest.approx(dynamics, abs=1e-6)
            assert part.reward == pytest.approx(0.0, abs=1e-6)
            assert part.dynamics_expected < 0.02
    # By construction a quarter, a half and a quarter, within three standard deviations of 1,000 draws.
    found = error_of_new_rows(HELD_OUT, fresh, TRAIN, SPEC, Linear(), ensemble)
    assert [part.num_rows for part in (found.near, found.middle, found.far)] == pytest.approx([250, 500, 250], abs=60)


def test_copies_are_all_near_and_strangers_all_far(ensemble: RegressionEnsemble) -> None:
    copies = error_of_new_rows(HELD_OUT, TRAIN, TRAIN, SPEC, Linear(), ensemble, max_rows=500)
    assert (copies.near.num_rows, copies.middle.num_rows, copies.far.num_rows) == (500, 0, 0)
    assert math.isnan(copies.far.dynamics)
    strangers = error_of_new_rows(HELD_OUT, true_rows(500, 3, 100.0), TRAIN, SPEC, Linear(), ensemble)
    assert strangers.far.num_rows > 480
    # Far off the data a regression does not know either, and says so by its error.
    assert strangers.far.reward_expected > 1.0


def test_categories_are_refused() -> None:
    spec = TransitionSpec.from_spaces(spaces.Box(-1, 1, (2,), np.float64), spaces.Discrete(3))
    with pytest.raises(ValueError, match="has categories"):
        RegressionEnsemble(TRAIN, spec)
