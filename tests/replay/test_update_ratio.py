"""The update-to-data ratio, and the one warning of a run in which synthetic rows have little to gain."""

import logging
import pickle

import pytest
from toys import SPEC, Resampler, walk

from synther_buffers import SyntheticReplay
from synther_buffers.replay.update_ratio import UpdateRatio


@pytest.mark.parametrize(
    ("batch_size", "num_batches", "ratio"),
    [
        (256, 100, 1.0),
        (32, 100, 1.0),
        (256, 1_000, 10.0),
    ],
)
def test_batches_for_each_transition(batch_size, num_batches, ratio):
    counted = UpdateRatio()
    for _ in range(num_batches):
        counted.count(batch_size, num_observed=500)
    assert counted.measure(600, min_transitions=100) == ratio
    assert counted.measure(700, min_transitions=100) is None  # nothing was drawn since


@pytest.mark.parametrize(
    ("batch_size", "update_size", "ratio"), [(640, 64, 10.0), (256, 64, 4.0), (512, 512, 1.0), (100, 200, 0.5)]
)
def test_of_a_known_size_of_updates_a_batch_has_as_many_as_fit(batch_size, update_size, ratio):
    counted = UpdateRatio()
    for _ in range(100):
        counted.count(batch_size, 500, update_size)
    assert counted.measure(600, min_transitions=100) == ratio


def test_a_large_batch_may_be_cut_for_any_number_of_updates():
    counted = UpdateRatio()
    for _ in range(99):
        counted.count(256, num_observed=500)
    counted.count(257, num_observed=500)
    assert counted.measure(600, min_transitions=100) is None
    counted.count(256, num_observed=600)
    assert counted.measure(700, min_transitions=100) == 0.01


def test_too_few_transitions_to_judge_are_kept_for_later():
    counted = UpdateRatio()
    for observed in range(500, 550):
        counted.count(256, observed)
    assert counted.measure(550, min_transitions=100) is None
    for observed in range(550, 600):
        counted.count(256, observed)
    assert counted.measure(600, min_transitions=100) == 1.0


def run(utd, *, batch_size=32, stop=600, replay=None, **kwargs):
    """An algorithm that takes `utd` gradient steps after each transition from the 50th on."""
    options = {"retrain_every": 100, "num_synthetic": 50, "progress_bar": False, "upsampler": Resampler}
    replay = replay or SyntheticReplay(SPEC, update_advice="Pass gradient_steps=10.", **options | kwargs)
    for total in range(replay.num_observed + 1, stop + 1):
        replay.observe_total(total)
        for _ in range(utd if total > 50 else 0):
            if replay.refresh_due:
                replay.refresh(walk(total))
            replay.split(batch_size)
    return replay


def warnings(log):
    messages = [record.getMessage() for record in log.records if record.levelno == logging.WARNING]
    return [message for message in messages if "for each real transition" in message]


@pytest.mark.parametrize(
    ("utd", "batch_size", "ratio"), [(1, 32, "1.0"), (4, 32, "4.0"), (1, 512, None), (5, 32, None), (1, 2_560, None)]
)
def test_few_updates_are_said_once(log, utd, batch_size, ratio):
    replay = run(utd, batch_size=batch_size)
    assert replay.num_refreshes == 6
    said = [
        f"The algorithm takes about {ratio} gradient steps for each real transition. Synthetic rows have little to "
        "gain there; they are made for many (the paper: 20). Pass gradient_steps=10."
    ]
    assert warnings(log) == ([] if ratio is None else said)


def test_a_copy_does_not_say_it_again(log):
    replay = pickle.loads(pickle.dumps(run(1, stop=300)))
    assert len(warnings(log)) == 1
    run(1, replay=replay)
    assert replay.num_refreshes == 6
    assert len(warnings(log)) == 1


def test_a_restored_run_is_measured_from_where_it_goes_on(log):
    replay = pickle.loads(pickle.dumps(run(10, stop=300)))
    run(1, replay=replay, stop=600)
    assert len(warnings(log)) == 1
    assert "Pass gradient_steps=10." in warnings(log)[0]


def test_at_fraction_0_nothing_is_said(log):
    run(1, synthetic_fraction=0.0)
    assert warnings(log) == []
