"""Drawing rows from a trained denoiser: in blocks, within the data's range, in float32 or bfloat16."""

from __future__ import annotations

import copy
import logging
import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .conditions import without_relevance
from .config import SamplerConfig
from .cuda_graph import CudaGraph
from .edm import Preconditioner
from .solvers import Noise, Watch

logger = logging.getLogger(__name__)

#: Rows whose noise comes from one generator. Every block is a whole number of slabs, so that a row's noise depends only
#: on the seed and on its index in the draw.
SLAB_ROWS = 2_048
#: Rows of a block by default. On a CPU the activations of this many rows fit into the cache; a GPU needs more rows for
#: full utilisation.
_BLOCK_ROWS, _BLOCK_ROWS_CUDA = 2_048, 65_536
#: With fewer evaluations no CUDA graph is captured: a capture waits for the device and empties PyTorch's cache, which
#: costs more time than the graph saves.
_EVALUATIONS_TO_CAPTURE = 100


def sampling_limits(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The limits of sampled rows: the range of the data's columns, ``[D]`` each, widened by a quarter at both ends."""
    slack = 0.25 * (high - low)
    return low - slack, high + slack


class BlockDenoiser:
    """``D(x, sigma)`` for up to `num_rows` rows at one noise level, clamped to the range of the data.

    The exact D is a mean of data rows, so it lies within their range. A network can leave that range where it has seen
    no data, and then each step of the solver moves the row further out: without the clamp one row in many thousands
    diverges. The limits are wider than the data, so that clamped rows do not accumulate at its largest value.

    Args:
        denoiser: D; its weights are copied.
        num_rows: of a block at most.
        low, high: range of the data's columns, ``[D]``; D may leave it by a quarter of its width.
        bfloat16: run the network in bfloat16; everything outside it stays float32.
        capture: evaluate through a CUDA graph, on CUDA.
    """

    def __init__(
        self, denoiser: Preconditioner, num_rows: int, low: Tensor, high: Tensor, *, bfloat16: bool, capture: bool
    ) -> None:
        self.num_rows = num_rows
        self._denoiser = copy.deepcopy(denoiser).requires_grad_(False)
        if bfloat16:
            for parameter in self._denoiser.network.parameters():  # buffers keep their precision
                parameter.data = parameter.data.to(torch.bfloat16)
        self._low, self._high = sampling_limits(low, high)
        self._graph = CudaGraph(low.device, "sampler's evaluation") if capture and low.is_cuda else None
        if self._graph is not None:
            self._x = torch.zeros((num_rows, len(low)), device=low.device, dtype=torch.float32)
            self._sigma = torch.ones(1, device=low.device, dtype=torch.float32)
            self._denoised = torch.zeros_like(self._x)

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None, guidance: float = 1.0) -> Tensor:
        """The expected clean rows, ``[n, D]``, given noisy ones.

        Args:
            x: ``[n, D]`` float32.
            sigma: ``[1]``.
            condition: ``[n, 2 D + 2]``, see `diffusion.conditions`; such evaluations use no graph.
            guidance: w in ``D + w (D(relevance) - D)``, with D for any relevance (Ho and Salimans 2022, equation 6,
                whose w is this one less 1).
        """
        if condition is not None:
            return self._evaluate_under(x, sigma, condition, guidance)
        if self._graph is None:
            return self._evaluate(x, sigma)
        # A graph has one shape; rows beyond n are computed and ignored.
        self._x[: len(x)].copy_(x)
        self._sigma.copy_(sigma)
        self._graph(self._evaluate_buffers)
        return self._denoised[: len(x)].clone()

    def _evaluate(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self._denoiser(x, sigma).clamp_(self._low, self._high)

    def _evaluate_under(self, x: Tensor, sigma: Tensor, condition: Tensor, guidance: float) -> Tensor:
        denoised = self._denoiser(x, sigma, condition)
        if guidance != 1.0:
            of_any = self._denoiser(x, sigma, without_relevance(condition))
            denoised = of_any + guidance * (denoised - of_any)
        return denoised.clamp_(self._low, self._high)

    def _evaluate_buffers(self) -> None:
        self._denoised.copy_(self._evaluate(self._x, self._sigma))


class RowSampler:
    """Draws the rows of one request, ``[num_rows, D]``.

    A row depends on the seed and on its index; the size of the blocks changes only rounding. A block that does not fit
    into a GPU's memory can therefore be drawn again in two halves.

    Args:
        denoiser: D, trained.
        config: solver, precision, rows of a block.
        num_rows: of the request, all calls of `draw` together.
        low, high: range of the data's columns, ``[D]`` float32, on the device where rows are drawn.
        sigma_max: the noise level to start from.
        seed: of all noise.
    """

    def __init__(
        self,
        denoiser: Preconditioner,
        config: SamplerConfig,
        *,
        num_rows: int,
        low: Tensor,
        high: Tensor,
        sigma_max: float,
        seed: int,
    ) -> None:
        self.num_rows, self.seed = num_rows, seed
        self._denoiser, self._config = denoiser, config
        self._low, self._high = low, high
        self._sigmas = config.solver.noise_levels(sigma_max)
        most = config.block_rows or (_BLOCK_ROWS_CUDA if low.is_cuda else _BLOCK_ROWS)
        # Blocks of nearly equal size, because a graph computes a whole block even if the last one has few rows.
        num_blocks = max(math.ceil(num_rows / most), 1)
        self._use_blocks_of(max(math.ceil(num_rows / num_blocks), 1))

    @torch.no_grad()
    def draw(
        self,
        start: int,
        count: int,
        watch: Watch | None = None,
        condition: Tensor | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Rows `start` to ``start + count`` of the request, ``[count, D]`` float32.

        Args:
            start: a multiple of `SLAB_ROWS`.
            count: rows.
            watch: called with the rows of each block at every noise level.
            condition: of these rows, ``[count, 2 D + 2]``, see `diffusion.conditions`; None for none.
            guidance: towards the relevance in it, see `BlockDenoiser`; 1 evaluates once instead of twice.

        Raises:
            ValueError: rows that are not part of the request, or do not begin with a slab.
        """
        if start % SLAB_ROWS or start < 0 or count < 0 or start + count > self.num_rows:
            raise ValueError(
                f"start={start} and count={count}; wanted a multiple of {SLAB_ROWS} and at most {self.num_rows} rows."
            )
        out = torch.empty((count, len(self._low)), device=self._low.device, dtype=torch.float32)
        done = 0
        with torch.autocast(out.device.type, enabled=False):
            while done < count:
                part = slice(done, done + self.block_rows)
                block, under = out[part], None if condition is None else condition[part]
                if self._draw_block(start + done, block, watch, under, guidance):
                    done += len(block)
                else:
                    self._halve_blocks()
        return out

    def _draw_block(
        self, start: int, out: Tensor, watch: Watch | None, condition: Tensor | None, guidance: float
    ) -> bool:
        """Fill `out`; return False if the GPU ran out of memory and a smaller block may fit."""
        try:
            noise = row_noise(self.seed, start, out)
            x = self._sigmas[0] * noise()
            denoiser = partial(self._evaluate, condition=condition, guidance=guidance)
            # Only the first evaluation of a step is guided, as published (Wang et al. 2025).
            corrector = partial(self._evaluate, condition=condition)
            out.copy_(self._config.solver.solve(denoiser, x, self._sigmas, noise, watch, corrector))
        except torch.cuda.OutOfMemoryError:
            if self.block_rows <= SLAB_ROWS or watch is not None:  # `watch` must not get the same rows twice
                raise
            return False
        return True

    def _halve_blocks(self) -> None:
        self._use_blocks_of(self.block_rows // 2)
        torch.cuda.empty_cache()
        logger.warning(
            "The GPU's memory is too small for the sampler's blocks; it goes on with blocks of %d rows.",
            self.block_rows,
        )

    def _use_blocks_of(self, num_rows: int) -> None:
        """Use blocks of this many rows from now on, rounded up to whole slabs."""
        self.block_rows = math.ceil(num_rows / SLAB_ROWS) * SLAB_ROWS
        self._blocks: BlockDenoiser | None = None

    def _evaluate(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None, guidance: float = 1.0) -> Tensor:
        if self._blocks is None:
            evaluations = math.ceil(self.num_rows / self.block_rows) * self._config.solver.num_function_evaluations
            self._blocks = BlockDenoiser(
                self._denoiser,
                self.block_rows,
                self._low,
                self._high,
                bfloat16=self._config.bfloat16,
                capture=evaluations >= _EVALUATIONS_TO_CAPTURE,
            )
        return self._blocks(x, sigma, condition, guidance)


def row_noise(seed: int, start: int, rows: Tensor) -> Noise:
    """Standard normal noise for consecutive rows of a draw; it does not depend on the division into blocks.

    Args:
        seed: of the draw.
        start: index of the first row, a multiple of `SLAB_ROWS`.
        rows: a float32 tensor ``[n, D]`` on the device; its values do not matter.

    Returns:
        A function that returns new noise ``[n, D]`` at each call.
    """
    first, count = start // SLAB_ROWS, math.ceil(len(rows) / SLAB_ROWS)
    generators = []
    for slab in range(first, first + count):
        state = np.random.SeedSequence([seed, slab]).generate_state(1, np.uint64)
        generators.append(torch.Generator(rows.device).manual_seed(int(state[0] >> np.uint64(1))))

    def noise() -> Tensor:
        slabs = torch.empty((count * SLAB_ROWS, rows.shape[1]), device=rows.device, dtype=torch.float32)
        for part, generator in zip(slabs.split(SLAB_ROWS), generators, strict=True):
            part.normal_(generator=generator)
        return slabs[: len(rows)]

    return noise
