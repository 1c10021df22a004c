"""Modules and classes under the names that version 3 pickled them by, so that its files still load.

Stable-Baselines3 and Tianshou save buffers as pickles, which name classes by module. Classes that are saved today are
named by their public path (`public_paths.py`) and need no entry here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module

#: Module of version 3 -> where its classes are now.
_MODULES = {
    "codec": "transitions.codec",
    "config": "upsampling.presets",
    "fidelity": "evaluation.fidelity",
    "holdout": "replay.holdout",
    "reports": "replay.reports",
    "upsampler": "upsampling.protocol",
}


@dataclass
class Usage:
    """Counters of version 3's `SyntheticReplay`."""

    num_batches: int = 0
    num_refreshes: int = 0
    num_observed: int = 0
    start_after: int = 0


def install() -> None:
    """Make the old names importable, where the unpickler looks."""
    for old, new in _MODULES.items():
        sys.modules.setdefault(f"{__package__}.{old}", import_module(f".{new}", __package__))
    replay = import_module(".replay", __package__)
    replay._Usage = Usage  # type: ignore[attr-defined]
