import json
import math
import sys
from dataclasses import replace
from functools import partial
from statistics import NormalDist

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toys import SPEC, equal, gaussian, global_state

from synther_buffers import Transitions, TransitionSpec, measure_fidelity
from synther_buffers.evaluation.metrics import (
    closest_distance,
    closest_record,
    evaluate,
    expected_coverage,
    neighborhoods,
    simulate,
    simulator_error,
    terminal_error,
    two_sample_auc,
)
from synther_buffers.evaluation.points import Units, thin
from synther_buffers.transitions import concatenate
from synther_buffers.upsampling.augmentation import Bootstrap, GaussianNoise

pytest.importorskip("sklearn")

#: One number tells everything about a row of it: what is not the observation is constant.
LINE = TransitionSpec.from_spaces(spaces.Box(-99, 99, (1,), np.float64), spaces.Box(-1, 1, (1,), np.float32))


def line(*values: float) -> Transitions:
    observation = torch.tensor(values, dtype=torch.float64)[:, None]
    return Transitions(
        observation,
        torch.zeros(len(values), 1),
        torch.ones(len(values)),
        torch.full_like(observation, 1e8 / 3),
        torch.zeros(len(values), dtype=torch.bool),
    )


def normal_line(num_rows: int, seed: int, mean: float = 0.0) -> Transitions:
    return line(*np.random.default_rng(seed).normal(mean, 1.0, num_rows))


class TestFidelity:
    def test_two_gaussians(self) -> None:
        # sup |Phi(x) - Phi(x - 1)| is at the middle, x = 1/2.
        statistic = 2 * NormalDist().cdf(0.5) - 1
        fidelity = measure_fidelity(normal_line(5_000, 0), normal_line(5_000, 1, mean=1.0), LINE)
        assert fidelity.worst_column == "observation[0]"
        assert 1.0 - fidelity.worst_marginal == pytest.approx(statistic, abs=0.02)

    def test_agrees_with_sdmetrics(self) -> None:
        single = pytest.importorskip("sdmetrics.single_column")
        pairs = pytest.importorskip("sdmetrics.column_pairs")
        errors = pytest.importorskip("sdmetrics.errors")
        spec = TransitionSpec.from_spaces(spaces.Box(-9, 9, (2,), np.float64), spaces.Discrete(3))

        def rows(seed: int, scale: float) -> Transitions:
            rng = np.random.default_rng(seed)
            observation = torch.as_tensor(rng.normal(size=(400, 2)) * scale)
            reward = (observation.sum(1) + scale * torch.as_tensor(rng.normal(size=400))).float()
            action = torch.as_tensor(rng.choice(3, 400, p=[0.2 * scale, 0.3, 0.7 - 0.2 * scale]))
            following = torch.stack((observation[:, 0] * reward, torch.full((400,), 0.1)), dim=1)  # a constant
            return Transitions(observation, action, reward, following, torch.zeros(400, dtype=torch.bool))

        real, synthetic = rows(0, 1.0), rows(1, 1.5)
        sides = [
            torch.cat((side.observation, side.reward[:, None], side.next_observation), dim=1).double().numpy()
            for side in (real, synthetic)
        ]
        marginals = [single.KSComplement.compute(sides[0][:, j], sides[1][:, j]) for j in range(5)]
        marginals += [
            single.TVComplement.compute(*(getattr(side, name).numpy() for side in (real, synthetic)))
            for name in ("action", "terminated")
        ]
        fidelity = measure_fidelity(real, synthetic, spec)
        assert fidelity.marginal == pytest.approx(np.mean(marginals), abs=1e-6)
        assert 0.7 < fidelity.marginal < 0.97
        similarity = pairs.CorrelationSimilarity
        wanted = [similarity.compute(sides[0][:, [i, j]], sides[1][:, [i, j]]) for i in range(4) for j in range(i)]
        assert fidelity.correlation == pytest.approx(np.mean(wanted), abs=1e-6)
        # Why it is not called itself: a constant column, as environments have them, is an error there.
        with pytest.raises(errors.ConstantInputError):
            similarity.compute(sides[0][:, [0, 4]], sides[1][:, [0, 4]])


class TestTwoSampleAuc:
    def test_independent_samples_of_one_distribution(self) -> None:
        auc = two_sample_auc(gaussian(1_500, 0), gaussian(1_500, 1), SPEC)
        assert auc == pytest.approx(0.5, abs=0.04)

    def test_equal_sets(self) -> None:
        assert two_sample_auc(gaussian(300), gaussian(300), SPEC) == 0.5

    def test_disjoint_sets(self) -> None:
        assert two_sample_auc(line(*range(60)), line(*range(-80, -20)), LINE) == 1.0

    def test_two_gaussians(self) -> None:
        # The best classifier ranks by x; a draw of N(1, 1) exceeds one of N(0, 1) with probability Phi(1 / sqrt 2).
        best = NormalDist().cdf(1 / math.sqrt(2))
        auc = two_sample_auc(normal_line(1_500, 0), normal_line(1_500, 1, mean=1.0), LINE)
        assert best - 0.06 < auc < best + 0.02

    def test_repeated_rows_alone_tell_nothing(self) -> None:
        upsampler = Bootstrap(SPEC, device="cpu")
        upsampler.fit(gaussian(400, 1))
        # Without folds of their own, a classifier would know two of three copies of each row.
        auc = two_sample_auc(gaussian(1_500, 0), upsampler.sample(1_500), SPEC)
        assert auc == pytest.approx(0.5, abs=0.08)

    def test_says_what_to_install(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
        with pytest.raises(ImportError, match=r'pip install "synther-buffers\[metrics\]"'):
            two_sample_auc(gaussian(100), gaussian(100), SPEC)

    def test_needs_different_rows(self) -> None:
        with pytest.raises(ValueError, match="too few different rows"):
            two_sample_auc(line(*[1.0] * 60), line(*[2.0] * 60), LINE)


class TestClosestRecord:
    def test_by_hand(self) -> None:
        # The real observations -1 and 1 have the standard deviation 1.
        result = closest_record(line(-1, 1), line(0.25, 0.75, 10), line(0, 10), LINE)
        # Distances: held-out 1 and 1; synthetic 0.25, 0.75 and 0, the last a copy.
        assert result.held_out_median == pytest.approx(1.0)
        assert result.synthetic_median == pytest.approx(0.25)
        assert result.ratio == pytest.approx(0.25)
        assert result.share_closer == pytest.approx(1.0)

    def test_in_units_of_the_real_rows_standard_deviation(self) -> None:
        real = line(-4, 4)
        distance = closest_distance(line(6, -4), line(0, 100), LINE, real)
        assert distance.tolist() == pytest.approx([1.5, 1.0])

    def test_finds_copies_in_any_chunk(self) -> None:
        train = gaussian(40_000)
        index = torch.tensor([5, 20_000, 39_999])
        assert closest_distance(train[index], train, SPEC, train).tolist() == [0.0, 0.0, 0.0]

    def test_real_rows_are_as_new_as_real_rows(self) -> None:
        result = closest_record(gaussian(1_000, 0), gaussian(1_000, 1), gaussian(2_000, 2), SPEC)
        assert result.ratio == pytest.approx(1.0, abs=0.1)
        assert result.share_closer == pytest.approx(0.05, abs=0.03)

    def test_a_column_of_rare_large_values_hides_no_copies(self) -> None:
        """The 40 held-out rows have none of them: in their units, all distances would be those of that column."""
        real, train = gaussian(40, 0), gaussian(1_000, 2)
        for rows in (real, train):
            rows.observation[:, 0] *= 0.01
        train.observation[::25, 0] += 50.0
        generator = torch.Generator().manual_seed(0)
        near = train[torch.arange(1_000)]
        near.observation = train.observation + 0.02 * train.observation.std(0) * torch.randn(
            train.observation.shape, generator=generator, dtype=train.observation.dtype
        )
        assert closest_record(real, near, train, SPEC, units=train).share_closer > 0.9
        assert closest_record(real, near, train, SPEC).share_closer < 0.1

    def test_copies_and_strangers(self) -> None:
        real, train = gaussian(500, 0), gaussian(2_000, 2)
        far = gaussian(500, 1)
        far.observation = far.observation + 50.0
        assert closest_record(real, train[:500], train, SPEC).ratio == 0.0
        assert closest_record(real, train[:500], train, SPEC).share_closer == 1.0
        assert closest_record(real, far, train, SPEC).ratio > 10
        assert closest_record(real, far, train, SPEC).share_closer == 0.0

    def test_a_twentieth_of_the_held_out_rows_are_training_rows(self) -> None:
        # 5 of 100 held-out rows lie at the threshold, 0: copies are as close as the closest 5 % of real rows.
        train = gaussian(400, 2)
        real = concatenate([train[:5], gaussian(95, 0)])
        assert closest_record(real, train[:50], train, SPEC).share_closer == pytest.approx(1.0)
        # 20 of them: a quarter of the rows at the threshold are the closest 5 %.
        real = concatenate([train[:20], gaussian(80, 0)])
        assert closest_record(real, train[:50], train, SPEC).share_closer == pytest.approx(0.25)
        assert closest_record(real, gaussian(50, 1), train, SPEC).share_closer == 0.0

    def test_ties_keep_the_expected_share(self) -> None:
        # Held-out and synthetic rows are of one distribution: 40 % are training rows, the others one unit off.
        values = [0.0, 0.0, 1.0, 1.0, 1.0]
        result = closest_record(line(*values), line(*values * 4), line(0, 2), LINE)
        assert result.share_closer == pytest.approx(0.05)
        # Equal distances that are rounded differently are equal: all lie 0.1 off.
        result = closest_record(line(0.1, 0.3), line(0.4, 0.8), line(0.2, 0.7), LINE)
        assert result.share_closer == pytest.approx(0.5 * 0.05)

    def test_all_training_rows_are_searched(self) -> None:
        train = gaussian(120_000)
        result = evaluate(gaussian(100, 1), train[torch.arange(0, 120_000, 1_000)], SPEC, train=train).closest
        assert result is not None
        assert (result.synthetic_median, result.ratio, result.share_closer) == (0.0, 0.0, 1.0)

    def test_training_rows_in_chunks(self) -> None:
        real, synthetic, train = gaussian(300, 0), gaussian(300, 1), gaussian(900, 2)
        chunks = (train[start : start + 250] for start in range(0, 900, 250))
        assert closest_record(real, synthetic, chunks, SPEC) == closest_record(real, synthetic, train, SPEC)
        with pytest.raises(ValueError, match="train has no rows"):
            closest_record(real, synthetic, iter([]), SPEC)

    def test_without_a_distance_to_compare_with(self) -> None:
        same = gaussian(50)
        assert math.isnan(closest_record(same, same, same, SPEC).ratio)
        assert closest_record(same, gaussian(50, 1), same, SPEC).ratio == math.inf


class TestUnits:
    def test_discrete_elements_that_differ_count_1(self) -> None:
        spec = TransitionSpec.from_spaces(
            spaces.MultiDiscrete([3, 5]), spaces.Discrete(4, start=-1), discounts=(0.9, 0.81)
        )

        def row(observation: list[int], action: int, terminated: bool, discount: float) -> Transitions:
            return Transitions(
                torch.tensor([observation]),
                torch.tensor([action]),
                torch.zeros(1),
                torch.tensor([[0, 0]]),
                torch.tensor([terminated]),
                torch.tensor([discount]),
            )

        one = row([0, 4], -1, False, 0.9)
        units = Units.measure(one, spec)

        def squared(other: Transitions) -> float:
            return float((units.points(one) - units.points(other)).square().sum())

        assert squared(one) == 0.0
        assert squared(row([2, 4], -1, False, 0.9)) == pytest.approx(1.0)
        assert squared(row([1, 4], -1, False, 0.9)) == pytest.approx(1.0)
        assert squared(row([1, 0], 2, True, 0.81)) == pytest.approx(5.0)

    def test_categories_that_the_spec_has_not_differ_from_all_others(self) -> None:
        spec = TransitionSpec.from_spaces(spaces.Discrete(3), spaces.MultiDiscrete([2, 4]))

        def row(observation: int, action: list[int]) -> Transitions:
            return Transitions(
                torch.tensor([observation]),
                torch.tensor([action]),
                torch.zeros(1),
                torch.tensor([0]),
                torch.zeros(1, dtype=torch.bool),
            )

        one = row(2, [1, 3])
        units = Units.measure(one, spec)
        for other, wanted in ((row(2, [1, 3]), 0.0), (row(3, [1, 3]), 1.0), (row(-1, [5, 9]), 3.0)):
            assert float((units.points(one) - units.points(other)).square().sum()) == pytest.approx(wanted)

    @pytest.mark.parametrize("unit", [1e-170, 1e170])
    def test_values_whose_squares_no_float_holds(self, unit: float) -> None:
        # -4 and 4 have the standard deviation 4.
        assert closest_distance(line(6 * unit), line(-4 * unit), LINE, line(-4 * unit, 4 * unit)).item() == 2.5

    def test_a_constant_far_from_0_does_not_blur_distances(self) -> None:
        real = line(*range(100))
        real.next_observation = torch.full((100, 1), 1e12, dtype=torch.float64)
        points = Units.measure(real, LINE).points(real)
        wanted = 1.0 / float(np.arange(100).std())
        assert torch.cdist(points, points).diagonal(1).tolist() == pytest.approx([wanted] * 99)


class TestNeighborhoods:
    def test_equal_sets_give_1(self) -> None:
        result = neighborhoods(gaussian(200), gaussian(200), SPEC)
        assert (result.precision, result.recall, result.density, result.coverage) == (1.0, 1.0, 1.0, 1.0)

    def test_disjoint_sets_give_0(self) -> None:
        result = neighborhoods(line(*range(20)), line(*range(60, 80)), LINE)
        assert (result.precision, result.recall, result.density, result.coverage) == (0.0, 0.0, 0.0, 0.0)

    def test_by_hand(self) -> None:
        # Distances to the nearest other row: 1, 1, 2 around 0, 1, 3; 0.1, 0.1, 9.4 around 0.5, 0.6, 10.
        result = neighborhoods(line(0, 1, 3), line(0.5, 0.6, 10), LINE, neighbors=1)
        # 0.5 and 0.6 lie around 0 and around 1, 10 around none; around 3 there is nothing.
        assert result.precision == pytest.approx(2 / 3)
        assert result.density == pytest.approx(4 / 3)
        assert result.coverage == pytest.approx(2 / 3)
        # 1 and 3 lie around 10, 0 (9.4 + 0.6 = 10 off) around none.
        assert result.recall == pytest.approx(2 / 3)

    def test_expected_coverage_of_one_distribution(self) -> None:
        assert expected_coverage(10**9) == pytest.approx(1 - 2**-5)
        # With 3 rows each and k = 1: 1 - 2 / 5.
        assert expected_coverage(3, neighbors=1) == pytest.approx(0.6)
        result = neighborhoods(gaussian(2_000, 0), gaussian(2_000, 1), SPEC)
        assert result.coverage == pytest.approx(expected_coverage(2_000), abs=0.015)
        assert result.density == pytest.approx(1.0, abs=0.1)

    def test_rows_of_one_mode_cover_no_other(self) -> None:
        two_modes = line(*np.random.default_rng(0).normal(0, 1, 500), *np.random.default_rng(1).normal(50, 1, 500))
        result = neighborhoods(two_modes, normal_line(1_000, 2), LINE)
        assert result.precision > 0.95
        assert result.coverage == pytest.approx(0.5, abs=0.03)

    def test_density_of_two_samples_of_a_grid_world(self) -> None:
        """Rows that are equal, many times each, as in small discrete tasks."""
        spec = TransitionSpec.from_spaces(spaces.Discrete(16), spaces.Discrete(4))

        def walk(seed: int) -> Transitions:
            draw = torch.randint(64, (1_000,), generator=torch.Generator().manual_seed(seed))
            state, action = draw % 16, draw // 16
            following = (state + torch.tensor([1, -1, 4, -4])[action]) % 16
            return Transitions(state, action, (state == 0).float(), following, state == 0)

        result = neighborhoods(walk(0), walk(1), spec)
        assert result.density == pytest.approx(1.0, abs=0.02)
        # Half of the synthetic rows lie nowhere near a real one.
        far = walk(1)
        far.reward[:500] = 50.0
        assert neighborhoods(walk(0), far, spec).density == pytest.approx(0.5, abs=0.05)

    def test_repeated_discrete_rows(self) -> None:
        # Every row has more than k equals: no radius, but equal rows are neighbours all the same.
        result = neighborhoods(line(*[0.0, 1.0] * 20), line(*[0.0] * 40), LINE)
        assert (result.precision, result.coverage, result.recall) == (1.0, 0.5, 0.5)


def test_terminal_error() -> None:
    real, synthetic = gaussian(100), gaussian(100)
    real.terminated = torch.arange(100) < 8
    synthetic.terminated = torch.arange(100) < 3
    result = terminal_error(real, synthetic)
    assert (result.real_rate, result.synthetic_rate) == (pytest.approx(0.08), pytest.approx(0.03))
    assert result.error == pytest.approx(-0.05)


WALK = TransitionSpec.from_spaces(spaces.Box(-99, 99, (2,), np.float64), spaces.Box(-1, 1, (1,), np.float32))


class Adder:
    """s' = s + (a, -a), r = s'_0, terminal where s'_0 > 1. It cannot say what comes of s_0 < -1.5."""

    def step(self, observation, action):
        following = observation + action * np.array([1.0, -1.0])
        reward = np.where(observation[:, 0] < -1.5, np.nan, following[:, 0])
        return following, reward, following[:, 0] > 1.0


def added(num_rows: int = 400, low: float = -1.4) -> Transitions:
    rng = np.random.default_rng(0)
    observation, action = rng.uniform(low, 1.4, (num_rows, 2)), rng.uniform(-1, 1, (num_rows, 1)).astype(np.float32)
    following, reward, terminated = Adder().step(observation, action)
    rows = (observation, action, np.nan_to_num(reward).astype(np.float32), following, terminated)
    return Transitions(*map(torch.as_tensor, rows))


class TestSimulator:
    def test_rows_that_obey_it(self) -> None:
        real = added()
        result = simulator_error(real, real, WALK, Adder())
        assert result.dynamics_mean == result.dynamics_median == 0.0
        assert result.reward_mean < 1e-13  # float32
        assert (result.terminal_agreement, result.terminal_precision, result.terminal_recall) == (1.0, 1.0, 1.0)
        assert (result.num_rows, result.share_simulated) == (400, 1.0)

    def test_errors_are_squares_in_standard_deviations(self) -> None:
        real, synthetic = added(), added()
        std = real.next_observation.std(0, correction=0)
        synthetic.next_observation[:100, 1] += 3 * std[1]
        synthetic.reward[:300] += 2 * real.reward.std(correction=0)
        rows = simulate(synthetic, WALK, Adder(), real)
        # Of the two elements one is 3 off: 9 / 2.
        assert rows.dynamics_error.tolist() == pytest.approx([4.5] * 100 + [0.0] * 300)
        assert rows.reward_error.tolist() == pytest.approx([4.0] * 300 + [0.0] * 100, abs=1e-5)
        result = simulator_error(real, synthetic, WALK, Adder())
        assert (result.dynamics_mean, result.dynamics_median) == (pytest.approx(4.5 / 4), 0.0)
        assert (result.reward_mean, result.reward_median) == (pytest.approx(3.0), pytest.approx(4.0))

    def test_always_the_mean_has_error_1(self) -> None:
        real, synthetic = added(), added()
        synthetic.next_observation[:] = real.next_observation.mean(0)
        assert simulator_error(real, synthetic, WALK, Adder()).dynamics_mean == pytest.approx(1.0)

    def test_terminal_flags_by_hand(self) -> None:
        real, synthetic = added(), added()
        true = int(real.terminated.sum())
        assert true > 20
        # Half of the true ones are missed; as many as that are wrong.
        missed = torch.nonzero(real.terminated).flatten()[: true // 2]
        wrong = torch.nonzero(~real.terminated).flatten()[: true // 2]
        synthetic.terminated[missed], synthetic.terminated[wrong] = False, True
        result = simulator_error(real, synthetic, WALK, Adder())
        hits = true - true // 2
        assert result.terminal_precision == result.terminal_recall == pytest.approx(hits / true)
        assert result.terminal_agreement == pytest.approx(1 - 2 * (true // 2) / 400)
        synthetic.terminated[:] = False
        result = simulator_error(real, synthetic, WALK, Adder())
        assert math.isnan(result.terminal_precision)
        assert result.terminal_recall == 0.0

    def test_rows_that_cannot_be_simulated_do_not_count(self) -> None:
        real = added(low=-2.0)
        known = real.observation[:, 0] >= -1.5
        assert 0.5 < float(known.double().mean()) < 0.95
        rows = simulate(real, WALK, Adder(), real)
        assert torch.equal(rows.simulated, known)
        assert torch.equal(torch.isnan(rows.dynamics_error), ~known)
        result = simulator_error(real, real, WALK, Adder())
        assert result.dynamics_mean == 0.0
        assert result.num_rows == int(known.sum())
        assert result.share_simulated == pytest.approx(float(known.double().mean()))

    def test_when_no_row_can_be(self) -> None:
        real = added()
        real.observation[:, 0] = -2.0
        result = simulator_error(real, real, WALK, Adder())
        assert math.isnan(result.dynamics_mean)
        assert math.isnan(result.dynamics_median)
        assert (result.num_rows, result.share_simulated) == (0, 0.0)

    def test_dict_observations_and_discrete_elements(self) -> None:
        spec = TransitionSpec.from_spaces(
            spaces.Dict({"position": spaces.Box(-9, 9, (1,), np.float64), "door": spaces.Discrete(2)}),
            spaces.Discrete(2),
        )

        class Door:
            def step(self, observation, action):
                following = {"position": observation["position"] + 1.0, "door": action}
                return following, np.zeros(len(action)), np.zeros(len(action), bool)

        position, action = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(8) % 2
        rows = Transitions(
            {"position": position, "door": torch.zeros(8, dtype=torch.int64)},
            action,
            torch.zeros(8),
            {"position": position + 1.0, "door": torch.zeros(8, dtype=torch.int64)},
            torch.zeros(8, dtype=torch.bool),
        )
        # The door is wrong where the action was 1; one of two elements.
        errors = simulate(rows, spec, Door(), rows).dynamics_error
        assert errors.tolist() == [0.0, 0.5] * 4

    def test_answers_of_another_shape(self) -> None:
        class Wrong(Adder):
            def step(self, observation, action):
                following, reward, terminated = super().step(observation, action)
                return following, reward[:, None], terminated

        with pytest.raises(
            ValueError, match=r"the simulator returned shape \(400, 1\) as reward; wanted shape \(400,\)"
        ):
            simulator_error(added(), added(), WALK, Wrong())

    def test_rows_of_several_steps(self) -> None:
        spec = replace(WALK, discounts=(0.99, 0.9801))
        rows = added()
        rows.discount = torch.full((400,), 0.99)
        with pytest.raises(ValueError, match="several steps"):
            simulate(rows, spec, Adder(), rows)


class TestThin:
    def test_draws_without_replacement(self) -> None:
        values = thin(line(*range(50)), 30, seed=1).observation.flatten().tolist()
        assert len(set(values)) == 30
        assert values != thin(line(*range(50)), 30, seed=2).observation.flatten().tolist()
        assert thin(line(*range(50)), 50, seed=1).observation.flatten().tolist() == list(range(50))

    @pytest.mark.parametrize("seed", [2**64 - 1, 2**64, -1])
    def test_takes_any_seed(self, seed: int) -> None:
        assert len(thin(line(*range(50)), 30, seed)) == 30

    def test_needs_rows(self) -> None:
        with pytest.raises(ValueError, match="max_rows is 0"):
            thin(line(1), 0, seed=0)


class TestEvaluate:
    def test_everything_at_once_as_plain_data(self) -> None:
        real, synthetic, train = added(), added(), added()
        synthetic.terminated[:] = False
        result = evaluate(real, synthetic, WALK, train=train, simulator=Adder())
        data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        assert data["fidelity"]["marginal"] == pytest.approx(result.fidelity.marginal)
        assert data["neighborhoods"]["coverage"] == result.neighborhoods.coverage > 0.5
        assert data["closest"]["synthetic_median"] == 0.0
        assert data["closest"]["ratio"] is None  # 0 / 0
        assert data["simulator"]["dynamics_mean"] == 0.0
        assert data["simulator"]["terminal_precision"] is None
        assert data["simulator_real"]["terminal_precision"] == 1.0
        assert (data["num_real"], data["num_synthetic"], data["num_train"]) == (400, 400, 400)

    def test_without_training_rows_and_simulator(self) -> None:
        result = evaluate(gaussian(100), gaussian(100, 1), SPEC)
        assert (result.closest, result.simulator, result.simulator_real, result.num_train) == (None, None, None, 0)

    def test_more_noise_is_worse_by_every_figure(self) -> None:
        train, real = added(1_200)[:800], added(1_200)[800:]
        results = []
        for scale in (0.02, 0.5):
            upsampler = partial(GaussianNoise, scale=scale)(WALK, device="cpu")
            upsampler.fit(train)
            results.append(evaluate(real, upsampler.sample(400), WALK, train=train, simulator=Adder()))
        little, much = results
        assert little.fidelity.marginal > much.fidelity.marginal
        assert little.auc < 0.65 < much.auc
        assert little.neighborhoods.density > much.neighborhoods.density
        assert little.closest.ratio < 0.5 < much.closest.ratio
        # Noise in both observations, in the one's standard deviations; the error is in the other's.
        units = [rows.std(0).square() for rows in (train.observation, real.next_observation)]
        expected = float((units[0] / units[1]).mean()) * 2
        assert little.simulator.dynamics_mean == pytest.approx(expected * 0.02**2, rel=0.15)
        assert much.simulator.dynamics_mean == pytest.approx(expected * 0.5**2, rel=0.15)
        assert much.simulator.terminal_agreement < little.simulator.terminal_agreement
        assert little.simulator_real == much.simulator_real

    def test_the_seed_tells_the_rows(self) -> None:
        real, synthetic = gaussian(300, 0), gaussian(300, 1)
        one, same, other = (evaluate(real, synthetic, SPEC, seed=seed, max_rows=100) for seed in (1, 1, 2))
        assert one == same
        assert one.neighborhoods != other.neighborhoods
        assert one.fidelity != other.fidelity

    def test_leaves_rows_and_global_streams_alone(self) -> None:
        real, synthetic = added(), added()
        before = global_state()
        evaluate(real, synthetic, WALK, train=real, simulator=Adder(), max_rows=100)
        assert global_state() == before
        assert equal(real, added())
        assert equal(synthetic, added())

    @pytest.mark.parametrize("seed", [2**63, 2**64 - 1])
    def test_a_seed_as_large_as_torch_s(self, seed: int) -> None:
        evaluate(gaussian(100), gaussian(100, 1), SPEC, train=gaussian(100, 2), seed=seed, max_rows=50)

    def test_a_collapsed_set_has_all_other_figures(self) -> None:
        collapsed = gaussian(100, 1)[torch.zeros(100, dtype=torch.int64)]
        with pytest.raises(ValueError, match="too few different rows"):
            two_sample_auc(gaussian(100), collapsed, SPEC)
        result = evaluate(gaussian(100), collapsed, SPEC, train=gaussian(100, 2))
        assert math.isnan(result.auc)
        assert result.to_dict()["auc"] is None
        assert result.neighborhoods.coverage < 0.2
        assert result.fidelity.marginal < 0.7
        assert result.closest is not None

    @pytest.mark.parametrize("broken", ["real", "synthetic", "train"])
    def test_bad_rows_are_named(self, broken: str) -> None:
        sets = {"real": gaussian(50), "synthetic": gaussian(50), "train": gaussian(50)}
        sets[broken].next_observation[3, 1] = math.nan
        with pytest.raises(ValueError, match=f"^{broken} holds NaN or infinity in next_observation"):
            evaluate(spec=SPEC, **sets)
        sets[broken] = line(*range(50))
        with pytest.raises(ValueError, match=f"^{broken} does not match the spec: observation has shape"):
            evaluate(spec=SPEC, **sets)
        sets[broken] = gaussian(0)
        with pytest.raises(ValueError, match=f"^{broken} has 0 rows; at least"):
            evaluate(spec=SPEC, **sets)
