"""What importing the package brings, and what it says where a framework is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_core_brings_no_framework():
    loaded = python("import sys, synther_buffers; print(*sorted({name.split('.')[0] for name in sys.modules}))")
    assert loaded.returncode == 0, loaded.stderr
    optional = ["stable_baselines3", "sb3_contrib", "tianshou", "torchrl", "tensordict"]
    optional += ["matplotlib", "scipy", "sklearn", "tensorboard", "typer", "h5py", "minari"]
    assert not set(optional) & set(loaded.stdout.split())


@pytest.mark.parametrize(
    ("adapter", "module", "framework"),
    [
        ("sb3", "stable_baselines3", "Stable-Baselines3"),
        ("tianshou", "tianshou", "Tianshou"),
        ("torchrl", "torchrl", "TorchRL"),
    ],
)
def test_an_adapter_without_its_framework_says_what_to_install(adapter, module, framework):
    missing = python(f"import sys; sys.modules['{module}'] = None; import synther_buffers.{adapter}")
    assert missing.returncode == 1
    wanted = f'ImportError: synther_buffers.{adapter} needs {framework}: pip install "synther-buffers[{adapter}]"'
    assert wanted in missing.stderr


def test_importing_draws_nothing_and_prints_nothing():
    code = """
import random, numpy, torch
before = (torch.get_rng_state().tolist(), str(numpy.random.get_state()), random.getstate())
import synther_buffers
assert before == (torch.get_rng_state().tolist(), str(numpy.random.get_state()), random.getstate())
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
