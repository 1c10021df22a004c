"""Modules and classes under the names that version 3 pickled them by, so that its files still load.

Stable-Baselines3 and Tianshou save buffers as pickles, which name classes by module. Classes that are saved today are
named by their public path (`public_paths.py`) and need no entry here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

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
    """Counters of version 3's `SyntheticReplay`, where they were pickled as ``replay._Usage``."""

    num_batches: int = 0
    num_refreshes: int = 0
    num_observed: int = 0
    start_after: int = 0


class _OldNames(MetaPathFinder, Loader):
    """Imports the present module when an unpickler asks for an old name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, old = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == __package__ and old in _MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        _, _, old = module.__name__.rpartition(".")
        # The import machinery returns what stands in `sys.modules` now.
        sys.modules[module.__name__] = import_module(f".{_MODULES[old]}", __package__)


def install() -> None:
    """Make the old names importable. They come last: a module of that name is found first."""
    if not any(isinstance(finder, _OldNames) for finder in sys.meta_path):
        sys.meta_path.append(_OldNames())
