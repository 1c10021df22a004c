"""What every dataset can do: tell its length and its spec, and give its rows in chunks or a uniform subset of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..transitions import Transitions, TransitionSpec, concatenate
from .columns import Block, as_dtype, as_flags, as_scalars, native, to_tensor

#: Rows that are read at a time where nobody says how many.
CHUNK_ROWS = 65_536

NO_ROWS = "{}: no row has a next observation; there is nothing to learn from."


class Dataset(ABC):
    """Transitions in a file, read in chunks and never all at once.

    Rows without a next observation are left out; `num_dropped` counts them. A time limit is no terminal.

    Attributes:
        path: where it lies; error messages begin with it.
        format: its name, one of `synther_buffers.datasets.FORMATS`.
        env_spec: JSON of the Gymnasium environment it was recorded in, or None.
    """

    format: ClassVar[str]
    env_spec: str | None = None

    def __init__(self, path: str | Path, spec: TransitionSpec | None = None) -> None:
        self.path = Path(path)
        self._given_spec = spec

    @abstractmethod
    def __len__(self) -> int:
        """Rows that `chunks` gives."""

    @property
    @abstractmethod
    def num_dropped(self) -> int:
        """Rows left out because nothing tells their next observation."""

    @abstractmethod
    def _blocks(self, max_rows: int) -> Iterator[Block]:
        """Consecutive rows by field name, arrays as they are stored."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the data."""
        return (self.path,)

    def fingerprint(self) -> list[list[Any]]:
        """Name, size and time of each file: equal as long as nobody writes to it. Plain data for JSON."""
        return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in self.files]

    def chunks(self, max_rows: int = CHUNK_ROWS) -> Iterator[Transitions]:
        """The rows in the order of the file, at most `max_rows` at a time.

        Raises:
            ValueError: naming the file and the key that holds something else than finite numbers of the spec.
        """
        if max_rows < 1:
            raise ValueError(f"max_rows is {max_rows}; it must be at least 1.")
        for block in self._blocks(max_rows):
            yield Transitions.from_flat(
                {name: to_tensor(self._converted(name, array)) for name, array in block.items() if name != "end"}
            )

    def _key(self, name: str) -> str:
        """What the file calls a field."""
        return name

    def _converted(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        if name == "terminated":
            return as_flags(self.path, self._key(name), array)
        if name == "reward":
            return as_dtype(
                self.path, self._key(name), as_scalars(self.path, self._key(name), array), np.dtype("float32")
            )
        if self._given_spec is None:
            return array
        field = self._fields[name]
        wanted = np.dtype(field.dtype)
        if array.shape[1:] != field.shape:
            raise ValueError(
                f"{self.path}: {self._key(name)} has rows of shape {array.shape[1:]}, but its space is {field.shape}."
            )
        if not np.can_cast(array.dtype, wanted, "same_kind"):
            raise ValueError(f"{self.path}: {self._key(name)} has dtype {array.dtype}, but its space is {field.dtype}.")
        return as_dtype(self.path, self._key(name), native(array), wanted)

    @cached_property
    def _fields(self) -> dict[str, Any]:
        return {field.name: field for field in self.spec.fields}

    @cached_property
    def spec(self) -> TransitionSpec:
        """The fields: from the spaces where the file tells them, otherwise from what the rows look like.

        Raises:
            ValueError: images, or an unreadable file.
        """
        if self._given_spec is not None:
            return self._given_spec
        spec: TransitionSpec | None = None
        for rows in self.chunks():
            try:
                spec = TransitionSpec.infer(rows, spec)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{self.path}: {error}") from error
            if not any(field.kind == "categorical" for field in (*spec.observation, spec.action)):
                break  # only categories need all rows to be known
        if spec is None:
            raise ValueError(NO_ROWS.format(self.path))
        return spec

    def subset(self, num_rows: int, seed: int = 0) -> Transitions:
        """A uniform subset without replacement, in the order of the file; all rows if there are no more.

        The file is streamed: memory holds the subset and one chunk.

        Args:
            num_rows: how many, at least 1.
            seed: the same seed gives the same rows.
        """
        if num_rows < 1:
            raise ValueError(f"num_rows is {num_rows}; it must be at least 1.")
        total = len(self)
        if total == 0:
            raise ValueError(NO_ROWS.format(self.path))
        parts: list[Transitions] = []
        if num_rows >= total:
            parts = list(self.chunks())
        else:
            generator = np.random.default_rng([seed % 2**64, *b"subset"])
            # Floyd's algorithm: memory for the rows that are chosen, not for all.
            chosen = np.sort(generator.choice(total, num_rows, replace=False, shuffle=False))
            first = 0
            for rows in self.chunks():
                low, high = np.searchsorted(chosen, [first, first + len(rows)])
                if high > low:
                    parts.append(rows[torch.from_numpy(chosen[low:high] - first)])
                first += len(rows)
        return concatenate(parts)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {len(self)} rows)"
