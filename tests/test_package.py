"""What importing the package brings, and what it says where a framework is missing."""

from __future__ import annotations

import subprocess
import sys


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_core_brings_no_framework():
    loaded = python("import sys, synther_buffers; print(*sorted({name.split('.')[0] for name in sys.modules}))")
    assert loaded.returncode == 0, loaded.stderr
    assert not {"stable_baselines3", "sb3_contrib", "tianshou", "torchrl", "matplotlib", "scipy", "tensorboard"} & set(
        loaded.stdout.split()
    )


def test_an_adapter_without_its_framework_says_what_to_install():
    missing = python("import sys; sys.modules['stable_baselines3'] = None; import synther_buffers.sb3")
    assert missing.returncode == 1
    assert (
        'ImportError: synther_buffers.sb3 needs Stable-Baselines3: pip install "synther-buffers[sb3]"' in missing.stderr
    )


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
