import logging
import math
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from synther_buffers.diffusion import training
from synther_buffers.diffusion.config import TrainingConfig
from synther_buffers.diffusion.cuda_graph import eager
from synther_buffers.diffusion.edm import Preconditioner, denoising_loss, draw_sigma
from synther_buffers.diffusion.network import Activation, ResidualMLP
from synther_buffers.diffusion.training import (
    NonFiniteLossError,
    TrainingStep,
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


def train(num_steps: int, config: TrainingConfig = CONFIG, seed: int = 0) -> tuple[Tensor, float]:
    """The moving average of the weights, and the loss."""
    average, loss = train_denoiser(make_denoiser(seed), gaussian_rows(500), num_steps, config, generator(seed + 1))
    return weights_of(average), loss


def weights_after_each_step(num_steps: int, config: TrainingConfig) -> list[Tensor]:
    """What `train` averages."""
    step = TrainingStep(make_denoiser(), gaussian_rows(500), config, generator(1))
    weights = []
    for index in range(num_steps):
        step.learning_rate.fill_(config.learning_rate * _schedule(index, num_steps, config.warmup_steps))
        step()
        weights.append(step.weights.detach().clone())
    return weights


# -- one step --------------------------------------------------------------------------------------------------------

ROWS = torch.randn((50, 5), generator=generator(1))
P_MEAN, P_STD, BATCH = -0.7, 0.9, 32
STEP_CONFIG = TrainingConfig(BATCH, learning_rate=1.0, p_mean=P_MEAN, p_std=P_STD, weight_decay=0.1, max_grad_norm=1e9)


def make_wide(activation: Activation = "swiglu") -> Preconditioner:
    network = ResidualMLP(
        5, width=24, depth=3, embedding_dim=12, fourier_dim=8, activation=activation, generator=generator()
    )
    return Preconditioner(network, 0.5)


def draw(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The minibatch, noise and levels of a step, by the order in which it draws them."""
    index = torch.randint(len(ROWS), (BATCH,), generator=generator)
    noise = torch.randn((BATCH, 5), generator=generator)
    return ROWS[index], noise, draw_sigma(BATCH, P_MEAN, P_STD, generator)


class TestStep:
    @pytest.mark.parametrize("activation", ["relu", "swiglu"])
    @pytest.mark.parametrize("max_grad_norm", [1e9, 0.05])
    def test_steps_are_those_of_plain_pytorch(self, activation: Activation, max_grad_norm: float) -> None:
        """Four steps with changing rates; the smaller norm is exceeded at every one of them."""
        reference, noise = make_wide(activation), generator(2)
        optimizer = torch.optim.AdamW(reference.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.1)
        step = TrainingStep(
            make_wide(activation), ROWS, replace(STEP_CONFIG, max_grad_norm=max_grad_norm), generator(2)
        )
        for rate in (1e-3, 5e-3, 2e-3, 1e-2):
            optimizer.zero_grad()
            loss = denoising_loss(reference, *draw(noise))
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), max_grad_norm)
            assert 0.05 < norm < 1e9
            gradient = torch.cat([parameter.grad.flatten() for parameter in reference.parameters()])
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            step.learning_rate.fill_(rate)
            step()
            torch.testing.assert_close(step.loss, loss.detach())
            torch.testing.assert_close(step.gradient, gradient, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(step.weights.detach(), weights_of(reference), atol=2e-6, rtol=1e-4)

    def test_bfloat16_rounds_the_network_only(self) -> None:
        exact, rounded = (
            TrainingStep(make_wide(), ROWS, replace(STEP_CONFIG, bfloat16=bfloat16), generator(2))
            for bfloat16 in (False, True)
        )
        for step in (exact, rounded):
            step.learning_rate.fill_(1e-3)
            step()
        assert rounded.gradient.dtype == rounded.weights.dtype == torch.float32
        # Eight bits of mantissa: each gradient to about a hundredth of their size.
        assert (rounded.gradient - exact.gradient).norm() < 0.02 * exact.gradient.norm()
        assert not torch.equal(rounded.gradient, exact.gradient)

    def test_weights_that_the_loss_does_not_use_stay_as_they_are(self) -> None:
        """Those of a condition, for instance, where none is given."""
        denoiser = make_wide()
        denoiser.network.unused = torch.nn.Linear(3, 3)
        step = TrainingStep(denoiser, ROWS, replace(STEP_CONFIG, weight_decay=0.0), generator(2))
        step.learning_rate.fill_(1e-3)
        step()
        before = weights_of(denoiser)
        assert torch.equal(step.weights.detach()[-12:], before[-12:])
        assert not torch.isclose(step.weights.detach()[:-12], before[:-12], atol=1e-6).all()


@pytest.mark.cuda
class TestOnCuda:
    @pytest.mark.parametrize("bfloat16", [False, True])
    @pytest.mark.parametrize("dropout", [0.0, 0.25])
    def test_replayed_as_a_graph_the_steps_are_the_same(self, bfloat16: bool, dropout: float) -> None:
        config = replace(STEP_CONFIG, bfloat16=bfloat16, max_grad_norm=1.0, dropout=dropout)
        weights, losses, draws = [], [], []
        for surroundings in (eager, nullcontext):
            noise = torch.Generator("cuda").manual_seed(2)
            step = TrainingStep(make_wide().cuda(), ROWS.cuda(), config, noise)
            with surroundings():
                for index in range(20):
                    step.learning_rate.fill_(1e-3 / (1 + index))
                    step()
            assert (step._graph.graph is not None) == (surroundings is nullcontext)
            weights.append(step.weights.detach().cpu())
            losses.append(step.loss.item())
            draws.append(torch.rand(4, generator=noise, device="cuda").cpu())
        torch.testing.assert_close(*weights, atol=1e-3 if bfloat16 else 1e-5, rtol=1e-3)
        assert losses[0] == pytest.approx(losses[1], rel=1e-2 if bfloat16 else 1e-4)
        # As many numbers were drawn, so that what follows is the same too.
        assert torch.equal(*draws)

    def test_a_whole_training_is_the_same(self) -> None:
        rows, results = gaussian_rows(500).cuda(), []
        for surroundings in (eager, nullcontext):
            noise = torch.Generator("cuda").manual_seed(1)
            with surroundings():
                average, loss = train_denoiser(make_denoiser().cuda(), rows, 200, CONFIG, noise)
            results.append((weights_of(average).cpu(), loss))
        torch.testing.assert_close(results[0][0], results[1][0], atol=2e-3, rtol=1e-2)
        assert results[0][1] == pytest.approx(results[1][1], rel=1e-3)

    # The failed capture's exception keeps its autograd graph, and so the stream of its nodes, alive.
    @pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match")
    def test_where_it_cannot_be_captured_training_goes_on_directly_and_the_next_one_captures(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        rows = gaussian_rows(500).cuda()

        def train_once() -> tuple[Tensor, float]:
            noise = torch.Generator("cuda").manual_seed(1)
            average, loss = train_denoiser(make_denoiser().cuda(), rows, 50, CONFIG, noise)
            return weights_of(average).cpu(), loss

        with eager():
            expected, loss = train_once()
        clip = training.clip_grad_norm_
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(training, "clip_grad_norm_", lambda *args, **kwargs: clip(*args, **kwargs).item())
            found, found_loss = train_once()
        assert [record.message.split(" as a graph")[0] for record in caplog.records] == [
            "CUDA cannot capture the training step"
        ]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
        assert found_loss == pytest.approx(loss, rel=1e-4)
        caplog.clear()
        found, _ = train_once()
        assert not caplog.records
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-2)


# -- the loop --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> tuple[Preconditioner, float]:
    config = TrainingConfig(batch_size=512, learning_rate=5e-3)
    return train_denoiser(make_denoiser(width=64), gaussian_rows(50_000), 600, config, generator())


class TestLearning:
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
        _, fine = train(300)
        _, coarse = train(300, TrainingConfig(64, 3e-3, bfloat16=True))
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
        config = TrainingConfig(batch_size=16, learning_rate=1e-2, ema_decay=decay, ema_every=1)
        seen = weights_after_each_step(30, config)
        wanted = seen[0].double()
        for count, weights in enumerate(seen[1:], start=1):
            ramp = min(decay, (1 + count) / (10 + count))
            wanted = ramp * wanted + (1 - ramp) * weights.double()
        torch.testing.assert_close(train(30, config)[0].double(), wanted, atol=1e-6, rtol=1e-5)

    def test_a_short_training_is_not_an_average_of_its_first_weights(self) -> None:
        first, config = weights_of(make_denoiser()), TrainingConfig(batch_size=64, learning_rate=3e-3, ema_every=10)
        last, average = weights_after_each_step(300, config)[-1], train(300, config)[0]
        # With a decay of 0.995 from the start, 86 % would still be the weights after ten steps.
        assert (average - last).norm() < 0.2 * (last - first).norm()

    def test_fewer_steps_than_between_two_updates(self) -> None:
        config = TrainingConfig(batch_size=16, learning_rate=1e-2, ema_every=10)
        assert torch.equal(weights_after_each_step(3, config)[-1], train(3, config)[0])

    def test_is_frozen_and_apart_from_the_trained_weights(self) -> None:
        denoiser = make_denoiser()
        average, _ = train_denoiser(denoiser, gaussian_rows(50), 20, CONFIG, generator())
        assert not any(parameter.requires_grad for parameter in average.parameters())
        # Each parameter has memory of its own, so that a saved one is no larger than it is.
        assert all(p.untyped_storage().nbytes() == 4 * p.numel() for p in average.parameters())
        # And the denoiser that training began with is as it was.
        assert torch.equal(weights_of(denoiser), weights_of(make_denoiser()))
        assert all(parameter.requires_grad for parameter in denoiser.parameters())


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
        seen = weights_after_each_step(50, TrainingConfig(batch_size=64, learning_rate=1e-2))
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

    @pytest.mark.parametrize("num_rows", [1, 100, 10_000, 70_000])
    def test_evaluation_in_blocks_by_hand(self, num_rows: int) -> None:
        """The mean over 4,096 rows at a time: few rows again and again, of many the first 65,536."""
        denoiser, rows, noise, losses = make_denoiser(), gaussian_rows(num_rows), generator(5), []
        count = min(4_096 // num_rows * num_rows or num_rows, 65_536)
        for part in rows.repeat(4_096 // num_rows or 1, 1)[:count].split(4_096):
            normal = torch.randn(part.shape, generator=noise)
            sigma = draw_sigma(len(part), CONFIG.p_mean, CONFIG.p_std, noise)
            losses += [denoising_loss(denoiser, part, normal, sigma).item()] * len(part)
        assert len(losses) == count
        assert evaluate_denoiser(denoiser, rows, CONFIG, generator(5)) == pytest.approx(np.mean(losses), rel=1e-6)


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
        assert torch.equal(first[0], second[0])
        assert first[1] == second[1]
        assert not torch.equal(first[0], other[0])

    def test_global_streams_are_not_read(self) -> None:
        results = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            results.append(train(20)[0])
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
        train_denoiser(average, rows, 5, config, generator())

    def test_rows_are_not_written_to(self) -> None:
        rows = gaussian_rows(100)
        before = rows.clone()
        train_denoiser(make_denoiser(), rows, 20, CONFIG, generator())
        assert torch.equal(rows, before)
