"""Names that help texts list and shells complete.

Literals, because the modules that define them import PyTorch. A test compares them.
"""

from __future__ import annotations

from collections.abc import Callable

#: `synther_buffers.upsampling.presets.PRESETS`.
PRESETS = ("cpu", "gpu", "paper-online", "paper-online-dmc", "paper-offline")
#: `synther_buffers.upsampling.augmentation.AUGMENTATIONS`.
AUGMENTATIONS = ("bootstrap", "gaussian", "amplitude", "dynamics")
#: `synther_buffers.datasets.FORMATS`: formats that can be read.
INPUT_FORMATS = ("minari", "hdf5", "npz", "sb3", "tianshou")
#: `synther_buffers.datasets.OUTPUT_FORMATS`: formats that can be written.
OUTPUT_FORMATS = ("minari", "hdf5", "npz")
#: What `plot` can write.
IMAGE_FORMATS = ("png", "pdf", "svg")


def completion(*names: str) -> Callable[[str], list[str]]:
    """What a shell offers for an option's value: those of the names that begin as what was typed."""

    def matching(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return matching
