"""TorchRL: ``SynthERStorage`` in place of ``LazyTensorStorage``."""

try:
    import torchrl  # noqa: F401
except ImportError as error:
    raise ImportError('synther_buffers.torchrl needs TorchRL: pip install "synther-buffers[torchrl]"') from error

from ..public_paths import exported_from
from .addresses import is_synthetic
from .prioritized import SynthERPrioritizedSampler
from .storage import SynthERMemmapStorage, SynthERStorage

__all__ = ["SynthERMemmapStorage", "SynthERPrioritizedSampler", "SynthERStorage", "is_synthetic"]

exported_from(__name__, SynthERMemmapStorage, SynthERPrioritizedSampler, SynthERStorage)
