"""What each guidance says of rows, worked out by hand where it can be."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toys import gaussian, walk

from synther_buffers import (
    Curiosity,
    FunctionGuidance,
    Novelty,
    Rarity,
    ReturnToGo,
    RowOrder,
    TDError,
    Transitions,
    TransitionSpec,
)
from synther_buffers.guidance.base import checked_relevance, resolve_guidance
from synther_buffers.guidance.names import NAMES
from synther_buffers.guidance.td_error import RecordedErrors


def rows_of(observation, reward=None, terminated=None) -> Transitions:
    """Rows with one observation element, action 0 and s' = s."""
    observation = torch.as_tensor(observation, dtype=torch.float64)[:, None]
    count = len(observation)
    return Transitions(
        observation=observation,
        action=torch.zeros(count, 1),
        reward=torch.ones(count) if reward is None else torch.tensor(reward, dtype=torch.float32),
        next_observation=observation,
        terminated=torch.zeros(count, dtype=torch.bool) if terminated is None else torch.tensor(terminated),
    )


# -- return to go ----------------------------------------------------------------------------------------------------


def test_return_to_go_stops_at_a_terminal_and_goes_on_at_the_mean_reward_where_the_rest_is_unknown():
    # Two episodes: rewards 1, 2, 4 and a terminal; then 1, 0 up to the present. The mean reward is 1.6, so what is
    # unknown is worth 1.6 / (1 - 0.5) = 3.2.
    rows = rows_of([0.0] * 5, reward=[1, 2, 4, 1, 0], terminated=[False, False, True, False, False])
    found = ReturnToGo(discount=0.5).relevance(rows, RowOrder.appended(5))
    np.testing.assert_allclose(found, [1 + 1 + 1, 2 + 2, 4, 1 + 0.5 * 1.6, 0 + 0.5 * 3.2])


def test_return_to_go_does_not_cross_a_time_limit():
    rows = rows_of([0.0] * 4, reward=[1, 1, 3, 3])
    order = RowOrder(np.arange(4), np.zeros(4, np.int64), np.array([False, True, False, False]))
    found = ReturnToGo(discount=0.5).relevance(rows, order)  # beyond: 2 / 0.5 = 4
    np.testing.assert_allclose(found, [1 + 0.5 * 3, 1 + 0.5 * 4, 3 + 0.5 * 5, 3 + 0.5 * 4])


def test_return_to_go_follows_each_environment_and_the_ring():
    # Two environments, slot by slot; the ring's oldest slot is the second one.
    rows = rows_of([0.0] * 6, reward=[4, 40, 1, 10, 2, 20])
    ends = np.zeros((3, 2), np.bool_)
    ends[0] = True
    order = RowOrder.of_ring(ends, next_slot=1, num_written=4)
    found = ReturnToGo(discount=0.5).relevance(rows, order)
    beyond = 2 * 77 / 6
    last = [4 + beyond / 2, 40 + beyond / 2]
    middle = [2 + last[0] / 2, 20 + last[1] / 2]
    np.testing.assert_allclose(found, [*last, 1 + middle[0] / 2, 10 + middle[1] / 2, *middle])


def test_return_to_go_follows_trajectories_whose_rows_lie_mixed():
    # Two trajectories of two environments, written in turn; the first one's terminal is its last row.
    rows = rows_of([0.0] * 5, reward=[1, 10, 2, 20, 30], terminated=[False, False, True, False, False])
    order = RowOrder(np.arange(5), np.zeros(5, np.int64), np.zeros(5, np.bool_), trajectory=np.array([7, 3, 7, 3, 3]))
    found = ReturnToGo(discount=0.5).relevance(rows, order)
    last = 30 + 0.5 * (63 / 5) / 0.5
    second = 20 + 0.5 * last
    np.testing.assert_allclose(found, [1 + 0.5 * 2, 10 + 0.5 * second, 2, second, last])


def test_return_to_go_refuses_n_step_rows():
    rows = gaussian(10)
    n_step = Transitions.from_flat({**rows.flat(), "discount": torch.full((10,), 0.9)})
    with pytest.raises(ValueError, match="does not take n-step rows"):
        ReturnToGo().relevance(n_step, RowOrder.appended(10))


# -- novelty and curiosity -------------------------------------------------------------------------------------------


def test_novelty_is_the_mean_distance_to_the_nearest_other_rows():
    rows = rows_of([0.0, 1.0, 3.0, 10.0])
    unit = float(np.std([0.0, 1.0, 3.0, 10.0]))
    found = Novelty(neighbours=2).relevance(rows, RowOrder.appended(4))
    np.testing.assert_allclose(found * unit, [(1 + 3) / 2, (1 + 2) / 2, (2 + 3) / 2, (7 + 9) / 2], rtol=1e-5)


def test_a_row_that_is_there_twice_is_not_novel():
    found = Novelty(neighbours=1).relevance(rows_of([0.0, 5.0, 5.0, 9.0]), RowOrder.appended(4))
    assert found[1] == found[2] == 0
    assert found.argmax() == 0


@pytest.mark.parametrize("guidance", [Curiosity(steps=20), Novelty()])
def test_relevance_draws_nothing_from_the_global_streams_and_repeats_itself(guidance):
    rows, before = gaussian(500), torch.get_rng_state()
    first, second = (guidance.relevance(rows, RowOrder.appended(500)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())
    assert first.shape == (500,)


def test_curiosity_is_about_what_cannot_be_predicted_and_can_be_influenced():
    # s' = s + a for s < 0; beyond, a coin decides whether the action counts or its opposite.
    draws = torch.Generator().manual_seed(0)
    observation = torch.rand(2_000, 1, generator=draws, dtype=torch.float64) * 2 - 1
    action = torch.rand(2_000, 1, generator=draws) * 2 - 1
    coin = torch.where(torch.rand(2_000, 1, generator=draws) < 0.5, 1.0, -1.0)
    step = torch.where(observation < 0, action, coin * action)
    rows = Transitions(
        observation, action, torch.zeros(2_000), observation + step, torch.zeros(2_000, dtype=torch.bool)
    )
    found = Curiosity(steps=250).relevance(rows, RowOrder.appended(2_000))
    is_random = observation[:, 0] > 0
    # Apart, the halves would have mean ranks of 0.75 and 0.25.
    assert float(found[is_random].mean()) > 0.65
    assert float(found[~is_random].mean()) < 0.35


def test_curiosity_takes_categories_and_dicts():
    rows = gaussian(300)
    task = torch.arange(300) % 3
    nested = Transitions(
        {"state": rows.observation, "task": task},
        torch.arange(300) % 4,
        rows.reward,
        {"state": rows.next_observation, "task": task},
        rows.terminated,
    )
    for guidance in (Curiosity(steps=5), Novelty()):
        found = guidance.relevance(nested, RowOrder.appended(300))
        assert found.shape == (300,)
        assert bool(torch.isfinite(found).all())


def test_what_the_fields_are_comes_from_the_spec_where_there_is_one():
    # Without it, single integers are categories: 5,996 columns for these rows, more than a model takes.
    counter = lambda: spaces.Box(0, 1_000, (1,), np.int32)  # noqa: E731
    spec = TransitionSpec.from_spaces(
        spaces.Dict(a=counter(), b=counter(), c=counter()), spaces.Box(-1.0, 1.0, (1,), np.float32)
    )
    draws = torch.Generator().manual_seed(0)
    whole = lambda: {key: torch.randint(1_000, (300, 1), generator=draws, dtype=torch.int32) for key in "abc"}  # noqa: E731
    rows = Transitions(whole(), gaussian(300).action, torch.ones(300), whole(), torch.zeros(300, dtype=torch.bool))
    spec.check(rows)
    order = RowOrder.appended(300)
    for guidance in (Curiosity(steps=5), Novelty()):
        with pytest.raises(ValueError, match="a transition has 5,"):
            guidance.relevance(rows, order)
        bound = guidance.for_spec(spec)
        assert bool(torch.isfinite(bound.relevance(rows, order)).all())
        assert bound == guidance
        with pytest.raises(ValueError, match="a transition has 5,"):  # the guidance itself is as it was
            guidance.relevance(rows, order)
    assert (other := TDError()).for_spec(spec) is other


# -- rarity ----------------------------------------------------------------------------------------------------------


def test_rarity_is_minus_the_logarithm_of_a_classs_share():
    rows = rows_of([7.0, 7.0, 7.0, 2.0])
    found = Rarity(of="observation[0]").relevance(rows, RowOrder.appended(4))
    np.testing.assert_allclose(found, np.log([4 / 3, 4 / 3, 4 / 3, 4]))


def test_classes_have_equal_quotas_or_those_that_are_given():
    rows = rows_of([7.0, 7.0, 7.0, 2.0])
    equal = Rarity(of="observation").classes(rows)
    assert equal.values.tolist() == [[2.0], [7.0]]
    assert equal.counts(9).tolist() == [5, 4]
    given = Rarity(of="observation", quotas={7: 0.25, 2: 0.75}).classes(rows)
    assert given.counts(8).tolist() == [6, 2]
    assert given.of(rows_of([2.0, 3.0, 7.0])).tolist() == [0, -1, 1]


def test_classes_of_several_elements_are_their_combinations():
    rows = walk(4)
    one_hot = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    rows = Transitions(one_hot, rows.action, rows.reward, rows.next_observation, rows.terminated)
    classes = Rarity(of=("observation[0]", "observation[1]"), quotas={(1, 0): 0.5, (0, 1): 0.5}).classes(rows)
    assert classes.of(rows).tolist() == [1, 0, 0, 2]
    assert classes.counts(10).tolist() == [5, 5, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rarity(of="observation[0]", quotas={7: 0.5, 2: 0.6}), "sums to 1.1"),
        (lambda: Rarity(of="observation[0]", quotas={7: 1.5, 2: -0.5}), "at least 0"),
        (lambda: Rarity(of=()), "guidance.of"),
        (lambda: Novelty(neighbours=0), "guidance.neighbours is 0"),
        (lambda: ReturnToGo(discount=1.0), "must be below 1"),
        (lambda: Curiosity(steps=0), "guidance.steps is 0"),
        (lambda: Curiosity(strength=-1.0), "guidance.strength is -1.0"),
        (lambda: Curiosity(strength=float("inf")), "wanted a finite number"),
        (lambda: Curiosity(by="resample"), "Did you mean 'resampling'"),
        (lambda: resolve_guidance("curiosityy", NAMES), "Did you mean 'curiosity'"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        make()


@pytest.mark.parametrize(
    ("guidance", "message"),
    [(Curiosity, "wanted an object: Curiosity"), (3, "guidance is 3")],
)
def test_what_is_no_guidance_is_refused(guidance, message):
    with pytest.raises(TypeError, match=message):
        resolve_guidance(guidance, NAMES)
    with pytest.raises(TypeError, match=r"guidance\.function is 3"):
        FunctionGuidance(function=3)


def test_quotas_of_a_float32_column_are_found_by_their_number():
    rows = rows_of([0.0, 0.0])
    rows = Transitions(rows.observation, rows.action, torch.tensor([0.1, 0.2]), rows.next_observation, rows.terminated)
    classes = Rarity(of="reward", quotas={0.1: 0.25, 0.2: 0.75}).classes(rows)
    assert classes.quotas.tolist() == [0.25, 0.75]


def test_quotas_that_sum_to_nearly_1_make_whole_sets():
    rows = rows_of([7.0, 2.0])
    classes = Rarity(of="observation", quotas={7: 0.4999996, 2: 0.5}).classes(rows)
    assert classes.counts(5_000_000).tolist() == [2_500_001, 2_499_999]


@pytest.mark.parametrize(("kwargs", "error"), [({"of": 5}, ValueError), ({"of": "reward", "quotas": [1]}, TypeError),
                                               ({"of": "reward", "quotas": {"a": 1.0}}, TypeError)])  # fmt: skip
def test_what_is_no_quota_is_named(kwargs, error):
    with pytest.raises(error, match=r"guidance\.(of|quotas) is"):
        Rarity(**kwargs)


def test_return_to_go_of_pieces_of_very_different_length():
    reward = torch.ones(1_000).tolist()
    terminated = [number in (0, 3) for number in range(999)] + [True]
    found = ReturnToGo(discount=0.9).relevance(rows_of([0.0] * 1_000, reward, terminated), RowOrder.appended(1_000))
    lengths = np.array([1, 3, 2, 1, *range(996, 0, -1)])
    np.testing.assert_allclose(found, (1 - 0.9**lengths) / 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("of", "message"),
    [("observation[9]", "observation[9]"), ("task", "'task'"), ("observation[x]", "observation[x]")],
)
def test_a_column_that_is_not_there_is_named(of, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        Rarity(of=of).classes(walk(4))


def test_columns_of_many_values_make_no_classes():
    """Whole numbers come back exactly however many there are, but each needs rows."""

    def tasks(count):
        rows = rows_of([0.0] * count)
        flat = rows.flat()
        flat["observation.task"] = torch.arange(count)[:, None]
        flat["next_observation.task"] = flat["observation.task"]
        flat["observation.state"], flat["next_observation.state"] = (
            flat.pop("observation"),
            flat.pop("next_observation"),
        )
        return Transitions.from_flat(flat)

    assert len(Rarity(of="observation.task").classes(tasks(200)).values) == 200
    with pytest.raises(ValueError, match="has 300 values; wanted at most 256"):
        Rarity(of="observation.task").classes(tasks(300))


def test_no_classes_of_more_values_than_a_model_restores():
    """A whole number in a column of floats comes back exactly only if there are few."""
    Rarity(of="observation").classes(rows_of([float(task) for task in range(16)] * 10))
    with pytest.raises(ValueError, match=r"observation has 17 different values.* at most 16"):
        Rarity(of="observation").classes(rows_of([float(task) for task in range(17)] * 10))


def test_a_quota_for_what_is_not_in_the_data_is_named():
    with pytest.raises(ValueError, match=r"has \(5\.0,\), of which there is no real row"):
        Rarity(of="observation", quotas={5: 0.5, 2: 0.5}).classes(rows_of([7.0, 2.0]))


# -- TD errors -------------------------------------------------------------------------------------------------------


def test_td_errors_are_kept_by_slot_and_forgotten_with_the_row():
    errors = RecordedErrors()
    with pytest.raises(RuntimeError, match="no TD error was reported yet"):
        errors.of([0, 1])
    errors.record([1, 3], [-2.0, 4.0])
    assert errors.of([0, 1, 2, 3, 9]).tolist() == [3, 2, 3, 4, 3]  # the mean where none is known
    errors.forget([3, 50])
    assert errors.of([1, 3]).tolist() == [2, 2]
    assert RecordedErrors(errors.errors).of([1]).tolist() == [2]


def test_td_errors_do_not_come_from_rows_alone():
    with pytest.raises(RuntimeError, match="bind_td_error"):
        TDError().relevance(walk(3), RowOrder.appended(3))


@pytest.mark.parametrize(("value", "error"), [([1.0, 2.0], ValueError), ("high", TypeError), (None, TypeError)])
def test_a_relevance_of_another_length_or_type_is_named(value, error):
    with pytest.raises(error, match="wanted a number for each row"):
        checked_relevance(value, 3)


def test_a_relevance_may_be_a_column():
    assert checked_relevance(np.ones((3, 1), np.float32), 3).tolist() == [1, 1, 1]
