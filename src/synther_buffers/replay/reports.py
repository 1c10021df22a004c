"""What a refresh reports: the figures, the lines in the log, and the line in the refresh log."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..console import log_line
from ..evaluation.copies import ClosestRecord
from ..evaluation.fidelity import Fidelity
from ..public_paths import public
from ..upsampling.protocol import FitReport
from ..version import __version__
from .quality_gate import judge

logger = logging.getLogger(__name__)

#: A warning is logged where a marginal or correlation similarity is this far below that of real rows to real rows.
FIDELITY_GAP = 0.1
#: A warning is logged where a larger share of the synthetic rows are copies. Held-out rows can be as few as 20, so that
#: the share of a model that copies nothing lies within 0.02 and 0.15.
MAX_COPY_SHARE = 0.25


@public
@dataclass(frozen=True)
class RefreshReport:
    """What a refresh did; also the line it appends to the refresh log.

    Attributes:
        refresh: number of this refresh, from 1.
        num_observed: real transitions written so far.
        num_real, num_held_out, num_dropped: rows trained on, held out, and left out because they are not finite.
        num_synthetic: rows of the new synthetic set.
        fit: of the upsampler.
        fit_seconds, sample_seconds, seconds: wall time of the fit, of the generation, and in all.
        fidelity: new synthetic rows against held-out real rows.
        fidelity_real: as many real training rows against held-out real rows, the best to be expected.
        closest: distance of synthetic rows to the closest training row, against that of held-out rows: whether the
            model copies. None where too few rows are held out.
        outcome_gap: how much less a regression explains of the synthetic outcomes than of real ones, from 0 to 1
            (`synther_buffers.evaluation.outcome_gap`); NaN where it cannot tell.
        guidance: name of the guidance that chose the rows; empty for rows like the data.
    """

    refresh: int
    num_observed: int
    num_real: int
    num_held_out: int
    num_dropped: int
    num_synthetic: int
    fit: FitReport
    fit_seconds: float
    sample_seconds: float
    seconds: float
    fidelity: Fidelity
    fidelity_real: Fidelity
    closest: ClosestRecord | None = None
    outcome_gap: float = math.nan
    guidance: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RefreshReport:
        """What `to_dict` returned."""
        parts = {
            "fit": FitReport(**data["fit"]),
            "fidelity": Fidelity(**data["fidelity"]),
            "fidelity_real": Fidelity(**data["fidelity_real"]),
            "closest": ClosestRecord(**data["closest"]) if data.get("closest") else None,
        }
        return cls(**{**data, **parts})

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """The figures worth a curve, by the name a logger shows; those that could not be measured are left out.

        Args:
            prefix: of every name; ``"synther/"`` groups the curves in most loggers.
        """
        figures = {
            "refresh": self.refresh,
            "loss": self.fit.loss,
            "held_out_loss": self.fit.held_out_loss,
            "warm_start": float(self.fit.warm),
            "train_steps": self.fit.steps,
            "fit_seconds": self.fit_seconds,
            "sample_seconds": self.sample_seconds,
            "seconds": self.seconds,
            "real_rows": self.num_real,
            "synthetic_rows": self.num_synthetic,
            "marginal_similarity": self.fidelity.marginal,
            "marginal_similarity_of_real": self.fidelity_real.marginal,
            "correlation_similarity": self.fidelity.correlation,
            "correlation_similarity_of_real": self.fidelity_real.correlation,
            "copy_share": math.nan if self.closest is None else self.closest.share_closer,
            "closest_record_ratio": math.nan if self.closest is None else self.closest.ratio,
            "outcome_gap": self.outcome_gap,
            "quality_share": judge(self).share,
        }
        return {f"{prefix}{name}": float(value) for name, value in figures.items() if math.isfinite(value)}


def log_report(report: RefreshReport, *, shown: bool) -> None:
    """Log the report, and warn of a wide gap between synthetic and real rows, and of copies.

    Args:
        report: of the refresh.
        shown: the line is seen even where nobody configured logging.
    """
    figures = "too few held-out rows to compare with"
    if math.isfinite(report.fidelity.marginal):
        figures = f"marginal similarity {report.fidelity.marginal:.3f} (real {report.fidelity_real.marginal:.3f})"
    loss = f", loss {report.fit.loss:.4f}" if math.isfinite(report.fit.loss) else ""
    log_line(
        logger, "Synthetic refresh %d done in %.1f s: %s synthetic rows%s%s, %s%s; %s.",
        report.refresh, report.seconds, f"{report.num_synthetic:,}",
        report.guidance and f" chosen by {report.guidance}", loss, figures, _copies(report), report.fit.spent(),
        shown=shown,
    )  # fmt: skip
    if report.closest is not None and report.closest.share_closer > MAX_COPY_SHARE:
        logger.warning(
            "The model copies: %.0f %% of the synthetic rows lie closer to a training row than 95 %% of the held-out "
            "rows do, where 5 %% are to be expected. Copies teach an agent nothing new. Fewer training steps, more "
            "weight decay or dropout, or more real rows help.",
            100 * report.closest.share_closer,
        )  # fmt: skip
    # Rows that a guidance chose are meant to differ from the data.
    for name in () if report.guidance else ("marginal", "correlation"):
        synthetic, real = getattr(report.fidelity, name), getattr(report.fidelity_real, name)
        if real - synthetic > FIDELITY_GAP:
            logger.warning(
                "The synthetic rows are far from the real ones: %s similarity %.3f where real rows have %.3f "
                "(worst column: %s, %.3f). More training steps or more data may help.",
                name, synthetic, real, report.fidelity.worst_column, report.fidelity.worst_marginal,
            )  # fmt: skip


def _copies(report: RefreshReport) -> str:
    """The share of copies in words; nothing where it was not measured."""
    if report.closest is None or not math.isfinite(report.closest.share_closer):
        return ""
    return f", {report.closest.share_closer:.0%} of them nearly copies (5% of new real rows are)"


def append_to_log(path: str | Path, report: RefreshReport, settings: dict[str, Any]) -> None:
    """Append the report as a JSON line, with the settings and versions that made it.

    Raises:
        OSError, TypeError, ValueError: the file cannot be written, or the settings not as JSON.
    """
    line = {
        **asdict(report),
        **settings,
        "versions": {
            "synther-buffers": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_without_nan(line), default=str) + "\n"
    with path.open("a+b") as file:
        # A kill or a full disk may have cut the last line short: what follows must not become part of it.
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                text = "\n" + text
        file.write(text.encode())


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {key: _without_nan(child) for key, child in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
