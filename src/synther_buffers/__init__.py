"""Replay buffers that mix real transitions with ones a diffusion model has learned from them.

What is public stands in ``__init__.pyi``. It is imported when it is first used, so that the command line shows its help
without waiting for PyTorch.
"""

import lazy_loader

from . import aliases

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

aliases.install()
