"""One refresh as a function of plain data, with the same result in this process and in any other."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..evaluation.copies import ClosestRecord, closest_record
from ..evaluation.fidelity import MAX_ROWS, Fidelity, measure_fidelity
from ..transitions import Transitions, TransitionSpec
from ..upsampling.factory import make_upsampler
from ..upsampling.protocol import FitReport, UpsamplerFactory
from .reports import RefreshReport
from .rows import finite_rows

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


def run_refresh(job: RefreshJob) -> RefreshResult:
    """Learn the rows and draw a synthetic set.

    The result depends only on the job: the same job on the same kind of device and the same library versions gives the
    same bits. Errors of the upsampler are not caught.

    Raises:
        TypeError: the upsampler's `fit` returned no `FitReport`, or its `sample` no `Transitions`.
        ValueError: the upsampler drew another number of rows than asked for, or rows that are not legal.
    """
    start = time.perf_counter()
    # Gradients and inference tensors of the caller's context must not reach the upsampler's training.
    with torch.inference_mode(False), torch.enable_grad(), _threads(job.num_threads):
        upsampler = make_upsampler(
            job.factory, job.spec, device=job.device, seed=job.seed, progress_bar=job.progress_bar
        )
        if job.state is not None:
            upsampler.load_state_dict(job.state)
        fit: Any = upsampler.fit(job.train, held_out=job.held_out)
        if not isinstance(fit, FitReport):
            raise TypeError(f"{type(upsampler).__name__}.fit returned {fit!r}; wanted a FitReport.")
        fitted = time.perf_counter()
        rows = _draw(upsampler, job)
        sampled = time.perf_counter()
        fidelity, fidelity_real = _fidelity(job, rows)
        closest = _closest(job, rows)
        state, config = upsampler.state_dict(), dict(upsampler.config)
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
    )
    return RefreshResult(job.spec, rows, state, config, report)


def _draw(upsampler: Any, job: RefreshJob) -> Transitions:
    """The new synthetic set, checked."""
    rows = upsampler.sample(job.num_synthetic)
    if not isinstance(rows, Transitions):
        raise TypeError(f"{type(upsampler).__name__}.sample returned {type(rows).__name__}; wanted Transitions.")
    job.spec.check(rows)
    if len(rows) != job.num_synthetic:
        raise ValueError(f"the upsampler was asked for {job.num_synthetic} rows and gave {len(rows)}.")
    if not finite_rows(rows).all():
        raise ValueError("the upsampler generated rows that are not finite.")
    return rows


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
    return closest_record(job.held_out, synthetic, job.train, job.spec, seed=job.seed, max_rows=_CLOSEST_ROWS)


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
