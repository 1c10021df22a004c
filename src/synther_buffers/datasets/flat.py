"""Datasets of one column per field: what D4RL's HDF5, the published npz and saved replay buffers have in common."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..transitions import SEPARATOR, TransitionSpec
from .base import CHUNK_ROWS, Dataset
from .columns import Block, Column, as_flags, block_rows, check_finite, successors

logger = logging.getLogger(__name__)

_FLAGS = ("terminated", "end")


@dataclass(frozen=True)
class Layout:
    """How a format calls the fields; `truncated` says where a time limit cut an episode.

    Without `terminated` no row is terminal. With `done`, rows of `terminated` that are `truncated` are not.
    """

    observation: str = "observations"
    action: str = "actions"
    reward: str = "rewards"
    next_observation: str = "next_observations"
    terminated: str | None = "terminals"
    truncated: str = "timeouts"
    done: bool = False

    @property
    def keys(self) -> list[str]:
        return [value for value in vars(self).values() if isinstance(value, str)]

    @classmethod
    def of(cls, path: str | Path, names: list[str], keys: Mapping[str, str] | None, terminals: bool) -> Layout:
        """How a file with these names calls the fields.

        Args:
            path: of the file, for messages.
            names: what there is at its top.
            keys: what it calls a field, as its user says; otherwise the first of `ALIASES` that is there.
            terminals: whether it says which rows are terminal.

        Raises:
            ValueError: a field or key that is not known, or terminals in a file that shall have none.
        """
        found = {name.split(SEPARATOR)[0] for name in names if isinstance(name, str)}
        keys = keys or {}
        for field, key in keys.items():
            if field not in ALIASES:
                raise ValueError(f"keys has {field!r}; fields that can be named: {', '.join(ALIASES)}.")
            if key not in found:
                listed = ", ".join(sorted(found)[:20])
                raise ValueError(f"{path} has no {key}, which keys (--key) names; it has {listed}.")
        chosen: dict[str, Any] = {
            field: keys.get(field) or next((name for name in names if name in found), names[0])
            for field, names in ALIASES.items()
        }
        if not terminals:
            if chosen["terminated"] in found:
                raise ValueError(f"{path} has {chosen['terminated']}: leave out terminals=False (--no-terminals).")
            chosen["terminated"] = None
        chosen["done"] = chosen["terminated"] in DONES
        if chosen["done"] and chosen["truncated"] not in found:
            logger.warning(
                "%s has %s but none of %s: rows that a time limit ended would be learned as terminal.",
                path, chosen["terminated"], ", ".join(ALIASES["truncated"]),
            )  # fmt: skip
        return cls(**chosen)


#: Names that flat files of transitions give the fields; the first one is D4RL's.
ALIASES = {
    "observation": ("observations", "observation", "obs", "states", "state"),
    "action": ("actions", "action", "acts", "act"),
    "reward": ("rewards", "reward", "rews", "rew"),
    "next_observation": (
        "next_observations", "next_observation", "next_obs", "obs_next", "obs2", "next_states", "next_state",
    ),
    "terminated": ("terminals", "terminal", "terminations", "terminated", "terminateds", "dones", "done"),
    "truncated": ("timeouts", "timeout", "truncations", "truncated", "truncateds"),
}  # fmt: skip
#: Names of the ends of episodes whatever the reason: a time limit is no terminal.
DONES = ("dones", "done")


class Source(ABC):
    """Where columns come from; keys of nested observations are joined by a dot.

    Only columns that a layout names are looked at: what else the file holds is nobody's business.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    @abstractmethod
    def columns(self) -> dict[str, Column]:
        """The layout's columns that are there; all are safe to read."""

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Everything there is at the top of the file, for messages."""

    @abstractmethod
    def blocks(self, keys: list[str], max_rows: int) -> Iterator[Block]:
        """Consecutive rows of these columns."""


class SlicedSource(Source):
    """Columns that can be read anywhere.

    Args:
        path: of the file.
        segments: the rows that count, as ``(start, stop)``, in the order in which they were written; None for all.
    """

    def __init__(self, path: str | Path, segments: list[tuple[int, int]] | None = None) -> None:
        super().__init__(path)
        self.segments = segments

    def _pieces(self, keys: list[str], max_rows: int) -> Iterator[tuple[int, int]]:
        columns = [self.columns[key] for key in keys]
        rows = block_rows(columns, max_rows)
        for start, stop in self.segments or [(0, columns[0].num_rows)]:
            for first in range(start, stop, rows):
                yield first, min(first + rows, stop)


class ArraySource(SlicedSource):
    """Arrays in memory, of a buffer that was unpickled."""

    def __init__(
        self, path: str | Path, arrays: dict[str, NDArray[Any]], segments: list[tuple[int, int]] | None = None
    ) -> None:
        super().__init__(path, segments)
        self.arrays = arrays

    @cached_property
    def columns(self) -> dict[str, Column]:
        return {key: Column.declared(self.path, key, array.shape, array.dtype) for key, array in self.arrays.items()}

    @property
    def names(self) -> list[str]:
        return list(self.arrays)

    def blocks(self, keys: list[str], max_rows: int) -> Iterator[Block]:
        """Consecutive rows of these columns."""
        for start, stop in self._pieces(keys, max_rows):
            yield {key: self.arrays[key][start:stop] for key in keys}


class FlatDataset(Dataset):
    """Columns of equal length.

    Args:
        source: the columns.
        layout: how they are called.
        spec: the fields, where the file tells them.
        breaks: numbers of the rows after which the next row does not go on, beside the ends of episodes.

    Raises:
        ValueError: a key that is missing, or columns that do not fit each other.
    """

    def __init__(
        self,
        source: Source,
        layout: Layout,
        spec: TransitionSpec | None = None,
        breaks: tuple[int, ...] = (),
    ) -> None:
        super().__init__(source.path, spec)
        self._source = source
        self._layout = layout
        self._breaks = np.array(sorted(breaks), np.int64)
        columns = source.columns
        self._observations = self._leaves(layout.observation)
        self._has_next = bool(self._leaves(layout.next_observation, wanted=False))
        self._keys = {
            **{f"observation{leaf}": f"{layout.observation}{leaf}" for leaf in self._observations},
            "action": layout.action,
            "reward": layout.reward,
        }
        if layout.terminated is not None:
            self._keys["terminated"] = layout.terminated
        for key in self._keys.values():
            self._demand(key)
        if self._has_next:
            for leaf in self._observations:
                key, twin = f"{layout.next_observation}{leaf}", f"{layout.observation}{leaf}"
                self._demand(key)
                if (columns[key].shape, columns[key].dtype) != (columns[twin].shape, columns[twin].dtype):
                    raise ValueError(
                        f"{self.path}: {key} has rows of shape {columns[key].shape} and dtype {columns[key].dtype}, "
                        f"but {twin} {columns[twin].shape} and {columns[twin].dtype}; they must be alike."
                    )
                self._keys[f"next_observation{leaf}"] = key
        else:
            if layout.truncated not in columns:
                raise ValueError(
                    f"{self.path} has neither {layout.next_observation} nor {layout.truncated}: where a time limit cut "
                    "an episode, the next row would be taken for its continuation. Add one of the two."
                )
            self._keys["end"] = layout.truncated
        if layout.done and layout.truncated in columns:
            self._keys["end"] = layout.truncated
        lengths = {key: columns[key].num_rows for key in self._keys.values()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{self.path}: the columns have different numbers of rows: {lengths}.")
        num_rows, segments = lengths[layout.reward], getattr(source, "segments", None) or []
        if any(stop > num_rows for _, stop in segments):
            raise ValueError(f"{self.path}: the counters go beyond the {num_rows} rows of {layout.reward}.")

    def _leaves(self, key: str, wanted: bool = True) -> list[str]:
        """What follows the key in the columns' names: "" or the nested keys, each with its separator."""
        found = [
            name.removeprefix(key)
            for name in self._source.columns
            if name == key or name.startswith(f"{key}{SEPARATOR}")
        ]
        if wanted and not found:
            self._demand(key)
        return found

    def _demand(self, key: str) -> None:
        if key not in self._source.columns:
            found = ", ".join(sorted(map(str, self._source.names))[:20])
            hint = ""
            if self.format in ("hdf5", "npz"):
                hint = " If it has another name, give it with keys={...} (--key FIELD=NAME)."
                if key == self._layout.terminated:
                    hint += " If the dataset has no terminals: terminals=False (--no-terminals)."
            raise ValueError(f"{self.path} has no {key}; it has {found or 'nothing at all'}.{hint}")

    def _key(self, name: str) -> str:
        return self._keys.get(name, name)

    def fingerprint(self) -> list[list[Any]]:
        """As of every dataset, and what the file calls the fields."""
        return [*super().fingerprint(), sorted(self._keys.items())]

    @cached_property
    def _num_stored(self) -> int:
        """Rows before any are left out."""
        segments = getattr(self._source, "segments", None)
        if segments is not None:
            return sum(stop - start for start, stop in segments)
        return self._source.columns[self._layout.reward].num_rows

    def _stored(self, names: list[str], max_rows: int) -> Iterator[Block]:
        """Blocks by field name; ``end`` says where the next row does not go on."""
        names = [name for name in names if name in self._keys]
        keys = [self._keys[name] for name in names]
        row = 0
        for found in self._source.blocks(keys, max_rows):
            block = {name: found[self._keys[name]] for name in names}
            for name, array in block.items():
                check_finite(self.path, self._keys[name], array, row)
            num_rows = len(block[names[0]])
            flags = {name: as_flags(self.path, self._keys[name], block[name]) for name in names if name in _FLAGS}
            over, cut = flags.get("terminated", np.zeros(num_rows, np.bool_)), flags.get("end")
            block["terminated"] = over & ~cut if self._layout.done and cut is not None else over
            if cut is not None:
                block["end"] = over | cut
                here = self._breaks[(self._breaks >= row) & (self._breaks < row + num_rows)]
                block["end"][here - row] = True
            row += num_rows
            yield block

    def _blocks(self, max_rows: int) -> Iterator[Block]:
        blocks = self._stored(list(self._keys), max_rows)
        if self._has_next:
            return blocks
        return successors(blocks, [f"observation{leaf}" for leaf in self._observations])

    @cached_property
    def num_dropped(self) -> int:
        if self._has_next:
            return 0
        ends = terminals = 0
        last_ends = False
        for block in self._stored(["terminated", "end"], CHUNK_ROWS):
            ends += int(block["end"].sum())
            terminals += int(block["terminated"].sum())
            last_ends = bool(block["end"][-1])
        dropped = ends + (not last_ends)
        logger.warning(
            "%s has no %s: %d rows that end an episode or the file have none and are left out, %d of them terminal.",
            self.path, self._layout.next_observation, dropped, terminals,
        )  # fmt: skip
        return dropped

    def __len__(self) -> int:
        return self._num_stored - self.num_dropped
