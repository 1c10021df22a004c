"""The adapters that the suite runs for."""

from __future__ import annotations

import pytest
from conformance_sb3 import SB3
from conformance_tianshou import Tianshou, TianshouPrioritized
from conformance_torchrl import TorchRL, TorchRLMemmap

ADAPTERS = [SB3(), Tianshou(), TianshouPrioritized(), TorchRL(), TorchRLMemmap()]


@pytest.fixture(params=ADAPTERS, ids=lambda adapter: adapter.name)
def adapter(request):
    """Each framework's, in turn."""
    return request.param
