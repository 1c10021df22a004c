"""SyntheticReplay, on which every adapter is built: when to refresh, the synthetic set, and how a batch is mixed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor

from ..public_paths import public
from ..transitions import Transitions, TransitionSpec
from ..upsampling.factory import default_num_synthetic, make_upsampler, most_synthetic
from ..upsampling.presets import resolve_device
from ..upsampling.protocol import Upsampler
from .holdout import HoldOut, RowOrder
from .last_batch import LastBatch
from .learnable_rows import learnable_rows
from .options import SyntheticKeywords, SyntheticOptions, lists_options, split_keywords
from .refresh import RefreshJob, RefreshResult, log_start, run_refresh
from .reports import RefreshReport, append_to_log, log_report
from .saving import SavedReplay
from .schedule import RefreshSchedule
from .synthetic_set import SyntheticSet
from .update_ratio import UpdateRatio

logger = logging.getLogger(__name__)

#: Fewer gradient steps for each real transition than this are worth a warning.
FEW_UPDATES = 5.0


@public
class SyntheticReplay(SavedReplay):
    """Decides when the upsampler is retrained, keeps the synthetic set, and says how a batch is mixed.

    A buffer counts its writes with `observe_total`, asks `refresh_due` when it is sampled, gives its real rows to
    `refresh` if so, splits the batch with `split` and takes the synthetic part from `sample` (or gathers it itself
    from `rows` with `draw_indices`).

    Args:
        spec: the fields of a transition; None where no spaces tell them: the first refresh then infers them from its
            rows (`TransitionSpec.infer`), and a later one that meets new categories widens them and starts afresh.
        device: where the synthetic set lives.
        update_advice: a sentence that says how to take more gradient steps in the framework, for a warning.
        **options: those of `synther_buffers.SyntheticOptions`.

    Attributes:
        spec: the fields of a transition, None while they are unknown.
        options: the `SyntheticOptions`.
        num_synthetic: rows of the largest synthetic set.
        reports: of the refreshes that succeeded.
        last_batch: how the last batch was made; adapters set it where `split` does not say it.

    Raises:
        ValueError, TypeError: an argument out of its range or of the wrong type.
    """

    @lists_options
    def __init__(
        self,
        spec: TransitionSpec | None,
        *,
        device: str | torch.device = "cpu",
        update_advice: str = "Take more of them.",
        **options: Unpack[SyntheticKeywords],
    ) -> None:
        self.options = chosen = SyntheticOptions(**split_keywords("SyntheticReplay", options)[0])
        self._infers_spec = spec is None
        self.spec = spec
        self._factory = chosen.factory()
        self.num_synthetic = most_synthetic(self._factory) if chosen.num_synthetic is None else chosen.num_synthetic
        if spec is not None:
            self._make_upsampler(spec)  # a factory that does not work is found out now, not at the first refresh
        self._too_small: str | None = None
        self._update_advice = update_advice
        self._start_afresh(resolve_device(device))

    def _start_afresh(self, device: torch.device) -> None:
        self.reports: list[RefreshReport] = []
        self._num_told = 0
        self.last_batch = LastBatch()
        self._schedule = RefreshSchedule(self.retrain_every, self.start_after)
        self._set = SyntheticSet(device, self.seed)
        self._state: dict[str, Any] | None = None
        self._upsampler: Upsampler | None = None
        self._hold_out = HoldOut()
        self._num_batches = 0
        self._update_ratio = UpdateRatio()
        self._warned: set[str] = set()

    # -- settings ----------------------------------------------------------------------------------------------------

    @property
    def retrain_every(self) -> int:
        return self.options.retrain_every

    @property
    def start_after(self) -> int:
        start_after = self.options.start_after
        return self.retrain_every if start_after is None else start_after

    @property
    def synthetic_fraction(self) -> float:
        return self.options.synthetic_fraction

    @property
    def seed(self) -> int:
        seed = self.options.seed
        return 0 if seed is None else seed

    @property
    def device(self) -> torch.device:
        """Where the synthetic set lives."""
        return self._set.device

    # -- schedule ----------------------------------------------------------------------------------------------------

    @property
    def num_observed(self) -> int:
        """Real transitions written so far."""
        return self._schedule.num_observed

    def observe_total(self, total: int) -> None:
        """Set how many real transitions have been written in all. This only counts; training happens in `refresh`.

        Raises:
            ValueError: there are some, but the store is too small for a refresh.
        """
        if total:
            self.check_capacity()
        self._schedule.num_observed = total

    def limit_capacity(self, argument: str, given: int, capacity: int) -> None:
        """Set how many real rows the store holds. Whether these are enough is checked when rows are written.

        An agent that is loaded to act and not to learn has a store as small as can be.

        Args:
            argument: what the framework calls the size.
            given: its value, as the user gave it.
            capacity: rows in all, which may be others for several environments.
        """
        if self.synthetic_fraction > 0 and self.retrain_every > capacity:
            store = f"{argument}={given}" if given == capacity else f"the {capacity} rows that {argument}={given} holds"
            self._too_small = (
                f"retrain_every={self.retrain_every} is more than {store}: rows would be overwritten before a refresh "
                f"could learn them. Lower retrain_every or raise {argument}."
            )

    def check_capacity(self) -> None:
        """Check that the store can hold what a refresh learns; adapters call it before they write.

        Raises:
            ValueError: it is smaller than `retrain_every`.
        """
        if self._too_small is not None:
            raise ValueError(self._too_small)

    @property
    def refresh_due(self) -> bool:
        """Whether enough real transitions came in; one refresh makes up for any number of missed ones."""
        return self.synthetic_fraction > 0.0 and self._schedule.due

    @property
    def num_refreshes(self) -> int:
        """Refreshes that succeeded."""
        return len(self.reports)

    def new_reports(self) -> list[RefreshReport]:
        """The reports since the last call, each returned once; what was loaded from a file is not new.

        For a logger: ``for report in replay.new_reports(): logger.log(report.metrics("synther/"))``.
        """
        new, self._num_told = self.reports[self._num_told :], len(self.reports)
        return new

    # -- mixing ------------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> Transitions | None:
        """The synthetic set in service, None before the first refresh."""
        return self._set.rows

    def split(self, batch_size: int) -> tuple[int, int]:
        """``(n_real, n_synthetic)`` of a batch: always the same for a size, an odd row goes to the real ones.

        Before the first refresh every row is real.
        """
        self._num_batches += 1
        if self._num_batches == 1:
            self._announce()
        self._update_ratio.count(batch_size, self.num_observed)
        # The small constant keeps 0.3 * 10 from being rounded down to 2.
        num_synthetic = 0 if self._set.rows is None else int(batch_size * self.synthetic_fraction + 1e-9)
        self.last_batch.interleaved(batch_size - num_synthetic, num_synthetic)
        return batch_size - num_synthetic, num_synthetic

    @property
    def last_mask(self) -> Tensor | None:
        """Which rows of the last batch are synthetic: ``[batch_size]`` bool, on the CPU; None before the first batch.

        In the order of the batch's rows, all False at fraction 0 and before the first refresh. Each access returns a
        new tensor. It is good for weighting a loss and for separate curves of TD errors; it is not saved. Reading rows
        by their index, all rows included, is no batch. Where batches are drawn ahead of their use (TorchRL's
        ``prefetch``), it is that of the batch drawn last.
        """
        return self.last_batch.mask()

    def draw_indices(self, num_rows: int) -> Tensor:
        """Indices into `rows`, uniform with replacement, ``[num_rows]`` int64 on the set's device.

        Raises:
            RuntimeError: there is no synthetic set yet.
        """
        return self._set.draw_indices(num_rows)

    def sample(self, num_rows: int) -> Transitions:
        """Synthetic transitions drawn uniformly from the set, on its device.

        Raises:
            RuntimeError: there is no synthetic set yet.
        """
        return self._set.served()[self.draw_indices(num_rows)]

    # -- refresh -----------------------------------------------------------------------------------------------------

    @property
    def upsampler(self) -> Upsampler | None:
        """The upsampler of the last refresh, None while the fields of a transition are unknown.

        It is a copy: fitting it or drawing from it changes nothing here.
        """
        if self._upsampler is None and self.spec is not None:
            self._upsampler = self._make_upsampler(self.spec, self._state)
        return self._upsampler

    def refresh(
        self, real: Transitions | Callable[[], Transitions], order: RowOrder | Callable[[], RowOrder] | None = None
    ) -> RefreshReport | None:
        """Retrain the upsampler on the real rows and replace the synthetic set.

        The old set serves until the new one is complete and checked. Whatever goes wrong is logged and leaves it in
        service: an agent never stops learning because of a refresh. Peak memory beyond the stored rows: a copy of
        the rows that are learned, and what the upsampler needs (docs/architecture.md); after training, the new set
        beside the old one.

        Args:
            real: every real row of the buffer, raw (not normalised by the framework), in any order; or what reads
                them, so that a failure to read them is one of the refresh.
            order: when each row was written, or what tells it; None if the rows are in the order of writing and none
                was overwritten.

        Returns:
            What was done, or None if the refresh was skipped or failed.
        """
        self._warn_of_few_updates()
        try:
            # Inference tensors of the caller's context could not be trained on.
            with torch.inference_mode(False):
                rows = real() if callable(real) else real
                job = self.prepare_refresh(rows, order() if callable(order) else order)
                report = None
                if job is not None:
                    log_start(job, self.reports[-1] if self.reports else None)
                    report = self.commit(run_refresh(job))
        except Exception as error:
            # Anything at all: a diverged training, no memory, a full disk, a user's own upsampler. An interrupt is no
            # failure: it passes, and the refresh stays due.
            self._schedule.attempted()
            logger.error(
                "Synthetic refresh at %d real transitions failed; %s. Learning goes on, next attempt at %d. (%r)",
                self.num_observed,
                "the last synthetic set stays in service" if self.rows is not None else "batches stay all real",
                self._schedule.next_refresh,
                error,
                exc_info="failure" not in self._warned,  # the whole traceback once
            )
            self._warned.add("failure")
            return None
        self._schedule.attempted()
        return report

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
        learnable = learnable_rows(real, order, self._hold_out.mask(order), len(spec.discounts), self._warn_once)
        if learnable is None:
            return None
        return RefreshJob(
            spec=spec,
            factory=self._factory,
            device=str(self.options.upsampler_device),
            seed=self.seed,
            progress_bar=self.options.progress_bar,
            state=self._state if spec == self.spec else None,
            train=learnable.train,
            held_out=learnable.held_out,
            num_synthetic=self._set_size(len(learnable.train)),
            num_threads=torch.get_num_threads(),
            refresh=self.num_refreshes + 1,
            num_observed=self.num_observed,
            num_dropped=learnable.num_dropped,
        )

    def commit(self, result: RefreshResult) -> RefreshReport:
        """Put a refresh's result into service: the only place where the served set changes."""
        rows = result.rows.to(self.device)
        self.spec, self._state, self._upsampler = result.spec, result.state, None
        self._set.rows = rows
        self.reports.append(result.report)
        log_report(result.report, shown=self.options.progress_bar)
        if self.options.refresh_log is not None:
            try:
                append_to_log(self.options.refresh_log, result.report, {"seed": self.seed, "config": result.config})
            except Exception as error:  # also of what a user's own upsampler says of its configuration
                self._warn_once(
                    "log", f"The refresh log {self.options.refresh_log} cannot be written ({error}); learning goes on."
                )
        return result.report

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

    def _make_upsampler(self, spec: TransitionSpec, state: dict[str, Any] | None = None) -> Upsampler:
        return make_upsampler(
            self._factory,
            spec,
            device=self.options.upsampler_device,
            seed=self.seed,
            progress_bar=self.options.progress_bar,
            state=state,
        )

    # -- telling the user --------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        if self.synthetic_fraction == 0.0:
            logger.info("Batches are all real: synthetic_fraction is 0.")
        elif self.rows is None:
            logger.info(
                "Batches are all real up to %d real transitions (now %d); from then on %.0f %% of each is synthetic.",
                self.start_after, self.num_observed, 100 * self.synthetic_fraction,
            )  # fmt: skip

    def _warn_of_few_updates(self) -> None:
        """Say once that the algorithm takes too few gradient steps for synthetic rows to matter."""
        ratio = self._update_ratio.measure(self.num_observed, self.retrain_every // 2)
        if ratio is not None and ratio < FEW_UPDATES:
            self._warn_once(
                "updates",
                f"The algorithm takes about {ratio:.1f} gradient steps for each real transition. Synthetic rows have "
                f"little to gain there; they are made for many (the paper: 20). {self._update_advice}",
            )

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            logger.warning(message)

    # -- life cycle --------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget everything: counters, held-out rows, the synthetic set and the model."""
        if self._infers_spec:
            self.spec = None
        self._factory = self.options.factory()  # a loaded model may have been of another configuration
        self._start_afresh(self.device)

    def to(self, device: str | torch.device) -> SyntheticReplay:
        """Move the synthetic set to another device, in place."""
        self._set.to(resolve_device(device))
        return self
