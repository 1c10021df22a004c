"""Which weights are kept, and when training ends, by losses that are given."""

import math

import pytest
import torch

from synther_buffers.diffusion.config import TrainingConfig
from synther_buffers.diffusion.early_stopping import EarlyStopping
from synther_buffers.diffusion.edm import Preconditioner
from synther_buffers.diffusion.network import ResidualMLP
from synther_buffers.diffusion.training import train_denoiser

CONFIG = TrainingConfig(batch_size=16, learning_rate=1e-3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_denoiser() -> Preconditioner:
    network = ResidualMLP(2, width=8, depth=1, embedding_dim=4, fourier_dim=4, generator=generator())
    return Preconditioner(network).requires_grad_(False)


def told(losses: list[float], look_every: int = 10, patience: int = 2) -> EarlyStopping:
    """One that is told its losses."""
    left = iter(losses)
    return EarlyStopping(lambda denoiser: next(left), look_every, patience)


def first_weight(denoiser: Preconditioner) -> float:
    return float(next(denoiser.parameters()).reshape(-1)[0])


def set_to(value: float) -> Preconditioner:
    denoiser = make_denoiser()
    for parameter in denoiser.parameters():
        parameter.data.fill_(value)
    return denoiser


def test_keeps_the_weights_at_the_least_loss() -> None:
    stopping = told([3.0, 1.0, 2.0])
    for step, weight in ((10, 0.1), (20, 0.2), (30, 0.3)):
        assert not stopping.look(set_to(weight), step)
    assert (stopping.least, stopping.least_step, stopping.stopped_at) == (1.0, 20, None)
    assert stopping.best(torch.zeros(1))[0] == pytest.approx(0.2)


def test_stops_after_its_patience_and_not_before() -> None:
    stopping = told([2.0, 1.0, 1.5, 0.5, 0.6, 0.7])
    ends = [stopping.look(make_denoiser(), step) for step in range(10, 70, 10)]
    # One worse look at 30 is forgiven; at 50 and 60 there are two in a row.
    assert ends == [False, False, False, False, False, True]
    assert stopping.stopped_at == 60
    assert stopping.least_step == 40


def test_a_loss_that_is_nan_is_never_kept() -> None:
    stopping = told([math.nan, 1.0, math.nan], patience=5)
    for step in (10, 20, 30):
        stopping.look(set_to(step / 100), step)
    assert stopping.best(torch.zeros(1))[0] == pytest.approx(0.2)


def test_without_a_look_the_last_weights_are_the_best() -> None:
    last = torch.tensor([7.0])
    assert told([]).best(last) is last


def test_training_ends_early_and_returns_the_weights_it_kept() -> None:
    rows = torch.randn(100, 2, generator=generator(1))
    seen: list[float] = []

    def judge(denoiser: Preconditioner) -> float:
        seen.append(first_weight(denoiser))
        return [5.0, 1.0, 2.0, 3.0, 4.0][len(seen) - 1]

    stopping = EarlyStopping(judge, 10, 2)
    steps: list[int] = []
    average, loss = train_denoiser(
        make_denoiser(), rows, 100, CONFIG, generator(2), lambda step, _: steps.append(step), stopping
    )
    assert stopping.stopped_at == 40
    assert steps[-1] == 40
    assert first_weight(average) == seen[1] != seen[3]
    assert math.isfinite(loss)
    # The average moves between looks: it is not the same weights that are judged again and again.
    assert len(set(seen)) == 4


def test_looking_does_not_change_what_is_learned() -> None:
    rows = torch.randn(100, 2, generator=generator(1))
    plain, plain_loss = train_denoiser(make_denoiser(), rows, 60, CONFIG, generator(2))
    falling = iter(range(100, 0, -1))
    judged, judged_loss = train_denoiser(
        make_denoiser(), rows, 60, CONFIG, generator(2), None, EarlyStopping(lambda _: float(next(falling)), 10, 2)
    )
    assert judged_loss == plain_loss
    for left, right in zip(plain.parameters(), judged.parameters(), strict=True):
        assert torch.equal(left, right)
        assert right.untyped_storage().nbytes() == 4 * right.numel()
