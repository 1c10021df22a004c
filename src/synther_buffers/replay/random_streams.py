"""The global random streams, which are the agent's."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def kept_random_streams() -> Iterator[None]:
    """Whatever is drawn inside from Python's, NumPy's and torch's global streams, they go on as if it was not.

    In another thread than the main one (TorchRL's ``prefetch``) they are left alone: what the main thread draws
    meanwhile would be drawn twice.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
