"""Builds the wheel, installs it into a fresh virtual environment elsewhere, and imports the adapter from there."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECK = """
import sys, synther_buffers
assert "site-packages" in synther_buffers.__file__, synther_buffers.__file__
assert not {"stable_baselines3", "tianshou", "torchrl"} & set(sys.modules), "a framework came with the core"
from pathlib import Path
assert (Path(synther_buffers.__file__).parent / "py.typed").exists()
"""
#: What each extra has to bring, by the adapter's name.
ADAPTERS = {
    "sb3": "SynthERBuffer, SynthERCallback, SynthERDictBuffer, SynthERNStepBuffer",
    "tianshou": "SynthERPrioritizedReplayBuffer, SynthERReplayBuffer",
    "torchrl": "SynthERMemmapStorage, SynthERStorage",
}
MISSING = """
try:
    import synther_buffers.{adapter}
except ImportError as error:
    assert 'pip install "synther-buffers[{adapter}]"' in str(error), error
    print("without its framework:", error)
else:
    raise AssertionError("{adapter} is importable without its framework")
"""


def run(*command: str | Path, **kwargs: object) -> None:
    subprocess.run([str(part) for part in command], check=True, **kwargs)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Built from a copy: a build folder left in the checkout could add files that are no longer there.
        source = folder / "source"
        for part in ("src", "adapters", "pyproject.toml", "README.md", "LICENSE"):
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            source.mkdir(exist_ok=True)
            copy(ROOT / part, source / part)
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source)
        (wheel,) = folder.glob("synther_buffers-*.whl")
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv/bin/python"
        constraint = ["--constraint", ROOT / "constraints.txt"]
        run(python, "-m", "pip", "install", "--quiet", *constraint, "torch")
        run(python, "-m", "pip", "install", "--quiet", *constraint, wheel)
        run(python, "-c", CHECK, cwd=folder)
        for adapter in ADAPTERS:
            run(python, "-c", MISSING.format(adapter=adapter), cwd=folder)
        for adapter, names in ADAPTERS.items():
            run(python, "-m", "pip", "install", "--quiet", *constraint, f"{wheel}[{adapter}]")
            run(python, "-c", f"{CHECK}\nfrom synther_buffers.{adapter} import {names}", cwd=folder)
            print(f"with {adapter}: {names}")
    print("wheel ok")


if __name__ == "__main__":
    main()
