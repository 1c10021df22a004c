"""The synthetic part of a storage as bytes: a safetensors file of tensors and JSON."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..replay.synthetic_replay import SyntheticReplay
from ..upsampling.checkpoint import pack, unpack

logger = logging.getLogger(__name__)

#: The file beside TorchRL's own.
_FILE = "synthetic.safetensors"
#: What versions up to 3 wrote in its place.
_OLD_FILE = "synthetic.pickle"


def write_beside(path: str | Path, synthetic: SyntheticReplay, num_forgotten: int) -> None:
    """Write the file into the directory of a saved storage; see `packed_synthetic`."""
    unfinished = Path(path, f"{_FILE}.tmp")
    unfinished.write_bytes(packed_synthetic(synthetic, num_forgotten))
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


def packed_synthetic(synthetic: SyntheticReplay, num_forgotten: int) -> bytes:
    """The state and the settings; without the upsampler if that cannot be written.

    Args:
        synthetic: of the storage.
        num_forgotten: writes that its writers counted before it was emptied.
    """
    content = {"num_forgotten": num_forgotten, "settings": _settings(synthetic)}
    state = synthetic.state_dict()
    try:
        return pack({**content, "state": state})
    except TypeError as error:
        logger.warning("The upsampler is not saved with the storage: %s The synthetic rows are.", error)
        return pack({**content, "state": {**state, "upsampler": None, "pending": None}})


def restore_synthetic(packed: bytes, synthetic: SyntheticReplay) -> int:
    """Load what `packed_synthetic` returned; a warning if it cannot be read.

    Args:
        packed: the bytes.
        synthetic: of the storage; its settings are kept.

    Returns:
        `num_forgotten`.
    """
    try:
        content = unpack(packed)
        num_forgotten = int(content["num_forgotten"])
        saved, state = content["settings"], content["state"]
    except (ValueError, KeyError, TypeError) as error:
        logger.warning(
            "The saved synthetic rows and their model cannot be read (%s). The real rows are all there; the next "
            "refresh trains anew.",
            error,
        )
        return 0
    for name, value in _settings(synthetic).items():
        if name in saved and saved[name] != value:
            logger.info("It was saved with %s=%r; %r, as this storage was built with, holds.", name, saved[name], value)
    synthetic.load_state_dict(state)
    return num_forgotten


def _settings(synthetic: SyntheticReplay) -> dict[str, Any]:
    """The options that are plain data."""
    options = vars(synthetic.options)
    return {name: value for name, value in options.items() if isinstance(value, bool | int | float | str)}
