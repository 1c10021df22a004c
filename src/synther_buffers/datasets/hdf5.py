"""Flat HDF5 as D4RL writes it: ``observations``, ``actions``, ``rewards``, ``terminals`` and so on, a row each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from ..transitions import SEPARATOR, Transitions, TransitionSpec
from .columns import Block, Column, check_stored_size
from .files import SafeWriter, new_file
from .flat import FlatDataset, Layout, SlicedSource

try:
    import h5py
except ImportError as error:
    raise ImportError('HDF5 files need h5py: pip install "synther-buffers[offline]"') from error

#: Nested observations go no deeper; a file whose groups contain themselves would have no end.
_MAX_DEPTH = 8
#: Reading one value decompresses its whole HDF5 chunk.
_MAX_HDF5_CHUNK = 256 * 2**20
#: Rows per HDF5 chunk of what we write.
_WRITTEN_CHUNK_ROWS = 4_096


@contextmanager
def open_file(path: str | Path) -> Iterator[h5py.File]:
    """A file open for reading; whatever HDF5 finds wrong with it is a ValueError that names it."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise  # ours
        raise ValueError(f"{path} cannot be read as HDF5 ({error}); it is damaged, truncated or no HDF5.") from error


def member(path: str | Path, group: h5py.Group, key: str) -> h5py.Group | h5py.Dataset | None:
    """A group or dataset that lies in this very file, or None where there is none.

    Raises:
        ValueError: a link, which could lead into another file, or data that lie in other files.
    """
    if key not in group.keys():  # noqa: SIM118 (`in group` follows links and paths)
        return None
    if not isinstance(group.get(key, getlink=True), h5py.HardLink):
        raise ValueError(f"{path}: {key} is a link, which may lead out of the file; copy the data into it.")
    found = group[key]
    if isinstance(found, h5py.Dataset) and (found.is_virtual or found.external):
        raise ValueError(f"{path}: the data of {key} lie in other files, which is not followed; copy them into it.")
    if not isinstance(found, h5py.Group | h5py.Dataset):
        raise ValueError(f"{path}: {key} is neither a dataset nor a group.")
    return found


def declared_column(path: str | Path, key: str, dataset: h5py.Dataset) -> Column:
    """The column that a dataset holds, checked before anything is allocated.

    Raises:
        ValueError: see `Column.declared` and `check_stored_size`.
    """
    column = Column.declared(path, key, dataset.shape or (), dataset.dtype)
    check_stored_size(path, key, column.num_rows * column.row_bytes, dataset.id.get_storage_size())
    if dataset.chunks is not None and np.prod(dataset.chunks, dtype=float) * dataset.dtype.itemsize > _MAX_HDF5_CHUNK:
        raise ValueError(
            f"{path}: {key} has HDF5 chunks of shape {dataset.chunks}, more than {_MAX_HDF5_CHUNK // 2**20} MiB each; "
            "rewrite it with smaller ones (h5repack)."
        )
    return column


def walk(path: str | Path, name: str, node: h5py.Group | h5py.Dataset) -> Iterator[tuple[str, h5py.Dataset]]:
    """The datasets below a node, by their name with nested keys joined by a dot.

    Raises:
        ValueError: links, or groups nested too deeply.
    """
    if isinstance(node, h5py.Dataset):
        yield name, node
        return
    if name.count(SEPARATOR) >= _MAX_DEPTH:
        raise ValueError(f"{path}: {name} is nested more than {_MAX_DEPTH} groups deep.")
    for key in node.keys():  # noqa: SIM118
        child = member(path, node, key)
        if child is not None:
            if not isinstance(key, str) or SEPARATOR in key:
                raise ValueError(f"{path}: the key {key!r} of {name} is no text or contains {SEPARATOR!r}; rename it.")
            yield from walk(path, f"{name}{SEPARATOR}{key}", child)


class Hdf5Source(SlicedSource):
    """Columns in an HDF5 file, which is only open while it is read.

    Args:
        path: the file.
        layout: the columns to look for; groups hold nested observations.
        root: the group that holds them.
        segments: see `SlicedSource`.
    """

    def __init__(
        self,
        path: str | Path,
        layout: Layout,
        root: str | None = None,
        segments: list[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(path, segments)
        self._wanted = layout.keys
        self._root = root

    @contextmanager
    def _open(self) -> Iterator[h5py.Group]:
        with open_file(self.path) as file:
            group = file if self._root is None else member(self.path, file, self._root)
            if not isinstance(group, h5py.Group):
                raise ValueError(f"{self.path} has no group {self._root}.")
            yield group

    @cached_property
    def columns(self) -> dict[str, Column]:
        found: dict[str, Column] = {}
        with self._open() as group:
            for key in self._wanted:
                node = member(self.path, group, key)
                if node is not None:
                    found |= {
                        name: declared_column(self.path, name, dataset) for name, dataset in walk(self.path, key, node)
                    }
        return found

    @cached_property
    def names(self) -> list[str]:
        with self._open() as group:
            return list(group.keys())

    def blocks(self, keys: list[str], max_rows: int) -> Iterator[Block]:
        """Consecutive rows of these columns."""
        with self._open() as group:
            datasets = {key: group[key.replace(SEPARATOR, "/")] for key in keys}
            for start, stop in self._pieces(keys, max_rows):
                yield {key: dataset[start:stop] for key, dataset in datasets.items()}


class Hdf5Dataset(FlatDataset):
    """D4RL's keys, or aliases; ``next_observations`` may be missing if ``timeouts`` is there."""

    format = "hdf5"

    def __init__(self, path: str | Path, keys: Mapping[str, str] | None = None, terminals: bool = True) -> None:
        layout = Layout.of(path, Hdf5Source(path, Layout()).names, keys, terminals)
        super().__init__(Hdf5Source(path, layout), layout)


def attributes(path: Path) -> dict[str, str]:
    """The texts among a file's attributes."""
    with open_file(path) as file:
        return {str(key): value for key, value in file.attrs.items() if isinstance(value, str)}


def write_hdf5(
    path: str | Path,
    chunks: Iterable[Transitions],
    spec: TransitionSpec,
    num_rows: int,
    attributes: dict[str, str],
    timeouts: bool = True,
) -> None:
    """Write rows with D4RL's keys, streamed. Every row is an episode of its own: ``timeouts`` is set unless it ended.

    Args:
        path: a new file.
        chunks: the rows.
        spec: their fields.
        num_rows: how many there will be.
        attributes: of the file.
        timeouts: write ``timeouts`` at all.

    Raises:
        OSError: the disk is full.
    """
    layout = Layout()
    keys = {field.name: _key(field.name, layout) for field in spec.fields}
    with new_file(path) as stream:
        writer = SafeWriter(stream)
        with h5py.File(writer, "w") as file:
            file.attrs.update(attributes)

            def create(key: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
                rows = min(num_rows, _WRITTEN_CHUNK_ROWS)
                return file.create_dataset(key, (num_rows, *shape), dtype, chunks=(rows, *shape))

            datasets = {field.name: create(keys[field.name], field.shape, field.dtype) for field in spec.fields}
            cuts = create(layout.truncated, (), "bool") if timeouts else None
            start = 0
            for rows in chunks:
                stop = start + len(rows)
                for name, tensor in rows.flat().items():
                    datasets[name][start:stop] = tensor.cpu().numpy()
                if cuts is not None:
                    cuts[start:stop] = ~rows.terminated.cpu().numpy()
                writer.check()
                start = stop
        writer.check()


def _key(name: str, layout: Layout) -> str:
    """Where a field goes: groups for nested observations."""
    root, *rest = name.split(SEPARATOR)
    return "/".join([vars(layout)[root], *rest])
