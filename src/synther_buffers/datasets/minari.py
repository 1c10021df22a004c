"""Minari datasets: episodes in HDF5 beside a description in JSON."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from ..transitions import SEPARATOR, Field, Transitions, TransitionSpec
from .base import Dataset
from .columns import Block, Column, as_flags, block_rows, check_finite
from .hdf5 import declared_column, member, open_file, walk

try:
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.dataset.minari_storage import MinariStorage
    from minari.namespace import create_namespace, list_local_namespaces
    from minari.serialization import deserialize_space
    from minari.storage.datasets_root_dir import get_dataset_path
except ImportError as error:
    raise ImportError('Minari datasets need minari: pip install "synther-buffers[offline]"') from error

logger = logging.getLogger(__name__)

#: More one-step episodes than this are better kept in a flat file...
WARN_ROWS = 1_000
#: ...and more than this are not written without being asked for.
MAX_ROWS = 100_000
#: What an episode of one step takes on the disk beside its numbers.
ROW_BYTES = 15_000
_DATA, _METADATA = "main_data.hdf5", "metadata.json"
_EPISODE = re.compile(r"episode_(\d+)")


class MinariDataset(Dataset):
    """A local Minari dataset, read episode by episode. Each step has its true next observation.

    The episodes are read with h5py, not through Minari, which follows links and builds the environment that a
    description names if it tells no spaces.

    Args:
        path: its id in Minari's local store, or its directory.

    Raises:
        ValueError: there is none, or it is damaged.
    """

    format = "minari"

    def __init__(self, path: str | Path) -> None:
        directory = find(path)
        if directory is None:
            raise ValueError(f"there is no Minari dataset {path}; get one with `minari download`.")
        self._data = directory / _DATA
        metadata = _metadata(directory)
        try:
            self.env_spec = metadata.get("env_spec")
            if metadata.get("data_format") != "hdf5":
                raise ValueError(f"its data_format is {metadata.get('data_format')!r}; only 'hdf5' can be read.")
            observation_space, action_space = (
                deserialize_space(metadata[key]) for key in ("observation_space", "action_space")
            )
            spec = TransitionSpec.from_spaces(observation_space, action_space)
        except KeyError as error:
            raise ValueError(
                f"{directory / _METADATA} has no {error}; a description of the spaces is needed."
            ) from error
        except (TypeError, ValueError, AttributeError, NotImplementedError, AssertionError) as error:
            raise ValueError(f"{directory / _METADATA}: {error}") from error
        super().__init__(path, spec)
        self._lengths: dict[str, int] = {}
        with open_file(self._data) as file:
            # In the order of their numbers: names sort as text.
            names = [(int(match[1]), key) for key in file.keys() if (match := _EPISODE.fullmatch(key))]  # noqa: SIM118
            for _, name in sorted(names):
                rewards = self._member(file, name, "rewards")
                self._lengths[name] = declared_column(self._data, f"{name}/rewards", rewards).num_rows
        if not self._lengths:
            raise ValueError(f"{self._data} has no episodes.")

    @property
    def files(self) -> tuple[Path, ...]:
        return (self._data,)

    @property
    def num_dropped(self) -> int:
        return 0

    def __len__(self) -> int:
        return sum(self._lengths.values())

    def _key(self, name: str) -> str:
        return {"reward": "rewards", "terminated": "terminations", "action": "actions"}.get(name, name)

    def _member(self, file: Any, episode: str, key: str) -> Any:
        group = member(self._data, file, episode)
        node = member(self._data, group, key) if hasattr(group, "keys") else None
        if node is None:
            raise ValueError(f"{self._data}: {episode} has no {key}.")
        return node

    def _columns(self, file: Any, episode: str) -> dict[str, tuple[str, Any, Column]]:
        """What an episode holds by field name, checked: key, HDF5 dataset, column."""
        found = {}
        for name, key in (
            ("observation", "observations"),
            ("action", "actions"),
            ("reward", "rewards"),
            ("terminated", "terminations"),
        ):
            for leaf, dataset in walk(self._data, name, self._member(file, episode, key)):
                full = f"{episode}/{key}"
                found[leaf] = (full, dataset, declared_column(self._data, full, dataset))
        wanted = {field.name for field in self.spec.observation} | {"action", "reward", "terminated"}
        if set(found) != wanted:
            raise ValueError(
                f"{self._data}: {episode} has {', '.join(sorted(found))}, but its spaces have "
                f"{', '.join(sorted(wanted))}."
            )
        steps = self._lengths[episode]
        for name, (key, _, column) in found.items():
            shape, expected = self._fields[name].shape, steps + 1 if name.startswith("observation") else steps
            if column.shape != shape:
                raise ValueError(f"{self._data}: {key} has rows of shape {column.shape}, but its space {shape}.")
            if column.num_rows != expected:
                raise ValueError(
                    f"{self._data}: {key} has {column.num_rows} rows, but an episode of {steps} steps has {expected}."
                )
        return found

    def _blocks(self, max_rows: int) -> Iterator[Block]:
        """Short episodes are joined to blocks, long ones are read in parts."""
        waiting: list[Block] = []
        num_waiting = 0
        with open_file(self._data) as file:
            for episode in self._lengths:
                for block in self._episode(file, episode, max_rows):
                    size = len(block["reward"])
                    if num_waiting + size > max_rows:
                        yield _joined(waiting)
                        waiting, num_waiting = [], 0
                    waiting.append(block)
                    num_waiting += size
        if waiting:
            yield _joined(waiting)

    def _episode(self, file: Any, episode: str, max_rows: int) -> Iterator[Block]:
        columns = self._columns(file, episode)
        rows = block_rows([column for _, _, column in columns.values()], max_rows)
        for start in range(0, self._lengths[episode], rows):
            stop = min(start + rows, self._lengths[episode])
            block = {}
            for name, (key, dataset, _) in columns.items():
                array = dataset[start : stop + 1] if name.startswith("observation") else dataset[start:stop]
                check_finite(self._data, key, array, start)
                if name.startswith("observation"):
                    block[name], block[f"next_{name}"] = array[:-1], array[1:]
                else:
                    block[name] = array
            block["terminated"] = as_flags(self._data, columns["terminated"][0], block["terminated"])
            yield block


def _joined(blocks: list[Block]) -> Block:
    return {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}


def find(path: str | Path) -> Path | None:
    """The directory with the data of a Minari dataset, given that one, its parent, or an id in the local store."""
    candidates = [Path(path)]
    if is_id(str(path)):
        candidates.append(get_dataset_path(str(path)))
    for candidate in candidates:
        for directory in (candidate, candidate / "data"):
            if (directory / _METADATA).is_file() and (directory / _DATA).is_file():
                return directory
    return None


def is_id(name: str) -> bool:
    """Whether a name can be a Minari id, ``(namespace/)name-v0``."""
    try:
        parse_dataset_id(name)
    except (ValueError, TypeError):
        return False
    return True


def _metadata(directory: Path) -> dict[str, Any]:
    file = directory / _METADATA
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is no JSON ({error}).") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{file} is no description of a dataset.")
    return metadata


def output_path(dataset_id: str) -> Path:
    """Where Minari's local store keeps a dataset.

    Raises:
        ValueError: not an id.
    """
    if not is_id(dataset_id):
        raise ValueError(f"{dataset_id!r} is no Minari id; wanted (namespace/)name-v0, for example mine/walker2d-v0.")
    return get_dataset_path(dataset_id)


def register_namespace(dataset_id: str) -> None:
    """Describe the namespace of an id in Minari's local store, if it is new there."""
    namespace = parse_dataset_id(dataset_id)[0]
    if namespace is not None and namespace not in list_local_namespaces():
        create_namespace(namespace)


def attributes(path: Path) -> dict[str, str]:
    """The texts of a dataset's description."""
    return {key: value for key, value in _metadata(path / "data").items() if isinstance(value, str)}


def cost(num_rows: int) -> str:
    """What a Minari dataset of one-step episodes takes: 1 to 2 s on a desktop core, and 15 MB, for 1,000 rows."""
    return f"about {num_rows // 30_000 + 1} min and {num_rows * ROW_BYTES / 1e6:,.0f} MB"


def check_size(num_rows: int, allow_large: bool) -> None:
    """Warn of a slow output, and refuse a huge one that nobody has confirmed.

    Raises:
        ValueError: more than `MAX_ROWS` rows, and not `allow_large`.
    """
    if num_rows > MAX_ROWS and not allow_large:
        raise ValueError(
            f"{num_rows:,} rows as a Minari dataset of one-step episodes would take {cost(num_rows)}; write .hdf5 or "
            ".npz, or confirm with allow_large_minari=True (--yes)."
        )
    if num_rows > WARN_ROWS:
        logger.warning(
            "%s rows as a Minari dataset of one-step episodes take %s; .hdf5 or .npz is faster and smaller.",
            f"{num_rows:,}", cost(num_rows),
        )  # fmt: skip


def write_minari(
    directory: Path,
    dataset_id: str,
    chunks: Iterable[Transitions],
    spec: TransitionSpec,
    attributes: dict[str, str],
    env_spec: str | None = None,
) -> None:
    """Write rows as episodes of one step, each truncated unless it terminated, so that none goes on in the next.

    Args:
        directory: a new one, to become ``<id>`` in Minari's store.
        dataset_id: under which `minari.load_dataset` will find it there.
        chunks: the rows.
        spec: their fields.
        attributes: further entries of the description.
        env_spec: JSON of the environment.
    """
    (directory / "data").mkdir(parents=True)
    storage = MinariStorage.new(
        directory / "data",
        _space({field.name: field for field in spec.observation}, "observation"),
        _space({"action": spec.action}, "action"),
        jpeg_encoding=False,
    )
    description: dict[str, Any] = {"dataset_id": dataset_id, "minari_version": minari.__version__, **attributes}
    if env_spec is not None:
        description["env_spec"] = env_spec
    storage.update_metadata(description)
    storage.update_episodes(_episodes(chunks))


def _episodes(chunks: Iterable[Transitions]) -> Iterator[EpisodeBuffer]:
    for rows in chunks:
        arrays = {name: tensor.cpu().numpy() for name, tensor in rows.flat().items()}
        for row in range(len(rows)):
            pairs = {
                name: np.stack((array[row], arrays[f"next_{name}"][row]))
                for name, array in arrays.items()
                if name.split(SEPARATOR)[0] == "observation"
            }
            terminated = bool(arrays["terminated"][row])
            yield EpisodeBuffer(
                observations=_nested(pairs),
                actions=arrays["action"][row : row + 1],
                rewards=[float(arrays["reward"][row])],
                terminations=[terminated],
                truncations=[not terminated],
            )


def _nested(columns: dict[str, Any]) -> Any:
    """``observation`` alone, or a nested dict of what follows the first key."""
    out: dict[str, Any] = {}
    for name, value in columns.items():
        *path, leaf = name.split(SEPARATOR)
        node = out
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = value
    (root,) = out.values()
    return root


def _space(fields: dict[str, Field], name: str) -> spaces.Space:
    """The space of an observation or action."""

    def build(node: Any) -> spaces.Space:
        return (
            spaces.Dict({key: build(child) for key, child in node.items()}) if isinstance(node, dict) else _leaf(node)
        )

    return build(_nested(fields))


def _leaf(field: Field) -> spaces.Space:
    if field.kind == "binary":
        return spaces.MultiBinary(field.shape[0] if len(field.shape) == 1 else field.shape)
    if field.kind == "categorical":
        if not field.shape:
            return spaces.Discrete(field.num_categories[0], start=field.start[0])
        shape = field.shape
        return spaces.MultiDiscrete(
            np.reshape(field.num_categories, shape), dtype=np.dtype(field.dtype), start=np.reshape(field.start, shape)
        )
    dtype = np.dtype(field.dtype)
    bounds: list[list[float]] = [list(field.low), list(field.high)]
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        # As Python's integers: the largest int64 is no float64.
        bounds = [[int(min(max(value, limits.min), limits.max)) for value in bound] for bound in bounds]
    low, high = (np.array(bound, dtype).reshape(field.shape) for bound in bounds)
    return spaces.Box(low, high, field.shape, dtype)
