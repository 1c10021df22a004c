import math

import pytest
import torch
import torch.nn.functional as F

from synther_buffers.diffusion.config import TrainingConfig
from synther_buffers.diffusion.edm import Preconditioner
from synther_buffers.diffusion.network import Dropout, ResidualMLP, linear, noise_features
from synther_buffers.diffusion.training import train_denoiser


def make_network(seed: int = 0, dim: int = 3, fourier_dim: int = 8) -> ResidualMLP:
    generator = torch.Generator().manual_seed(seed)
    return ResidualMLP(dim, width=16, depth=2, embedding_dim=12, fourier_dim=fourier_dim, generator=generator)


X = torch.linspace(-1.0, 1.0, 12).reshape(4, 3)
NOISE = torch.tensor([-1.0, -0.3, 0.2, 0.9])


def test_number_of_weights_by_hand() -> None:
    # Noise 9 -> 12 -> 12, row 3 -> 12, then 12 -> 16, two of 16 -> 16, 16 -> 3; each with its bias.
    wanted = (9 * 12 + 12) + (12 * 12 + 12) + (3 * 12 + 12) + (12 * 16 + 16) + 2 * (16 * 16 + 16) + (16 * 3 + 3)
    assert sum(parameter.numel() for parameter in make_network().parameters()) == wanted


def test_forward_by_hand() -> None:
    network = make_network()
    phase = NOISE[:, None] * network.frequencies
    level = network.noise_out(F.silu(network.noise_in(torch.cat((NOISE[:, None], phase.sin(), phase.cos()), 1))))
    h = network.widen(network.row_in(X) + level)
    h = h + network.layers[0](h.relu())
    h = h + network.layers[1](h.relu())
    torch.testing.assert_close(network(X, NOISE), network.out(h.relu()))


def test_gated_layers_by_hand() -> None:
    network = ResidualMLP(
        3, width=16, depth=1, embedding_dim=12, fourier_dim=8, activation="swiglu",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    level = network.noise_out(F.silu(network.noise_in(noise_features(NOISE, network.frequencies))))
    h = network.widen(network.row_in(X) + level)
    layer = network.layers[0]
    u, v = layer.up.weight.split(16)
    centred = h - h.mean(1, keepdim=True)
    n = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    gate, value = n @ u.T + layer.up.bias[:16], n @ v.T + layer.up.bias[16:]
    h = h + (gate * gate.sigmoid() * value) @ layer.down.weight.T + layer.down.bias
    torch.testing.assert_close(network(X, NOISE), network.out(h * h.sigmoid()))


def test_far_from_the_data_gated_answers_grow_with_the_distance_alone() -> None:
    """Eight layers that square what they get would take a thousand to a number with 700 digits."""
    network = ResidualMLP(
        3, width=16, depth=8, embedding_dim=12, fourier_dim=8, activation="swiglu",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    near, far = network(10.0 * X, NOISE), network(10_000.0 * X, NOISE)
    assert far.abs().max() < 1_100.0 * near.abs().max()


def test_one_level_for_all_rows_or_one_for_each() -> None:
    network = make_network()
    torch.testing.assert_close(network(X, torch.tensor([0.2])), network(X, torch.full((4,), 0.2)))


def test_noise_level_matters() -> None:
    network = make_network()
    assert (network(X, torch.tensor([0.2])) - network(X, torch.tensor([-1.0]))).abs().max() > 1e-3


def test_rows_do_not_see_each_other() -> None:
    network = make_network()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(network(X[order], NOISE[order]), network(X, NOISE)[order])


@pytest.mark.parametrize("fourier_dim", [2, 3, 16])
def test_any_number_of_fourier_features(fourier_dim: int) -> None:
    network = make_network(fourier_dim=fourier_dim)
    assert network.frequencies.shape == (fourier_dim // 2,)
    assert network(X, NOISE).shape == (4, 3)


def test_weights_come_from_the_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = make_network(seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    second, third = make_network(seed=5), make_network(seed=6)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
        assert not torch.equal(tensor, third.state_dict()[name])


def test_linear_is_initialised_as_torchs_own() -> None:
    layer = linear(400, 300, torch.Generator().manual_seed(0), "cpu")
    bound = 1.0 / math.sqrt(400)
    weight = layer.weight.detach()
    assert 0.99 * bound < weight.abs().max() <= bound
    # A uniform distribution on [-b, b] has the variance b^2 / 3.
    assert weight.var().item() == pytest.approx(bound**2 / 3, rel=0.02)
    assert weight.mean().abs() < 4 * bound / math.sqrt(3 * 120_000)
    assert 0.9 * bound < layer.bias.detach().abs().max() <= bound


def test_default_dtype_does_not_matter() -> None:
    expected = make_network().state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        found = make_network().state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in expected.items()
    )


def test_made_in_inference_mode_it_can_still_be_trained_and_loaded() -> None:
    with torch.inference_mode():
        network = make_network()
    network(X, NOISE).sum().backward()
    assert network.row_in.weight.grad.abs().sum() > 0
    network.load_state_dict(make_network(seed=1).state_dict())


def test_bfloat16_weights_give_nearly_the_same_answer() -> None:
    network, coarse = make_network(), make_network().to(torch.bfloat16)
    # The noise level's phases need more than eight bits.
    coarse.frequencies = network.frequencies
    torch.testing.assert_close(coarse(X, NOISE).float(), network(X, NOISE), atol=0.02, rtol=0.05)


def test_a_network_without_an_input_for_a_condition_takes_none() -> None:
    network = make_network()
    assert torch.equal(network(X, NOISE, None), network(X, NOISE))
    assert torch.equal(network(X, NOISE, condition=None), network(X, NOISE))
    with pytest.raises(ValueError, match="condition is given"):
        network(X, NOISE, torch.zeros(4, 2))


class TestDropout:
    def test_passes_values_through_until_it_is_started(self) -> None:
        x = torch.ones(4, 5)
        assert Dropout()(x) is x

    @pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
    def test_drops_its_share_and_keeps_the_mean(self, share: float) -> None:
        dropout = Dropout()
        dropout.start(share, torch.Generator().manual_seed(0))
        dropped = dropout(torch.ones(1_000, 192))
        assert float((dropped == 0).double().mean()) == pytest.approx(share, abs=0.005)
        assert float(dropped.double().mean()) == pytest.approx(1.0, abs=0.02)
        assert len(dropped.unique()) == 2

    def test_every_unit_is_dropped_as_often_as_any_other(self) -> None:
        dropout = Dropout()
        dropout.start(0.5, torch.Generator().manual_seed(0))
        # Eight neighbours share a random number: none of its bytes may be special.
        shares = (dropout(torch.ones(20_000, 16)) == 0).double().mean(0)
        assert float((shares - 0.5).abs().max()) < 0.02

    def test_draws_from_its_own_stream(self) -> None:
        before = torch.get_rng_state()
        dropout = Dropout()
        dropout.start(0.5, torch.Generator().manual_seed(3))
        first = dropout(torch.ones(7, 3))
        assert torch.equal(torch.get_rng_state(), before)
        dropout.start(0.5, torch.Generator().manual_seed(3))
        assert torch.equal(dropout(torch.ones(7, 3)), first)
        assert not torch.equal(dropout(torch.ones(7, 3)), first)

    def test_a_network_drops_in_training_only(self) -> None:
        rows = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
        for activation in ("relu", "swiglu"):
            network = ResidualMLP(
                3, width=16, depth=2, embedding_dim=8, fourier_dim=4, activation=activation,
                generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
            denoiser = Preconditioner(network).requires_grad_(False)
            losses = []
            for share in (0.0, 0.5):
                config = TrainingConfig(batch_size=32, learning_rate=1e-3, dropout=share)
                average, loss = train_denoiser(denoiser, rows, 5, config, torch.Generator().manual_seed(2))
                losses.append(loss)
                sigma = torch.ones(64)
                assert torch.equal(average(rows, sigma), average(rows, sigma))
            assert losses[0] != losses[1]
