"""Columns of a file: which are allowed, how they become tensors, and rows whose successor is the next row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Bytes that are read at a time at most, whatever the number of rows asked for.
BLOCK_BYTES = 256 * 2**20
#: A longer row is no vector of a control task, and would have to be held in memory whole.
MAX_ROW_BYTES = 16 * 2**20
#: A compressed column may be this much larger than what is stored (deflate reaches 1,032)...
MAX_COMPRESSION = 1_100
#: ...and a smaller one is harmless in any case.
_HARMLESS_BYTES = 64 * 2**20
#: Dtypes that PyTorch computes with, and what replaces those it only stores.
_DTYPES = {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"}
_WIDER = {"uint16": "int32", "uint32": "int64"}

Block = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Column:
    """A column as its file declares it: rows, the shape of one, and the dtype."""

    num_rows: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def declared(cls, path: str | Path, key: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Column:
        """See that a column of this shape and dtype can be read safely, before anything is allocated.

        Raises:
            ValueError: it has no rows, is of no number, or its rows are absurdly long.
        """
        name = dtype.newbyteorder("=").name
        if name not in _DTYPES and name not in _WIDER:
            raise ValueError(
                f"{path}: {key} has dtype {dtype}; wanted numbers: {', '.join(sorted(_DTYPES | set(_WIDER)))}."
            )
        if not shape:
            raise ValueError(f"{path}: {key} is a single value; wanted one row per transition.")
        if shape[0] == 0:
            raise ValueError(f"{path}: {key} has no rows; there is nothing to learn from.")
        column = cls(shape[0], tuple(shape[1:]), dtype)
        if column.row_bytes == 0:
            raise ValueError(f"{path}: {key} has shape {shape}: its rows are empty.")
        if column.row_bytes > MAX_ROW_BYTES:
            raise ValueError(
                f"{path}: a row of {key} has {column.row_bytes / 2**20:.0f} MiB (shape {shape}); wanted vectors of at "
                f"most {MAX_ROW_BYTES // 2**20} MiB. Is the first axis the row?"
            )
        return column


def check_stored_size(path: str | Path, key: str, declared: int, stored: int) -> None:
    """Refuse a column that declares far more than its file can hold: a bomb, or one that was never written.

    Raises:
        ValueError: as said.
    """
    if stored == 0 and declared > 0:
        raise ValueError(f"{path}: {key} is declared with {declared} bytes, but none are stored in the file.")
    if declared > _HARMLESS_BYTES and declared > MAX_COMPRESSION * stored:
        raise ValueError(
            f"{path}: {key} declares {declared / 2**20:.0f} MiB, but only {stored} bytes are stored in the file; "
            "this is no honest compression."
        )


def block_rows(columns: Iterable[Column], wanted: int) -> int:
    """Rows to read at a time: what was asked for, but no more than `BLOCK_BYTES`."""
    return max(1, min(wanted, BLOCK_BYTES // max(1, sum(column.row_bytes for column in columns))))


def native(array: NDArray[Any]) -> NDArray[Any]:
    """The same values in the machine's byte order and a dtype that PyTorch computes with."""
    name = array.dtype.newbyteorder("=").name
    return np.ascontiguousarray(array, np.dtype(_WIDER.get(name, name)))


def as_dtype(path: str | Path, key: str, array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Finite values in another dtype; floats are rounded.

    Raises:
        ValueError: one does not fit it.
    """
    with np.errstate(over="ignore"):  # the error below tells more
        converted = array.astype(dtype, copy=False)
    lost = ~np.isfinite(converted) if dtype.kind == "f" else converted != array
    if bool(lost.any()):
        raise ValueError(
            f"{path}: {key} holds {array[lost][0]:g}, which does not fit {dtype}; rescale the column, or remove such "
            "rows first."
        )
    return converted


def to_tensor(array: NDArray[Any]) -> Tensor:
    """A tensor of its own: what is done to it does not reach the array."""
    return torch.from_numpy(np.array(native(array)))


def as_flags(path: str | Path, key: str, array: NDArray[Any]) -> NDArray[np.bool_]:
    """0 and 1 of any dtype as booleans, ``[N]`` or ``[N, 1]`` as ``[N]``.

    Raises:
        ValueError: other values.
    """
    flat = as_scalars(path, key, array)
    flags = flat.astype(np.bool_)
    if not bool((flat == flags).all()):
        raise ValueError(
            f"{path}: {key} has other values than 0 and 1, for example {flat[flat != flags][0]}; "
            "threshold them first, or correct the key."
        )
    return flags


def as_scalars(path: str | Path, key: str, array: NDArray[Any]) -> NDArray[Any]:
    """One value per row, ``[N]`` or ``[N, 1]`` as ``[N]``."""
    if array.size != len(array):
        raise ValueError(f"{path}: {key} has rows of shape {array.shape[1:]}; wanted one value per row.")
    return array.reshape(-1)


def check_finite(path: str | Path, key: str, array: NDArray[Any], first_row: int) -> None:
    """Refuse NaN and infinity: they would spoil a whole model.

    Raises:
        ValueError: naming the first row that has one.
    """
    if array.dtype.kind != "f":
        return
    good = np.isfinite(array.reshape(len(array), -1)).all(1)
    if not bool(good.all()):
        raise ValueError(
            f"{path}: {key} has NaN or infinity in row {first_row + int((~good).argmax())} "
            f"and {int((~good).sum()) - 1} of the rows after it; remove these rows first."
        )


def successors(blocks: Iterable[Block], observations: list[str]) -> Iterator[Block]:
    """Give each row the observation of the row after it; rows without a successor are left out, not invented.

    Args:
        blocks: consecutive rows; ``end`` is True where the next row does not go on from this one.
        observations: the columns that get a ``next_`` one.

    Yields:
        Blocks without the rows that end, and without the very last one.
    """
    held: Block = {}
    for block in blocks:
        rows = {key: np.concatenate((held[key], block[key])) for key in block} if held else block
        held = {key: array[-1:] for key, array in rows.items()}
        goes_on = ~rows["end"][:-1]
        if not goes_on.any():
            continue
        out = {key: array[:-1][goes_on] for key, array in rows.items()}
        out |= {f"next_{key}": rows[key][1:][goes_on] for key in observations}
        yield out
