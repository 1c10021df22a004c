"""Which rows are learned, and in which order they are handed on."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import SPEC, Resampler, equal, gaussian

from synther_buffers import FunctionGuidance, Guidance, RowOrder, SyntheticReplay, TDError
from synther_buffers.replay.holdout import HoldOut
from synther_buffers.replay.learnable_rows import learnable_rows, reaches_held_out

ENVIRONMENTS, STEPS = 25, 40
SLOTS = RowOrder.of_ring(np.zeros((STEPS, ENVIRONMENTS), np.bool_), STEPS, STEPS)  # a step of each in turn
BY_ENVIRONMENT = np.lexsort((SLOTS.write_index, SLOTS.stream))
ROWS = gaussian(1_000)


def prepared(rows, order, guidance=None):
    replay = SyntheticReplay(
        SPEC, upsampler=Resampler, guidance=guidance, retrain_every=1_000, seed=0, progress_bar=False
    )
    replay.bind_td_error(lambda rows: rows.observation[:, 0].abs())
    replay.observe_total(1_000)
    return replay.prepare_refresh(rows, order)


class Spy(Guidance):
    """By the place among the rows that it sees."""

    def relevance(self, transitions, order):
        return torch.arange(len(transitions), dtype=torch.float32)


class TestOrder:
    @pytest.mark.parametrize(
        "guidance",
        [
            None,
            Spy(by="resampling"),
            TDError(by="resampling"),
            FunctionGuidance(function=lambda rows: rows.reward, by="resampling"),
        ],
    )
    def test_the_layout_of_the_buffer_does_not_matter(self, guidance) -> None:
        rows = ROWS[torch.arange(1_000)]
        rows.reward[7] = torch.nan
        slots = prepared(rows, SLOTS, guidance)
        environments = prepared(rows[torch.from_numpy(BY_ENVIRONMENT)], SLOTS[BY_ENVIRONMENT], guidance)
        assert equal(slots.train, environments.train)
        assert equal(slots.held_out, environments.held_out)
        if guidance is not None:
            assert torch.equal(slots.guided.relevance, environments.guided.relevance)

    def test_rows_of_an_environment_follow_each_other(self) -> None:
        """So that few rows that a network learns are neighbours of those, in runs, that it is judged by."""
        rows = replace(ROWS, reward=torch.from_numpy(SLOTS.stream * 1_000 + SLOTS.write_index).to(ROWS.reward))
        place = prepared(rows, SLOTS).train.reward
        assert (place.diff() > 0).all()

    @pytest.mark.parametrize("guidance", [TDError(), FunctionGuidance(function=lambda rows: rows.reward)])
    def test_the_relevance_stays_with_its_row(self, guidance) -> None:
        guidance = replace(guidance, by="resampling")
        job = prepared(ROWS, SLOTS, guidance)
        wanted = job.train.observation[:, 0].abs() if isinstance(guidance, TDError) else job.train.reward
        assert torch.equal(job.guided.relevance.argsort(), wanted.argsort())

    def test_rows_of_a_trajectory_follow_each_other(self) -> None:
        order = replace(SLOTS, write_index=np.arange(1_000), stream=np.zeros(1_000, np.int64), trajectory=SLOTS.stream)
        assert equal(prepared(ROWS, order).train[:30], ROWS[torch.arange(0, 1_000, ENVIRONMENTS)][:30])


class TestRowsOfSeveralSteps:
    def test_by_hand(self) -> None:
        held = np.isin(np.arange(20), [10, 11, 19])
        found = reaches_held_out(held, RowOrder.appended(20), 3)
        assert np.flatnonzero(found).tolist() == [8, 9, 10, 11, 17, 18, 19]

    def test_steps_are_those_of_the_environment(self) -> None:
        """Two streams, and two trajectories, that write in turn: 0, 2, 4 and 1, 3, 5."""
        held = np.array([False, False, False, False, True, False])
        turns = np.arange(6) % 2
        streams = RowOrder(np.arange(6) // 2, turns, np.zeros(6, np.bool_))
        trajectories = RowOrder(np.arange(6), np.zeros(6, np.int64), np.zeros(6, np.bool_), trajectory=turns)
        for order in (streams, trajectories):
            assert np.flatnonzero(reaches_held_out(held, order, 2)).tolist() == [2, 4]

    def test_a_first_refresh_of_few_rows_costs_later_ones_nothing(self) -> None:
        hold_out = HoldOut()
        for size, least in ((100, 70), (5_000, 2_500)):
            order = RowOrder.appended(size)
            found = learnable_rows(gaussian(size), order, hold_out.mask(order), 25, lambda key, message: None)
            assert len(found.train) > least

    def test_too_few_left_to_learn(self, caplog) -> None:
        order = replace(RowOrder.appended(100), max_steps=60)
        with caplog.at_level(logging.WARNING):
            replay = SyntheticReplay(SPEC, upsampler=Resampler, retrain_every=100, progress_bar=False)
            replay.observe_total(100)
            assert replay.refresh(gaussian(100), order) is None
        assert caplog.messages == [
            "Synthetic refresh skipped: of 100 real rows 37 are left to learn, wanted 50. n-step rows, here of up to "
            "60 steps, that reach into held-out rows are not learned."
        ]
