"""What runs start from: the committed tree, its wheel, and an environment of their own, so that nothing edits them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Outside version control, one folder a commit; `CURRENT` holds the name of the one in use.
FOLDER = ROOT / "build" / "learning"
CURRENT = FOLDER / "current"


@dataclass(frozen=True)
class Runner:
    """An interpreter and the folder in which ``-m benchmarks.learning.run`` runs."""

    python: Path
    folder: Path


#: The interpreter and the tree of whoever asks; for `--toy`.
HERE = Runner(Path(sys.executable), ROOT)


def prepare() -> Runner:
    """Build the wheel of the last commit and install it with its `learning` extra; minutes, and once per commit.

    Raises:
        subprocess.CalledProcessError: git, pip or the build failed; what they said is on standard error.
    """
    commit = _output("git", "rev-parse", "HEAD")
    made = FOLDER / commit[:12]
    tree, python, ready = made / "tree", made / "venv" / "bin" / "python", made / "ready"
    if not ready.exists():
        tree.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
        (tree / "COMMIT").write_text(commit + "\n")
        subprocess.run([sys.executable, "-m", "venv", str(made / "venv")], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(tree / "constraints.txt")]
        # PyTorch first and alone, at the pinned version; the rest must not bring another.
        subprocess.run([*pip, "torch"], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(made), str(tree)], check=True
        )
        (wheel,) = made.glob("*.whl")
        subprocess.run([*pip, f"{wheel}[learning]"], check=True)
        ready.touch()
    CURRENT.write_text(commit[:12] + "\n")
    return Runner(python, tree)


def prepared() -> Runner:
    """What `prepare` made last.

    Raises:
        FileNotFoundError: nothing was prepared.
    """
    if not CURRENT.exists():
        raise FileNotFoundError("nothing is prepared to run: python -m benchmarks.learning --prepare")
    made = FOLDER / CURRENT.read_text().strip()
    return Runner(made / "venv" / "bin" / "python", made / "tree")


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
