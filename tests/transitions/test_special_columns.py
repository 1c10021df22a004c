"""Point masses and one-hot groups: found in the data, with columns of their own, and exact again when decoded."""

import math

import numpy as np
import pytest
import torch
from codec_helpers import box, decode, noisy, rows_of
from gymnasium import spaces

from synther_buffers.transitions import Transitions, TransitionSpec
from synther_buffers.transitions.codec import Codec
from synther_buffers.transitions.special_columns import Structure

SPEC = box(2)


def lidar(num_rows: int = 8_000, share: float = 0.05, seed: int = 0) -> Transitions:
    """Column 1 is a distance in [0, 1], or 999 where nothing is in reach: where column 0 is in its upper `share`."""
    rng = np.random.default_rng(seed)
    states = []
    for _ in range(2):
        position = rng.random(num_rows)
        states.append(np.stack([position, np.where(position > 1.0 - share, 999.0, rng.random(num_rows))], axis=1))
    return rows_of(SPEC, num_rows, seed, observation=states[0], next_observation=states[1])


class TestPointMasses:
    def test_a_sentinel_has_an_indicator_in_both_observations(self) -> None:
        rows = lidar()
        structure = Structure.detect(SPEC, rows)
        found = [(mass.field, mass.element, mass.value) for mass in structure.masses]
        assert found == [("observation", 1, 999.0), ("next_observation", 1, 999.0)]
        assert [mass.fill for mass in structure.masses] == pytest.approx([0.5, 0.5], abs=0.02)
        codec = Codec.fit(SPEC, rows)
        # Two observations, twice; action, reward, terminated; two indicators.
        assert codec.dim == 2 * 2 + 3 + 2
        matrix = codec.encode(rows)
        assert torch.equal(matrix[:, -2] > 0, rows.observation[:, 1] == 999.0)
        assert torch.equal(matrix[:, -1] > 0, rows.next_observation[:, 1] == 999.0)
        assert float(matrix.abs().max()) < 6.0

    @pytest.mark.parametrize("change", [True, False])
    def test_a_sentinel_comes_back_on_its_rows_and_nothing_in_between(self, change: bool) -> None:
        rows = lidar()
        codec = Codec.fit(SPEC, rows, next_observation_change=change)
        out = decode(codec, noisy(codec.encode(rows), 0.2))
        for found, wanted in (
            (out.observation[:, 1], rows.observation[:, 1]),
            (out.next_observation[:, 1], rows.next_observation[:, 1]),
        ):
            assert torch.equal(found == 999.0, wanted == 999.0)
            others = found[found != 999.0]
            assert float(others.min()) >= 0.0
            assert float(others.max()) <= 1.0
            # A fifth of the deviation of [0, 1], 0.29, and of the change's, 0.41, was added.
            assert float((others - wanted[wanted != 999.0]).abs().mean()) < 0.12

    def test_without_noise_rows_come_back_as_they_were(self) -> None:
        rows = lidar()
        codec = Codec.fit(SPEC, rows)
        out = decode(codec, codec.encode(rows))
        for name, tensor in rows.flat().items():
            torch.testing.assert_close(out.flat()[name], tensor, atol=1e-5, rtol=1e-6)

    def test_a_rare_penalty_does_not_hide_the_small_rewards(self) -> None:
        rng = np.random.default_rng(0)
        reward = np.where(rng.random(20_000) < 0.003, -1e6, rng.uniform(-0.1, 0.1, 20_000))
        rows = rows_of(SPEC, 20_000, reward=reward)
        codec = Codec.fit(SPEC, rows)
        out = decode(codec, noisy(codec.encode(rows), 0.2))
        assert torch.equal(out.reward == -1e6, rows.reward == -1e6)
        small = rows.reward != -1e6
        assert float((out.reward - rows.reward)[small].abs().max()) < 0.1

    def test_a_value_within_the_others_and_several_of_one_column(self) -> None:
        rng = np.random.default_rng(0)
        reward = rng.normal(size=8_000)
        kind = rng.random(8_000)
        reward[kind < 0.5], reward[kind > 0.9] = 0.0, -77.0
        rows = rows_of(SPEC, 8_000, reward=reward)
        codec = Codec.fit(SPEC, rows)
        assert [mass.value for mass in codec.normalizer.structure.masses] == [-77.0, 0.0]
        out = decode(codec, noisy(codec.encode(rows), 0.2))
        for value in (0.0, -77.0):
            assert torch.equal(out.reward == value, rows.reward == value)

    def test_rates_follow_the_data_when_the_columns_are_kept(self) -> None:
        codec = Codec.fit(SPEC, lidar())
        rows = lidar(share=0.2, seed=1)
        warm = Codec.fit(SPEC, rows, normalizer=codec.normalizer)
        assert warm.dim == codec.dim
        found = decode(warm, torch.randn((4_000, warm.dim), generator=torch.Generator().manual_seed(0)))
        wanted = int((rows.observation[:, 1] == 999.0).sum())
        assert int((found.observation[:, 1] == 999.0).sum()) == pytest.approx(wanted / 2, abs=1)

    @pytest.mark.parametrize(
        "draw",
        [
            lambda rng: np.clip(rng.normal(size=8_000), -1.0, 1.0),
            lambda rng: rng.integers(0, 100, 8_000),
            lambda rng: rng.geometric(0.3, 8_000),
            lambda rng: rng.choice([0.0, 0.1, 7.0], 8_000),
            lambda rng: rng.normal(size=8_000),
            lambda rng: np.round(rng.normal(size=8_000), 2),
            lambda rng: np.where(np.arange(8_000) < 5, 999.0, rng.random(8_000)),
        ],
        ids=["clipped", "integers", "geometric", "few values", "normal", "two decimals", "five outliers"],
    )
    def test_what_is_none(self, draw: object) -> None:
        rows = rows_of(SPEC, 8_000, reward=draw(np.random.default_rng(0)))
        assert Structure.detect(SPEC, rows).masses == ()

    def test_a_new_one_is_drift_a_vanished_one_is_not(self) -> None:
        with_, without = lidar(), lidar(share=0.0)
        assert Codec.fit(SPEC, without).drift(with_) == math.inf
        assert Codec.fit(SPEC, with_).drift(with_) == 0.0
        codec = Codec.fit(SPEC, with_)
        few = with_[with_.observation[:, 1] != 999.0]
        assert codec.drift(few) < 1.0
        warm = Codec.fit(SPEC, few, normalizer=codec.normalizer)
        assert not (decode(warm, noisy(warm.encode(few), 1.0)).observation[:, 1] == 999.0).any()

    def test_a_new_one_among_the_others_is_no_drift(self) -> None:
        """A contact force: nearly always 0, and at first so seldom anything else that it has few values."""
        rng = np.random.default_rng(0)
        force = np.where(np.arange(4_000) % 100 == 0, rng.normal(size=4_000), 0.0)
        first, later = (rows_of(SPEC, size, reward=force[:size]) for size in (1_000, 4_000))
        codec = Codec.fit(SPEC, first)
        assert codec.normalizer.structure.masses == ()
        assert [mass.value for mass in Codec.fit(SPEC, later).normalizer.structure.masses] == [0.0]
        assert codec.drift(later) < 1.0

    @pytest.mark.parametrize("among", [3, 4, 6])
    def test_a_far_one_stays_one_whatever_lies_among_the_others(self, among: int) -> None:
        rng = np.random.default_rng(0)
        reward, kind = rng.random(5_000), rng.random(5_000)
        for place in range(among):
            reward[(kind > 0.025 * place) & (kind < 0.025 * (place + 1))] = (place + 1) / 10
        reward[kind > 0.97] = -100.0
        rows = rows_of(SPEC, 5_000, reward=reward)
        codec = Codec.fit(SPEC, rows)
        values = [mass.value for mass in codec.normalizer.structure.masses]
        assert values == pytest.approx([-100.0, 0.1, 0.2, 0.3] if among == 3 else [-100.0])
        assert codec.drift(rows) == 0.0
        out = decode(codec, noisy(codec.encode(rows), 0.2))
        assert torch.equal(out.reward == -100.0, rows.reward == -100.0)

    def test_more_far_ones_than_can_be_modelled_are_no_drift(self) -> None:
        """Two of the five are too rare for the search for new ones, which finds only three."""
        rng = np.random.default_rng(0)
        reward = rng.random(10_000)
        start = 0
        for place, count in enumerate((14, 14, 300, 300, 300)):
            reward[start : start + count] = -100.0 * (place + 1)
            start += count
        rows = rows_of(SPEC, 10_000, reward=reward)
        codec = Codec.fit(SPEC, rows)
        assert codec.normalizer.structure.masses == ()
        assert codec.drift(rows) == 0.0

    def test_a_start_that_is_always_the_same_is_none(self) -> None:
        state = np.where(np.arange(8_000) % 100 == 0, 0.0, np.random.default_rng(0).normal(size=8_000))
        assert Structure.detect(SPEC, rows_of(SPEC, 8_000, reward=state)).masses == ()

    def test_scales_that_cannot_be_told_apart_are_named(self) -> None:
        rng = np.random.default_rng(0)
        penalty = -1e6 + rng.normal(size=8_000)  # no value twice
        reward = np.where(rng.random(8_000) < 0.01, penalty, rng.uniform(-0.1, 0.1, 8_000))
        assert Codec.fit(SPEC, rows_of(SPEC, 8_000, reward=reward)).clusters == ["reward"]
        for draw in (rng.normal(size=8_000), rng.standard_cauchy(8_000), np.where(rng.random(8_000) < 0.5, -1e6, 0.1)):
            assert Codec.fit(SPEC, rows_of(SPEC, 8_000, reward=draw)).clusters == []


TASKS = TransitionSpec.from_spaces(
    spaces.Dict({"state": spaces.Box(-np.inf, np.inf, (2,)), "task": spaces.Box(0.0, 1.0, (6,))}),
    spaces.Box(-1.0, 1.0, (1,)),
)


def tasks(num_rows: int = 2_000, seed: int = 0) -> Transitions:
    """Five tasks as a float one-hot; the fourth of six columns is always 0."""
    task = np.random.default_rng(seed).choice([0, 1, 2, 4, 5], num_rows)
    one_hot = np.eye(6)[task]
    return rows_of(TASKS, num_rows, seed, **{"observation.task": one_hot, "next_observation.task": one_hot})


class TestOneHotGroups:
    def test_is_found_without_its_constant_column(self) -> None:
        structure = Structure.detect(TASKS, tasks())
        group = (0, 1, 2, 4, 5)
        assert structure.one_hot == (("observation.task", group), ("next_observation.task", group))
        assert structure.masses == ()

    def test_noisy_rows_are_legal(self) -> None:
        rows = tasks()
        codec = Codec.fit(TASKS, rows)
        matrix = codec.encode(rows)
        assert matrix[:, 2:8].unique().tolist() == [-1.0, 0.0, 1.0]
        noise = noisy(matrix, 0.8)
        found = decode(codec, noise)
        for state in (found.observation["task"], found.next_observation["task"]):
            assert state.unique().tolist() == [0.0, 1.0]
            assert (state.sum(1) == 1.0).all()
            assert not state[:, 3].any()
        # Each row is of the task whose column is the largest.
        task = torch.tensor([0, 1, 2, 4, 5])
        assert torch.equal(found.observation["task"].argmax(1), task[noise[:, 2 + task].argmax(1)])

    def test_two_groups_side_by_side(self) -> None:
        rng = np.random.default_rng(0)
        spec = box(5)
        value = np.concatenate([np.eye(2)[rng.integers(0, 2, 500)], np.eye(3)[rng.integers(0, 3, 500)]], axis=1)
        rows = rows_of(spec, 500, observation=value, next_observation=value)
        assert [elements for name, elements in Structure.detect(spec, rows).one_hot if name == "observation"] == [
            (0, 1),
            (2, 3, 4),
        ]

    def test_flags_that_do_not_exclude_each_other_are_none(self) -> None:
        flags = np.random.default_rng(0).integers(0, 2, (500, 5))
        assert Structure.detect(box(5), rows_of(box(5), 500, observation=flags, next_observation=flags)).one_hot == ()

    def test_rows_that_break_a_group_are_drift(self) -> None:
        rows, others = tasks(), tasks(seed=1)
        codec = Codec.fit(TASKS, rows)
        assert codec.drift(others) < 1.0
        others.observation["task"][0] = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
        assert codec.drift(others) == math.inf


def test_state_round_trip() -> None:
    for spec, rows in ((SPEC, lidar()), (TASKS, tasks())):
        codec = Codec.fit(spec, rows)
        again = Codec.from_state_dict(spec, codec.state_dict())
        matrix = noisy(codec.encode(rows), 0.5)
        assert again.normalizer.structure == codec.normalizer.structure
        left, right = decode(codec, matrix).flat(), decode(again, matrix).flat()
        assert all(torch.equal(left[name], right[name]) for name in left)
