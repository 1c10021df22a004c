import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from synther_buffers.transitions import Transitions, TransitionSpec
from synther_buffers.upsampling.terminals import TerminalClassifier

CPU = torch.device("cpu")
SPEC = TransitionSpec.from_spaces(spaces.Box(-np.inf, np.inf, (3,)), spaces.Discrete(2))
Rule = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def falls(next_observation: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """About 7 % of the rows."""
    return next_observation[:, 0] < -1.5


def coin_flip(next_observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(falls(next_observation, rng))


def never(next_observation: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return np.zeros(len(next_observation), np.bool_)


def always(next_observation: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return np.ones(len(next_observation), np.bool_)


def once(next_observation: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return np.arange(len(next_observation)) == np.argmin(next_observation[:, 0])


def make_rows(num_rows: int, rule: Rule, seed: int = 0) -> Transitions:
    rng = np.random.default_rng(seed)
    observation = rng.normal(size=(num_rows, 3))
    next_observation = observation + 0.3 * rng.normal(size=(num_rows, 3))
    rows = SPEC.empty(num_rows)
    rows.observation.copy_(torch.as_tensor(observation))
    rows.action.copy_(torch.as_tensor(rng.integers(0, 2, num_rows)))
    rows.reward.copy_(torch.as_tensor(rng.normal(size=num_rows)))
    rows.next_observation.copy_(torch.as_tensor(next_observation))
    rows.terminated.copy_(torch.as_tensor(rule(next_observation, rng)))
    return rows


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(rows: Transitions, num_steps: int = 30, seed: int = 0) -> TerminalClassifier:
    classifier = TerminalClassifier(SPEC, CPU)
    classifier.fit(rows, num_steps, generator(seed))
    return classifier


def auc(score: torch.Tensor, true: torch.Tensor) -> float:
    """Share of pairs of a terminal and another row that the score puts in order."""
    rank = score.argsort().argsort().double() + 1.0
    positive, negative = int(true.sum()), int((~true).sum())
    return (float(rank[true].sum()) - positive * (positive + 1) / 2) / (positive * negative)


def flags(classifier: TerminalClassifier, rows: Transitions) -> torch.Tensor:
    logits = classifier.logits(rows)
    return classifier.draw(logits, classifier.calibrate(logits), generator(1))


@pytest.fixture(scope="module")
def of_falls() -> TerminalClassifier:
    return trained(make_rows(10_000, falls), num_steps=600)


class TestLearning:
    def test_a_threshold_rule_is_learned(self, of_falls: TerminalClassifier) -> None:
        rows = make_rows(10_000, falls, seed=1)
        drawn, true = flags(of_falls, rows), rows.terminated
        assert int((drawn & true).sum()) / int(drawn.sum()) > 0.9
        assert int((drawn & true).sum()) / int(true.sum()) > 0.9

    def test_coin_flips_of_the_same_rate_are_not(self) -> None:
        classifier = trained(make_rows(10_000, coin_flip), num_steps=600)
        rows = make_rows(10_000, coin_flip, seed=1)
        drawn, true = flags(classifier, rows), rows.terminated
        # Chance hits the rate, 7 %.
        assert int((drawn & true).sum()) / int(drawn.sum()) < 0.15
        # As many flags are drawn as for a rule that can be learned.
        assert int(drawn.sum()) == pytest.approx(int(true.sum()), rel=0.15)

    @pytest.mark.parametrize(("rule", "rate", "flag"), [(never, 0.0, False), (always, 1.0, True)])
    def test_one_kind_of_row(self, rule: Rule, rate: float, flag: bool) -> None:
        classifier = trained(make_rows(100, rule))
        assert classifier.rate == rate
        others = make_rows(1_000, falls)
        assert (flags(classifier, others) == flag).all()
        # A shift that was left over from an earlier fit must not matter.
        drawn = classifier.draw(classifier.logits(others), -3.0, generator())
        assert (drawn == flag).all()

    def test_one_terminal_in_50_000_rows(self) -> None:
        rows = make_rows(50_000, once)
        classifier = trained(rows)
        assert classifier.rate == 1 / 50_000
        logits = classifier.logits(rows)
        assert torch.isfinite(logits).all()
        drawn = classifier.draw(logits, classifier.calibrate(logits), generator())
        assert int(drawn.sum()) in (0, 1, 2)
        # The logits rank it first: it is the lowest of 50,000 rows.
        assert bool(rows.terminated[logits.argmax()])

    def test_refit_forgets_the_last_data(self) -> None:
        classifier = trained(make_rows(500, falls))
        classifier.fit(make_rows(500, never), 30, generator())
        assert not flags(classifier, make_rows(500, falls)).any()

    def test_a_rule_far_from_zero_in_float64(self) -> None:
        """In float32 the rows of this column could not be told apart."""
        spec = TransitionSpec.from_spaces(spaces.Box(-np.inf, np.inf, (1,), np.float64), spaces.Discrete(2))
        noise = torch.randn((4_000, 1), generator=generator(), dtype=torch.float64)
        rows = spec.empty(4_000)
        rows.observation.copy_(1e6 + torch.zeros_like(noise))
        rows.next_observation.copy_(1e6 + 1e-3 * noise)
        rows.action.zero_()
        rows.reward.zero_()
        rows.terminated.copy_(noise[:, 0] < -1.0)
        classifier = TerminalClassifier(spec, CPU)
        classifier.fit(rows, 300, generator())
        assert int((flags(classifier, rows) & rows.terminated).sum()) > 0.9 * int(rows.terminated.sum())

    @pytest.mark.parametrize("unit", [1e-12, 1e-9, 1e-3, 1.0, 1e6, 1e12])
    def test_units_do_not_matter(self, unit: float) -> None:
        rows = make_rows(4_000, falls)
        rows.observation.mul_(unit)
        rows.next_observation.mul_(unit)
        assert auc(trained(rows, num_steps=300).logits(rows), rows.terminated) > 0.95

    def test_a_constant_column_does_not_matter_whatever_it_is(self) -> None:
        rows = make_rows(2_000, falls)
        rows.observation[:, 1] = 1e-30
        rows.next_observation[:, 1] = 1e30
        assert auc(trained(rows, num_steps=300).logits(rows), rows.terminated) > 0.95


class TestDrawing:
    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.floats(-50, 50), max_size=200), st.floats(-20, 20), st.integers(0, 2**32))
    def test_number_is_within_one_of_the_sum_of_probabilities(
        self, logits: list[float], shift: float, seed: int
    ) -> None:
        drawn = TerminalClassifier.draw(torch.tensor(logits, dtype=torch.float64), shift, generator(seed))
        assert drawn.shape == (len(logits),)
        assert drawn.dtype == torch.bool
        expected = sum(1.0 / (1.0 + math.exp(-logit - shift)) for logit in logits)
        assert abs(int(drawn.sum()) - expected) < 1.0 + 1e-9

    def test_each_row_has_its_own_probability(self) -> None:
        logits = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
        drawn = torch.stack([TerminalClassifier.draw(logits, 0.5, generator(seed)) for seed in range(4_000)])
        wanted = [1.0 / (1.0 + math.exp(-logit - 0.5)) for logit in (-1.0, 0.0, 2.0)]
        # Four standard errors of a share.
        assert drawn.double().mean(0).tolist() == pytest.approx(wanted, abs=4 * 0.5 / math.sqrt(4_000))

    def test_is_reproducible_and_random(self) -> None:
        logits = torch.zeros(50)
        first = TerminalClassifier.draw(logits, 0.0, generator(0))
        assert torch.equal(first, TerminalClassifier.draw(logits, 0.0, generator(0)))
        assert any(not torch.equal(first, TerminalClassifier.draw(logits, 0.0, generator(seed))) for seed in range(5))

    def test_infinite_logits_are_certain(self) -> None:
        assert TerminalClassifier.draw(torch.full((1_000,), math.inf), 0.0, generator()).all()
        assert not TerminalClassifier.draw(torch.full((1_000,), -math.inf), 0.0, generator()).any()

    @pytest.mark.parametrize("offset", [-30.0, 0.0, 30.0])
    def test_calibrated_rows_are_terminal_at_the_rate(self, of_falls: TerminalClassifier, offset: float) -> None:
        logits = of_falls.logits(make_rows(5_000, falls, seed=2)) + offset
        shift = of_falls.calibrate(logits)
        assert float(torch.sigmoid(logits.double() + shift).mean()) == pytest.approx(of_falls.rate, abs=1e-6)
        assert abs(int(of_falls.draw(logits, shift, generator()).sum()) - 5_000 * of_falls.rate) <= 1.0

    def test_calibration_does_not_change_the_order(self, of_falls: TerminalClassifier) -> None:
        logits = torch.tensor([-5.0, 3.0, 0.0, 8.0])
        probability = torch.sigmoid(logits.double() + of_falls.calibrate(logits))
        assert probability.argsort().tolist() == [0, 2, 1, 3]


class TestBeingAGoodGuest:
    def test_state_round_trip(self) -> None:
        rows = make_rows(300, falls)
        classifier = trained(rows)
        again = TerminalClassifier(SPEC, CPU)
        again.load_state_dict(classifier.state_dict())
        assert again.rate == classifier.rate
        assert torch.equal(again.logits(rows), classifier.logits(rows))

    @pytest.mark.parametrize("rule", [never, always])
    def test_state_round_trip_without_a_network(self, rule: Rule) -> None:
        classifier, again = trained(make_rows(50, rule)), trained(make_rows(300, falls))
        again.load_state_dict(classifier.state_dict())
        assert torch.equal(flags(again, make_rows(50, falls)), make_rows(50, rule).terminated)

    def test_same_generator_same_weights(self) -> None:
        rows = make_rows(300, falls)
        assert torch.equal(trained(rows).logits(rows), trained(rows).logits(rows))
        assert not torch.equal(trained(rows).logits(rows), trained(rows, seed=7).logits(rows))

    def test_global_random_streams_are_neither_read_nor_moved(self) -> None:
        rows = make_rows(300, falls)
        expected = trained(rows).logits(rows)
        torch.manual_seed(123)
        np.random.seed(123)  # noqa: NPY002
        random.seed(123)
        before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
        classifier = trained(rows)
        flags(classifier, rows)
        after = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
        assert torch.equal(classifier.logits(rows), expected)

    @pytest.mark.parametrize(
        "surroundings",
        [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
        ids=["no_grad", "inference_mode", "autocast"],
    )
    def test_the_callers_mode_does_not_matter(self, surroundings: Callable) -> None:
        rows = make_rows(300, falls)
        expected = trained(rows).logits(rows)
        with surroundings():
            classifier = trained(rows)
            inside = classifier.logits(rows)
        assert torch.equal(inside, expected)
        assert torch.equal(classifier.logits(rows), expected)
        classifier.fit(rows, 30, generator())

    def test_default_dtype_does_not_matter(self) -> None:
        rows = make_rows(300, falls)
        expected = trained(rows).logits(rows)
        torch.set_default_dtype(torch.float64)
        try:
            found = trained(rows).logits(rows)
        finally:
            torch.set_default_dtype(torch.float32)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)

    def test_every_kind_of_field_is_a_feature(self) -> None:
        spec = TransitionSpec.from_spaces(
            spaces.Dict({"a": spaces.Box(0, 9, (2,), np.int64), "b": spaces.MultiBinary(2)}),
            spaces.MultiDiscrete([2, 3], start=[1, -1]),
            discounts=(0.99, 0.9801),
        )
        rows = spec.empty(4)
        for tensor in rows.flat().values():
            tensor.zero_()
        rows.action.copy_(torch.tensor([[1, -1], [2, 0], [1, 1], [2, -1]]))
        rows.terminated[1] = True
        classifier = TerminalClassifier(spec, CPU)
        classifier.fit(rows, 30, generator())
        assert torch.isfinite(classifier.logits(rows)).all()
