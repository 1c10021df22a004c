import math
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from synther_buffers.diffusion.network import ResidualMLP
from synther_buffers.diffusion.preconditioning import Preconditioner
from synther_buffers.diffusion.training import (
    NonFiniteLossError,
    TrainingConfig,
    _schedule,
    evaluate_denoiser,
    train_denoiser,
)

CONFIG = TrainingConfig(batch_size=64, learning_rate=3e-3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_denoiser(seed: int = 0, dim: int = 2, width: int = 32) -> Preconditioner:
    network = ResidualMLP(dim, width=width, depth=2, embedding_dim=16, fourier_dim=8, generator=generator(seed))
    return Preconditioner(network)


MEAN, DEVIATION = torch.tensor([0.8, -0.5]), torch.tensor([0.5, 0.9])


def gaussian_rows(num_rows: int, seed: int = 0) -> Tensor:
    return MEAN + DEVIATION * torch.randn((num_rows, 2), generator=generator(seed))


def optimal_loss(config: TrainingConfig) -> float:
    """Of the exact denoiser of N(m, s^2): E over sigma of s^2 (1 + sigma^2) / (s^2 + sigma^2), by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    squares = np.exp(2 * (config.p_mean + config.p_std * nodes))[:, None]
    variance = DEVIATION.double().numpy() ** 2
    loss = (variance * (1 + squares) / (variance + squares)).mean(1)
    return float((weights * loss).sum() / weights.sum())


def weights_of(denoiser: Preconditioner) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in denoiser.parameters()])


def train(num_steps: int, config: TrainingConfig = CONFIG, seed: int = 0) -> tuple[Tensor, Tensor, float]:
    """Weights at the end, their moving average, and the loss."""
    denoiser = make_denoiser(seed)
    average, loss = train_denoiser(denoiser, gaussian_rows(500), num_steps, config, generator(seed + 1))
    return weights_of(denoiser), weights_of(average), loss


class TestLearning:
    @pytest.fixture(scope="class")
    def trained(self) -> tuple[Preconditioner, float]:
        config = TrainingConfig(batch_size=512, learning_rate=5e-3)
        return train_denoiser(make_denoiser(width=64), gaussian_rows(50_000), 600, config, generator())

    def test_approaches_the_optimal_loss_of_a_gaussian(self, trained: tuple[Preconditioner, float]) -> None:
        average, loss = trained
        optimal = optimal_loss(CONFIG)
        assert optimal < 0.85
        held_out = evaluate_denoiser(average, gaussian_rows(60_000, seed=9), CONFIG, generator(10))
        # 120,000 squares of normals that are weighted up to 1 have a standard error below 0.5 %.
        assert 0.98 * optimal < held_out < 1.03 * optimal
        # 60 batches of 512 rows of two columns.
        assert loss == pytest.approx(optimal, rel=0.05)

    def test_approaches_the_exact_denoiser(self, trained: tuple[Preconditioner, float]) -> None:
        average, _ = trained
        x = gaussian_rows(200, seed=3)
        for sigma in (0.1, 0.3, 1.0):
            noisy = x + sigma * torch.randn(x.shape, generator=generator(4))
            exact = MEAN + DEVIATION**2 / (DEVIATION**2 + sigma**2) * (noisy - MEAN)
            error = (average(noisy, torch.tensor([sigma])) - exact).square().mean().sqrt()
            # The posterior deviation is what is left to know.
            assert error < 0.15 * (DEVIATION * sigma / (DEVIATION**2 + sigma**2).sqrt()).mean()

    def test_a_single_constant_row(self) -> None:
        rows = torch.zeros(1, 2)
        average, loss = train_denoiser(make_denoiser(), rows, 300, CONFIG, generator())
        assert loss < 0.1
        assert evaluate_denoiser(average, rows, CONFIG, generator()) < 0.1

    def test_bfloat16_learns_too(self) -> None:
        *_, fine = train(300)
        *_, coarse = train(300, TrainingConfig(64, 3e-3, bfloat16=True))
        assert coarse == pytest.approx(fine, rel=0.03)
        assert fine < 0.95

    def test_nan_in_the_data_is_an_error(self) -> None:
        rows = gaussian_rows(100)
        rows[3, 1] = math.nan
        with pytest.raises(NonFiniteLossError, match=r"the training loss became nan within the first \d+ steps"):
            train_denoiser(make_denoiser(), rows, 100, CONFIG, generator())

    def test_infinity_in_the_data_is_an_error(self) -> None:
        rows = gaussian_rows(100)
        rows[3, 1] = math.inf
        with pytest.raises(NonFiniteLossError, match=r"the training loss became (nan|inf)"):
            train_denoiser(make_denoiser(), rows, 100, CONFIG, generator())

    def test_a_divergence_at_the_end_is_an_error_too(self) -> None:
        with pytest.raises(NonFiniteLossError):
            train_denoiser(make_denoiser(), torch.full((4, 2), 1e30), 1, CONFIG, generator())

    @pytest.mark.parametrize("seed", [0, 1])
    def test_gated_layers_stand_a_high_learning_rate_and_rows_far_out(self, seed: int) -> None:
        """Where these layers square what they get, one row's answer grows without limit and takes the weights along."""
        rows = torch.randn((4_000, 6), generator=generator())
        rows[::100] *= 4.0
        network = ResidualMLP(
            6, width=32, depth=6, embedding_dim=16, fourier_dim=8, activation="swiglu", generator=generator(seed)
        )
        config = TrainingConfig(64, learning_rate=3e-2, warmup_steps=40, p_std=0.8)
        _, loss = train_denoiser(Preconditioner(network), rows, 400, config, generator(seed))
        # Independent columns of unit variance leave nothing to learn below 1, but for the rows further out.
        assert loss < 1.1


class TestAverage:
    @pytest.mark.parametrize("decay", [0.995, 0.3])
    def test_by_hand(self, decay: float) -> None:
        """Progress is shown at every step of so short a training, when the weights are those that are averaged."""
        denoiser = make_denoiser()
        seen: list[Tensor] = []
        config = TrainingConfig(batch_size=16, learning_rate=1e-2, ema_decay=decay, ema_every=1)
        average, _ = train_denoiser(
            denoiser, gaussian_rows(100), 30, config, generator(), lambda *_: seen.append(weights_of(denoiser))
        )
        assert len(seen) == 30
        wanted = seen[0].double()
        for count, weights in enumerate(seen[1:], start=1):
            ramp = min(decay, (1 + count) / (10 + count))
            wanted = ramp * wanted + (1 - ramp) * weights.double()
        torch.testing.assert_close(weights_of(average).double(), wanted, atol=1e-6, rtol=1e-5)

    def test_a_short_training_is_not_an_average_of_its_first_weights(self) -> None:
        first = weights_of(make_denoiser())
        last, average, _ = train(300, TrainingConfig(batch_size=64, learning_rate=3e-3, ema_every=10))
        # With a decay of 0.995 from the start, 86 % would still be the weights after ten steps.
        assert (average - last).norm() < 0.2 * (last - first).norm()

    def test_fewer_steps_than_between_two_updates(self) -> None:
        last, average, _ = train(3, TrainingConfig(batch_size=16, learning_rate=1e-2, ema_every=10))
        assert torch.equal(last, average)

    def test_is_frozen_and_apart_from_the_trained_weights(self) -> None:
        denoiser = make_denoiser()
        average, _ = train_denoiser(denoiser, gaussian_rows(50), 20, CONFIG, generator())
        assert not any(parameter.requires_grad for parameter in average.parameters())
        # Each parameter has memory of its own, so that a saved one is no larger than it is.
        assert all(p.untyped_storage().nbytes() == 4 * p.numel() for p in average.parameters())
        before = weights_of(average).clone()
        train_denoiser(denoiser, gaussian_rows(50), 20, CONFIG, generator())
        assert torch.equal(weights_of(average), before)


class TestLoop:
    def test_progress_ends_with_the_last_step_and_the_recent_loss(self) -> None:
        seen: list[tuple[int, float]] = []
        _, loss = train_denoiser(
            make_denoiser(), gaussian_rows(100), 500, CONFIG, generator(), lambda *now: seen.append(now)
        )
        assert [step for step, _ in seen] == list(range(10, 501, 10))
        # The loss that is returned is the mean of the last tenth: the last five reports.
        assert loss == pytest.approx(np.mean([value for _, value in seen[-5:]]), rel=1e-5)

    def test_progress_where_steps_do_not_divide(self) -> None:
        seen: list[tuple[int, float]] = []
        train_denoiser(make_denoiser(), gaussian_rows(100), 107, CONFIG, generator(), lambda *now: seen.append(now))
        assert seen[-1][0] == 107
        # The last report covers a single step; a wrong divisor would halve it or worse.
        assert seen[-1][1] == pytest.approx(np.mean([value for _, value in seen[-10:]]), rel=0.5)

    def test_learning_rate_falls_to_nothing(self) -> None:
        denoiser = make_denoiser()
        seen: list[Tensor] = []
        config = TrainingConfig(batch_size=64, learning_rate=1e-2)
        train_denoiser(
            denoiser, gaussian_rows(100), 50, config, generator(), lambda *_: seen.append(weights_of(denoiser))
        )
        moves = [(after - before).abs().max().item() for before, after in pairwise(seen)]
        # The last step's rate is (1 + cos(pi 49 / 50)) / 2, a thousandth of the first one's.
        assert moves[-1] < 0.01 * max(moves)

    @pytest.mark.parametrize(("num_steps", "rise"), [(1_000, 100), (50, 5), (5, 1)])
    def test_learning_rate_rises_first_but_for_a_tenth_of_the_steps_at_most(self, num_steps: int, rise: int) -> None:
        cosine = [0.5 * (1 + math.cos(math.pi * index / num_steps)) for index in range(num_steps)]
        wanted = [min((index + 1) / rise, 1.0) * value for index, value in enumerate(cosine)]
        assert [_schedule(index, num_steps, 100) for index in range(num_steps)] == pytest.approx(wanted)

    def test_evaluation_is_reproducible_and_leaves_the_denoiser_alone(self) -> None:
        denoiser = make_denoiser()
        before = weights_of(denoiser).clone()
        first, second = (evaluate_denoiser(denoiser, gaussian_rows(100), CONFIG, generator(5)) for _ in range(2))
        assert first == second
        assert evaluate_denoiser(denoiser, gaussian_rows(100), CONFIG, generator(6)) != first
        assert torch.equal(weights_of(denoiser), before)
        assert all(parameter.grad is None for parameter in denoiser.parameters())


def global_state() -> tuple:
    return (
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        random.getstate(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.are_deterministic_algorithms_enabled(),
    )


class DefaultDtype(AbstractContextManager):
    def __enter__(self) -> None:
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(torch.float32)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager]] = {
    "none": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64 as default": DefaultDtype,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "disabled autocast": lambda: torch.autocast("cpu", enabled=False),
}


class TestBeingAGoodGuest:
    def test_same_seed_same_weights(self) -> None:
        first, second, other = train(20, seed=0), train(20, seed=0), train(20, seed=1)
        assert torch.equal(first[1], second[1])
        assert first[2] == second[2]
        assert not torch.equal(first[1], other[1])

    def test_global_streams_are_not_read(self) -> None:
        results = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            results.append(train(20)[1])
        assert torch.equal(*results)

    @pytest.mark.parametrize("bfloat16", [False, True])
    @pytest.mark.parametrize("surroundings", SURROUNDINGS.values(), ids=SURROUNDINGS)
    def test_surroundings_neither_matter_nor_change(
        self, surroundings: Callable[[], AbstractContextManager], bfloat16: bool
    ) -> None:
        config = TrainingConfig(batch_size=64, learning_rate=3e-3, bfloat16=bfloat16)
        rows = gaussian_rows(200)
        expected, loss = train_denoiser(make_denoiser(), rows, 60, config, generator())
        judged = evaluate_denoiser(expected, rows, config, generator())
        before = global_state()
        with surroundings():
            inside = global_state()
            denoiser = make_denoiser()
            average, found_loss = train_denoiser(denoiser, rows.clone(), 60, config, generator())
            found_judged = evaluate_denoiser(average, rows, config, generator())
            assert global_state() == inside
        assert global_state() == before
        assert torch.equal(weights_of(average), weights_of(expected))
        assert (found_loss, found_judged) == (loss, judged)
        # What was trained in there can be trained on out here, as a warm start does.
        train_denoiser(average.requires_grad_(True), rows, 5, config, generator())

    def test_rows_are_not_written_to(self) -> None:
        rows = gaussian_rows(100)
        before = rows.clone()
        train_denoiser(make_denoiser(), rows, 20, CONFIG, generator())
        assert torch.equal(rows, before)
