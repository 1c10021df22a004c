"""What a fit spends by the number of rows, with values worked out by hand."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import SPEC, TINY, gaussian

from synther_buffers import DiffusionUpsampler, RowBudget
from synther_buffers.evaluation.copies import closest_record
from synther_buffers.upsampling.budget import (
    regularized,
    synthetic_rows,
    terminal_steps,
    train_steps,
    warm_steps,
)
from synther_buffers.upsampling.factory import DiffusionFactory, default_num_synthetic, most_synthetic
from synther_buffers.upsampling.presets import PRESETS, UpsamplerConfig, merge_config

# (N / 8,000)^(2/3) is 1/4 at 1,000 rows, 1/16 at 125.
CONFIG = replace(TINY, train_steps=4_000, warm_steps=400, terminal_steps=800, num_synthetic=100_000)
BY_ROWS = replace(CONFIG, budget=RowBudget(full_rows=8_000, few_rows=1_000, power=2 / 3))


def test_steps_follow_the_rows() -> None:
    assert [train_steps(BY_ROWS, rows) for rows in (125, 1_000, 8_000, 1_000_000)] == [250, 1_000, 4_000, 4_000]
    assert [terminal_steps(BY_ROWS, rows) for rows in (1_000, 8_000)] == [200, 800]


def test_the_default_takes_as_many_passes_over_any_rows_up_to_ten_thousand() -> None:
    budget = PRESETS["cpu"].budget
    assert [budget.steps(7_000, rows) for rows in (1_000, 2_000, 10_000, 50_000)] == [700, 1_400, 7_000, 7_000]
    assert [budget.regularization(rows) for rows in (1_000, 2_000, 10_000)] == pytest.approx([1.0, 1.0, 0.2])


def test_a_few_steps_are_always_taken() -> None:
    assert train_steps(BY_ROWS, 1) == 100
    assert train_steps(replace(BY_ROWS, train_steps=30), 1) == 30


def test_a_warm_start_takes_as_large_a_share_as_there_is_new() -> None:
    # Half of 8,000 rows are new: half of 4,000 steps. A twentieth of them: the least, 400.
    assert warm_steps(BY_ROWS, 8_000, 4_000) == 2_000
    assert warm_steps(BY_ROWS, 8_000, 7_600) == 400
    # A full ring, or one that was emptied: the least; not known: all of them.
    assert warm_steps(BY_ROWS, 8_000, 8_000) == warm_steps(BY_ROWS, 8_000, 9_000) == 400
    assert warm_steps(BY_ROWS, 8_000, 0) == 4_000
    # Fewer steps from scratch than a warm start takes at least: no more than those.
    assert warm_steps(replace(BY_ROWS, train_steps=100), 8_000, 7_600) == 100


def test_regularisation_falls_as_the_steps_rise() -> None:
    budget = RowBudget(full_rows=8_000, few_rows=1_000, power=2 / 3)
    assert [budget.regularization(rows) for rows in (1, 1_000, 8_000)] == pytest.approx([1.0, 1.0, 0.25])
    # Weight decay times steps is the same in every training between few and full rows.
    for rows in (1_000, 2_000, 5_000, 8_000):
        assert budget.regularization(rows) * budget.steps(4_000, rows) == pytest.approx(1_000, rel=1e-3)


def test_a_training_is_regularised_by_its_rows() -> None:
    config = replace(BY_ROWS, training=replace(BY_ROWS.training, weight_decay=1.0, dropout=0.2))
    # At 8,000 rows a quarter of it: a dropout of 0.05 is the least that is used.
    found = [regularized(config, rows) for rows in (1_000, 8_000, 8_100)]
    assert [training.weight_decay for training in found] == pytest.approx([1.0, 0.25, 0.25], rel=0.01)
    assert [training.dropout for training in found] == pytest.approx([0.2, 0.05, 0.0])
    assert regularized(replace(config, budget=None), 8_000) is config.training


def test_the_synthetic_set_follows_the_rows() -> None:
    assert [synthetic_rows(BY_ROWS, rows) for rows in (100, 2_000, 5_000, 50_000)] == [20_000, 20_000, 50_000, 100_000]
    assert synthetic_rows(replace(BY_ROWS, num_synthetic=500), 100) == 500
    factory = DiffusionFactory(BY_ROWS)
    assert (most_synthetic(factory), default_num_synthetic(factory, 3_000)) == (100_000, 30_000)
    assert default_num_synthetic(lambda spec, **_: None, 3_000) == 100_000  # type: ignore[arg-type,return-value]


def test_without_a_budget_everything_is_spent_on_any_rows() -> None:
    for name in ("paper-online", "paper-online-dmc", "paper-offline"):
        paper = PRESETS[name]
        assert train_steps(paper, 10) == warm_steps(paper, 10, 5) == paper.train_steps
        assert synthetic_rows(paper, 10) == paper.num_synthetic
        assert paper.training.weight_decay == paper.training.dropout == 0.0


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 10**5))
def test_more_rows_never_get_fewer_steps(rows: int, more: int, most: int) -> None:
    budget = RowBudget()
    assert 1 <= budget.steps(most, rows) <= budget.steps(most, rows + more) <= most
    assert 0.0 < budget.regularization(rows + more) <= budget.regularization(rows) <= 1.0


@pytest.mark.parametrize("name", ["full_rows", "few_rows"])
def test_counts_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"budget\.{name} is 0; it must be at least 1"):
        RowBudget(**{name: 0})
    with pytest.raises(TypeError, match=rf"budget\.{name} is 1\.5"):
        RowBudget(**{name: 1.5})


def test_a_power_is_positive() -> None:
    with pytest.raises(ValueError, match=r"budget\.power is 0; it must be positive"):
        RowBudget(power=0)


def test_a_budget_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="budget is 3; wanted a RowBudget, or None"):
        replace(CONFIG, budget=3)


def test_plain_data_and_back() -> None:
    for config in (BY_ROWS, CONFIG):
        assert UpsamplerConfig.from_dict(config.to_dict()) == config
    without = BY_ROWS.to_dict()
    del without["budget"]  # a configuration that was saved before there were budgets
    assert UpsamplerConfig.from_dict(without) == CONFIG


def test_a_mapping_changes_a_budget_or_leaves_it_out() -> None:
    assert merge_config(BY_ROWS, {"budget": {"few_rows": 5}}, "x").budget == RowBudget(8_000, 5, 2 / 3)
    assert merge_config(BY_ROWS, {"budget": None}, "x") == CONFIG
    assert merge_config(CONFIG, {"budget": {"full_rows": 5}}, "x").budget == RowBudget(5)


class TestFit:
    def fit(self, config: UpsamplerConfig, rows: int, held_out: int = 200) -> tuple[DiffusionUpsampler, object]:
        upsampler = DiffusionUpsampler(SPEC, config, "cpu", 0)
        return upsampler, upsampler.fit(gaussian(rows), held_out=gaussian(held_out, seed=1) if held_out else None)

    def test_the_report_says_what_was_spent(self) -> None:
        _, report = self.fit(replace(BY_ROWS, train_steps=1_600), 1_000)
        assert report.budget == 400
        assert report.best_step % 50 == 0
        assert 0 < report.best_step <= report.steps <= 400
        assert f"weights of step {report.best_step}, at the least held-out loss" in report.spent()

    def test_a_held_out_row_far_from_the_training_rows_decides_nothing(self) -> None:
        config = replace(BY_ROWS, train_steps=1_600, warm_steps=100)
        found = []
        for far in (0.0, 1e3):
            held_out = gaussian(40, seed=1)
            held_out.next_observation[0, 1] += far  # the change has a standard deviation of about 0.1
            upsampler = DiffusionUpsampler(SPEC, config, "cpu", 0)
            found.append([upsampler.fit(gaussian(rows), held_out=held_out) for rows in (1_000, 1_250)])
        for usual, far in zip(*found, strict=True):
            assert far.held_out_loss == pytest.approx(usual.held_out_loss, rel=0.1)
            assert far.warm == usual.warm

    def test_too_few_held_out_rows_choose_nothing(self) -> None:
        for held_out in (0, 29):
            _, report = self.fit(replace(BY_ROWS, train_steps=1_600), 1_000, held_out)
            assert (report.best_step, report.steps, report.spent()) == (0, 400, "400 steps")

    def test_the_model_remembers_its_rows_and_so_the_next_fit_knows_what_is_new(self) -> None:
        upsampler, _ = self.fit(replace(BY_ROWS, train_steps=1_600, warm_steps=100), 1_000, 0)
        restored = DiffusionUpsampler(SPEC, upsampler.settings, "cpu", 0)
        restored.load_state_dict(upsampler.state_dict())
        report = restored.fit(gaussian(1_250))
        assert report.warm
        # A fifth is new, of 1,600 (1,250 / 8,000)^(2/3) = 464 steps.
        assert report.steps == 100

    def test_served_weights_are_those_of_the_least_held_out_loss(self) -> None:
        # So few rows that the model learns them by heart, and the held-out loss turns long before the end.
        config = replace(TINY, train_steps=3_000, network=replace(TINY.network, width=64, depth=2))
        config = replace(config, training=replace(config.training, weight_decay=0.0, dropout=0.0))
        rows, held_out = gaussian(60), gaussian(500, seed=1)
        stopped, spent = (DiffusionUpsampler(SPEC, c, "cpu", 0) for c in (replace(config, budget=RowBudget(1)), config))
        report, report_of_all = stopped.fit(rows, held_out=held_out), spent.fit(rows, held_out=held_out)
        assert report.best_step < report.steps < 3_000
        assert report.held_out_loss < 0.9 * report_of_all.held_out_loss
        copies = [
            closest_record(held_out, upsampler.sample(1_000), rows, SPEC).share_closer for upsampler in (stopped, spent)
        ]
        assert copies[0] < copies[1]

    def test_the_same_fit_gives_the_same_rows(self) -> None:
        first, second = (self.fit(replace(BY_ROWS, train_steps=400), 1_000)[0].sample(50) for _ in range(2))
        assert all(torch.equal(first.flat()[name], second.flat()[name]) for name in first.flat())
