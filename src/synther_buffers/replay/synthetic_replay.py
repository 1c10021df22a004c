"""SyntheticReplay, on which every adapter is built: when to refresh, the synthetic set, and how a batch is mixed."""

from __future__ import annotations

import logging
from typing import Any, Unpack

import torch
from torch import Tensor

from ..console import log_line
from ..guidance.td_error import RecordedErrors
from ..public_paths import public
from ..transitions import Transitions, TransitionSpec
from ..upsampling.factory import make_upsampler, most_synthetic
from ..upsampling.presets import resolve_device
from ..upsampling.protocol import Upsampler
from ..validation import fraction
from .holdout import HoldOut
from .last_batch import LastBatch
from .learnable_rows import MIN_ROWS
from .options import (
    ShareSchedule,
    SyntheticKeywords,
    SyntheticOptions,
    lists_options,
    split_keywords,
    too_long_interval,
)
from .quality_gate import judge
from .refreshing import RefreshingReplay
from .reports import RefreshReport
from .schedule import RefreshSchedule
from .synthetic_set import SyntheticSet
from .update_ratio import UpdateRatio

logger = logging.getLogger(__name__)


@public
class SyntheticReplay(RefreshingReplay):
    """Decides when the upsampler is retrained, keeps the synthetic set, and says how a batch is mixed.

    A buffer counts its writes with `observe_total`, asks `refresh_due` and `redraw_due` when it is sampled, gives its
    real rows to `refresh` and `redraw_policy_rows` if so, splits the batch with `split` and takes the synthetic part
    from `sample` (or gathers it itself from `rows` with `draw_indices`).

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
        update_size: rows that the algorithm takes for one gradient step, where an adapter knows it; a batch may be cut
            for several. Not saved.

    Raises:
        ValueError, TypeError: an argument out of its range or of the wrong type.
    """

    update_size: int | None = None

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
            self._check_policy_share(spec)
            self._make_upsampler(spec)  # a factory that does not work is found out now, not at the first refresh
        self._too_small: str | None = None
        self._capacity: int | None = None
        self._update_advice = update_advice
        self._start_afresh(resolve_device(device))

    def _start_afresh(self, device: torch.device) -> None:
        self._pending = None
        self._share = None
        self.reports: list[RefreshReport] = []
        self._num_told = 0
        self.last_batch = LastBatch()
        self._schedule = RefreshSchedule(self.retrain_every, self.options.start_after, self._capacity)
        self._set = SyntheticSet(device, self.seed)
        self._state: dict[str, Any] | None = None
        self._upsampler: Upsampler | None = None
        self._hold_out = HoldOut()
        self._num_batches = 0
        self._next_redraw = 0
        self._recorded = RecordedErrors()
        self._update_ratio = UpdateRatio()
        self._warned: set[str] = set()

    # -- settings ----------------------------------------------------------------------------------------------------

    @property
    def retrain_every(self) -> int | None:
        return self.options.retrain_every

    @property
    def start_after(self) -> int:
        return self._schedule.first

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
        self._capacity = self._schedule.capacity = capacity
        if self.num_observed == 0:
            self._schedule.next_refresh = self._schedule.first
        if self.synthetic_fraction == 0:
            return
        store = f"{argument}={given}" if given == capacity else f"the {capacity} rows that {argument}={given} holds"
        if self.retrain_every is None and capacity < MIN_ROWS:
            self._too_small = (
                f"a refresh needs at least {MIN_ROWS} rows, which is more than {store}. Raise {argument}, or set "
                "synthetic_fraction=0."
            )
        elif self.retrain_every is not None and self.retrain_every > capacity:
            self._too_small = too_long_interval(self.retrain_every, store, argument)

    def check_capacity(self) -> None:
        """Check that the store can hold what a refresh learns; adapters call it before they write.

        Raises:
            ValueError: it is smaller than `retrain_every`, or than what a refresh needs.
        """
        if self._too_small is not None:
            raise ValueError(self._too_small)

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

    def split(self, batch_size: int) -> tuple[int, int]:
        """``(n_real, n_synthetic)`` of a batch: the same for a size and a share, an odd row goes to the real ones.

        Before the first refresh every row is real.
        """
        self._num_batches += 1
        if self._num_batches == 1:
            self._announce()
        self._update_ratio.count(batch_size, self.num_observed, self.update_size)
        # The small constant keeps 0.3 * 10 from being rounded down to 2.
        num_synthetic = 0 if self._set.rows is None else int(batch_size * self.share_served + 1e-9)
        self.last_batch.interleaved(batch_size - num_synthetic, num_synthetic)
        return batch_size - num_synthetic, num_synthetic

    @property
    def share_served(self) -> float:
        """Share of each batch that is synthetic now: `synthetic_fraction`, or less by quality gate and schedule."""
        share = self.synthetic_fraction
        if self.options.quality_gate and self.reports:
            if self._share is None:
                self._share = judge(self.reports[-1]).share
            share *= self._share
        return share if self.options.share_schedule is None else share * self._scheduled(self.options.share_schedule)

    def _scheduled(self, schedule: ShareSchedule) -> float:
        try:
            return fraction("its value", schedule(self.num_observed))
        except Exception as error:  # a user's function raises what it likes
            self._warn_once(
                "schedule",
                f"share_schedule({self.num_observed}) does not work ({error}); batches have the full share meanwhile.",
            )
            return 1.0

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
        """Indices into `rows`, with replacement, ``[num_rows]`` int64 on the set's device.

        Rows with the policy's actions have `policy_share` of them; within both kinds all rows are equally likely.

        Raises:
            RuntimeError: there is no synthetic set yet.
        """
        return self._set.draw_indices(num_rows)

    def sample(self, num_rows: int) -> Transitions:
        """Synthetic transitions drawn from the set by `draw_indices`, on its device.

        Raises:
            RuntimeError: there is no synthetic set yet.
        """
        return self.served()[self.draw_indices(num_rows)]

    def served(self) -> Transitions:
        """`rows`, where there have to be some.

        Raises:
            RuntimeError: there is no synthetic set yet.
        """
        return self._set.served()

    # -- model -------------------------------------------------------------------------------------------------------

    @property
    def upsampler(self) -> Upsampler | None:
        """The upsampler of the last refresh, None while the fields of a transition are unknown.

        It is a copy: fitting it or drawing from it changes nothing here.
        """
        if self._upsampler is None and self.spec is not None:
            self._upsampler = self._make_upsampler(self.spec, self._state)
        return self._upsampler

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

    @property
    def first_served(self) -> int:
        """Real transitions from which on the first refresh serves, if it is not late; after a failed one, the next."""
        if self._pending is not None:
            return self.num_observed if self._pending.serve_from is None else self._pending.serve_from
        start = max(self._schedule.next_refresh, self.num_observed)
        lag = None if self.options.refresh_on == "here" else self._lag(start)
        return start + (lag or 0)

    def _announce(self) -> None:
        if self.synthetic_fraction == 0.0:
            logger.info("Batches are all real: synthetic_fraction is 0.")
        elif self.rows is None:
            until = f"{self.first_served:,} real transitions (now {self.num_observed:,})"
            if self._pending is not None and self._pending.serve_from is None:
                until = "the end of the refresh that is running"
            log_line(
                logger, "Batches are all real up to %s; then %s%.0f %% of each is synthetic.", until,
                "up to " if self.options.share_schedule is not None else "", 100 * self.synthetic_fraction,
                shown=self.options.progress_bar,
            )  # fmt: skip

    # -- life cycle --------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget everything: counters, held-out rows, the synthetic set and the model."""
        if self._infers_spec:
            self.spec = None
        self._factory = self.options.factory()  # a loaded model may have been of another configuration
        self._drop_pending()
        self._start_afresh(self.device)

    def to(self, device: str | torch.device) -> SyntheticReplay:
        """Move the synthetic set to another device, in place."""
        self._set.to(resolve_device(device))
        return self
