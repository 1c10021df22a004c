"""What holds for every test."""

from __future__ import annotations

import importlib.util
import logging
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

# sbx's agents live for a few steps here, and compiling them takes most of that time. A directory for each worker,
# because a file of this cache is not written in one piece.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(__file__).parents[1] / "build" / "jax" / os.environ.get("PYTEST_XDIST_WORKER", "main")),
)


def pytest_addoption(parser):
    parser.addoption("--fault-cases", type=int, help="seeded cases of each kind in tests/faults")


def pytest_collection_modifyitems(items):
    """Tests marked `cuda` are skipped where there is no CUDA device, those marked `ray` where there is no Ray."""
    needs = {
        "cuda": (torch.cuda.is_available(), "a CUDA device"),
        "ray": (importlib.util.find_spec("ray") is not None, "Ray (make test-ray installs it)"),
    }
    for item in items:
        for mark, (there, what) in needs.items():
            if item.get_closest_marker(mark) and not there:
                item.add_marker(pytest.mark.skip(reason=f"needs {what}"))


@pytest.fixture(autouse=True)
def _seeded():
    """The frameworks draw real rows from global streams: the same ones in every run of a test."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _logging():
    """Commands and documented code set up the logging of their process, which here is that of all other tests too."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def log(caplog):
    """The log, empty at the start."""
    caplog.clear()
    return caplog


@pytest.fixture(scope="session")
def cluster():
    """A Ray cluster of two CPUs on the loopback."""
    from ray_helpers import Cluster

    served = Cluster(2)
    yield served
    served.stop()
