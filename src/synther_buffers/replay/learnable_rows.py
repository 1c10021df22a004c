"""Which real rows a refresh may learn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..transitions import RowOrder, Transitions

logger = logging.getLogger(__name__)

#: Fewer real rows than this are not worth a model: the refresh is skipped.
MIN_ROWS = 100
#: Of them, so many must be left without those that are held out or reach into held-out ones.
_MIN_LEARNED = MIN_ROWS // 2
#: A larger share of rows that are not finite skips the refresh.
MAX_NON_FINITE = 0.01


@dataclass
class LearnableRows:
    """What a refresh may learn.

    Rows that follow each other in the environment do so in all of these, whatever the order in the buffer: a network
    that is judged on runs of consecutive rows must not learn the neighbours of each of them.

    Attributes:
        train: rows to learn, in memory of their own.
        held_out: rows that judge the model, in memory of their own.
        finite: which of all real rows are finite, indices.
        learned: which of all real rows are in `train`, ``[n]`` indices.
        num_dropped: rows that are not finite.
    """

    train: Transitions
    held_out: Transitions
    finite: NDArray[np.int64]
    learned: NDArray[np.int64]
    num_dropped: int


def learnable_rows(
    real: Transitions,
    order: RowOrder,
    held: NDArray[np.bool_],
    max_steps: int,
    warn_once: Callable[[str, str], None],
) -> LearnableRows | None:
    """Split the real rows into those to learn and those to judge by, without those that are not finite.

    Args:
        real: every real row, ``[N, ...]``.
        order: when each was written.
        held: which are held out, ``[N]`` bool.
        max_steps: how many steps a row spans at most.
        warn_once: logs a message, its second argument, unless one of the same key, the first, was logged before.

    Returns:
        The rows, or None if there are too few, or too many that are not finite; the log says which.
    """
    finite = finite_rows(real)
    num_finite = int(finite.sum())
    for column, count in non_finite_columns(real).items() if num_finite < len(real) else ():
        warn_once(
            f"finite {column}",
            f"{count} real rows have NaN or infinity in {column}; such rows are not learned.",
        )
    num_dropped = len(real) - num_finite
    if num_dropped > MAX_NON_FINITE * len(real):
        logger.warning(
            "Synthetic refresh skipped: %d of %d real rows are not finite, more than %.0f %%.",
            num_dropped, len(real), 100 * MAX_NON_FINITE,
        )  # fmt: skip
        return None
    if num_finite < MIN_ROWS:
        warn_once(
            "rows", f"Synthetic refresh skipped: {num_finite} real rows are too few to learn from, wanted {MIN_ROWS}."
        )
        return None
    in_order = order.by_sequence()
    finite_in_order = in_order[finite[in_order]]
    learned = finite_in_order[~reaches_held_out(held, order, max_steps)[finite_in_order]]
    if len(learned) < _MIN_LEARNED:
        warn_once(
            "learned rows",
            f"Synthetic refresh skipped: of {num_finite} real rows {len(learned)} are left to learn, wanted "
            f"{_MIN_LEARNED}. n-step rows, here of up to {max_steps} steps, that reach into held-out rows are not "
            "learned.",
        )
        return None
    # Copies without gradients: what an upsampler does to its rows must reach neither the buffer's nor what made them.
    with torch.no_grad():
        train = real[torch.from_numpy(learned)]
        held_out = real[torch.from_numpy(finite_in_order[held[finite_in_order]])]
    return LearnableRows(train, held_out, finite_in_order, learned, num_dropped)


def finite_rows(rows: Transitions) -> NDArray[np.bool_]:
    """True for rows without NaN or infinity, ``[N]``."""
    finite = np.ones(len(rows), np.bool_)
    for _, good in _finite_columns(rows):
        finite &= good.all(1).cpu().numpy()
    return finite


def non_finite_columns(rows: Transitions) -> dict[str, int]:
    """The number of rows with NaN or infinity, by field and columns; only fields that have some."""
    counts = {}
    for name, good in _finite_columns(rows):
        if bool(good.all()):
            continue
        bad = (~good).any(0).nonzero().flatten().tolist()
        column = name if rows.flat()[name].ndim == 1 else f"{name}[{', '.join(map(str, bad[:5]))}]"
        counts[column] = int((~good).any(1).sum())
    return counts


def reaches_held_out(held: NDArray[np.bool_], order: RowOrder, max_steps: int) -> NDArray[np.bool_]:
    """True for held-out rows, and for rows of up to `max_steps` steps that reach into them, ``[N]``."""
    rows = order.by_sequence()
    same = order.sequence[rows[1:]] == order.sequence[rows[:-1]]
    same &= order.stream[rows[1:]] == order.stream[rows[:-1]]
    reaches = held[rows]
    for _ in range(1, max_steps):
        # The ends of episodes are no help: a stored n-step row that reaches an end carries its flag.
        reaches[:-1] |= reaches[1:] & same
    found = np.empty_like(reaches)
    found[rows] = reaches
    return found


def _finite_columns(rows: Transitions) -> Iterator[tuple[str, torch.Tensor]]:
    """For each field of floats, its name and which elements are finite, ``[N, size]``."""
    for name, tensor in rows.flat().items():
        if tensor.is_floating_point():
            yield name, torch.isfinite(tensor.reshape(len(rows), -1))
