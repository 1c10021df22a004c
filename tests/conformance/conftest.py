"""The adapters that the suite runs for."""

from __future__ import annotations

import gc
import random

import numpy as np
import pytest
import torch
from conformance_sb3 import SB3
from conformance_tianshou import Tianshou, TianshouPrioritized
from conformance_torchrl import TorchRL, TorchRLMemmap

ADAPTERS = [SB3(), Tianshou(), TianshouPrioritized(), TorchRL(), TorchRLMemmap()]


@pytest.fixture(params=ADAPTERS, ids=lambda adapter: adapter.name)
def adapter(request):
    """Each framework's, in turn."""
    return request.param


@pytest.fixture(autouse=True)
def _seeded():
    """The frameworks draw real rows from global streams: the same ones in every run of a test."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)


@pytest.fixture
def log(caplog):
    """The log, once the buffers of earlier tests have said their last words."""
    gc.collect()
    caplog.clear()
    return caplog
