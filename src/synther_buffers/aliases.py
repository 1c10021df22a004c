"""Modules and classes under the names that version 3 pickled them by, so that its files still load.

Saved buffers are pickles by nature (Stable-Baselines3's and Tianshou's own), which name classes by module. Classes that
reach a file today do so under their public path and need no entry here.
"""

from __future__ import annotations

import sys
from importlib import import_module

from .replay.compatibility import Usage

#: Module of version 3 -> where its classes are now.
_MODULES = {
    "codec": "transitions.codec",
    "config": "upsampling.presets",
    "fidelity": "evaluation.fidelity",
    "holdout": "replay.holdout",
    "reports": "replay.reports",
    "upsampler": "upsampling.protocol",
}


def install() -> None:
    """Let the unpickler find them."""
    for old, new in _MODULES.items():
        sys.modules.setdefault(f"{__package__}.{old}", import_module(f".{new}", __package__))
    replay = import_module(".replay", __package__)
    replay._Usage = Usage  # type: ignore[attr-defined]
