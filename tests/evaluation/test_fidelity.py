import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from synther_buffers.evaluation.fidelity import correlation_similarity, ks_complement, measure_fidelity
from synther_buffers.evaluation.points import MAX_ROWS
from synther_buffers.transitions import Transitions, TransitionSpec


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


class TestKolmogorovSmirnov:
    @pytest.mark.parametrize(
        ("real", "synthetic", "complement"),
        [
            (column(1, 2, 3, 4), column(4, 3, 2, 1), 1.0),
            (column(1, 2), column(3, 4, 5), 0.0),
            # At 2 the one distribution has reached 1 / 2, the other nothing.
            (column(1, 2, 3, 4), column(3, 4), 0.5),
            # Ties count on both sides: at 0 it is 3 / 4 against 1 / 4.
            (column(0, 0, 0, 1), column(0, 1, 1, 1), 0.5),
            (column(7, 7, 7), column(7, 7), 1.0),
            (column(7, 7, 7), column(7.5, 7.5), 0.0),
        ],
    )
    def test_by_hand(self, real: torch.Tensor, synthetic: torch.Tensor, complement: float) -> None:
        assert ks_complement(real, synthetic).tolist() == pytest.approx([complement])

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # from its p-value
    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.integers(-5, 5), min_size=1, max_size=30),
        st.lists(st.integers(-5, 5), min_size=1, max_size=30),
    )
    def test_agrees_with_scipy_with_ties(self, left: list[int], right: list[int]) -> None:
        wanted = 1.0 - ks_2samp(left, right, method="asymp").statistic
        assert float(ks_complement(column(*left), column(*right))) == pytest.approx(wanted, abs=1e-6)

    def test_agrees_with_scipy_column_by_column(self) -> None:
        rng = np.random.default_rng(0)
        left, right = rng.normal(size=(500, 3)), rng.normal([0.0, 0.5, 0.0], [1.0, 1.0, 2.0], size=(700, 3))
        wanted = [1.0 - ks_2samp(left[:, j], right[:, j]).statistic for j in range(3)]
        assert ks_complement(torch.as_tensor(left), torch.as_tensor(right)).tolist() == pytest.approx(wanted, abs=1e-6)


class TestCorrelation:
    def test_opposite_correlations_give_0(self) -> None:
        real = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
        assert correlation_similarity(real, real) == pytest.approx(1.0)
        assert correlation_similarity(real, real * torch.tensor([1.0, -2.0])) == pytest.approx(0.0)

    def test_by_hand_over_three_pairs(self) -> None:
        # Columns a, b, c; in the real set b = a and c is uncorrelated with both; in the other all are uncorrelated.
        real = torch.tensor([[1.0, 1, 1], [1, 1, -1], [-1, -1, 1], [-1, -1, -1]])
        synthetic = torch.tensor([[a, b, c] for a in (1.0, -1.0) for b in (1.0, -1.0) for c in (1.0, -1.0)])
        # |1 - 0| / 2 for the pair (a, b), nothing for the other two.
        assert correlation_similarity(real, synthetic) == pytest.approx(1.0 - 0.5 / 3)

    @pytest.mark.parametrize("constant", [0.0, 0.1, 1e8 / 3, -12345.678])
    def test_constant_columns_do_not_count(self, constant: float) -> None:
        rng = np.random.default_rng(0)
        varying = torch.as_tensor(rng.normal(size=(4_999, 2)))
        still = torch.full((4_999, 1), constant, dtype=torch.float64)
        both = torch.cat((varying, still), dim=1)
        other = torch.cat((varying.flip(1) * torch.tensor([1.0, -1.0]), still), dim=1)
        assert correlation_similarity(both, both) == pytest.approx(1.0)
        assert correlation_similarity(both, other) == pytest.approx(correlation_similarity(varying, other[:, :2]))

    def test_a_column_that_varies_on_one_side_only_does_not_count(self) -> None:
        real = torch.tensor([[1.0, 1.0, 5.0], [2.0, 2.0, 5.0], [3.0, 3.0, 5.0]])
        synthetic = torch.tensor([[1.0, 1.0, 4.0], [2.0, 2.0, 6.0], [3.0, 3.0, 5.0]])
        assert correlation_similarity(real, synthetic) == pytest.approx(1.0)

    @pytest.mark.parametrize("unit", [1e-170, 1e-13, 1e-6, 1e170])
    def test_does_not_depend_on_the_unit(self, unit: float) -> None:
        # In the real set b = a, in the other b is uncorrelated with a: |1 - 0| / 2 for the only pair.
        real = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        synthetic = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
        assert correlation_similarity(real * unit, synthetic * unit) == pytest.approx(0.5)

    def test_is_nan_with_fewer_than_two_varying_columns(self) -> None:
        assert math.isnan(correlation_similarity(column(1, 2, 3), column(1, 2, 3)))


SPEC = TransitionSpec.from_spaces(spaces.Box(-9, 9, (2,)), spaces.Discrete(3))


def make_rows(num_rows: int, seed: int = 0) -> Transitions:
    rng = np.random.default_rng(seed)
    observation = torch.as_tensor(rng.normal(size=(num_rows, 2)), dtype=torch.float32)
    return Transitions(
        observation,
        torch.as_tensor(rng.integers(0, 3, num_rows)),
        torch.as_tensor(rng.normal(size=num_rows), dtype=torch.float32),
        observation + 0.1,
        torch.as_tensor(rng.random(num_rows) < 0.1),
    )


class TestMeasureFidelity:
    def test_identical_sets_give_1(self) -> None:
        fidelity = measure_fidelity(make_rows(200), make_rows(200), SPEC)
        assert fidelity.marginal == fidelity.worst_marginal == 1.0
        assert fidelity.correlation == pytest.approx(1.0)

    def test_total_variation_of_a_discrete_column_by_hand(self) -> None:
        real, synthetic = make_rows(4), make_rows(4)
        real.action = torch.tensor([0, 0, 1, 2])
        synthetic.action = torch.tensor([0, 1, 1, 1])
        fidelity = measure_fidelity(real, synthetic, SPEC)
        # Half of |1/2 - 1/4| + |1/4 - 3/4| + |1/4 - 0|. The Kolmogorov-Smirnov statistic would be 1/4.
        assert (fidelity.worst_column, fidelity.worst_marginal) == ("action", pytest.approx(0.5))
        # The other six columns are equal.
        assert fidelity.marginal == pytest.approx(6.5 / 7)

    def test_names_the_element_that_is_worst(self) -> None:
        synthetic = make_rows(100)
        synthetic.next_observation = synthetic.next_observation + torch.tensor([0.0, 100.0])
        fidelity = measure_fidelity(make_rows(100), synthetic, SPEC)
        assert (fidelity.worst_column, fidelity.worst_marginal) == ("next_observation[1]", 0.0)
        # A shift does not change correlations.
        assert fidelity.correlation == pytest.approx(1.0)

    @pytest.mark.parametrize(("synthetic_reward", "marginal"), [(-1.0, 1.0), (-0.99, 0.0)])
    def test_a_constant_column_counts_as_reproduced_or_not(self, synthetic_reward: float, marginal: float) -> None:
        real, synthetic = make_rows(100), make_rows(100)
        real.reward.fill_(-1.0)
        synthetic.reward.fill_(synthetic_reward)
        fidelity = measure_fidelity(real, synthetic, SPEC)
        assert fidelity.worst_marginal == marginal
        assert fidelity.correlation == pytest.approx(1.0)

    def test_looks_at_rows_from_everywhere_in_large_sets(self) -> None:
        rows = make_rows(4 * MAX_ROWS)
        rows.reward = torch.arange(4.0 * MAX_ROWS)
        few = make_rows(MAX_ROWS)
        few.reward = torch.linspace(0.0, 4.0 * MAX_ROWS - 1, MAX_ROWS)
        fidelity = measure_fidelity(rows, few, SPEC)
        # Reading only the first rows would put this column far off, and make it the worst.
        assert fidelity.worst_column != "reward"
        assert fidelity.worst_marginal > 0.95

    def test_rows_of_two_environments_in_turn(self) -> None:
        """Every second row is of the other task; taking each 2nd or 4th would show one task alone."""
        real, synthetic = make_rows(2 * MAX_ROWS), make_rows(MAX_ROWS, seed=1)
        for rows in (real, synthetic):
            rows.reward = rows.reward + 10.0 * (torch.arange(len(rows)) % 2)
        fidelity = measure_fidelity(real, synthetic, SPEC)
        assert fidelity.worst_marginal > 0.95

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_does_not_depend_on_the_default_dtype(self, dtype: torch.dtype) -> None:
        real, synthetic = make_rows(12_000), make_rows(12_000, seed=1)
        wanted = measure_fidelity(real, synthetic, SPEC)
        try:
            torch.set_default_dtype(dtype)
            found = measure_fidelity(real, synthetic, SPEC)
        finally:
            torch.set_default_dtype(torch.float32)
        assert found == wanted

    def test_equal_large_sets_give_1(self) -> None:
        assert measure_fidelity(make_rows(12_000), make_rows(12_000), SPEC).marginal == 1.0

    def test_sets_of_different_sizes_and_samples(self) -> None:
        fidelity = measure_fidelity(make_rows(4_000), make_rows(3_000, seed=1), SPEC)
        assert 0.97 < fidelity.marginal < 1.0
        assert 0.97 < fidelity.correlation < 1.0
