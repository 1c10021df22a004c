"""The denoiser as samplers call it, against the module."""

import gc
import weakref

import pytest
import torch

from synther_buffers.diffusion.evaluation import Evaluation
from synther_buffers.diffusion.network import Activation, ResidualMLP
from synther_buffers.diffusion.preconditioning import Preconditioner

X = torch.randn((7, 5), generator=torch.Generator().manual_seed(1))
FAR = torch.full((5,), 1e9)
each_activation = pytest.mark.parametrize("activation", ["relu", "swiglu"])


def make_denoiser(activation: Activation, sigma_data: float = 0.5) -> Preconditioner:
    network = ResidualMLP(
        5, width=24, depth=3, embedding_dim=12, fourier_dim=8, activation=activation,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return Preconditioner(network, sigma_data).requires_grad_(False)


@each_activation
@pytest.mark.parametrize("sigma", [0.01, 0.7, 50.0])
def test_it_is_the_modules_answer(activation: Activation, sigma: float) -> None:
    denoiser, level = make_denoiser(activation), torch.tensor([sigma])
    torch.testing.assert_close(Evaluation(denoiser, 7, -FAR, FAR, bfloat16=False)(X, level), denoiser(X, level))


@each_activation
def test_a_later_call_leaves_an_earlier_answer_alone(activation: Activation) -> None:
    """The multistep solver keeps the last one."""
    denoiser = make_denoiser(activation)
    evaluation = Evaluation(denoiser, 7, -FAR, FAR, bfloat16=False)
    first = evaluation(X, torch.tensor([1.0]))
    evaluation(2.0 * X, torch.tensor([0.1]))
    torch.testing.assert_close(first, denoiser(X, torch.tensor([1.0])))


@each_activation
def test_bfloat16_rounds_the_network_only(activation: Activation) -> None:
    """At a low level nearly all of the answer is the row itself, which must keep its bits."""
    denoiser, level = make_denoiser(activation), torch.tensor([0.01])
    rounded, exact = Evaluation(denoiser, 7, -FAR, FAR, bfloat16=True)(X, level), denoiser(X, level)
    assert not torch.equal(rounded, exact)
    # c_out is 0.01 here; the network's error is a hundredth of its answers, which are below 3.
    assert (rounded - exact).abs().max() < 0.01 * 0.01 * 3


def test_answers_leave_the_range_of_the_data_by_a_quarter_of_its_width_at_most() -> None:
    denoiser, level = make_denoiser("swiglu"), torch.tensor([0.7])
    low, high = torch.tensor([-0.1, -3.0, 0.0, -0.3, 0.0]), torch.tensor([0.0, 3.0, 0.0, 0.3, 0.1])
    found = Evaluation(denoiser, 7, low, high, bfloat16=False)(X, level)
    widest = torch.tensor([[-0.125, -4.5, 0.0, -0.45, -0.025], [0.025, 4.5, 0.0, 0.45, 0.125]])
    wanted = denoiser(X, level)
    torch.testing.assert_close(found, wanted.clamp(*widest))
    assert not torch.allclose(found, wanted)


def test_the_weights_are_those_of_the_moment_it_was_made() -> None:
    denoiser = make_denoiser("swiglu")
    rows = [Evaluation(denoiser, 7, -FAR, FAR, bfloat16=True)(X, torch.tensor([0.3])) for _ in range(2)]
    assert torch.equal(*rows)


def test_its_buffers_go_with_it() -> None:
    """Without waiting for the garbage collector: on a GPU they are hundreds of megabytes."""
    evaluation = Evaluation(make_denoiser("swiglu"), 7, -FAR, FAR, bfloat16=False)
    evaluation(X, torch.tensor([0.3]))
    gone = weakref.ref(evaluation)
    gc.disable()
    try:
        del evaluation
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_replayed_as_a_cuda_graph_the_answers_are_the_same() -> None:
    denoiser = make_denoiser("swiglu").cuda()
    evaluation = Evaluation(denoiser, 7, -FAR.cuda(), FAR.cuda(), bfloat16=False)
    for sigma in (5.0, 1.0, 0.5, 0.3, 0.2, 0.1):
        level = torch.tensor([sigma], device="cuda")
        torch.testing.assert_close(evaluation(X.cuda(), level), denoiser(X.cuda(), level), atol=1e-5, rtol=1e-4)
    assert evaluation._evaluate is not None
    assert evaluation._evaluate.graph is not None
