"""Sets of rows that are chosen by their relevance: the two mechanisms and quotas."""

import logging
from dataclasses import replace

import pytest
import torch
from toys import SPEC, TINY, equal, gaussian

from synther_buffers import ConditioningConfig, DiffusionUpsampler, NetworkConfig, Rarity, Transitions
from synther_buffers.guidance.drawing import GuidedDraw
from synther_buffers.upsampling.augmentation import Bootstrap
from synther_buffers.upsampling.relevance import RelevanceScale

ROWS = gaussian(4_000)


def draw_of(upsampler):
    def draw(num_rows, condition=None):
        return upsampler.sample(num_rows) if condition is None else upsampler.sample(num_rows, condition=condition)

    return draw


def bootstrap(rows=ROWS):
    upsampler = Bootstrap(SPEC, device="cpu")
    upsampler.fit(rows)
    return upsampler


def mean_score(rows: Transitions) -> float:
    """Of s0, which is a standard normal, so that its normal score is itself."""
    return float(rows.observation[:, 0].mean())


@pytest.mark.parametrize(("strength", "low", "high"), [(0.0, -0.06, 0.06), (0.5, 0.4, 0.55), (1.0, 0.65, 0.8)])
def test_resampling_takes_relevant_rows_more_often(strength, low, high):
    # With replacement the mean score would be the strength. A quarter of the candidates is taken without it: at
    # strength 1 that is 0.72, the mean of the largest quarter of z plus Gumbel noise for a standard normal z.
    guided = GuidedDraw("Toy", ROWS.observation[:, 0].clone(), strength, "resampling")
    rows = guided.rows(draw_of(bootstrap()), ROWS, SPEC, 4_000, seed=0)
    assert len(rows) == 4_000
    assert low < mean_score(rows) - mean_score(ROWS) < high
    # What has nothing to do with the relevance is as before.
    assert abs(float(rows.observation[:, 1].mean())) < 0.1
    assert abs(float(rows.observation[:, 1].std()) - 1) < 0.1


def test_resampling_repeats_itself_and_depends_on_the_seed():
    guided = GuidedDraw("Toy", ROWS.observation[:, 0].clone(), 1.0, "resampling")
    first, again, other = (guided.rows(draw_of(bootstrap()), ROWS, SPEC, 500, seed) for seed in (1, 1, 2))
    assert equal(first, again)
    assert not equal(first, other)


@pytest.fixture(scope="module")
def conditional():
    """A model of the Gaussian rows with s0 as the relevance, drawn without extra push."""
    config = replace(
        TINY,
        train_steps=2_500,
        training=replace(TINY.training, batch_size=256),
        conditioning=ConditioningConfig(given_share=0.0, guidance=1.0),
    )
    upsampler = DiffusionUpsampler(SPEC, config, "cpu", seed=0)
    guided = GuidedDraw("Toy", ROWS.observation[:, 0].clone(), 1.0, "condition")
    guided.fit(upsampler, ROWS, ROWS[:100])
    return upsampler, guided


def test_a_condition_draws_the_tilted_distribution(conditional):
    # A standard normal times exp(s0) is a normal with mean 1 and the same deviation.
    upsampler, guided = conditional
    rows = guided.rows(draw_of(upsampler), ROWS, SPEC, 4_000, seed=0)
    assert mean_score(rows) == pytest.approx(1.0, abs=0.15)
    assert float(rows.observation[:, 0].std()) == pytest.approx(1.0, abs=0.15)
    assert abs(float(rows.observation[:, 1].mean())) < 0.15
    SPEC.check(rows)


def test_without_strength_a_condition_leaves_the_rows_like_the_data(conditional):
    upsampler, guided = conditional
    rows = replace(guided, strength=0.0).rows(draw_of(upsampler), ROWS, SPEC, 4_000, seed=0)
    assert abs(mean_score(rows)) < 0.15


# -- quotas ----------------------------------------------------------------------------------------------------------


def three_tasks(num_rows=2_000):
    """The second observation element is the task: 0 and 1 in 47.5 % each, 2 in 5 %."""
    rows = gaussian(num_rows)
    number = torch.arange(num_rows)
    task = torch.where(number % 20 == 0, 2, number % 2).double()
    observation = torch.stack((rows.observation[:, 0], task), 1)
    following = torch.stack((rows.next_observation[:, 0], task), 1)
    return Transitions(observation, rows.action, rows.reward, following, rows.terminated)


def counts(rows):
    values, found = rows.observation[:, 1].unique(return_counts=True)
    return dict(zip(values.tolist(), found.tolist(), strict=True))


def quotas(rows, **kwargs):
    guidance = Rarity(of="observation[1]", **kwargs)
    return GuidedDraw("Rarity", guidance.relevance(rows, None), 1.0, guidance.by, guidance.classes(rows))


def test_quotas_are_met_exactly(caplog):
    rows = three_tasks()
    found = quotas(rows, by="resampling").rows(draw_of(bootstrap(rows)), rows, SPEC, 999, seed=0)
    assert counts(found) == {0: 333, 1: 333, 2: 333}
    given = quotas(rows, by="resampling", quotas={0: 0.8, 2: 0.2})
    assert counts(given.rows(draw_of(bootstrap(rows)), rows, SPEC, 100, seed=0)) == {0: 80, 2: 20}
    assert not caplog.records
    # In no order: a part of the set is like the whole.
    assert 20 < counts(found[:100])[2] < 50


def test_a_class_that_is_seldom_drawn_is_repeated_and_said_so(caplog):
    rows = three_tasks()
    guided = quotas(rows, by="resampling", quotas={2: 0.9, 0: 0.1})
    with caplog.at_level(logging.WARNING):
        found = guided.rows(draw_of(bootstrap(rows)), rows, SPEC, 1_000, seed=0)
    assert counts(found) == {0: 100, 2: 900}  # 8,000 candidates have about 400 of the class 2
    assert "of the class [2.0] are repeated" in caplog.text


def test_a_class_that_is_never_drawn_leaves_its_rows_to_the_others(caplog):
    rows = three_tasks()
    common = rows[rows.observation[:, 1] < 2]
    with caplog.at_level(logging.WARNING):
        found = quotas(rows, by="resampling").rows(draw_of(bootstrap(common)), rows, SPEC, 900, seed=0)
    assert len(found) == 900
    assert set(counts(found)) == {0, 1}
    assert "No synthetic row is of the classes [[2.0]]" in caplog.text


def test_a_model_can_be_asked_for_the_rare_class():
    rows = three_tasks()
    config = replace(
        TINY,
        train_steps=1_500,
        network=NetworkConfig(width=64, depth=2, embedding_dim=32),
        training=replace(TINY.training, batch_size=256),
        conditioning=ConditioningConfig(given_share=0.0),
    )
    upsampler = DiffusionUpsampler(SPEC, config, "cpu", seed=0)
    guided = quotas(rows)
    guided.fit(upsampler, rows, rows[:100])
    asked = []

    def draw(num_rows, condition=None):
        asked.append(num_rows)
        return upsampler.sample(num_rows, condition=condition)

    assert counts(guided.rows(draw, rows, SPEC, 900, seed=0)) == {0: 300, 1: 300, 2: 300}
    # 300 of 5 % take 6,000 rows of an unconditional draw; the default's network needs fewer than 1,000.
    assert sum(asked) < 4_000


@pytest.mark.parametrize("classes", [False, True])
def test_what_travels_is_plain_data(classes):
    rows = three_tasks()
    guided = quotas(rows) if classes else GuidedDraw("Toy", rows.reward.double(), 1.0, "condition")
    again = GuidedDraw.from_state(guided.state_dict())
    assert torch.equal(again.relevance, guided.relevance)
    assert (again.name, again.strength, again.by) == (guided.name, guided.strength, guided.by)
    if classes:
        assert again.classes.names == ("observation[1]",)
        assert torch.equal(again.classes.values, guided.classes.values)
    RelevanceScale.measure(again.relevance)
