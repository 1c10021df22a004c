"""Known columns and relevance: in the network, in the loss, in a training step, and in the solvers in closed form."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from synther_buffers.diffusion.conditions import (
    ConditionalPreconditioner,
    ConditionDraws,
    ConditioningConfig,
    condition_dim,
    pack_condition,
    without_relevance,
)
from synther_buffers.diffusion.config import SamplerConfig
from synther_buffers.diffusion.edm import denoising_loss
from synther_buffers.diffusion.network import ResidualMLP
from synther_buffers.diffusion.sampling import RowSampler
from synther_buffers.diffusion.solvers import DPMSolver, HeunSolver

VALUES = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
FIRST = torch.tensor([True, False, False])


class Silent(nn.Module):
    """F = 0."""

    def forward(self, x: Tensor, c_noise: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)


# -- the tensor ------------------------------------------------------------------------------------------------------


def test_a_condition_by_hand() -> None:
    packed = pack_condition(VALUES, FIRST, torch.tensor([0.5, -1.0]))
    #                known values   which    relevance
    assert packed.tolist() == [[1, 0, 0, 1, 0, 0, 0.5, 1], [4, 0, 0, 1, 0, 0, -1, 1]]
    assert packed.shape == (2, condition_dim(3))
    assert without_relevance(packed).tolist() == [[1, 0, 0, 1, 0, 0, 0, 0], [4, 0, 0, 1, 0, 0, 0, 0]]
    assert packed[0, -1] == 1  # not changed in place
    each = torch.tensor([[True, False, False], [False, False, True]])
    assert pack_condition(VALUES, each).tolist() == [[1, 0, 0, 1, 0, 0, 0, 0], [0, 0, 6, 0, 0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("given_share", 1.5, ValueError),
        ("given_share", -0.1, ValueError),
        ("drop_relevance", 2.0, ValueError),
        ("guidance", -1.0, ValueError),
        ("guidance", float("nan"), ValueError),
        ("guidance", "2", TypeError),
    ],
)
def test_bad_settings_are_named(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"conditioning.{name}"):
        ConditioningConfig(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("given_share", 1.0), ("drop_relevance", 0.0)])
def test_shares_that_leave_no_rows_without_a_condition_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"conditioning\.{name} is {value}; .* learned without .* held-out loss"):
        ConditioningConfig(**{name: value})


# -- network and loss ------------------------------------------------------------------------------------------------


def make_network(dim: int = 3, conditional: bool = True) -> ResidualMLP:
    return ResidualMLP(
        dim,
        width=16,
        depth=2,
        embedding_dim=8,
        fourier_dim=4,
        activation="swiglu",
        condition_dim=condition_dim(dim) if conditional else 0,
        generator=torch.Generator().manual_seed(0),
    )


def test_zeros_are_no_condition_and_the_other_weights_are_those_without_an_input_for_one() -> None:
    plain, conditional = make_network(conditional=False), make_network()
    noise = torch.tensor([0.3])
    expected = plain(VALUES, noise)
    assert torch.equal(conditional(VALUES, noise), expected)
    assert torch.equal(conditional(VALUES, noise, torch.zeros(2, 8)), expected)
    assert not torch.equal(conditional(VALUES, noise, pack_condition(VALUES, FIRST)), expected)
    assert set(conditional.state_dict()) - set(plain.state_dict()) == {"condition_in.weight"}


def test_known_columns_come_back_and_have_no_part_in_the_loss() -> None:
    denoiser = ConditionalPreconditioner(Silent())
    condition = pack_condition(VALUES, FIRST)
    # A silent network: D(x, 1) = x / 2 where nothing is known.
    x = torch.full((2, 3), 8.0)
    assert denoiser(x, torch.ones(1), condition).tolist() == [[1, 4, 4], [4, 4, 4]]
    assert denoiser(x, torch.ones(1)).tolist() == [[4, 4, 4], [4, 4, 4]]
    # At sigma 1 the weight is 2; the errors are (clean + noise) / 2 - clean in the two unknown columns of three.
    noise = torch.ones(2, 3)
    loss = denoising_loss(denoiser, VALUES, noise, torch.ones(2), condition)
    errors = [((c + 1) / 2 - c) ** 2 for c in (2, 3, 5, 6)]
    assert loss.item() == pytest.approx(2 * sum(errors) / 6)


# -- training --------------------------------------------------------------------------------------------------------


def test_a_training_step_hides_the_shares_it_should() -> None:
    rows = torch.arange(1.0, 41.0)[:, None].expand(40, 2)
    known = torch.tensor([[True, False], [True, True]])
    draws = ConditionDraws(known, torch.tensor([0.2, 0.5]), torch.arange(40.0), 0.25)
    index = torch.arange(40).repeat(1_000)
    condition = draws.draw(index, rows[index], torch.Generator().manual_seed(0))
    which, has = condition[:, 2:4], condition[:, 5]
    assert torch.equal(condition[:, :2], rows[index] * which)
    assert torch.equal(condition[:, 4], index * has)
    shares = [float((which == torch.tensor(pattern)).all(1).float().mean()) for pattern in ((1.0, 0), (1, 1), (0, 0))]
    # Four standard errors of a share of 40,000.
    assert shares == pytest.approx([0.2, 0.3, 0.5], abs=4 * 0.5 / 200)
    assert float(has.mean()) == pytest.approx(0.75, abs=4 * 0.5 / 200)
    # The two are drawn apart: the relevance is told as often whatever is known.
    assert float(has[which[:, 0] > 0].mean()) == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize(("bounds", "pattern"), [((0.0, 0.0), [0, 0]), ((0.0, 1.0), [1, 1]), ((1.0, 1.0), [1, 0])])
def test_shares_of_nothing_and_of_all(bounds: tuple[float, float], pattern: list[float]) -> None:
    draws = ConditionDraws(torch.tensor([[True, False], [True, True]]), torch.tensor(bounds), None, 0.25)
    condition = draws.draw(torch.arange(500), torch.ones(500, 2), torch.Generator().manual_seed(1))
    assert condition[:, 2:4].unique(dim=0).tolist() == [pattern]
    assert not condition[:, 4:].any()


# -- solvers with an exact denoiser ----------------------------------------------------------------------------------

#: x0 ~ N(0, 1), x1 = 0.8 x0 + 0.6 n, and the relevance is x1. Mean and variance of the other given one are known.
RHO = 0.8


class Exact(nn.Module):
    """D of the rows above: given x0, given the relevance x1 (if asked for), or given nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Identity()

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        variance = sigma**2
        covariance = torch.tensor([[1.0, RHO], [RHO, 1.0]])
        # Of nothing known: the posterior mean C (C + sigma^2 I)^-1 x.
        free = x @ torch.linalg.inv(covariance + variance * torch.eye(2)) @ covariance
        if condition is None:
            return free
        rest = 1 - RHO**2
        mean = RHO * condition[:, 0]
        known = torch.stack((condition[:, 0], mean + rest / (rest + variance) * (x[:, 1] - mean)), dim=1)
        about = condition[:, 4]
        told = torch.stack((RHO * about + rest / (rest + variance) * (x[:, 0] - RHO * about), about), dim=1)
        return torch.where(condition[:, 2:3] > 0, known, torch.where(condition[:, 5:6] > 0, told, free))


SOLVERS = {
    "heun": HeunSolver(num_steps=64, s_churn=0.0),
    "heun with noise": HeunSolver(num_steps=64, s_churn=40.0, s_noise=1.0),
    "dpm": DPMSolver(num_steps=64, sigma_min=0.01, sigma_max=40.0, rho=100.0),
}


def draw(solver: str, condition: Tensor | None, count: int = 20_000, guidance: float = 1.0) -> Tensor:
    config, far = SamplerConfig(SOLVERS[solver], block_rows=4_096), torch.full((2,), 100.0)
    sampler = RowSampler(Exact(), config, num_rows=count, low=-far, high=far, sigma_max=config.solver.sigma_max, seed=3)
    return sampler.draw(0, count, None, condition, guidance)


@pytest.mark.parametrize("solver", SOLVERS)
class TestConditionalsOfAGaussian:
    @pytest.mark.parametrize("given", [0.0, 1.5, -2.0])
    def test_given_a_column(self, solver: str, given: float) -> None:
        values = torch.tensor([[given, 0.0]]).expand(20_000, 2)
        rows = draw(solver, pack_condition(values, torch.tensor([True, False])))
        torch.testing.assert_close(rows[:, 0], values[:, 0], atol=1e-4, rtol=1e-4)
        assert float(rows[:, 1].mean()) == pytest.approx(RHO * given, abs=0.05)
        assert float(rows[:, 1].std()) == pytest.approx(0.6, rel=0.05)

    @pytest.mark.parametrize("relevance", [0.0, 2.0])
    def test_given_a_relevance(self, solver: str, relevance: float) -> None:
        nothing = torch.zeros(2, dtype=torch.bool)
        condition = pack_condition(torch.zeros(20_000, 2), nothing, torch.full((20_000,), relevance))
        rows = draw(solver, condition)
        assert float(rows[:, 0].mean()) == pytest.approx(RHO * relevance, abs=0.05)
        assert float(rows[:, 0].std()) == pytest.approx(0.6, rel=0.05)

    def test_each_row_has_its_own_condition(self, solver: str) -> None:
        values = torch.linspace(-2, 2, 20_000)[:, None].expand(20_000, 2)
        rows = draw(solver, pack_condition(values, torch.tensor([True, False])))
        rest = rows[:, 1] - RHO * values[:, 0]
        assert abs(float(torch.corrcoef(torch.stack((rest, values[:, 0])))[0, 1])) < 0.04
        assert float(rest.std()) == pytest.approx(0.6, rel=0.05)

    def test_a_condition_of_which_nothing_is_known_is_none(self, solver: str) -> None:
        nothing = pack_condition(torch.zeros(3_000, 2), torch.zeros(2, dtype=torch.bool))
        assert torch.equal(draw(solver, nothing, 3_000), draw(solver, None, 3_000))


def test_guidance_follows_its_own_equation() -> None:
    """The deterministic solver moves a Gaussian linearly, so its mean can be integrated apart, in small steps.

    Column 0 given the relevance c has D = rho c + a (x - rho c) with a = v / (v + s^2), v = 1 - rho^2.
    """
    relevance, guidance = 1.0, 2.0
    count = 20_000
    nothing = torch.zeros(2, dtype=torch.bool)
    condition = pack_condition(torch.zeros(count, 2), nothing, torch.full((count,), relevance))
    solver = SOLVERS["heun"]
    # Every evaluation guided, as in this closed form; the sampler corrects by unguided ones.
    levels = solver.noise_levels()
    x = levels[0] * torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    exact = Exact()

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        of_any = exact(x, sigma)
        return of_any + guidance * (exact(x, sigma, condition) - of_any)

    rows = solver.solve(guided, x, levels, lambda: torch.zeros_like(x))
    mean = torch.zeros(1, 2, dtype=torch.float64)
    fine = torch.exp(torch.linspace(math.log(80.0), math.log(0.002), 20_001, dtype=torch.float64))
    covariance = torch.tensor([[1.0, RHO], [RHO, 1.0]], dtype=torch.float64)
    rest = 1 - RHO**2
    for high, low in pairwise(fine):
        free = mean @ torch.linalg.inv(covariance + high**2 * torch.eye(2, dtype=torch.float64)) @ covariance
        about = RHO * relevance
        told = torch.stack((about + rest / (rest + high**2) * (mean[:, 0] - about), torch.tensor([relevance])), dim=1)
        denoised = free + guidance * (told - free)
        mean = mean + (low - high) * (mean - denoised) / high
    assert rows.mean(0).tolist() == pytest.approx(mean[0].tolist(), abs=0.03)
    # It does push: further than rows of this relevance lie.
    assert float(mean[0, 0]) > RHO * relevance + 0.1


def test_only_the_first_evaluation_of_a_step_is_guided() -> None:
    seen: list[str] = []

    def record(name: str):
        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            seen.append(name)
            return torch.zeros_like(x)

        return denoiser

    solver = HeunSolver(num_steps=3, s_churn=0.0)
    solver.solve(record("D"), torch.ones(1, 1), solver.noise_levels(), lambda: torch.zeros(1, 1), None, record("C"))
    assert seen == ["D", "C", "D", "C", "D"]
    seen.clear()
    DPMSolver(num_steps=3).solve(
        record("D"), torch.ones(1, 1), [2.0, 1.0, 0.5, 0.0], lambda: torch.zeros(1, 1), None, record("C")
    )
    assert seen == ["D", "D", "D"]
