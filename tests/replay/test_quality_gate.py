"""The share of synthetic rows by the figures of the refresh."""

import logging
import math
import pickle
from dataclasses import replace

import pytest
import torch
from toys import SPEC, TINY, Resampler, gaussian

from synther_buffers import FitReport, SyntheticReplay
from synther_buffers.evaluation.copies import ClosestRecord
from synther_buffers.evaluation.fidelity import Fidelity
from synther_buffers.replay.quality_gate import judge
from synther_buffers.replay.reports import RefreshReport

HEALTHY = RefreshReport(
    refresh=1, num_observed=1_000, num_real=960, num_held_out=40, num_dropped=0, num_synthetic=20_000,
    fit=FitReport(loss=0.5, held_out_loss=0.6, steps=700, seconds=1.0, warm=False), fit_seconds=1.0, sample_seconds=1.0,
    seconds=2.0, fidelity=Fidelity(0.85, 0.90, "reward", 0.7), fidelity_real=Fidelity(0.87, 0.90, "reward", 0.8),
    closest=ClosestRecord(0.9, 1.0, 0.9, 0.06), outcome_gap=0.1,
)  # fmt: skip


def changed(**figures):
    parts = {
        "fit": replace(HEALTHY.fit, held_out_loss=figures.get("held_out", 0.6)),
        "fidelity": Fidelity(figures.get("marginal", 0.85), figures.get("correlation", 0.9), "reward", 0.7),
        "closest": ClosestRecord(0.9, 1.0, figures.get("ratio", 0.9), figures.get("copies", 0.06)),
        "outcome_gap": figures.get("gap", 0.1),
    }
    return replace(HEALTHY, **parts)


@pytest.mark.parametrize(
    ("figures", "share"),
    [
        ({}, 1.0),
        ({"held_out": 0.925}, 0.5),
        ({"held_out": 1.0}, 0.0),
        ({"held_out": 4.2}, 0.0),
        ({"copies": 0.6}, 0.5),
        ({"copies": 0.96}, 0.0),
        ({"ratio": 2.25}, 0.5),
        ({"ratio": math.inf}, 0.0),
        ({"marginal": 0.57}, 0.5),
        ({"correlation": 0.1}, 0.0),
        ({"gap": 0.525}, 0.5),
        ({"gap": 0.525, "copies": 0.7}, 0.25),  # the least counts
        ({"gap": math.nan, "held_out": math.nan, "marginal": math.nan}, 1.0),  # what was not measured does not count
    ],
)
def test_the_share_follows_the_worst_figure(figures, share):
    assert judge(changed(**figures)).share == pytest.approx(share)


def test_without_held_out_rows_nothing_is_known_and_the_share_is_whole():
    nothing = Fidelity(math.nan, math.nan, "", math.nan)
    report = replace(HEALTHY, closest=None, fidelity=nothing, fidelity_real=nothing, outcome_gap=math.nan)
    assert judge(replace(report, fit=replace(report.fit, held_out_loss=math.nan))).share == 1.0


def test_the_reason_is_in_words():
    assert judge(HEALTHY).reason == ""
    assert judge(changed(copies=0.6)).reason == (
        "share of the rows that are nearly copies, where 0.05 are to be expected: 0.60; "
        "full share up to 0.4, none from 0.8"
    )


class New(Resampler):
    """Draws new true rows."""

    def sample(self, num_samples):
        return gaussian(num_samples, seed=7)


class Shuffled(New):
    """Every element in a row of its own."""

    def sample(self, num_samples):
        rows = super().sample(num_samples)
        draws = torch.Generator().manual_seed(0)
        for tensor in rows.flat().values():
            columns = tensor.reshape(num_samples, -1)
            for element in range(columns.shape[1]):
                columns[:, element] = columns[torch.randperm(num_samples, generator=draws), element]
        return rows


class WrongDynamics(New):
    """The way back in place of the way on, and the reward of another row."""

    def sample(self, num_samples):
        rows = super().sample(num_samples)
        turned = 2 * rows.observation - rows.next_observation
        return replace(rows, next_observation=turned, reward=rows.reward.roll(1))


class Collapsed(New):
    """One row, many times."""

    def sample(self, num_samples):
        return super().sample(1)[torch.zeros(num_samples, dtype=torch.long)]


BAD = [Shuffled, WrongDynamics, Collapsed]


def refreshed(upsampler, **options):
    settings = {"retrain_every": 1_000, "num_synthetic": 2_000, "seed": 0, "progress_bar": False, "quality_gate": True}
    replay = SyntheticReplay(SPEC, upsampler=upsampler, **{**settings, **options})
    replay.observe_total(1_000)
    assert replay.refresh(gaussian(1_000)) is not None
    return replay


@pytest.mark.parametrize("upsampler", BAD)
def test_a_bad_model_is_shut_out_within_one_refresh(upsampler, caplog):
    caplog.set_level(logging.INFO)
    replay = refreshed(upsampler)
    assert replay.split(256) == (256, 0)
    assert "The synthetic rows now have 0 % of each batch (" in caplog.text
    assert replay.reports[-1].metrics()["quality_share"] == 0.0


@pytest.mark.parametrize("upsampler", [New, replace(TINY, train_steps=300, terminal_steps=100)], ids=["true", "tiny"])
def test_a_good_model_has_its_whole_share(upsampler, caplog):
    caplog.set_level(logging.INFO)
    replay = refreshed(upsampler)
    assert replay.split(256) == (128, 128)
    assert "The synthetic rows now have" not in caplog.text


def test_the_next_refresh_opens_it_again(caplog):
    class Mends(Shuffled):
        def sample(self, num_samples):
            return super().sample(num_samples) if self.num_fits == 1 else New.sample(self, num_samples)

    caplog.set_level(logging.INFO)
    replay = refreshed(Mends)
    assert replay.share_served == 0.0
    replay.observe_total(2_000)
    replay.refresh(gaussian(2_000))
    assert replay.share_served == 0.5
    assert "The synthetic rows now have 50 % of each batch." in caplog.text


def test_it_is_off_by_default():
    assert refreshed(Shuffled, quality_gate=False).split(256) == (128, 128)


def test_a_loaded_replay_has_the_same_share():
    replay = refreshed(Shuffled)
    assert pickle.loads(pickle.dumps(replay)).split(256) == (256, 0)
    other = SyntheticReplay(SPEC, upsampler=Shuffled, num_synthetic=2_000, seed=0, quality_gate=True)
    other.load_state_dict(replay.state_dict())
    assert other.split(256) == (256, 0)


def test_a_wrong_value_is_refused():
    with pytest.raises(TypeError, match="quality_gate is 1; wanted True or False"):
        SyntheticReplay(SPEC, quality_gate=1)
