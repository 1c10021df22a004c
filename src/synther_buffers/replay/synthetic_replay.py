"""SyntheticReplay: when to refresh, the synthetic set, and the mixing. What every framework's adapter is built on."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from ..evaluation.fidelity import MAX_ROWS, Fidelity, measure_fidelity
from ..transitions import Transitions, TransitionSpec
from ..upsampling.diffusion_upsampler import Upsampler, make_upsampler, preset_rows
from ..upsampling.presets import UpsamplerConfig, resolve_device
from .holdout import HoldOut, RowOrder
from .options import SyntheticKeywords, SyntheticOptions, lists_options, split_keywords
from .reports import RefreshReport, append_to_log, describe_config, tell

logger = logging.getLogger(__name__)

#: Fewer real rows than this are not worth a model: the refresh is skipped.
MIN_ROWS = 100
#: A larger share of rows that are not finite skips the refresh.
MAX_NON_FINITE = 0.01


class SyntheticReplay:
    """Decides when the upsampler is retrained, keeps the synthetic set, and says how a batch is mixed.

    A buffer counts its writes with `observe_total`, asks `refresh_due` when it is sampled, gives its real rows to
    `refresh` if so, splits the batch with `split` and takes the synthetic part from `sample` (or gathers it itself
    from `rows` with `draw_indices`).

    Args:
        spec: the fields of a transition; None where no spaces tell them: the first refresh then infers them from its
            rows (`TransitionSpec.infer`), and a later one that meets new categories widens them and starts afresh.
        device: where the synthetic set lives.
        **options: those of `synther_buffers.SyntheticOptions`.

    Attributes:
        num_observed: real transitions written so far.
        num_refreshes: refreshes that succeeded.
        rows: the synthetic set, None before the first refresh.
        reports: of the refreshes.

    Raises:
        ValueError, TypeError: an argument out of its range or of the wrong type.
    """

    @lists_options
    def __init__(
        self, spec: TransitionSpec | None, *, device: str | torch.device = "cpu", **options: Unpack[SyntheticKeywords]
    ) -> None:
        chosen = SyntheticOptions(**split_keywords("SyntheticReplay", options)[0])
        assert chosen.start_after is not None
        assert chosen.seed is not None
        self.spec = spec
        self._infers_spec = spec is None
        self.retrain_every = chosen.retrain_every
        self.start_after = chosen.start_after
        self.synthetic_fraction = chosen.synthetic_fraction
        self.seed = chosen.seed
        self.refresh_log = None if chosen.refresh_log is None else Path(chosen.refresh_log)
        self.device = resolve_device(device)
        self._upsampler_args: dict[str, Any] = {
            "upsampler": chosen.upsampler,
            "device": chosen.upsampler_device,
            "progress_bar": chosen.progress_bar,
        }
        self.upsampler: Upsampler | None = None if spec is None else self._make_upsampler(spec)
        self.num_synthetic = (
            preset_rows(self.upsampler or chosen.upsampler, chosen.upsampler_device)
            if chosen.num_synthetic is None
            else chosen.num_synthetic
        )
        self.rows: Transitions | None = None
        self.reports: list[RefreshReport] = []
        self.num_observed = self.num_refreshes = self._num_batches = 0
        self._generator = torch.Generator(self.device).manual_seed(self.seed)
        self._hold_out = HoldOut()
        self._warned: set[str] = set()
        self._next_refresh = self.start_after

    # -- schedule ----------------------------------------------------------------------------------------------------

    def observe_total(self, total: int) -> None:
        """Say how many real transitions have been written in all. Only counts; nothing is trained in a write."""
        self.num_observed = total

    def check_capacity(self, argument: str, capacity: int) -> None:
        """See that a store of `capacity` real rows can hold what a refresh is to learn.

        Args:
            argument: what the framework calls it.
            capacity: rows in all.

        Raises:
            ValueError: it is smaller than `retrain_every`.
        """
        if self.synthetic_fraction > 0 and self.retrain_every > capacity:
            raise ValueError(
                f"retrain_every={self.retrain_every} is more than {argument}={capacity}: rows would be "
                f"overwritten before a refresh could learn them. Lower retrain_every or raise {argument}."
            )

    @property
    def refresh_due(self) -> bool:
        """Whether enough real transitions came in; one refresh makes up for any number of missed ones."""
        return self.num_observed >= self._next_refresh and self.synthetic_fraction > 0.0

    # -- mixing ------------------------------------------------------------------------------------------------------

    def split(self, batch_size: int) -> tuple[int, int]:
        """``(n_real, n_synthetic)`` of a batch: always the same for a size, an odd row goes to the real ones.

        Before the first refresh every row is real.
        """
        self._num_batches += 1
        if self._num_batches == 1:
            self._announce()
        if self.rows is None:
            return batch_size, 0
        # The small constant keeps 0.3 * 10 from being rounded down to 2.
        num_synthetic = int(batch_size * self.synthetic_fraction + 1e-9)
        return batch_size - num_synthetic, num_synthetic

    def draw_indices(self, num_rows: int) -> Tensor:
        """Indices into `rows`, uniform with replacement, ``[num_rows]`` int64 on the set's device."""
        return torch.randint(len(self._rows()), (num_rows,), generator=self._generator, device=self.device)

    def sample(self, num_rows: int) -> Transitions:
        """Synthetic transitions drawn uniformly from the set, on its device.

        Raises:
            RuntimeError: there is no synthetic set yet.
        """
        return self._rows()[self.draw_indices(num_rows)]

    def _rows(self) -> Transitions:
        if self.rows is None:
            raise RuntimeError("there are no synthetic rows before the first refresh; ask split() how to mix.")
        return self.rows

    # -- refresh -----------------------------------------------------------------------------------------------------

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
        self._next_refresh = self.num_observed + self.retrain_every
        try:
            # Gradients and inference tensors of the caller's context must not reach the upsampler's training.
            with torch.inference_mode(False), torch.enable_grad():
                rows = real() if callable(real) else real
                if order is None:
                    order = RowOrder.appended(len(rows))
                report = self._refresh(rows, order() if callable(order) else order)
        except Exception as error:
            # Anything at all: a diverged training, no memory, a full disk, a user's own upsampler.
            logger.error(
                "Synthetic refresh at %d real transitions failed; %s. Learning goes on, next attempt at %d. (%r)",
                self.num_observed,
                "the last synthetic set stays in service" if self.rows is not None else "batches stay all real",
                self._next_refresh,
                error,
                exc_info="failure" not in self._warned,  # the whole traceback once
            )
            self._warned.add("failure")
            return None
        return report

    def _refresh(self, real: Transitions, order: RowOrder) -> RefreshReport | None:
        start = time.perf_counter()
        spec, upsampler = self._prepare(real)
        spec.check(real)
        held = self._hold_out.mask(order)
        finite = self._finite_rows(real)
        num_dropped = len(real) - int(finite.sum())
        if num_dropped > MAX_NON_FINITE * len(real):
            logger.warning(
                "Synthetic refresh skipped: %d of %d real rows are not finite, more than %.0f %%.",
                num_dropped, len(real), 100 * MAX_NON_FINITE,
            )  # fmt: skip
            return None
        reaches = _reaches_held_out(held, order, len(spec.discounts))
        train_index = torch.from_numpy(np.flatnonzero(finite & ~reaches))
        held_index = torch.from_numpy(np.flatnonzero(finite & held))
        if len(real) - num_dropped < MIN_ROWS:
            self._warn_once(
                "rows",
                f"Synthetic refresh skipped: {len(real) - num_dropped} real rows are too few to learn from, "
                f"wanted {MIN_ROWS}.",
            )
            return None
        held_rows = real[held_index]
        train = real[train_index]  # a copy: what an upsampler does to its rows must not reach the buffer's

        logger.info("Synthetic refresh at %d real transitions: learning %d rows.", self.num_observed, len(train))
        fit = upsampler.fit(train, held_out=held_rows)
        fitted = time.perf_counter()
        rows = upsampler.sample(self.num_synthetic)
        spec.check(rows)
        if len(rows) != self.num_synthetic:
            raise ValueError(f"the upsampler was asked for {self.num_synthetic} rows and gave {len(rows)}.")
        if not self._finite_rows(rows, warn=False).all():
            raise ValueError("the upsampler generated rows that are not finite.")
        rows = rows.to(self.device)
        sampled = time.perf_counter()

        fidelity, fidelity_real = self._fidelity(spec, rows, train, held_rows)
        self.rows = rows
        self.num_refreshes += 1
        report = RefreshReport(
            refresh=self.num_refreshes,
            num_observed=self.num_observed,
            num_real=len(train),
            num_held_out=len(held_rows),
            num_dropped=num_dropped,
            num_synthetic=len(rows),
            fit=fit,
            fit_seconds=fitted - start,
            sample_seconds=sampled - fitted,
            seconds=time.perf_counter() - start,
            fidelity=fidelity,
            fidelity_real=fidelity_real,
        )
        self.reports.append(report)
        tell(report)
        if self.refresh_log is not None:
            settings = {
                "seed": self.seed,
                "config": describe_config(self._upsampler_args["upsampler"], upsampler),
            }
            try:
                append_to_log(self.refresh_log, report, settings)
            except (OSError, TypeError, ValueError) as error:
                self._warn_once(
                    "log", f"The refresh log {self.refresh_log} cannot be written ({error}); learning goes on."
                )
        return report

    def _prepare(self, real: Transitions) -> tuple[TransitionSpec, Upsampler]:
        """The spec, inferred where nobody gave one, and the upsampler for it."""
        spec = TransitionSpec.infer(real, self.spec) if self._infers_spec or self.spec is None else self.spec
        if self.upsampler is None or spec != self.spec:
            if self.spec is not None:
                logger.info("The real rows show new categories; the upsampler starts afresh.")
            self.upsampler, self.spec = self._make_upsampler(spec), spec
        return spec, self.upsampler

    def _finite_rows(self, rows: Transitions, warn: bool = True) -> np.ndarray:
        """True for rows without NaN or infinity, ``[N]``."""
        finite = np.ones(len(rows), np.bool_)
        for name, tensor in rows.flat().items():
            if not tensor.is_floating_point():
                continue
            good = torch.isfinite(tensor.reshape(len(rows), -1))
            if bool(good.all()):
                continue
            if warn:
                bad = (~good).any(0).nonzero().flatten().tolist()
                column = name if tensor.ndim == 1 else f"{name}[{', '.join(map(str, bad[:5]))}]"
                self._warn_once(
                    f"finite {name}",
                    f"{int((~good).any(1).sum())} real rows have NaN or infinity in {column}; "
                    "such rows are not learned.",
                )
            finite &= good.all(1).cpu().numpy()
        return finite

    def _fidelity(
        self, spec: TransitionSpec, synthetic: Transitions, train: Transitions, held: Transitions
    ) -> tuple[Fidelity, Fidelity]:
        """Synthetic and, for comparison, real training rows, each against the held-out rows."""
        if len(held) < 20:
            nothing = Fidelity(math.nan, math.nan, "", math.nan)
            return nothing, nothing
        # As many of each, drawn alike, so that the two figures differ by nothing but where the rows come from.
        generator = torch.Generator().manual_seed(self.seed)
        count = min(len(train), len(synthetic), MAX_ROWS)

        def against_held(rows: Transitions) -> Fidelity:
            index = torch.randint(len(rows), (count,), generator=generator, device="cpu")
            return measure_fidelity(held, rows[index.to(rows.device)], spec)

        return against_held(synthetic), against_held(train)

    # -- telling the user --------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        if self.synthetic_fraction == 0.0:
            logger.info("Batches are all real: synthetic_fraction is 0.")
        elif self.rows is None:
            logger.info(
                "Batches are all real up to %d real transitions (now %d); from then on %.0f %% of each is synthetic.",
                self.start_after, self.num_observed, 100 * self.synthetic_fraction,
            )  # fmt: skip

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            logger.warning(message)

    # -- life cycle --------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget everything: counters, held-out rows, the synthetic set and the model."""
        self.rows = None
        self.reports = []
        if self._infers_spec:
            self.spec = None
        self.upsampler = None if self.spec is None else self._make_upsampler(self.spec)
        self._generator = torch.Generator(self.device).manual_seed(self.seed)
        self._hold_out = HoldOut()
        self._warned = set()
        self._next_refresh = self.start_after
        self.num_observed = self.num_refreshes = self._num_batches = 0

    def to(self, device: str | torch.device) -> SyntheticReplay:
        """Move the synthetic set to another device, in place."""
        device = resolve_device(device)
        if device != self.device:
            # A generator cannot move; the new one goes on from a draw of the old one.
            seed = int(torch.randint(2**62, (), generator=self._generator, device=self.device))
            self.device = device
            self._generator = torch.Generator(device).manual_seed(seed)
            self.rows = None if self.rows is None else self.rows.to(device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Plain data and CPU tensors: a pickle loads on a machine without this one's devices."""
        state = self.__dict__.copy()
        state["upsampler"] = None if self.upsampler is None else self.upsampler.state_dict()
        state["_generator"] = (self.device.type, self._generator.get_state().cpu())
        state["rows"] = None if self.rows is None else self.rows.to("cpu")
        state["device"] = str(self.device)
        # A preset's name can stand for another configuration elsewhere; the weights fit this one.
        named = isinstance(self._upsampler_args["upsampler"], str)
        state["config"] = getattr(self.upsampler, "config", None) if named else None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        (drawn_on, drawn), upsampler, device = state.pop("_generator"), state.pop("upsampler"), state.pop("device")
        config = state.pop("config")
        self.__dict__.update(state)
        self.device = torch.device(device if _usable(device) else "cpu")
        self._generator = torch.Generator(self.device).manual_seed((self.seed + self._num_batches) % 2**64)
        if drawn_on == self.device.type:
            self._generator.set_state(drawn)
        self.rows = None if self.rows is None else self.rows.to(self.device)
        if not _usable(self._upsampler_args["device"]):
            logger.warning(
                "The upsampler's device %s is not here; it goes on on 'auto'.", self._upsampler_args["device"]
            )
            self._upsampler_args = {**self._upsampler_args, "device": "auto"}
        self.upsampler = None if self.spec is None else self._make_upsampler(self.spec)
        if self.spec is not None and config is not None and config != getattr(self.upsampler, "config", None):
            logger.warning(
                "The saved model has another configuration than %r stands for here; it goes on with its own "
                "(%d training steps, width %d).",
                self._upsampler_args["upsampler"], config.train_steps, config.network.width,
            )  # fmt: skip
            self.upsampler = self._make_upsampler(self.spec, config)
        if self.upsampler is not None:
            self.upsampler.load_state_dict(upsampler)

    def _make_upsampler(self, spec: TransitionSpec, config: UpsamplerConfig | None = None) -> Upsampler:
        given = self._upsampler_args if config is None else {**self._upsampler_args, "upsampler": config}
        return make_upsampler(spec=spec, seed=self.seed, **given)


def _reaches_held_out(held: np.ndarray, order: RowOrder, max_steps: int) -> np.ndarray:
    """True for held-out rows, and for rows of up to `max_steps` steps whose end reaches into them."""
    key = order.stream.astype(np.int64) * 2**40 + order.write_index
    reaches = held.copy()
    for steps in range(1, max_steps):
        reaches |= np.isin(key + steps, key[held])
    return reaches


def _usable(device: str | torch.device) -> bool:
    try:
        resolve_device(device)
    except ValueError:
        return False
    return True
