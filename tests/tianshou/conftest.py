"""Fixtures of the Tianshou tests."""
# ruff: noqa: NPY002  # Tianshou's prioritised buffer draws from NumPy's global stream

import gc
import random

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def log(caplog):
    """The log, once the buffers of earlier tests have said their last words."""
    gc.collect()
    caplog.clear()
    return caplog
