"""``.npz`` with the keys that SynthER's published code writes, read and written as a stream."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..transitions import SEPARATOR, Transitions, TransitionSpec
from .columns import Block, Column, block_rows, check_stored_size
from .files import new_file, size_text
from .flat import ArraySource, FlatDataset, Layout, Source

#: The oldest time a zip can tell: the same rows make the same file, whenever they are written.
_TIME = (1980, 1, 1, 0, 0, 0)
#: A header is a few dozen characters; the limit is NumPy's own.
_MAX_HEADER = 10_000
#: Columns in Fortran's order, which cannot be streamed, may take so much memory together.
_MAX_FORTRAN_BYTES = 512 * 2**20


class NpzSource(Source):
    """Columns in a zip of ``.npy`` members, each read from its beginning to its end. Nothing is unpickled."""

    def __init__(self, path: str | Path, layout: Layout) -> None:
        super().__init__(path)
        self._wanted = layout.keys

    @contextmanager
    def _open(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
            raise ValueError(f"{self.path} cannot be read as npz ({error}); it is damaged or truncated.") from error

    @cached_property
    def names(self) -> list[str]:
        with self._open() as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    @cached_property
    def headers(self) -> dict[str, tuple[tuple[int, ...], bool, np.dtype[Any]]]:
        """Shape, Fortran's order and dtype of the layout's members."""
        with self._open() as archive:
            found = {}
            for name in self.names:
                if name.split(SEPARATOR)[0] in self._wanted:
                    with archive.open(f"{name}.npy") as member:
                        found[name] = self._header(name, member)
            return found

    def _header(self, name: str, member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        try:
            version = npy.read_magic(member)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            return read(member, max_header_size=_MAX_HEADER)
        except (ValueError, SyntaxError, UnicodeError) as error:
            raise ValueError(f"{self.path}: {name} is no .npy array ({error}).") from error

    @cached_property
    def columns(self) -> dict[str, Column]:
        found = {}
        with self._open() as archive:
            for name, (shape, _, dtype) in self.headers.items():
                if dtype.hasobject:
                    raise ValueError(
                        f"{self.path}: {name} holds pickled objects, and loading them can run any code that is in the "
                        "file. If you trust whoever made it, say so: allow_pickle=True, or --allow-pickle."
                    )
                found[name] = Column.declared(self.path, name, shape, dtype)
                info = archive.getinfo(f"{name}.npy")
                with archive.open(info) as member:
                    self._header(name, member)
                    follow = info.file_size - member.tell()
                size = math.prod(shape) * dtype.itemsize
                if follow != size:
                    raise ValueError(
                        f"{self.path}: {name} declares shape {shape} of {dtype}, {size} bytes, but {follow} follow; "
                        "it is damaged or truncated."
                    )
                check_stored_size(self.path, name, size, info.compress_size)
        scattered = [name for name, (shape, fortran, _) in self.headers.items() if fortran and len(shape) > 1]
        needed = sum(found[name].num_rows * found[name].row_bytes for name in scattered)
        if needed > _MAX_FORTRAN_BYTES:
            raise ValueError(
                f"{self.path}: {', '.join(scattered)} are stored in Fortran's order, so that their {size_text(needed)} "
                f"would have to be held in memory whole; wanted at most {size_text(_MAX_FORTRAN_BYTES)}. Save "
                "them with np.ascontiguousarray(...)."
            )
        return found

    def blocks(self, keys: list[str], max_rows: int) -> Iterator[Block]:
        """Consecutive rows of these columns."""
        columns = [self.columns[key] for key in keys]
        rows = block_rows(columns, max_rows)
        with self._open() as archive, ExitStack() as stack:
            readers = {key: self._reader(key, stack.enter_context(archive.open(f"{key}.npy"))) for key in keys}
            for start in range(0, columns[0].num_rows, rows):
                stop = min(start + rows, columns[0].num_rows)
                yield {key: read(start, stop) for key, read in readers.items()}

    def _reader(self, key: str, member: IO[bytes]) -> Callable[[int, int], NDArray[Any]]:
        """What gives the next rows of a column."""
        column = self.columns[key]
        _, fortran, _ = self._header(key, member)

        def read(num_rows: int, order: Any = "C") -> NDArray[Any]:
            data = member.read(num_rows * column.row_bytes)
            if len(data) != num_rows * column.row_bytes:
                raise ValueError(f"{self.path}: {key} ends too early; the file is truncated.")
            return np.frombuffer(data, column.dtype).reshape((num_rows, *column.shape), order=order)

        if fortran and column.shape:
            # Each row is scattered over the whole member, so that this column has to be held in memory.
            whole = read(column.num_rows, "F")
            return lambda start, stop: whole[start:stop]
        return lambda start, stop: read(stop - start)


class NpzDataset(FlatDataset):
    """Published keys: ``observations``, ``actions``, ``rewards``, ``next_observations``, ``terminals``; or aliases."""

    format = "npz"

    def __init__(
        self,
        path: str | Path,
        allow_pickle: bool = False,
        keys: Mapping[str, str] | None = None,
        terminals: bool = True,
    ) -> None:
        layout = Layout.of(path, NpzSource(path, Layout()).names, keys, terminals)
        source = NpzSource(path, layout)
        if allow_pickle and any(dtype.hasobject for _, _, dtype in source.headers.values()):
            super().__init__(ArraySource(path, _unpickled(path, list(source.headers))), layout)
        else:
            super().__init__(source, layout)


def _unpickled(path: str | Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """All columns in memory, arrays of objects stacked to arrays of numbers."""
    arrays = {}
    with np.load(path, allow_pickle=True) as archive:
        for name in names:
            array = archive[name]
            if array.dtype.hasobject:
                try:
                    array = np.stack([np.asarray(row) for row in array])
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{path}: the objects in {name} are no rows of numbers ({error}).") from error
            arrays[name] = array
    return arrays


def attributes(path: Path) -> dict[str, str]:
    """The texts that `write_npz` kept in the comment of the archive."""
    with zipfile.ZipFile(path) as archive:
        found = json.loads(archive.comment or b"{}")
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def write_npz(
    path: str | Path,
    chunks: Callable[[], Iterable[Transitions]],
    spec: TransitionSpec,
    num_rows: int,
    attributes: dict[str, str],
) -> None:
    """Write rows with the published keys, compressed and streamed, one column after the other.

    Args:
        path: a new file.
        chunks: gives the rows, from the first one at each call.
        spec: their fields.
        num_rows: how many there are.
        attributes: kept in the comment of the archive, which readers of arrays pass over, if they fit there.

    Raises:
        OSError: the disk is full.
    """
    layout = vars(Layout())
    comment = json.dumps(attributes).encode()
    with new_file(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.comment = comment if attributes and len(comment) <= zipfile.ZIP_MAX_COMMENT else b""
        for field in spec.fields:
            root, *rest = field.name.split(SEPARATOR)
            # The published code keeps terminals as float32.
            dtype = np.dtype("float32" if field.name == "terminated" else field.dtype)
            info = zipfile.ZipInfo(SEPARATOR.join([layout[root], *rest]) + ".npy", _TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as member:
                header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (num_rows, *field.shape)}
                npy.write_array_header_1_0(member, header)
                for rows in chunks():
                    member.write(np.ascontiguousarray(rows.flat()[field.name].cpu().numpy(), dtype).tobytes())
