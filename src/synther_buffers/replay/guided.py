"""Which rows of a refresh are relevant, by the guidance that the user chose, and the TD errors that it may need."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..guidance.base import Guidance, checked_relevance
from ..guidance.drawing import GuidedDraw
from ..guidance.td_error import TDError
from ..transitions import RowOrder, Transitions
from ..upsampling.relevance import RelevanceScale
from .learnable_rows import LearnableRows
from .random_streams import kept_random_streams
from .saving import SavedReplay

logger = logging.getLogger(__name__)


class GuidedReplay(SavedReplay):
    """The part of `SyntheticReplay` that says which rows are relevant. The attributes are explained there."""

    _td_error: Callable[[Transitions], Any] | None = None

    def _guided_draw(self, real: Transitions, order: RowOrder, learnable: LearnableRows) -> GuidedDraw | None:
        """How the refresh chooses rows by their relevance; None without a guidance, or where it does not work."""
        guidance = self.options.guidance
        if not isinstance(guidance, Guidance):
            return None
        if isinstance(guidance, TDError) and self._td_error is None:
            self._warn_once(
                "guidance unbound",
                "The guidance is TDError, but nothing tells the TD errors, so the synthetic rows are like the data. "
                "Call synthetic.bind_td_error(function), in SB3 pass callback=SynthERCallback().",
            )
            return None
        try:
            with kept_random_streams():
                classes = guidance.classes(learnable.train)
                if classes is None:
                    relevance = self._relevance(guidance, real, order, learnable)
                    relevance = RelevanceScale.measure(relevance).scores(relevance)
                else:
                    relevance = classes.rarity_of(learnable.train)
        except Exception as error:  # of a user's own function too
            self._warn_once(
                "guidance " + re.sub(r"\d+", "", f"{type(error).__name__} {error}"),
                f"The guidance does not work ({error}); the synthetic rows are like the data meanwhile.",
            )
            return None
        # Classes of the same size cannot be told apart by their rarity.
        by = "resampling" if bool((relevance == relevance[0]).all()) else guidance.by
        return GuidedDraw(type(guidance).__name__, relevance, guidance.strength, by, classes)

    def _relevance(self, guidance: Guidance, real: Transitions, order: RowOrder, learnable: LearnableRows) -> Tensor:
        """The relevance of the training rows, ``[n]``."""
        if isinstance(guidance, TDError) and self._td_error is not None:
            # Of all rows, because an adapter may know the errors by the rows' places.
            found = checked_relevance(self._td_error(_copied(real, np.arange(len(real)))), len(real))
            return found[torch.from_numpy(learnable.learned)]
        finite = learnable.finite
        guidance = guidance.for_spec(None if self._infers_spec else self.spec)
        found = checked_relevance(guidance.relevance(_copied(real, finite), order[finite]), len(finite))
        return found[torch.from_numpy(np.isin(finite, learnable.learned))]

    def bind_td_error(self, function: Callable[[Transitions], Any] | None) -> None:
        """Set what tells the TD errors, for the guidance `TDError`.

        It is not saved: bind it again after loading. `SynthERCallback` does so for Stable-Baselines3 and sbx, and the
        buffers of Tianshou and TorchRL for errors that the algorithm reports to them.

        Args:
            function: takes a copy of all real rows of the buffer, not normalised, and returns the absolute TD error of
                each, ``[N]``. It may draw from the global random streams; they are put back. None unbinds.

        Raises:
            TypeError: it cannot be called.
        """
        if function is not None and not callable(function):
            raise TypeError(f"function is {function!r}; wanted a function of transitions, or None.")
        self._td_error = function

    def record_td_errors(self, slots: Any, errors: Any) -> None:
        """Keep the errors that an algorithm reports; adapters call it.

        Args:
            slots: where the adapter stores the rows, ``[n]`` from 0.
            errors: ``[n]`` numbers of any sign, an array or a tensor.
        """
        try:
            if isinstance(errors, Tensor):
                errors = errors.detach().to("cpu", torch.float32).numpy()
            self._recorded.record(slots, errors)
        except Exception as error:  # an algorithm may report anything, and an agent goes on
            self._warn_once(f"td errors {error}", f"The TD errors that were reported cannot be kept ({error}).")

    def forget_td_errors(self, slots: Any) -> None:
        """Other rows are in these slots ``[n]`` now."""
        self._recorded.forget(slots)

    def recorded_td_errors(self, slots: Any) -> NDArray[np.float32]:
        """The errors that were recorded for these slots ``[n]``; rows without one have the mean of the others.

        Raises:
            RuntimeError: none was.
        """
        return self._recorded.of(slots)

    @property
    def td_error(self) -> Callable[[Transitions], Any] | None:
        """What `bind_td_error` has set."""
        return self._td_error

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            logger.warning(message)


def _copied(rows: Transitions, index: NDArray[np.int64]) -> Transitions:
    """The rows at `index`, in memory of their own: a user's function may write into them."""
    return rows[torch.from_numpy(index)]
