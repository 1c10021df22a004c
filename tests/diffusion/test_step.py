"""The written-out gradient step against autograd."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from synther_buffers.diffusion.loss import denoising_loss, draw_sigma
from synther_buffers.diffusion.network import Activation, ResidualMLP
from synther_buffers.diffusion.preconditioning import Preconditioner
from synther_buffers.diffusion.step import GradientStep
from synther_buffers.diffusion.training import TrainingConfig

ROWS = torch.randn((50, 5), generator=torch.Generator().manual_seed(1))
P_MEAN, P_STD, BATCH = -0.7, 0.9, 32
CONFIG = TrainingConfig(BATCH, learning_rate=0.0, p_mean=P_MEAN, p_std=P_STD, betas=(0.9, 0.99), weight_decay=0.1)


def make_denoiser(activation: Activation, depth: int = 3, sigma_data: float = 0.5) -> Preconditioner:
    network = ResidualMLP(
        5, width=24, depth=depth, embedding_dim=12, fourier_dim=8, activation=activation,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return Preconditioner(network, sigma_data)


def make_step(denoiser: Preconditioner, max_grad_norm: float = 1e9, bfloat16: bool = False) -> GradientStep:
    config = replace(CONFIG, max_grad_norm=max_grad_norm, bfloat16=bfloat16)
    return GradientStep(denoiser, ROWS, config, torch.Generator().manual_seed(2))


def draw(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The minibatch, noise and levels of a step, by the order in which it draws them."""
    index = torch.randint(len(ROWS), (BATCH,), generator=generator)
    noise = torch.empty(BATCH, 5).normal_(generator=generator)
    return ROWS[index], noise, draw_sigma(BATCH, P_MEAN, P_STD, generator)


def flat_gradient(denoiser: Preconditioner) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in denoiser.parameters()])  # type: ignore[union-attr]


@pytest.mark.parametrize(("activation", "depth"), itertools.product(["relu", "swiglu"], [1, 3]))
def test_loss_and_every_gradient_are_autograds(activation: Activation, depth: int) -> None:
    reference = make_denoiser(activation, depth)
    loss = denoising_loss(reference, *draw(torch.Generator().manual_seed(2)))
    loss.backward()

    step = make_step(make_denoiser(activation, depth))
    step()

    torch.testing.assert_close(step.loss, loss.detach())
    torch.testing.assert_close(step.gradient, flat_gradient(reference), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("max_grad_norm", [1e9, 0.05])
def test_steps_are_those_of_autograd_clipping_and_adamw(max_grad_norm: float) -> None:
    """Four steps with changing rates; the smaller norm is exceeded at every one of them."""
    reference, generator = make_denoiser("swiglu"), torch.Generator().manual_seed(2)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.1)
    denoiser = make_denoiser("swiglu")
    step = make_step(denoiser, max_grad_norm)
    for rate in (1e-3, 5e-3, 2e-3, 1e-2):
        optimizer.zero_grad()
        denoising_loss(reference, *draw(generator)).backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), max_grad_norm)
        assert 0.05 < norm < 1e9
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        step.learning_rate.fill_(rate)
        step()
    for trained, wanted in zip(denoiser.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(trained, wanted, atol=2e-6, rtol=1e-4)


def test_bfloat16_rounds_the_network_only() -> None:
    exact, rounded = make_step(make_denoiser("swiglu")), make_step(make_denoiser("swiglu"), bfloat16=True)
    for step in (exact, rounded):
        step.learning_rate.fill_(1e-3)
        step()
    assert rounded.gradient.dtype == rounded.weights.dtype == torch.float32
    # Eight bits of mantissa: each gradient to about a hundredth of their size.
    assert (rounded.gradient - exact.gradient).norm() < 0.02 * exact.gradient.norm()
    assert not torch.equal(rounded.gradient, exact.gradient)


def test_a_step_allocates_no_new_weights() -> None:
    denoiser = make_denoiser("relu")
    step = make_step(denoiser)
    addresses = {parameter.data_ptr() for parameter in denoiser.parameters()}
    step()
    assert {parameter.data_ptr() for parameter in denoiser.parameters()} == addresses
    assert step.weights.data_ptr() in addresses


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_replayed_as_a_cuda_graph_the_steps_are_the_same() -> None:
    weights = []
    for graphed in (False, True):
        denoiser = make_denoiser("swiglu").cuda()
        step = GradientStep(denoiser, ROWS.cuda(), CONFIG, torch.Generator("cuda").manual_seed(2))
        step.learning_rate.fill_(1e-3)
        for _ in range(20):
            step() if graphed else step._step()
        assert (step._take.graph is not None) == graphed
        weights.append(step.weights.cpu())
    torch.testing.assert_close(*weights, atol=1e-5, rtol=1e-4)
