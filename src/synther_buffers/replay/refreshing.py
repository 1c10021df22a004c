"""Refreshing a `SyntheticReplay`: what is learned, where, and when its result serves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import cached_property

import torch

from ..console import log_line
from ..transitions import RowOrder, Transitions, TransitionSpec
from ..upsampling.diffusion_upsampler import DiffusionUpsampler
from ..upsampling.factory import default_num_synthetic
from ..upsampling.protocol import Upsampler
from ..upsampling.seeds import derive_seed
from .guided import GuidedReplay
from .learnable_rows import learnable_rows
from .pending import PendingRefresh
from .policy_rows import NUM_POLICY_ROWS, Policy, draw_policy_rows
from .quality_gate import judge
from .refresh import RefreshJob, RefreshResult, log_hand_over, log_start, run_refresh
from .refresh_process import RefreshProcess
from .refresh_worker import forget_frames
from .reports import RefreshReport, append_to_log, log_report
from .schedule import redraw_interval
from .update_ratio import UpdateRatio

logger = logging.getLogger(__name__)

#: Fewer gradient steps for each real transition than this are worth a warning.
FEW_UPDATES = 5.0
#: Seconds of waiting for a refresh elsewhere that are worth a line.
_WORTH_A_LINE = 2.0


class RefreshingReplay(GuidedReplay):
    """The part of `SyntheticReplay` that refreshes it. The attributes are explained there."""

    _update_ratio: UpdateRatio
    _policy: Policy | None = None
    _num_redraws: int = 0

    @property
    def share_served(self) -> float:
        """Share of each batch that is synthetic now."""
        raise NotImplementedError

    @property
    def upsampler(self) -> Upsampler | None:
        """The upsampler of the last refresh."""
        raise NotImplementedError

    @property
    def rows(self) -> Transitions | None:
        """The synthetic set in service, None before the first refresh; another object whenever a row of it changed.

        Rows with the policy's actions, where there are any, are its last ones.
        """
        return self._set.rows

    @property
    def num_observed(self) -> int:
        """Real transitions written so far."""
        return self._schedule.num_observed

    @property
    def refresh_due(self) -> bool:
        """Whether `refresh` has something to do: to start a refresh, or to put one into service that runs elsewhere.

        A refresh is started when enough real transitions came in; one makes up for any number of missed ones.
        """
        if self.options.synthetic_fraction == 0.0:
            return False
        if self._pending is None:
            return self._schedule.due
        if self._executor is not None:
            self._pending.submit(self._executor)  # it may have been loaded
        return self._pending.due(self.num_observed)

    def refresh(
        self, real: Transitions | Callable[[], Transitions], order: RowOrder | Callable[[], RowOrder] | None = None
    ) -> RefreshReport | None:
        """Retrain the upsampler on the real rows and replace the synthetic set.

        The old set serves until the new one is complete and checked. Whatever goes wrong is logged and leaves it in
        service: an agent never stops learning because of a refresh. Peak memory beyond the stored rows: a copy of
        the rows that are learned, and what the upsampler needs (docs/architecture.md); after training, the new set
        beside the old one.

        With `refresh_on` elsewhere, this puts the refresh that was started last into service, waiting for it if it is
        late, and starts another one if one is due.

        Args:
            real: every real row of the buffer, raw (not normalised by the framework), in any order; or what reads
                them, so that a failure to read them is one of the refresh.
            order: when each row was written, or what tells it; None if the rows are in the order of writing and none
                was overwritten.

        Returns:
            What was done, or None if the refresh was skipped or failed, or was only started.
        """
        report = None
        if self._pending is not None:
            report = self._attempt(self._hand_over, self._pending.job.num_observed)
            if not self._schedule.due:
                return report
        self._warn_of_few_updates()
        started = self._attempt(lambda: self._start(real, order))
        if self._pending is not None and self._pending.serve_from == self._pending.job.num_observed:
            started = self._attempt(self._hand_over, self._pending.job.num_observed)
        return report if started is None else started

    def _attempt(self, work: Callable[[], RefreshReport | None], started_at: int | None = None) -> RefreshReport | None:
        """What the work returns; None if it failed, which is logged.

        An interrupt is no failure: it passes, and the refresh stays due.

        Args:
            work: one part of a refresh.
            started_at: real transitions at the start of this refresh, None if it starts now.
        """
        try:
            # Inference tensors of the caller's context could not be trained on.
            with torch.inference_mode(False):
                report = work()
        except Exception as error:
            # Anything at all: a diverged training, no memory, a full disk, a user's own upsampler, a dead process.
            if started_at is None:
                self._schedule.attempted()
            logger.error(
                "Synthetic refresh at %d real transitions failed; %s. Learning goes on, next attempt at %d. (%r)",
                self.num_observed if started_at is None else started_at,
                "the last synthetic set stays in service" if self.rows is not None else "batches stay all real",
                self._schedule.next_refresh,
                error,
                exc_info="failure" not in self._warned,  # the whole traceback once
            )
            self._warned.add("failure")
            forget_frames(error)
            return None
        if started_at is None:
            self._schedule.attempted()
        return report

    def _start(
        self, real: Transitions | Callable[[], Transitions], order: RowOrder | Callable[[], RowOrder] | None
    ) -> RefreshReport | None:
        """Refresh here, or have it done elsewhere."""
        rows = real() if callable(real) else real
        job = self.prepare_refresh(rows, order() if callable(order) else order)
        if job is None:
            return None
        if self._executor is None:
            log_start(job, self.reports[-1] if self.reports else None)
            return self.commit(run_refresh(job))
        self._pending = PendingRefresh.of(job, self._lag(self.num_observed))
        log_hand_over(job, self._pending.serve_from, shown=self.options.progress_bar)
        self._pending.submit(self._executor)
        return None

    def _lag(self, num_observed: int) -> int | None:
        """Real transitions from the start of a refresh elsewhere to its first batch; None for as soon as it is done."""
        lag = self.options.refresh_lag
        if isinstance(lag, str):
            return None
        interval = self._schedule.interval(num_observed)
        return interval // 2 if lag is None else min(lag, interval)

    def _hand_over(self) -> RefreshReport | None:
        """Put the pending refresh into service, waiting for it if it is late."""
        pending = self._pending
        if pending is None:
            return None
        start = time.perf_counter()
        try:
            result = pending.result()
            waited = time.perf_counter() - start
            self._serve(result)
        except Exception:
            self._pending = None
            raise
        self._pending = None  # not before: an interrupt leaves it due
        most = self._schedule.interval(pending.job.num_observed)
        lag = None if pending.serve_from is None else pending.serve_from - pending.job.num_observed
        if waited > _WORTH_A_LINE and lag is not None and lag < most:
            log_line(
                logger, "The agent waited %.0f s for this refresh: refresh_lag was %d, and may be up to %d.",
                waited, lag, most, shown=self.options.progress_bar,
            )  # fmt: skip
        return self._tell(result)

    def _drop_pending(self) -> None:
        """Forget a refresh that was started."""
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None

    @cached_property
    def _executor(self) -> Executor | None:
        """Where refreshes run, None for here; a process of its own is made at the first one."""
        where = self.options.refresh_on
        if isinstance(where, Executor):
            return where
        return RefreshProcess() if where == "process" else None

    def prepare_refresh(self, real: Transitions, order: RowOrder | None = None) -> RefreshJob | None:
        """All that a refresh depends on, as plain data.

        Args:
            real: every real row of the buffer.
            order: when each row was written; None if the rows are in the order of writing and none was overwritten.

        Returns:
            The job, or None if there are too few rows, or too many that are not finite; the log says which.
        """
        if order is None:
            order = RowOrder.appended(len(real))
        spec = self._current_spec(real)
        spec.check(real)
        max_steps = max(order.max_steps, len(spec.discounts))
        learnable = learnable_rows(real, order, self._hold_out.mask(order), max_steps, self._warn_once)
        if learnable is None:
            return None
        return RefreshJob(
            spec=spec,
            factory=self._factory,
            device=str(self.options.upsampler_device),
            seed=self.options.seed or 0,
            progress_bar=self.options.progress_bar,
            state=self._state if spec == self.spec else None,
            train=learnable.train,
            held_out=learnable.held_out,
            num_synthetic=self._set_size(len(learnable.train)),
            num_threads=self._num_threads(),
            refresh=len(self.reports) + 1,
            num_observed=self.num_observed,
            num_dropped=learnable.num_dropped,
            guided=self._guided_draw(real, order, learnable),
        )

    def _num_threads(self) -> int:
        chosen = self._executor.num_threads if isinstance(self._executor, RefreshProcess) else None
        return torch.get_num_threads() if chosen is None else chosen

    def commit(self, result: RefreshResult) -> RefreshReport:
        """Put the result of a refresh into service; the next one is due an interval after this one's rows."""
        self._serve(result)
        return self._tell(result)

    def _serve(self, result: RefreshResult) -> None:
        """The only place where the served set changes, by a refresh; all of it or, if anything is raised, nothing."""
        rows = result.rows.to(self._set.device)
        self.spec, self._state, self._upsampler = result.spec, result.state, None
        self._set.replace_rows(rows)
        self._next_redraw = self.num_observed
        self.reports.append(result.report)
        self._share = None
        schedule, started = self._schedule, result.report.num_observed
        schedule.next_refresh = max(schedule.next_refresh, started + schedule.interval(started))

    def _tell(self, result: RefreshResult) -> RefreshReport:
        """Say what now serves, in the log and in the refresh log."""
        before = judge(self.reports[-2]).share if len(self.reports) > 1 else 1.0
        log_report(result.report, shown=self.options.progress_bar)
        if self.options.quality_gate and (verdict := judge(result.report)).share != before:
            log_line(
                logger, "The synthetic rows now have %.0f %% of each batch%s.",
                100 * self.share_served, verdict.reason and f" ({verdict.reason})",
                shown=self.options.progress_bar,
            )  # fmt: skip
        if self.options.refresh_log is not None:
            try:
                append_to_log(
                    self.options.refresh_log, result.report, {"seed": self.options.seed or 0, "config": result.config}
                )
            except Exception as error:  # also of what a user's own upsampler says of its configuration
                self._warn_once(
                    "log", f"The refresh log {self.options.refresh_log} cannot be written ({error}); learning goes on."
                )
        return result.report

    # -- rows with the policy's actions ------------------------------------------------------------------------------

    @property
    def redraw_due(self) -> bool:
        """Whether `redraw_policy_rows` has something to do."""
        return (
            self.options.policy_share > 0
            and self.options.synthetic_fraction > 0
            and self.rows is not None
            and self.num_observed >= self._next_redraw
        )

    def redraw_policy_rows(self, real: Transitions | Callable[[], Transitions]) -> None:
        """Draw the rows with the policy's actions anew, for the policy as it is now.

        Whatever goes wrong is logged once; what is in service stays.

        Args:
            real: every real row of the buffer, or what reads them; as for `refresh`.
        """
        observed = self.num_observed
        self._next_redraw = observed + redraw_interval(self._schedule.interval(observed), self.options.redraw_every)
        if self._policy is None:
            self._warn_once(
                "policy",
                f"policy_share is {self.options.policy_share:g}, but no policy is bound, so no rows with its "
                "actions are drawn. Call synthetic.bind_policy(policy), in SB3 pass callback=SynthERCallback().",
            )
            return
        try:
            with torch.inference_mode(False):  # the set and the model outlive the caller's context
                self._draw_policy_rows(real() if callable(real) else real, self._policy)
        except Exception as error:  # of a user's own policy too
            # Once for each kind of error: the first may pass, and hide one that stays.
            self._warn_once(
                f"policy rows {type(error).__name__}",
                f"No rows with the policy's actions were drawn ({error}); learning goes on.",
            )

    def _draw_policy_rows(self, real: Transitions, policy: Policy) -> None:
        rows, spec, upsampler = self.rows, self.spec, self.upsampler
        if rows is None or spec is None or not isinstance(upsampler, DiffusionUpsampler) or upsampler.model is None:
            return
        self._check_policy_share(spec)
        count = min(NUM_POLICY_ROWS, len(rows) // 2)
        if count == 0:
            raise ValueError("the synthetic set has a single row")
        seed = derive_seed(self.options.seed or 0, "policy rows", self.num_observed)
        drawn = draw_policy_rows(upsampler.model, real, policy, spec, count, seed)
        self._set.replace_policy_rows(drawn, self.options.policy_share)
        self._num_redraws += 1

    @property
    def policy(self) -> Policy | None:
        """What `bind_policy` has set."""
        return self._policy

    @property
    def generation(self) -> int:
        """Another number whenever a row of the synthetic set changed."""
        return len(self.reports) + self._num_redraws

    def _check_policy_share(self, spec: TransitionSpec) -> None:
        """Raise an error if these rows cannot have the policy's actions.

        Raises:
            ValueError: they are n-step rows, of which the policy would have to choose all actions, not the first alone.
        """
        if self.options.policy_share > 0 and spec.discounts:
            raise ValueError(
                f"policy_share is {self.options.policy_share:g}, but the rows are n-step rows, whose later actions the "
                "policy would have to choose too. Use one-step rows, or policy_share=0."
            )

    def bind_policy(self, policy: Policy | None) -> None:
        """Set what chooses the actions of rows with the policy's actions (`policy_share`).

        It is not saved: bind it again after loading. `SynthERCallback` does so for Stable-Baselines3 and sbx.

        Args:
            policy: takes observations ``[n, *shape]`` as the buffer stores them (a dict of them for a Dict space), CPU
                tensors that are not normalised, and returns actions ``[n, *shape]`` as the buffer stores them, with
                its exploration. It may draw from the global random streams; they are put back. None unbinds.

        Raises:
            TypeError: it cannot be called.
        """
        if policy is not None and not callable(policy):
            raise TypeError(f"policy is {policy!r}; wanted a function of observations, or None.")
        if self._policy is None and self._set.num_policy == 0:
            self._next_redraw = min(self._next_redraw, self.num_observed)
        self._policy = policy

    def _set_size(self, num_rows: int) -> int:
        """Rows of the synthetic set that is made of so many real ones."""
        if self.options.num_synthetic is not None:
            return self.options.num_synthetic
        # Never more than at construction, when adapters made room: a loaded model may be of another configuration.
        return min(default_num_synthetic(self._factory, num_rows), self.num_synthetic)

    def _current_spec(self, real: Transitions) -> TransitionSpec:
        """The fields of these rows: those that were given, or what the rows show."""
        if self.spec is not None and not self._infers_spec:
            return self.spec
        spec = TransitionSpec.infer(real, self.spec)
        if self.spec is not None and spec != self.spec:
            logger.info("The real rows show new categories; the upsampler starts afresh.")
        return spec

    def _warn_of_few_updates(self) -> None:
        """Say once that the algorithm takes too few gradient steps for synthetic rows to matter."""
        ratio = self._update_ratio.measure(self.num_observed, self._schedule.interval(self.num_observed) // 2)
        if ratio is not None and ratio < FEW_UPDATES:
            self._warn_once(
                "updates",
                f"The algorithm takes about {ratio:.1f} gradient steps for each real transition. Synthetic rows have "
                f"little to gain there; they are made for many (the paper: 20). {self._update_advice}",
            )
