"""Plants imports that the contracts forbid, to see import-linter find each of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLANTED = {
    "src/synther_buffers/version.py": "",  # nothing forbidden: the contracts hold
    "src/synther_buffers/diffusion/edm.py": "from synther_buffers import transitions",
    "src/synther_buffers/replay/synthetic_replay.py": "import stable_baselines3",
    "src/synther_buffers/replay/holdout.py": "import tensordict",
    "src/synther_buffers/upsampling/diffusion_upsampler.py": "import tianshou",
    "src/synther_buffers/replay/reports.py": "from synther_buffers import torchrl",
    "src/synther_buffers/transitions/codec.py": "from synther_buffers import upsampling",
}


def main() -> None:
    linter = Path(sysconfig.get_path("scripts")) / "lint-imports"
    for target, line in PLANTED.items():
        with tempfile.TemporaryDirectory() as folder:
            # Side by side, as the build lays the packages out.
            package = Path(folder) / "synther_buffers"
            shutil.copytree(ROOT / "src/synther_buffers", package)
            for adapter in (ROOT / "adapters").iterdir():
                shutil.copytree(adapter, package / adapter.name)
            shutil.copy(ROOT / "pyproject.toml", folder)
            planted = Path(folder) / target.removeprefix("src/")
            planted.write_text(f"{planted.read_text()}\n{line}\n")
            result = subprocess.run(
                [str(linter), "--no-cache"], cwd=folder, env={"PYTHONPATH": folder, "PATH": ""}, capture_output=True
            )
        if (result.returncode == 0) == bool(line):
            sys.exit(f"import-linter exited {result.returncode} with {line!r} in {target}:\n{result.stdout.decode()}")
        print(f"{'seen' if line else 'kept'}: {line!r} in {target}")


if __name__ == "__main__":
    main()
