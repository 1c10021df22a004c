"""Relevance by the rewards that followed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..public_paths import public
from ..transitions import RowOrder, Transitions
from ..validation import fraction
from .base import Guidance


@public
@dataclass(frozen=True, kw_only=True)
class ReturnToGo(Guidance):
    """The discounted sum of the rewards from a row to the end of its episode.

    Where the rest of an episode is unknown (a time limit, the present, overwritten rows), every step of it counts the
    mean reward of all rows. n-step rows are refused: their rewards overlap.

    Attributes:
        discount: of each further step, from 0 to below 1.
    """

    discount: float = 0.99

    def __post_init__(self) -> None:
        """Reject values out of range with an error that names them."""
        super().__post_init__()
        object.__setattr__(self, "discount", fraction("guidance.discount", self.discount))
        if self.discount == 1.0:
            raise ValueError("guidance.discount is 1.0; it must be below 1, because episodes may not end.")

    def relevance(self, transitions: Transitions, order: RowOrder) -> Tensor:
        """The sum, ``[N]``.

        Raises:
            ValueError: n-step rows.
        """
        if transitions.discount is not None:
            raise ValueError("ReturnToGo does not take n-step rows, whose rewards overlap")
        reward = transitions.reward.double().cpu().numpy()
        terminated = transitions.terminated.cpu().numpy()
        beyond = float(reward.mean()) / (1.0 - self.discount)
        sequence = order.stream if order.trajectory is None else order.trajectory
        rows = np.lexsort((order.write_index, sequence))
        sequence, write = sequence[rows], order.write_index[rows]
        # A row is the last of its piece if an episode ends with it or the next one in the order does not follow it.
        last = np.ones(len(rows), np.bool_)
        last[:-1] = sequence[1:] != sequence[:-1]
        if order.trajectory is None:  # otherwise rows of other environments lie between them
            last[:-1] |= write[1:] != write[:-1] + 1
        last |= order.episode_end[rows] | terminated[rows]
        after = np.where(terminated[rows], 0.0, beyond)
        found = np.empty(len(rows))
        found[rows] = _discounted(reward[rows], last, after, self.discount)
        return torch.from_numpy(found)


def _discounted(
    reward: NDArray[np.float64], last: NDArray[np.bool_], after: NDArray[np.float64], discount: float
) -> NDArray[np.float64]:
    """Discounted sums within pieces that end where `last` is True, from `after` beyond their last row."""
    ends = np.flatnonzero(last)
    lengths = np.diff(ends, prepend=-1)
    longest_first = np.argsort(-lengths, kind="stable")
    ends, lengths = ends[longest_first], lengths[longest_first]
    total = np.empty(len(reward))
    value = after[ends]
    # All pieces at once, one step back at a time; the first `going` ones are longer than that.
    going = len(ends)
    for back in range(int(lengths[0])):
        while lengths[going - 1] <= back:
            going -= 1
        at = ends[:going] - back
        value = reward[at] + discount * value[:going]
        total[at] = value
    return total
