"""The synthetic part of a storage as bytes: a safetensors file of tensors and JSON."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDictBase

from ..replay.synthetic_replay import SyntheticReplay
from ..upsampling.checkpoint import pack, unpack
from .layout import tensors_of

logger = logging.getLogger(__name__)

#: The file beside TorchRL's own.
_FILE = "synthetic.safetensors"
#: What versions up to 3 wrote in its place.
_OLD_FILE = "synthetic.pickle"
#: So many real rows, evenly spaced over the storage, are in the mark of all of them.
_NUM_MARKED = 32
#: Characters of the message of an error, which may show all that an upsampler holds.
_LONGEST_MESSAGE = 200


class Counts(NamedTuple):
    """What a storage counted.

    Attributes:
        num_written: real rows ever written.
        num_forgotten: slots that its writers counted and that are none of these rows; negative if they did not count
            all of them.
        write_count: slots that its writers counted.
    """

    num_written: int = 0
    num_forgotten: int = 0
    write_count: int = 0


def write_beside(path: str | Path, packed: bytes) -> None:
    """Write what `packed_synthetic` returned into the directory of a saved storage."""
    unfinished = Path(path, f"{_FILE}.tmp")
    unfinished.write_bytes(packed)
    unfinished.replace(Path(path, _FILE))


def read_beside(path: str | Path) -> bytes | None:
    """What `write_beside` wrote; None if there is no such file."""
    file = Path(path, _FILE)
    if file.exists():
        return file.read_bytes()
    if Path(path, _OLD_FILE).exists():
        logger.warning(
            "%s was saved by an older version, which pickled the synthetic rows and their model: they are not "
            "read. The real rows are all there; the next refresh trains anew.",
            path,
        )
    return None


def packed_synthetic(synthetic: SyntheticReplay, counts: Counts, written: TensorDictBase | None) -> bytes:
    """The state and the settings; without the upsampler if that cannot be written.

    Args:
        synthetic: of the storage.
        counts: of the storage.
        written: every real row, ``[slots, ...]``, for the mark by which they are known again; None for no mark.
    """
    mark = None if written is None else _mark_of(written)
    content = {**counts._asdict(), "real": mark, "settings": _settings(synthetic)}
    state = synthetic.state_dict()
    try:
        return pack({**content, "state": state})
    except TypeError as error:
        logger.warning("The upsampler is not saved with the storage: %s The synthetic rows are.", _shortened(error))
        return pack({**content, "state": {**state, "upsampler": None, "pending": None}})


def restore_synthetic(packed: bytes, synthetic: SyntheticReplay, written: TensorDictBase | None) -> Counts:
    """Load what `packed_synthetic` returned; a warning if it cannot be read or belongs to other real rows.

    Args:
        packed: the bytes.
        synthetic: of the storage; its settings are kept.
        written: every real row that was loaded, as for `packed_synthetic`.
    """
    try:
        content = unpack(packed)
        saved, state = content["settings"], content["state"]
        # Older files have neither the mark nor two of the counts.
        num_written = content.get("num_written", state.get("num_observed", 0))
        counts = Counts(int(num_written), int(content["num_forgotten"]), int(content.get("write_count", 0)))
        mark = content.get("real")
        if mark is not None and written is not None and not _has_mark(written, mark):
            raise ValueError("they belong to other real rows than those beside them")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning(
            "The saved synthetic rows and their model cannot be read (%s). The real rows are all there; the next "
            "refresh trains anew.",
            error,
        )
        return Counts()
    for name, value in _settings(synthetic).items():
        if name in saved and saved[name] != value:
            logger.info("It was saved with %s=%r; %r, as this storage was built with, holds.", name, saved[name], value)
    synthetic.load_state_dict(state)
    return counts


def _mark_of(written: TensorDictBase, keys: Any = None) -> dict[str, Any]:
    """What tells real rows from others: how many there are, and digests of some of them.

    Args:
        written: every real row, ``[slots, ...]``.
        keys: of the parts that are looked at; None for all.
    """
    leaves = {"/".join(key): leaf for key, leaf in tensors_of(written)}
    keys = sorted(leaves) if keys is None else list(keys)
    num_slots = len(written)
    some = torch.from_numpy(np.linspace(0, num_slots - 1, min(num_slots, _NUM_MARKED)).round().astype(np.int64))
    digests = [hashlib.sha256() for _ in some]
    for key in keys:
        if key in leaves:
            rows = leaves[key].detach()[some.to(leaves[key].device)].cpu().contiguous()
            for digest, row in zip(digests, rows, strict=True):
                digest.update(f"{key} {row.dtype} {list(row.shape)}".encode())
                digest.update(row.reshape(-1).view(torch.uint8).numpy().tobytes())
    return {"slots": num_slots, "keys": tuple(keys), "digests": tuple(digest.hexdigest() for digest in digests)}


def _has_mark(written: TensorDictBase, mark: dict[str, Any]) -> bool:
    """Whether these are the rows of a mark; other processes may have written a few since it was made."""
    if len(written) < mark["slots"]:
        return False
    now = _mark_of(written[: mark["slots"]], mark["keys"])["digests"]
    return 2 * sum(map(str.__eq__, now, mark["digests"])) >= len(now)


def _shortened(error: TypeError) -> str:
    """The message of an error, without the middle of what it shows."""
    message = " ".join(str(error).split())
    if len(message) <= _LONGEST_MESSAGE:
        return message
    half = _LONGEST_MESSAGE // 2
    return f"{message[:half]} ... {message[-half:]}"


def _settings(synthetic: SyntheticReplay) -> dict[str, Any]:
    """The options that are plain data."""
    options = vars(synthetic.options)
    return {name: value for name, value in options.items() if isinstance(value, bool | int | float | str)}
