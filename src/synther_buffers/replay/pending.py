"""A refresh that was started and does not serve yet."""

from __future__ import annotations

import os
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any

from ..guidance.drawing import GuidedDraw
from ..transitions import Transitions, TransitionSpec
from ..upsampling.protocol import UpsamplerFactory
from .refresh import RefreshJob, RefreshResult, run_refresh

#: Fields of a `RefreshJob` that are plain data.
_PLAIN = ("seed", "state", "num_synthetic", "num_threads", "refresh", "num_observed", "num_dropped")


def run_for_another_process(job: RefreshJob) -> RefreshResult:
    """`run_refresh`, with the rows on the CPU, so that they can be read anywhere."""
    result = run_refresh(job)
    return replace(result, rows=result.rows.to("cpu"))


@dataclass
class PendingRefresh:
    """A job, and when its result serves.

    Attributes:
        job: what is done, with its rows on the CPU.
        serve_from: real transitions from which on the result serves, None for as soon as it is there.
        future: the result to come, None while the job is not submitted: after loading.
        submitted_by: the process whose future it is. In a forked copy of it nobody fulfils the future.
    """

    job: RefreshJob
    serve_from: int | None
    future: Future[RefreshResult] | None = None
    submitted_by: int = 0

    @classmethod
    def of(cls, job: RefreshJob, lag: int | None) -> PendingRefresh:
        """A job that serves `lag` transitions later, None for as soon as it is done."""
        # A progress bar of another process would write between the agent's lines.
        job = replace(job, train=job.train.to("cpu"), held_out=job.held_out.to("cpu"), progress_bar=False)
        return cls(job, None if lag is None else job.num_observed + lag)

    def submit(self, executor: Executor) -> None:
        """Have the job done, if nobody does it yet. What `submit` raises is raised by `result`."""
        if self._own_future is None:
            self.submitted_by = os.getpid()
            try:
                self.future = executor.submit(run_for_another_process, self.job)
            except Exception as error:  # a queue that is full, a pool that is broken, a job that cannot be pickled
                self.future = Future()
                self.future.set_exception(error)

    def due(self, num_observed: int) -> bool:
        """Whether the result has to serve now; if it is not there yet, the agent has to wait."""
        if self.serve_from is None:
            return self._own_future is None or self._own_future.done()
        return num_observed >= self.serve_from

    def result(self) -> RefreshResult:
        """Wait for it; done here if this process did not submit it.

        Raises:
            Exception: whatever the job or its executor raised.
        """
        future = self._own_future
        if future is None:
            return run_for_another_process(self.job)
        error = future.exception()
        if error is None or isinstance(error, Exception):
            return future.result()
        # An interrupt there is none here, where it would stop the agent.
        raise RuntimeError(f"the refresh was interrupted: {error!r}") from error

    def cancel(self) -> None:
        """Nobody wants the result any more."""
        if self._own_future is not None:
            self._own_future.cancel()

    @property
    def _own_future(self) -> Future[RefreshResult] | None:
        return self.future if self.submitted_by == os.getpid() else None

    def state_dict(self) -> dict[str, Any]:
        """The job without its factory and device, in plain data and CPU tensors: done again, it has the same result."""
        return {
            "serve_from": self.serve_from,
            "spec": self.job.spec.to_dict(),
            "train": self.job.train.flat(),
            "held_out": self.job.held_out.flat(),
            "guided": None if self.job.guided is None else self.job.guided.state_dict(),
            **{name: getattr(self.job, name) for name in _PLAIN},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], factory: UpsamplerFactory, device: str) -> PendingRefresh:
        """What `state_dict` returned, with the upsampler's factory and device, which are those of this machine."""
        job = RefreshJob(
            spec=TransitionSpec.from_dict(state["spec"]),
            factory=factory,
            device=device,
            progress_bar=False,
            train=Transitions.from_flat(state["train"]),
            held_out=Transitions.from_flat(state["held_out"]),
            guided=GuidedDraw.from_state(state["guided"]) if state.get("guided") else None,
            **{name: state[name] for name in _PLAIN},
        )
        return cls(job, state["serve_from"])
