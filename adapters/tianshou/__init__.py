"""Tianshou: ``SynthERReplayBuffer`` wherever it takes a ``ReplayBuffer`` or a ``VectorReplayBuffer``."""

try:
    import tianshou  # noqa: F401
except ImportError as error:
    raise ImportError('synther_buffers.tianshou needs Tianshou: pip install "synther-buffers[tianshou]"') from error

from ..public_paths import exported_from
from .buffers import SynthERPrioritizedReplayBuffer, SynthERReplayBuffer

__all__ = ["SynthERPrioritizedReplayBuffer", "SynthERReplayBuffer"]

exported_from(__name__, SynthERPrioritizedReplayBuffer, SynthERReplayBuffer)
