"""What the conformance suite asks of an adapter: how to build, fill, read and train with its framework's buffer.

A further adapter gets the whole suite by subclassing `Adapter` and adding an instance to `ADAPTERS` in conftest.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from synther_buffers import SyntheticReplay

Rows = dict[str, np.ndarray]


@dataclass
class Training:
    """What a training left.

    Attributes:
        parameters: every weight of the nets, in one vector.
        batches: what the algorithm sampled, in order.
        buffer: its replay buffer.
        act: the agent's deterministic action for one observation, in the environment's units.
    """

    parameters: np.ndarray
    batches: list[Rows]
    buffer: Any
    act: Callable[[np.ndarray], np.ndarray]


class Adapter(ABC):
    """One framework's buffer in the suite's words.

    Rows are dicts of arrays with environments or rows first: ``observation``, ``action``, ``reward`` (float32,
    ``[n]``), ``next_observation``, ``terminated`` and, where rows are written, ``truncated`` (bool, ``[n]``).
    """

    name: str
    #: Name of the constructor's argument that says how many real rows fit.
    capacity: str
    #: How many environments a test with several of them uses.
    num_envs = 3
    #: A second buffer of a framework whose first one does the long runs.
    variant = False
    #: Ways in which the framework's own buffer can be copied.
    copies_by = ("deepcopy", "pickle", "restart")

    @abstractmethod
    def make(
        self, size: int, observation_space: spaces.Space, action_space: spaces.Space, *, n_envs: int = 1, **kwargs: Any
    ) -> Any:
        """A buffer of ours for `size` rows in all; `kwargs` are those that every adapter takes."""

    @abstractmethod
    def make_plain(
        self, size: int, observation_space: spaces.Space, action_space: spaces.Space, *, n_envs: int = 1
    ) -> Any:
        """The framework's own buffer."""

    @abstractmethod
    def add(self, buffer: Any, rows: Rows) -> None:
        """Write one row of each environment, as a collector does."""

    @abstractmethod
    def sample(self, buffer: Any, batch_size: int) -> Rows:
        """A batch as the framework gives it; ``terminated`` is what stops bootstrapping."""

    @abstractmethod
    def raw_sample(self, buffer: Any, batch_size: int) -> dict[str, Any]:
        """The tensors or arrays of a batch by the framework's own names."""

    @abstractmethod
    def stored(self, buffer: Any) -> Rows:
        """Every real row, read the framework's own way, in the order of its storage."""

    @abstractmethod
    def size(self, buffer: Any) -> int:
        """How many rows the framework says there are."""

    @abstractmethod
    def reset(self, buffer: Any) -> None:
        """Empty the buffer the framework's own way."""

    @abstractmethod
    def restart(self, buffer: Any, folder: Path) -> Any:
        """The buffer after the framework's own way to keep it over a restart."""

    @abstractmethod
    def seed(self, seed: int) -> None:
        """Seed the streams that the framework draws real rows from."""

    @abstractmethod
    def train(self, env_id: str, num_steps: int, *, plain: bool = False, utd: int = 1, **kwargs: Any) -> Training:
        """Train the framework's SAC with small nets, seeded; it learns from step 100 on, in batches of 64.

        Args:
            env_id: of a Gymnasium environment with Box actions.
            num_steps: environment steps.
            plain: with the framework's own buffer.
            utd: gradient steps per environment step.
            kwargs: of our buffer.
        """

    def supports(self, observation_space: spaces.Space, action_space: spaces.Space) -> bool:
        """Whether the framework can store such rows at all."""
        return True

    def synthetic(self, buffer: Any) -> SyntheticReplay:
        return buffer.synthetic
