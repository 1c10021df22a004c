"""One refresh as a function of its job: what it measures, and what it says that it will take."""

import logging
from dataclasses import replace

import pytest
import torch
from toys import SPEC, Resampler, gaussian

from synther_buffers import TDError
from synther_buffers.guidance.drawing import GuidedDraw
from synther_buffers.replay.refresh import RefreshJob, log_start, run_refresh
from synther_buffers.transitions import Transitions
from synther_buffers.upsampling.factory import resolve_factory


class NearCopies(Resampler):
    """Training rows with noise of 2 % of each column's standard deviation."""

    def sample(self, num_samples):
        rows = super().sample(num_samples)
        generator = torch.Generator().manual_seed(self.seed)
        deviation = 0.02 * self.rows.observation.std(0)
        noise = torch.randn(rows.observation.shape, generator=generator, dtype=torch.float64)
        return replace(rows, observation=rows.observation + deviation * noise)


def job(factory, **changes) -> RefreshJob:
    fields = {
        "spec": SPEC,
        "factory": factory,
        "device": "cpu",
        "seed": 0,
        "progress_bar": False,
        "state": None,
        "train": gaussian(1_000),
        "held_out": gaussian(40, 1),
        "num_synthetic": 500,
        "num_threads": torch.get_num_threads(),
        "refresh": 1,
        "num_observed": 1_040,
        "num_dropped": 0,
    }
    return RefreshJob(**{**fields, **changes})


def small_first_column(rows: Transitions) -> Transitions:
    return replace(rows, observation=rows.observation * torch.tensor([0.01, 1.0], dtype=torch.float64))


def test_a_sensor_with_rare_large_values_hides_no_copies():
    """4 % of the training rows have them and none of the 40 held-out ones, in whose units no copy would be close."""
    train = small_first_column(gaussian(1_000))
    train.observation[::25, 0] += 50.0
    report = run_refresh(job(NearCopies, train=train, held_out=small_first_column(gaussian(40, 1)))).report
    assert report.closest.share_closer > 0.9
    assert report.closest.ratio < 0.5


@pytest.mark.parametrize(("by", "factor"), [(None, 1), ("condition", 2), ("resampling", 4)])
def test_the_time_of_the_first_refresh_counts_all_rows_that_are_drawn(by, factor, monkeypatch, caplog):
    """A second for each row that is drawn."""
    monkeypatch.setattr(
        "synther_buffers.replay.refresh.expected_seconds", lambda _factory, _spec, _rows, num_rows, _device: num_rows
    )
    guided = None if by is None else GuidedDraw(TDError.__name__, torch.zeros(1_000), 1.0, by)
    with caplog.at_level(logging.INFO):
        log_start(job(resolve_factory("cpu", torch.device("cpu")), guided=guided, progress_bar=True), None)
    assert f"which takes about {500 * factor} s here" in caplog.text
