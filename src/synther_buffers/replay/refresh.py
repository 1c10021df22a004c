"""One refresh as a function of plain data, with the same result in this process and in any other."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..console import is_seen, log_line
from ..evaluation.copies import ClosestRecord, closest_record
from ..evaluation.fidelity import Fidelity, measure_fidelity
from ..evaluation.outcome_gap import outcome_gap
from ..evaluation.points import MAX_ROWS
from ..guidance.drawing import GuidedDraw, rows_drawn
from ..transitions import Transitions, TransitionSpec
from ..upsampling.condition import Condition
from ..upsampling.cost import expected_seconds
from ..upsampling.diffusion_upsampler import DiffusionUpsampler
from ..upsampling.factory import make_upsampler
from ..upsampling.presets import resolve_device
from ..upsampling.protocol import FitReport, Upsampler, UpsamplerFactory
from ..upsampling.seeds import derive_seed
from .reports import RefreshReport
from .upsampler_checks import checked_config, checked_fit, checked_rows, checked_state

logger = logging.getLogger(__name__)

#: With fewer held-out rows than this the fidelity is not measured.
_MIN_HELD_OUT = 20
#: Rows of each set whose closest training row is searched, which takes most of the time that the report does.
_CLOSEST_ROWS = 2_000


@dataclass(frozen=True)
class RefreshJob:
    """All that a refresh depends on. It can be pickled and run anywhere.

    Attributes:
        spec: the fields of a transition.
        factory: makes the upsampler, with its configuration resolved.
        device: where it trains.
        seed: of the upsampler.
        progress_bar: show one on terminals.
        state: of the last upsampler, None to start afresh.
        train: real rows to learn.
        held_out: real rows to judge by.
        num_synthetic: rows to generate.
        num_threads: that PyTorch computes with on the CPU; another number rounds differently.
        refresh: number of this refresh, from 1.
        num_observed: real transitions written so far.
        num_dropped: real rows left out because they are not finite.
        guided: how rows are chosen by their relevance, None for rows like the data.
    """

    spec: TransitionSpec
    factory: UpsamplerFactory
    device: str
    seed: int
    progress_bar: bool
    state: dict[str, Any] | None
    train: Transitions
    held_out: Transitions
    num_synthetic: int
    num_threads: int
    refresh: int
    num_observed: int
    num_dropped: int
    guided: GuidedDraw | None = None


@dataclass(frozen=True)
class RefreshResult:
    """What a refresh made.

    Attributes:
        spec: the fields of a transition.
        rows: the new synthetic set.
        state: of the upsampler that drew it.
        config: of that upsampler, plain data.
        report: what was done.
    """

    spec: TransitionSpec
    rows: Transitions
    state: dict[str, Any]
    config: dict[str, Any]
    report: RefreshReport


def log_start(job: RefreshJob, last: RefreshReport | None) -> None:
    """Say that a refresh starts, and what it will take by the last one or, where the line is seen, by a measurement."""
    expected = ""
    if last is not None:
        expected = f"; the last one took {last.seconds:.0f} s"
    elif is_seen(logger, shown=job.progress_bar):
        try:
            device = resolve_device(job.device)
            drawn = job.num_synthetic if job.guided is None else rows_drawn(job.num_synthetic, job.guided.by)
            seconds = expected_seconds(job.factory, job.spec, job.train, drawn, device)
        except Exception:  # whatever it is, an estimate is not worth a refresh
            logger.debug("The time of a refresh could not be estimated.", exc_info=True)
        else:
            expected = "" if seconds is None else f", which takes about {seconds:.0f} s here"
    log_line(
        logger, "Synthetic refresh at %s real transitions: learning %s rows%s.",
        f"{job.num_observed:,}", f"{len(job.train):,}", expected, shown=job.progress_bar,
    )  # fmt: skip


def log_hand_over(job: RefreshJob, serve_from: int | None, *, shown: bool) -> None:
    """Say that a refresh was started elsewhere, and when it serves."""
    when = "as soon as it is done" if serve_from is None else f"from {serve_from:,} on"
    log_line(
        logger, "Synthetic refresh at %s real transitions: %s rows are learned beside the agent, to serve %s.",
        f"{job.num_observed:,}", f"{len(job.train):,}", when, shown=shown,
    )  # fmt: skip


def run_refresh(job: RefreshJob) -> RefreshResult:
    """Learn the rows and draw a synthetic set.

    The result depends only on the job: the same job on the same kind of device and the same library versions gives the
    same bits. Errors of the upsampler are not caught.

    Raises:
        TypeError: the upsampler's `fit` returned no `FitReport` of numbers, its `sample` no `Transitions` of tensors,
            its `state_dict` or its `config` no plain data.
        ValueError: the upsampler drew another number of rows than asked for, or rows that are not legal.
    """
    start = time.perf_counter()
    # Gradients and inference tensors of the caller's context must not reach the upsampler's training.
    with torch.inference_mode(False), torch.enable_grad(), _threads(job.num_threads):
        upsampler = make_upsampler(
            job.factory, job.spec, device=job.device, seed=job.seed, progress_bar=job.progress_bar, state=job.state
        )
        fit = checked_fit(upsampler, _fit(job, upsampler))
        fitted = time.perf_counter()
        rows = _draw(job, upsampler)
        sampled = time.perf_counter()
        fidelity, fidelity_real = _fidelity(job, rows)
        closest = _closest(job, rows)
        gap = _outcome_gap(job, rows)
        state, config = checked_state(upsampler), checked_config(upsampler)
    report = RefreshReport(
        refresh=job.refresh,
        num_observed=job.num_observed,
        num_real=len(job.train),
        num_held_out=len(job.held_out),
        num_dropped=job.num_dropped,
        num_synthetic=len(rows),
        fit=fit,
        fit_seconds=fitted - start,
        sample_seconds=sampled - fitted,
        seconds=time.perf_counter() - start,
        fidelity=fidelity,
        fidelity_real=fidelity_real,
        closest=closest,
        outcome_gap=gap,
        guidance="" if job.guided is None else job.guided.name,
    )
    return RefreshResult(job.spec, rows, state, config, report)


def _fit(job: RefreshJob, upsampler: Upsampler) -> FitReport:
    if job.guided is None:
        return upsampler.fit(job.train, held_out=job.held_out)
    return job.guided.fit(upsampler, job.train, job.held_out)


def _draw(job: RefreshJob, upsampler: Upsampler) -> Transitions:
    """The synthetic set; every draw of the upsampler is checked."""

    def draw(num_rows: int, condition: Condition | None = None) -> Transitions:
        if condition is not None and isinstance(upsampler, DiffusionUpsampler):
            rows = upsampler.sample(num_rows, condition=condition)
        else:
            rows = upsampler.sample(num_rows)
        return checked_rows(upsampler, rows, job.spec, num_rows)

    if job.guided is None:
        return draw(job.num_synthetic)
    seed = derive_seed(job.seed, "guidance", job.refresh)
    return job.guided.rows(draw, job.train, job.spec, job.num_synthetic, seed)


def _fidelity(job: RefreshJob, synthetic: Transitions) -> tuple[Fidelity, Fidelity]:
    """Synthetic and, for comparison, real training rows, each against the held-out rows."""
    if len(job.held_out) < _MIN_HELD_OUT:
        nothing = Fidelity(math.nan, math.nan, "", math.nan)
        return nothing, nothing
    # The same number of each, so that the two figures can be compared.
    generator = torch.Generator().manual_seed(job.seed)
    count = min(len(job.train), len(synthetic), MAX_ROWS)

    def against_held_out(rows: Transitions) -> Fidelity:
        index = torch.randint(len(rows), (count,), generator=generator, device="cpu")
        return measure_fidelity(job.held_out, rows[index.to(rows.device)], job.spec)

    return against_held_out(synthetic), against_held_out(job.train)


def _closest(job: RefreshJob, synthetic: Transitions) -> ClosestRecord | None:
    """Whether the synthetic rows are new."""
    if len(job.held_out) < _MIN_HELD_OUT:
        return None
    # In units of the rows learned: of the few held-out ones, some columns may hold no rare large value.
    return closest_record(
        job.held_out, synthetic, job.train, job.spec, seed=job.seed, max_rows=_CLOSEST_ROWS, units=job.train
    )


def _outcome_gap(job: RefreshJob, synthetic: Transitions) -> float:
    """Whether their outcomes belong to them."""
    if len(job.held_out) < _MIN_HELD_OUT:
        return math.nan
    return outcome_gap(job.held_out, synthetic, job.train, job.spec, seed=job.seed % 2**63)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads inside."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
