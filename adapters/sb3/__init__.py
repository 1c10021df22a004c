"""Stable-Baselines3: ``SAC("MlpPolicy", env, replay_buffer_class=SynthERBuffer)``."""

try:
    import stable_baselines3  # noqa: F401
except ImportError as error:
    raise ImportError('synther_buffers.sb3 needs Stable-Baselines3: pip install "synther-buffers[sb3]"') from error

from ..public_paths import exported_from
from .buffers import SynthERBuffer, SynthERDictBuffer, SynthERNStepBuffer
from .callback import SynthERCallback
from .policy import policy_of
from .td_error import td_error_of

__all__ = ["SynthERBuffer", "SynthERCallback", "SynthERDictBuffer", "SynthERNStepBuffer", "policy_of", "td_error_of"]

exported_from(__name__, SynthERBuffer, SynthERCallback, SynthERDictBuffer, SynthERNStepBuffer)
