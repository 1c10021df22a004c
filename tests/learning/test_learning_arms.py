"""The update rules are what the protocol says they are, counted by the agent's own optimisers."""

from __future__ import annotations

import pytest
from benchmarks.learning.agents import SbxAgent
from benchmarks.learning.arms import ARMS, buffer_kwargs
from benchmarks.learning.tasks import TASKS

from synther_buffers import PRESETS

TOY = TASKS["toy"]


@pytest.mark.slow
@pytest.mark.parametrize(("arm", "critic", "actor"), [("utd1", 10, 10), ("utd10", 100, 100), ("utd20-delay", 200, 10)])
def test_updates_of_ten_steps(arm, critic, actor):
    learner = SbxAgent(TOY, ARMS[arm].for_task(TOY), 0)
    learner.model.learn(TOY.learning_starts + 10)
    assert int(learner.model.policy.qf_state.step) == critic
    assert int(learner.model.policy.actor_state.step) == actor
    # The temperature is delayed with the actor.
    assert int(learner.model.ent_coef_state.step) == actor


def test_a_candidate_is_the_preset_with_its_changes():
    task = TASKS["halfcheetah"]

    def config(arm):
        return buffer_kwargs(ARMS[arm].for_task(task), task, 0)["upsampler"]

    # The candidate that became the default, with its settings written out.
    assert config("few-rows-passes") == PRESETS["cpu"]
    first = config("constant-budget")
    assert (first.budget, first.training.weight_decay, first.training.dropout) == (None, 0.0, 0.0)
    assert (first.train_steps, first.warm_steps, first.num_synthetic) == (7_000, 2_000, 100_000)
    assert first.network == PRESETS["cpu"].network
    assert first.training.learning_rate == PRESETS["cpu"].training.learning_rate
