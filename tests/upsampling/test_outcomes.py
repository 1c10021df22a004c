"""Rewards and next observations that a regression predicts, on rows whose outcomes are known functions."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toys import SPEC, TINY, equal, gaussian

from synther_buffers import DiffusionUpsampler, Transitions, TransitionSpec
from synther_buffers.transitions.codec import Codec
from synther_buffers.upsampling.outcomes import OutcomeRegression, _wrong_indicators
from synther_buffers.upsampling.presets import PRESETS, UpsamplerConfig, merge_config

REGRESSED = replace(TINY, train_steps=200, outcome_steps=300)
BOX = TransitionSpec.from_spaces(spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Box(-1.0, 1.0, (3,), np.float32))


def squared_actions(count: int, seed: int = 0) -> Transitions:
    """r = -|a|^2; s'0 = s0 + a0; s'1 is chance."""
    draws = torch.Generator().manual_seed(seed)
    observation = torch.randn(count, 2, generator=draws)
    action = torch.rand(count, 3, generator=draws) * 2 - 1
    following = torch.stack((observation[:, 0] + action[:, 0], torch.randn(count, generator=draws)), 1)
    return Transitions(observation, action, -action.square().sum(1), following, torch.zeros(count, dtype=torch.bool))


def drawn(config: UpsamplerConfig, rows: Transitions, spec: TransitionSpec) -> tuple[DiffusionUpsampler, Transitions]:
    upsampler = DiffusionUpsampler(spec, config, "cpu", seed=1)
    upsampler.fit(rows)
    return upsampler, upsampler.sample(2_000)


def correlation(left: torch.Tensor, right: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack((left.double(), right.double())))[0, 1])


class TestKnownOutcomes:
    def test_rewards_follow_their_actions(self) -> None:
        rows = squared_actions(1_000)
        _, plain = drawn(replace(REGRESSED, outcome_steps=0), rows, BOX)
        _, regressed = drawn(REGRESSED, rows, BOX)
        found = [correlation(-each.action.square().sum(1), each.reward) for each in (plain, regressed)]
        # The point of it: 200 steps of this denoiser learn no sum of squares.
        assert found[0] < 0.5
        assert found[1] > 0.95
        change = regressed.next_observation[:, 0] - regressed.observation[:, 0]
        assert correlation(change, regressed.action[:, 0]) > 0.95

    @pytest.mark.parametrize(("share", "misplaced"), [(2e-4, False), (1 / 4_096, True), (0.1, True), (1.0, False)])
    def test_a_value_that_no_generated_row_should_have_is_not_misplaced(self, share: float, misplaced: bool) -> None:
        """Of 4,096 rows none has the point mass; by its share 0, 1, 409 or all should."""
        prediction = torch.linspace(-2.0, 0.0, 4_096)[:, None]
        learned = SimpleNamespace(share=torch.tensor([share]), recall=torch.tensor([0.9]))
        assert _wrong_indicators(learned, prediction, torch.full((4_096, 1), -1.0)).tolist() == [misplaced]

    def test_a_rare_penalty_stands_in_the_right_rows(self) -> None:
        rows = squared_actions(4_000)
        rows = replace(rows, reward=torch.where(rows.observation[:, 0] > 2.0, -1e6, 0.1 * rows.action[:, 0]))
        _, plain = drawn(replace(REGRESSED, outcome_steps=0), rows, BOX)
        upsampler, found = drawn(REGRESSED, rows, BOX)
        assert "reward = -1e+06" in upsampler.model.outcomes.replaced_names
        shares = []
        for each in (plain, found):
            right, hit = each.observation[:, 0] > 2.0, each.reward < -5e5
            assert bool((hit | (each.reward.abs() < 0.2)).all())  # nothing between the two
            shares.append(float((right & hit).sum() / max(int(right.sum()), int(hit.sum()))))
        assert shares[0] < 0.7
        assert shares[1] > 0.9

    def test_the_share_of_a_penalty_follows_the_rows_it_belongs_to(self) -> None:
        """Rows that deserve the penalty twice as often as the real ones get it twice as often."""
        rows = squared_actions(4_000)
        rows = replace(rows, reward=torch.where(rows.observation[:, 0] > 2.0, -1e6, 0.1 * rows.action[:, 0]))
        codec = Codec.fit(BOX, rows)
        generated = codec.encode(replace(rows, reward=rows.reward.roll(1)))
        regression = OutcomeRegression.fit(codec, codec.encode(rows), generated, 300, torch.Generator().manual_seed(0))
        right = codec.encode(rows[(rows.observation[:, 0] > 2.0).nonzero()[:, 0]])
        both = torch.cat((codec.encode(rows), right))
        matrix = regression.apply(both)
        out = BOX.empty(len(both))
        codec.decode(matrix, out, codec.thresholds(matrix))
        hit, deserved = out.reward < -5e5, out.observation[:, 0] > 2.0
        assert int(deserved.sum()) == 2 * len(right)
        assert int((hit & deserved).sum()) > 0.95 * int(deserved.sum())
        assert int((hit & ~deserved).sum()) < 0.05 * int(deserved.sum())

    def test_what_is_chance_stays_as_generated(self) -> None:
        upsampler, noisy = drawn(REGRESSED, replace_reward_by_chance(squared_actions(1_000)), BOX)
        assert "reward" not in upsampler.model.outcomes.replaced_names
        assert noisy.reward.std() == pytest.approx(1.0, abs=0.25)

    def test_observations_and_actions_are_the_models_own(self) -> None:
        rows = squared_actions(500)
        _, plain = drawn(replace(REGRESSED, outcome_steps=0), rows, BOX)
        _, regressed = drawn(REGRESSED, rows, BOX)
        assert torch.equal(plain.observation, regressed.observation)
        assert torch.equal(plain.action, regressed.action)


class TestJudging:
    """A column is replaced if the generated values are wrong, not because a regression could predict it."""

    @staticmethod
    def judged(generated: Transitions) -> list[str]:
        rows = squared_actions(1_000)
        codec = Codec.fit(BOX, rows)
        draws = torch.Generator().manual_seed(0)
        matrix = codec.encode(generated)
        judged = OutcomeRegression.fit(codec, codec.encode(rows), matrix, 500, draws)
        changed = (judged.apply(matrix) != matrix).any(0)
        assert set(changed.nonzero()[:, 0].tolist()) == set(judged.replaced.tolist())
        return judged.replaced_names

    def test_right_outcomes_stay(self) -> None:
        assert self.judged(squared_actions(1_000, seed=1)) == []

    @pytest.mark.parametrize("count", [3, 10, 50, 96, 100])
    def test_chance_stays_however_few_rows_are_learned(self, count: int) -> None:
        def rows(count: int, seed: int) -> Transitions:
            made = squared_actions(count, seed)
            draws = torch.Generator().manual_seed(seed + 100)
            chance = torch.randn(count, 2, generator=draws)
            return replace(made, reward=torch.randn(count, generator=draws), next_observation=made.observation + chance)

        learned = rows(count, 0)
        codec = Codec.fit(BOX, learned)
        draws = torch.Generator().manual_seed(0)
        matrix = codec.encode(rows(2_000, 1))
        judged = OutcomeRegression.fit(codec, codec.encode(learned), matrix, 300, draws)
        assert judged.replaced_names == []
        assert torch.equal(judged.apply(matrix), matrix)

    def test_rewards_of_other_rows_are_replaced(self) -> None:
        rows = squared_actions(1_000, seed=1)
        assert self.judged(replace(rows, reward=rows.reward.roll(1))) == ["reward"]

    def test_next_observations_of_other_rows_are_replaced(self) -> None:
        rows = squared_actions(1_000, seed=1)
        following = torch.stack((rows.next_observation[:, 0].roll(1), rows.next_observation[:, 1]), 1)
        assert self.judged(replace(rows, next_observation=following)) == ["next_observation[0]"]

    @staticmethod
    def judged_penalties(share_missed: float, by_chance: bool = False) -> list[str]:
        """A penalty where s0 > 2 (2 % of the rows) or by chance, which so many of the generated rows miss."""

        def rows(seed: int) -> Transitions:
            made = squared_actions(8_000, seed)
            hit = made.observation[:, 0] > 2.0
            if by_chance:
                hit = hit[torch.randperm(len(hit), generator=torch.Generator().manual_seed(seed))]
            return replace(made, reward=torch.where(hit, -1e6, made.action[:, 0]))

        codec = Codec.fit(BOX, rows(0))
        generated = rows(1)
        missed = torch.rand(8_000, generator=torch.Generator().manual_seed(2)) < share_missed
        generated.reward[missed & (generated.reward < -1.0)] = 0.5
        draws = torch.Generator().manual_seed(0)
        judged = OutcomeRegression.fit(codec, codec.encode(rows(0)), codec.encode(generated), 500, draws)
        return [name for name in judged.replaced_names if "=" in name]

    def test_right_point_masses_stay(self) -> None:
        assert self.judged_penalties(0.0) == []

    def test_point_masses_in_half_of_their_rows_are_replaced(self) -> None:
        assert self.judged_penalties(0.5) == ["reward = -1e+06"]

    def test_point_masses_by_chance_stay(self) -> None:
        assert self.judged_penalties(0.5, by_chance=True) == []

    @pytest.mark.parametrize(("rate", "expected"), [(1.0, 1.0), (0.98, 1.0), (0.9, 1.0)])
    def test_rows_that_are_alike_have_the_penalty_together(self, rate: float, expected: float) -> None:
        """In one of twenty cells most rows have it; no cut of the log-odds divides the rows of a cell."""
        spec = TransitionSpec.from_spaces(spaces.Discrete(10), spaces.Discrete(2))
        draws = torch.Generator().manual_seed(0)
        state, action = (torch.randint(count, (5_000,), generator=draws) for count in (10, 2))
        cell = (state == 0) & (action == 0)
        hit = cell & (torch.rand(5_000, generator=draws) < rate)
        rows = Transitions(state, action, torch.where(hit, -1000.0, torch.rand(5_000, generator=draws)),
                           (state + 1) % 10, torch.zeros(5_000, dtype=torch.bool))  # fmt: skip
        codec = Codec.fit(spec, rows)
        generated = codec.encode(replace(rows, reward=rows.reward.roll(1)))
        found = OutcomeRegression.fit(codec, codec.encode(rows), generated, 300, torch.Generator().manual_seed(0))
        assert found.replaced_names == ["reward = -1000"]
        matrix, out = found.apply(generated), spec.empty(5_000)
        codec.decode(matrix, out, codec.thresholds(matrix))
        assert float((out.reward[cell] == -1000).double().mean()) == expected
        assert not bool((out.reward[~cell] == -1000).any())

    def test_a_point_mass_that_no_row_has_any_more_stays_absent(self) -> None:
        rows = squared_actions(1_000)
        with_penalty = replace(rows, reward=torch.where(rows.observation[:, 0] > 1.0, -1e6, rows.action[:, 0]))
        codec = Codec.fit(BOX, with_penalty)
        matrix = codec.encode(replace(rows, reward=rows.action[:, 0]))
        found = OutcomeRegression.fit(codec, matrix, matrix, 100, torch.Generator().manual_seed(0))
        assert found.replaced_names == []

    def test_the_report_names_them(self) -> None:
        upsampler = DiffusionUpsampler(BOX, REGRESSED, "cpu", seed=1)
        assert "reward" in upsampler.fit(squared_actions(1_000)).predicted
        assert DiffusionUpsampler(BOX, TINY, "cpu", seed=1).fit(squared_actions(300)).predicted == ()


def replace_reward_by_chance(rows: Transitions) -> Transitions:
    reward = torch.randn(len(rows), generator=torch.Generator().manual_seed(9))
    return replace(rows, reward=reward)


def test_categories_and_flags_are_not_predicted() -> None:
    """A mean of categories is none; here every outcome but the reward is one."""
    spec = TransitionSpec.from_spaces(spaces.Discrete(3), spaces.Discrete(2))
    index = torch.arange(600)
    rows = Transitions(
        observation=index % 3,
        action=index % 2,
        reward=(index % 2).float() * 2.5 + (index % 3).float(),
        next_observation=(index + 1) % 3,
        terminated=torch.zeros(600, dtype=torch.bool),
    )
    upsampler, found = drawn(REGRESSED, rows, spec)
    assert set(upsampler.model.outcomes.replaced_names) <= {"reward"}
    assert set(found.next_observation.tolist()) <= {0, 1, 2}


class TestSaving:
    def test_a_loaded_model_puts_a_penalty_in_the_same_rows(self, tmp_path) -> None:
        rows = squared_actions(4_000)
        rows = replace(rows, reward=torch.where(rows.observation[:, 0] > 2.0, -1e6, 0.1 * rows.action[:, 0]))
        upsampler, _ = drawn(REGRESSED, rows, BOX)
        assert "reward = -1e+06" in upsampler.model.outcomes.replaced_names
        upsampler.save(tmp_path / "model.safetensors")
        loaded = DiffusionUpsampler.load(tmp_path / "model.safetensors", device="cpu")
        assert equal(loaded.sample(300), upsampler.sample(300))

    @pytest.mark.parametrize(
        ("damage", "found"),
        [
            ({"indicators": [{"column": 0, "cut": 0.0, "net": {}}]}, "columns \\[0\\]"),
            ({"numbers": torch.tensor([999]), "ensemble": {}}, "columns \\[999\\]"),
            ({"numbers": torch.tensor([999])}, "none of this version"),
            ({"ensembles": [], "replaced": torch.zeros(3, dtype=torch.bool)}, "none of this version"),
        ],
    )
    def test_a_state_of_other_columns_is_refused(self, damage: dict, found: str) -> None:
        codec = Codec.fit(BOX, squared_actions(300))
        with pytest.raises(ValueError, match=found):
            OutcomeRegression.from_state(codec, damage, torch.device("cpu"))

    def test_a_loaded_model_draws_the_same_rows(self, tmp_path) -> None:
        upsampler, _ = drawn(REGRESSED, squared_actions(500), BOX)
        assert upsampler.model.outcomes.replaced_names
        upsampler.save(tmp_path / "model.safetensors")
        loaded = DiffusionUpsampler.load(tmp_path / "model.safetensors", device="cpu")
        assert equal(loaded.sample(300), upsampler.sample(300))

    def test_a_state_without_a_regression_loads_as_it_was(self) -> None:
        upsampler, _ = drawn(replace(TINY, outcome_steps=0), gaussian(500), SPEC)
        state = upsampler.state_dict()
        del state["model"]["outcomes"]
        loaded = DiffusionUpsampler(SPEC, replace(TINY, outcome_steps=0), "cpu", seed=1)
        loaded.load_state_dict(state)
        assert loaded.model.outcomes is None
        assert equal(loaded.sample(300), upsampler.sample(300))


def test_its_seconds_are_a_phase_of_the_fit() -> None:
    upsampler = DiffusionUpsampler(SPEC, REGRESSED, "cpu", seed=1)
    assert upsampler.fit(gaussian(300)).phases["outcomes"] > 0
    assert "outcomes" not in DiffusionUpsampler(SPEC, TINY, "cpu", seed=1).fit(gaussian(300)).phases


@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_wrong_number_of_steps_is_refused(value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="outcome_steps"):
        replace(TINY, outcome_steps=value)


def test_the_papers_presets_keep_what_the_model_generates() -> None:
    assert [PRESETS[name].outcome_steps for name in ("paper-online", "paper-online-dmc", "paper-offline")] == [0, 0, 0]
    assert merge_config(TINY, {"outcome_steps": 700}, "x").outcome_steps == 700
