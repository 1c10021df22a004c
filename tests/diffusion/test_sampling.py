"""Rows from a trained denoiser: in blocks, clamped, in the precision that serves."""

import gc
import logging
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from synther_buffers.diffusion import cuda_graph, sampling
from synther_buffers.diffusion.config import SamplerConfig
from synther_buffers.diffusion.edm import Preconditioner
from synther_buffers.diffusion.network import Activation, ResidualMLP
from synther_buffers.diffusion.sampling import SLAB_ROWS, BlockDenoiser, RowSampler, row_noise
from synther_buffers.diffusion.solvers import DPMSolver, HeunSolver, Solver

X = torch.randn((7, 5), generator=torch.Generator().manual_seed(1))
FAR = torch.full((5,), 1e9)
each_activation = pytest.mark.parametrize("activation", ["relu", "swiglu"])
each_solver = pytest.mark.parametrize("solver", [DPMSolver(5), HeunSolver(3)], ids=["dpm", "heun"])


def make_denoiser(activation: Activation, sigma_data: float = 0.5) -> Preconditioner:
    network = ResidualMLP(
        5, width=24, depth=3, embedding_dim=12, fourier_dim=8, activation=activation,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return Preconditioner(network, sigma_data).requires_grad_(False)


def make_blocks(
    denoiser: Preconditioner, low: Tensor = -FAR, high: Tensor = FAR, bfloat16: bool = False
) -> BlockDenoiser:
    return BlockDenoiser(denoiser, 7, low, high, bfloat16=bfloat16, capture=True)


class TestBlockDenoiser:
    @each_activation
    @pytest.mark.parametrize("sigma", [0.01, 0.7, 50.0])
    def test_it_is_the_modules_answer(self, activation: Activation, sigma: float) -> None:
        denoiser, level = make_denoiser(activation), torch.tensor([sigma])
        torch.testing.assert_close(make_blocks(denoiser)(X, level), denoiser(X, level))

    def test_fewer_rows_than_a_block(self) -> None:
        denoiser, level = make_denoiser("swiglu"), torch.tensor([0.7])
        torch.testing.assert_close(make_blocks(denoiser)(X[:3], level), denoiser(X[:3], level))

    def test_a_later_call_leaves_an_earlier_answer_alone(self) -> None:
        """The multistep solver keeps the last one."""
        denoiser = make_denoiser("swiglu")
        blocks = make_blocks(denoiser)
        first = blocks(X, torch.tensor([1.0]))
        blocks(2.0 * X, torch.tensor([0.1]))
        torch.testing.assert_close(first, denoiser(X, torch.tensor([1.0])))

    @each_activation
    def test_bfloat16_rounds_the_network_only(self, activation: Activation) -> None:
        """At a low level nearly all of the answer is the row itself, which must keep its bits."""
        denoiser, level = make_denoiser(activation), torch.tensor([0.01])
        rounded, exact = make_blocks(denoiser, bfloat16=True)(X, level), denoiser(X, level)
        assert not torch.equal(rounded, exact)
        # c_out is 0.01 here; the network's error is a hundredth of its answers, which are below 3.
        assert (rounded - exact).abs().max() < 0.01 * 0.01 * 3
        assert denoiser.network.out.weight.dtype == torch.float32

    def test_answers_leave_the_range_of_the_data_by_a_quarter_of_its_width_at_most(self) -> None:
        denoiser, level = make_denoiser("swiglu"), torch.tensor([0.7])
        low, high = torch.tensor([-0.1, -3.0, 0.0, -0.3, 0.0]), torch.tensor([0.0, 3.0, 0.0, 0.3, 0.1])
        found = make_blocks(denoiser, low, high)(X, level)
        widest = torch.tensor([[-0.125, -4.5, 0.0, -0.45, -0.025], [0.025, 4.5, 0.0, 0.45, 0.125]])
        wanted = denoiser(X, level)
        torch.testing.assert_close(found, wanted.clamp(*widest))
        assert not torch.allclose(found, wanted)

    def test_the_weights_are_those_of_the_moment_it_was_made(self) -> None:
        denoiser, level = make_denoiser("swiglu"), torch.tensor([0.3])
        blocks, wanted = make_blocks(denoiser), denoiser(X, level)
        for parameter in denoiser.parameters():
            parameter.data.zero_()
        torch.testing.assert_close(blocks(X, level), wanted)

    def test_its_memory_goes_with_it(self) -> None:
        """Without waiting for the garbage collector: on a GPU it is hundreds of megabytes."""
        blocks = make_blocks(make_denoiser("swiglu"))
        blocks(X, torch.tensor([0.3]))
        gone = weakref.ref(blocks)
        gc.disable()
        try:
            del blocks
            assert gone() is None
        finally:
            gc.enable()


class TestNoise:
    def test_it_belongs_to_the_rows(self) -> None:
        """Slabs two and three, drawn together and apart, and the first hundred rows of the third."""
        shape = torch.empty(2 * SLAB_ROWS, 5)
        together = row_noise(3, 2 * SLAB_ROWS, shape)
        apart = [row_noise(3, start, shape[:SLAB_ROWS]) for start in (2 * SLAB_ROWS, 3 * SLAB_ROWS)]
        few = row_noise(3, 3 * SLAB_ROWS, shape[:100])
        for _ in range(3):
            noise = together()
            assert torch.equal(noise, torch.cat([part() for part in apart]))
            assert torch.equal(noise[SLAB_ROWS:][:100], few())

    def test_no_slab_call_or_seed_has_anothers(self) -> None:
        shape = torch.empty(2 * SLAB_ROWS, 5)
        first, second = row_noise(0, 0, shape), row_noise(1, 0, shape)
        slabs = [*first().split(SLAB_ROWS), *first().split(SLAB_ROWS), *second().split(SLAB_ROWS)]
        correlations = torch.stack([slab.flatten() for slab in slabs]).corrcoef() - torch.eye(6)
        # Five standard errors of a correlation of 10,240 pairs.
        assert correlations.abs().max() < 5 / (5 * SLAB_ROWS) ** 0.5

    def test_it_is_standard_normal(self) -> None:
        noise = row_noise(0, 0, torch.empty(20 * SLAB_ROWS, 5))()
        assert noise.mean().abs() < 5 / noise.numel() ** 0.5
        assert noise.var().item() == pytest.approx(1.0, abs=5 * (2 / noise.numel()) ** 0.5)


class Shrink(nn.Module):
    """A raw network that works row by row, so that blocks of any size round alike."""

    def forward(self, x: Tensor, c_noise: Tensor, condition: Tensor | None = None) -> Tensor:
        return (0.3 * x).tanh() + 0.1 * c_noise[:, None]


def make_sampler(
    solver: Solver, num_rows: int, network: nn.Module, block_rows: int | None = None, seed: int = 0
) -> RowSampler:
    return RowSampler(
        Preconditioner(network),
        SamplerConfig(solver, block_rows=block_rows),
        num_rows=num_rows, low=-FAR, high=FAR, sigma_max=20.0, seed=seed,
    )  # fmt: skip


NUM_ROWS = 3 * SLAB_ROWS + 100


@each_solver
class TestRows:
    def test_they_do_not_depend_on_the_size_of_the_blocks(self, solver: Solver) -> None:
        whole = make_sampler(solver, NUM_ROWS, Shrink(), 10 * SLAB_ROWS).draw(0, NUM_ROWS)
        assert whole.shape == (NUM_ROWS, 5)
        for block_rows in (1, 2 * SLAB_ROWS, None):
            assert torch.equal(make_sampler(solver, NUM_ROWS, Shrink(), block_rows).draw(0, NUM_ROWS), whole)

    def test_nor_do_a_networks_but_for_rounding(self, solver: Solver) -> None:
        network = make_denoiser("swiglu").network
        whole, blocks = (
            make_sampler(solver, NUM_ROWS, network, block_rows).draw(0, NUM_ROWS) for block_rows in (NUM_ROWS, None)
        )
        torch.testing.assert_close(blocks, whole, atol=1e-4, rtol=1e-4)

    def test_nor_on_where_a_call_begins_and_ends(self, solver: Solver) -> None:
        whole = make_sampler(solver, NUM_ROWS, Shrink()).draw(0, NUM_ROWS)
        parts = make_sampler(solver, NUM_ROWS, Shrink())
        later = parts.draw(2 * SLAB_ROWS, SLAB_ROWS + 100)
        assert torch.equal(torch.cat([parts.draw(0, 2 * SLAB_ROWS), later]), whole)
        assert torch.equal(make_sampler(solver, 50, Shrink()).draw(0, 50), whole[:50])

    def test_they_depend_on_the_seed_and_on_nothing_global(self, solver: Solver) -> None:
        before = torch.get_rng_state()
        first, second, other = (make_sampler(solver, 50, Shrink(), seed=seed).draw(0, 50) for seed in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(first, second)
        assert not torch.isclose(first, other).any()

    def test_a_block_that_does_not_fit_is_drawn_in_halves(
        self, solver: Solver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A network that fits no more than one and a half slabs, and runs out of memory half-way down the levels."""
        whole = make_sampler(solver, 4 * SLAB_ROWS, Shrink()).draw(0, 4 * SLAB_ROWS)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        network = Shrink()
        network.register_forward_pre_hook(out_of_memory_above(1.5 * SLAB_ROWS))
        with caplog.at_level(logging.WARNING):
            found = make_sampler(solver, 4 * SLAB_ROWS, network, 4 * SLAB_ROWS).draw(0, 4 * SLAB_ROWS)
        assert torch.equal(found, whole)
        assert [record.message[-30:] for record in caplog.records] == [
            f"goes on with blocks of {rows} rows."[-30:] for rows in (2 * SLAB_ROWS, SLAB_ROWS)
        ]

    def test_where_one_slab_does_not_fit_it_is_an_error(self, solver: Solver) -> None:
        network = Shrink()
        network.register_forward_pre_hook(out_of_memory_above(100))
        with pytest.raises(torch.cuda.OutOfMemoryError):
            make_sampler(solver, 200, network).draw(0, 200)

    @pytest.mark.parametrize(("start", "count"), [(5, 10), (0, 201), (-SLAB_ROWS, 10), (0, -1)])
    def test_rows_that_are_not_there(self, solver: Solver, start: int, count: int) -> None:
        with pytest.raises(
            ValueError, match=rf"start={start} and count={count}; wanted a multiple of 2048 and at most 200"
        ):
            make_sampler(solver, 200, Shrink()).draw(start, count)

    def test_no_rows(self, solver: Solver) -> None:
        assert make_sampler(solver, 0, Shrink()).draw(0, 0).shape == (0, 5)


def out_of_memory_above(num_rows: float) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that fails where a block has more rows, below noise level 1."""

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        x, c_noise = args[:2]
        if len(x) > num_rows and c_noise.item() < 0.0:
            raise torch.cuda.OutOfMemoryError("out of memory, for a test")

    return hook


@pytest.mark.cuda
class TestOnCuda:
    def test_replayed_as_a_graph_the_answers_are_the_same(self) -> None:
        denoiser = make_denoiser("swiglu").cuda()
        blocks = BlockDenoiser(denoiser, 7, -FAR.cuda(), FAR.cuda(), bfloat16=False, capture=True)
        for sigma in (5.0, 1.0, 0.5, 0.3, 0.2, 0.1):
            level = torch.tensor([sigma], device="cuda")
            torch.testing.assert_close(blocks(X.cuda(), level), denoiser(X.cuda(), level), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(blocks(X[:3].cuda(), level), denoiser(X[:3].cuda(), level), atol=1e-5, rtol=1e-4)
        assert blocks._graph is not None
        assert blocks._graph.graph is not None

    @each_solver
    def test_rows_are_the_same_with_and_without_a_graph_and_in_blocks_of_any_size(
        self, solver: Solver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sampling, "_EVALUATIONS_TO_CAPTURE", 10)

        def rows(block_rows: int) -> tuple[Tensor, bool]:
            sampler = RowSampler(
                make_denoiser("swiglu").cuda(), SamplerConfig(solver, block_rows=block_rows),
                num_rows=NUM_ROWS, low=-FAR.cuda(), high=FAR.cuda(), sigma_max=20.0, seed=0,
            )  # fmt: skip
            drawn = sampler.draw(0, NUM_ROWS)
            assert sampler._blocks is not None
            return drawn, sampler._blocks._graph is not None and sampler._blocks._graph.graph is not None

        small, graphed = rows(SLAB_ROWS)
        assert graphed
        with cuda_graph.eager():
            for block_rows in (SLAB_ROWS, NUM_ROWS):
                found, graphed = rows(block_rows)
                assert not graphed
                torch.testing.assert_close(found, small, atol=1e-3, rtol=1e-3)
