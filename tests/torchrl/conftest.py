"""Fixtures of the TorchRL tests."""
# ruff: noqa: NPY002  # prioritised sampling draws from NumPy's global stream

import gc
import random

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    """TorchRL draws real rows from the global streams: the same ones in every run of a test."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def log(caplog):
    """The log, once the storages of earlier tests have said their last words."""
    gc.collect()
    caplog.clear()
    return caplog
