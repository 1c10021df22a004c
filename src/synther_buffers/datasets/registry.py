"""Which formats there are, which one a file has, and reading and writing by that name."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from ..transitions import Transitions, TransitionSpec
from ..version import __version__
from .base import CHUNK_ROWS, Dataset
from .files import check_space, place

#: Formats that can be read.
FORMATS = ("minari", "hdf5", "npz", "sb3", "tianshou")
#: Formats that can be written.
OUTPUT_FORMATS = ("minari", "hdf5", "npz")

_HDF5_MAGIC, _ZIP_MAGIC, _PICKLE_MAGIC = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"\x80"


def open_dataset(
    path: str | Path,
    format: str | None = None,
    allow_pickle: bool = False,
    *,
    keys: Mapping[str, str] | None = None,
    terminals: bool = True,
) -> Dataset:
    """Open a dataset; its rows are read later, in chunks.

    Args:
        path: a file, the directory of a Minari dataset, or the id of one in Minari's local store.
        format: one of `FORMATS`; None to look at the file.
        allow_pickle: unpickle where the format needs it, which runs any code that whoever made the file put into it.
        keys: what HDF5 or npz call a field, where it is none of the usual names: ``{"observation": "x"}``. Fields are
            observation, action, reward, next_observation, terminated and truncated.
        terminals: False for HDF5 or npz that do not say which rows are terminal: no row is then.

    Raises:
        ValueError: no such dataset, an unknown or unsupported format, or a file that is damaged or hostile; the
            message names the file and the key.
        ImportError: a package is missing; the message names the extra.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format is {format!r}; known formats: {', '.join(FORMATS)}.")
    if not isinstance(path, str | Path):
        raise TypeError(f"path is {path!r}; wanted the path of a file, or a Minari id.")
    format = format or guess_format(path)
    if format not in ("hdf5", "npz") and (keys or not terminals):
        option = "keys (--key)" if keys else "terminals=False (--no-terminals)"
        raise ValueError(f"{option} is for HDF5 and npz; {path} is {format}, which has names of its own.")
    if format == "minari":
        from .minari import MinariDataset

        return MinariDataset(path)
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}.")
    if format == "hdf5":
        from .hdf5 import Hdf5Dataset

        return Hdf5Dataset(path, keys, terminals)
    if format == "npz":
        from .npz import NpzDataset

        return NpzDataset(path, allow_pickle, keys, terminals)
    from .buffers import open_pickle, open_tianshou_hdf5

    if format == "tianshou" and _magic(Path(path)).startswith(_HDF5_MAGIC):
        return open_tianshou_hdf5(path)
    dataset = open_pickle(path, allow_pickle)
    if dataset.format != format and format != "pickle":
        raise ValueError(f"{path} holds a buffer of {dataset.format}, not of {format}.")
    return dataset


def guess_format(path: str | Path) -> str:
    """What a file looks like by its first bytes, or ``pickle`` for one of which only unpickling tells more.

    Raises:
        ValueError: there is nothing, or nothing known.
    """
    file = Path(path)
    if file.is_file():
        magic = _magic(file)
        if magic.startswith(_HDF5_MAGIC):
            from .hdf5 import open_file

            with open_file(file) as content:
                return "tianshou" if "_meta" in content.keys() else "hdf5"  # noqa: SIM118
        if magic.startswith(_ZIP_MAGIC):
            return "npz"
        if magic.startswith(_PICKLE_MAGIC):
            return "pickle"
        what = "is empty" if not magic else f"begins with {magic[:8]!r}"
        raise ValueError(
            f"{path} {what}: no HDF5, npz or pickle. Name its format if it is one of {', '.join(FORMATS)}."
        )
    if file.is_dir():
        return "minari"
    try:
        from .minari import find, is_id
    except ImportError:
        raise ValueError(f"there is no file {path} (and no Minari here to look for a dataset of that name).") from None
    if find(path) is not None:
        return "minari"
    hint = f"; if it is a Minari id, get it with `minari download {path}`" if is_id(str(path)) else ""
    raise ValueError(f"there is no file or local Minari dataset {path}{hint}.")


def _magic(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(8)


def output_format(output: str | Path, format: str | None = None) -> str:
    """The format to write: as named, or by the suffix; a name without one that can be a Minari id is one.

    Raises:
        ValueError: unknown.
    """
    if format is not None:
        if format not in OUTPUT_FORMATS:
            raise ValueError(f"format is {format!r}; formats that can be written: {', '.join(OUTPUT_FORMATS)}.")
        return format
    suffix = Path(output).suffix.lower()
    if suffix in (".hdf5", ".h5"):
        return "hdf5"
    if suffix == ".npz":
        return "npz"
    from .minari import is_id

    if is_id(str(output)):
        return "minari"
    raise ValueError(
        f"output is {str(output)!r}: its suffix tells no format. Wanted .hdf5, .h5, .npz or a Minari id, "
        "(namespace/)name-v0."
    )


def final_path(output: str | Path, format: str) -> Path:
    """Where a finished output lies: the file, or the directory in Minari's local store.

    Raises:
        ValueError: its folder is missing, or it is no Minari id.
    """
    if format == "minari":
        from .minari import output_path

        return output_path(str(output))
    if not Path(output).parent.is_dir():
        raise ValueError(f"there is no folder {Path(output).parent} to write {output} into.")
    return Path(output)


def write_rows(
    unfinished: Path,
    output: str | Path,
    format: str,
    chunks: Callable[[], Iterable[Transitions]],
    spec: TransitionSpec,
    num_rows: int,
    attributes: dict[str, str] | None = None,
    env_spec: str | None = None,
    timeouts: bool = True,
) -> None:
    """Write rows to `unfinished`, and read from it that it is complete; `files.place` gives it the output's name.

    Args:
        unfinished: where to write, in the file system of the output; nothing is there.
        output: the file, or the Minari id.
        format: one of `OUTPUT_FORMATS`.
        chunks: gives the rows, from the first one at each call.
        spec: their fields.
        num_rows: how many they are.
        attributes: text to keep with the data (npz: as the archive's comment).
        env_spec: JSON of the environment, for Minari.
        timeouts: write D4RL's ``timeouts`` into HDF5.

    Raises:
        OSError: the disk is full, or what was written cannot be read back.
    """
    if spec.discounts or spec.extra:
        raise ValueError("rows with discounts or extra fields cannot be written; the formats hold plain transitions.")
    target = final_path(output, format)
    given = attributes or {}
    attributes = {"algorithm_name": "synther-buffers", "synther_buffers_version": __version__, **given}
    if format == "minari":
        from .minari import ROW_BYTES, register_namespace, write_minari

        # Minari opens its files itself, and HDF5 does not survive a disk that fills up.
        check_space(target, num_rows * ROW_BYTES)
        write_minari(unfinished, str(output), chunks(), spec, attributes, env_spec)
        register_namespace(str(output))
        target.parent.mkdir(parents=True, exist_ok=True)
    elif format == "hdf5":
        from .hdf5 import write_hdf5

        write_hdf5(unfinished, chunks(), spec, num_rows, attributes, timeouts)
    else:
        from .npz import write_npz

        write_npz(unfinished, chunks, spec, num_rows, given)
    try:
        written = len(open_dataset(unfinished, format))
    except ValueError as error:
        raise OSError(f"what was written for {target} cannot be read back ({error}).") from error
    if written != num_rows:
        raise OSError(f"of the {num_rows} rows of {target}, {written} were written.")


def check_timeouts(timeouts: bool, format: str) -> None:
    """Refuse to leave out what a format does not have, or must have."""
    if not timeouts and format != "hdf5":
        raise ValueError(f"timeouts=False (--no-timeouts) is for HDF5; {format} has none to leave out.")


def check_keys(spec: TransitionSpec, format: str) -> None:
    """Refuse nested keys that a format cannot hold: in HDF5, and so in Minari, a slash makes a group within a group.

    Raises:
        ValueError: a key with a slash.
    """
    if format == "npz":
        return
    for field in spec.fields:
        if "/" in field.name:
            raise ValueError(
                f"{field.name} has a '/' in its key, which {format} takes for a group within a group; write .npz, or "
                "rename the key."
            )


def attributes_of(target: Path, format: str) -> dict[str, str]:
    """The text that `write_rows` kept with the data; nothing where there is none or it cannot be read."""
    try:
        if format == "minari":
            from .minari import attributes
        elif format == "hdf5":
            from .hdf5 import attributes
        else:
            from .npz import attributes
        return attributes(target)
    except (ValueError, OSError, zipfile.BadZipFile):
        return {}


def unfinished_path(target: Path, format: str) -> Path:
    """Where an output lies until it is complete; hidden in Minari's store, which would list it otherwise."""
    hidden = "." if format == "minari" else ""
    return target.with_name(f"{hidden}{target.name}.partial")


def write_dataset(
    output: str | Path,
    rows: Transitions | Dataset,
    spec: TransitionSpec | None = None,
    format: str | None = None,
    *,
    allow_large_minari: bool = False,
    timeouts: bool = True,
) -> Path:
    """Write transitions, or another dataset, to a new dataset; nothing is there until it is complete.

    Args:
        output: ``.hdf5`` (D4RL's keys), ``.npz`` (the published keys), or a Minari id.
        rows: what to write.
        spec: its fields; None to infer them, or for what the dataset says.
        format: one of `OUTPUT_FORMATS`; None for what the name says.
        allow_large_minari: write more than 100,000 rows as a Minari dataset, which takes minutes.
        timeouts: write D4RL's ``timeouts`` into HDF5, see `upsample`.

    Returns:
        Where it lies.

    Raises:
        ValueError: the output exists, its format is unknown or cannot hold a key of the observation, or there are no
            rows.
        OSError: the disk is full, or cannot be written.
    """
    format = output_format(output, format)
    check_timeouts(timeouts, format)
    target = final_path(output, format)
    if os.path.lexists(target):
        raise ValueError(f"{target} exists already; choose another name or remove it.")
    if spec is None:
        spec = rows.spec if isinstance(rows, Dataset) else TransitionSpec.infer(rows)
    check_keys(spec, format)
    if len(rows) == 0:
        raise ValueError("rows is empty; there is nothing to write.")
    if format == "minari":
        from .minari import check_size

        check_size(len(rows), allow_large_minari)
    if isinstance(rows, Transitions):
        spec.check(rows)

    def chunks() -> Iterator[Transitions]:
        if isinstance(rows, Dataset):
            yield from rows.chunks()
        else:
            for start in range(0, len(rows), CHUNK_ROWS):
                yield rows[start : start + CHUNK_ROWS]

    target.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own: a run of `upsample` may have left one of the usual name.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        unfinished = Path(folder) / "output"
        env_spec = rows.env_spec if isinstance(rows, Dataset) else None
        write_rows(unfinished, output, format, chunks, spec, len(rows), env_spec=env_spec, timeouts=timeouts)
        place(unfinished, target)
    return target
