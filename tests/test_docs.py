"""The documentation: its code blocks and commands run, and the site builds without a warning.

What a page shows is what is run, but for comments in it that readers do not see, right before the block that they are
about:

    <!-- run as: 10_000 -> 400; gradient_steps=10 -> gradient_steps=1 -->    smaller numbers
    <!-- run before: from tianshou_sac import make_sac -->                   what the page leaves to the reader
    <!-- run after: assert model.num_timesteps == 400 -->                    what the block must have done
    <!-- not run: takes a minute -->                                         why not
    <!-- needs: tianshou.highlevel.experiment -->                            not run where it cannot be imported

The blocks of a page share one namespace. Of shell blocks only the lines that begin with `synther-buffers` are run.
Presets are replaced by tiny ones.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import toys

from synther_buffers.upsampling.presets import PRESETS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if "_build" not in path.parts)

TINY = replace(toys.TINY, num_synthetic=1_000)

_BLOCK = re.compile(
    r"(?P<comments>(?:^<!--(?:(?!-->).)*-->\n+)*)^```(?P<language>\w+)\n(?P<code>.*?)^```$"
    r"(?P<after>(?:\n+^<!-- *run after:(?:(?!-->).)*-->)?)",
    re.MULTILINE | re.DOTALL,
)
_COMMENT = re.compile(r"<!-- *(?P<kind>run as|run before|run after|not run|needs):(?P<text>.*?)-->", re.DOTALL)


@dataclass
class Block:
    """A block of code of a page, and what the comments before it say."""

    line: int
    language: str
    code: str
    before: str = ""
    after: str = ""
    needs: str = ""
    is_run: bool = True
    changes: list[tuple[str, str]] = field(default_factory=list)

    def shown_as_run(self) -> str:
        code = self.code
        for old, new in self.changes:
            assert old in code, f"line {self.line}: the block has no {old!r} to replace"
            code = code.replace(old, new)
        return code


def blocks(text: str) -> Iterator[Block]:
    for match in _BLOCK.finditer(text):
        block = Block(text.count("\n", 0, match.start("code")) + 1, match["language"], match["code"])
        for comment in _COMMENT.finditer(match["comments"] + match["after"]):
            said = comment["text"].strip()
            if comment["kind"] == "run as":
                block.changes += [tuple(part.strip().split(" -> ")) for part in said.split(";")]
            elif comment["kind"] == "run before":
                block.before += said + "\n"
            elif comment["kind"] == "run after":
                block.after = said
            elif comment["kind"] == "needs":
                block.needs = said
            else:
                assert said, f"line {block.line}: say why the block is not run"
                block.is_run = False
        yield block


def run_python(block: Block, page: str, namespace: dict) -> None:
    # So that a traceback has the page's own line.
    code = "\n" * (block.line - 1) + block.shown_as_run()
    exec(compile(code, page, "exec"), namespace)


def run_commands(block: Block, page: str) -> None:
    from typer.testing import CliRunner

    from synther_buffers.commands.app import app

    for line in block.shown_as_run().replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["synther-buffers"]:
            result = CliRunner().invoke(app, words[1:])
            assert result.exit_code == 0, f"{page}, line {block.line}: {line}\n{result.output}\n{result.exception!r}"


def is_missing(module: str) -> bool:
    try:
        importlib.import_module(module)
    except (ImportError, OSError):
        return True
    return False


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to run in, Minari's store in it, tiny presets, and the examples within reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    for name in PRESETS:
        monkeypatch.setitem(PRESETS, name, TINY)
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, elsewhere):
    found = [block for block in blocks((DOCS / page).read_text()) if block.language in ("python", "bash")]
    namespace: dict = {"__name__": "docs"}
    for block in found:
        if not block.is_run or (block.needs and is_missing(block.needs)):
            continue
        exec(compile(block.before, f"{page}, before line {block.line}", "exec"), namespace)
        if block.language == "python":
            run_python(block, page, namespace)
        else:
            run_commands(block, page)
        exec(compile(block.after, f"{page}, after line {block.line}", "exec"), namespace)


def test_every_block_says_its_language():
    for page in PAGES:
        fences = re.findall(r"^```(.*)$", (DOCS / page).read_text(), re.MULTILINE)
        assert len(fences) % 2 == 0, page
        assert all(fences[::2]), f"{page}: a block without a language would not be run; write ```text"


def test_every_comment_about_a_block_is_beside_one():
    for page in PAGES:
        text = (DOCS / page).read_text()
        beside = "".join(match[0] for match in _BLOCK.finditer(text))
        assert len(_COMMENT.findall(text)) == len(_COMMENT.findall(beside)), f"{page}: a comment would not be run"


def test_blocks_are_found_with_their_comments():
    page = "\n".join(
        [
            "text", "", "<!-- run as: 10_000 -> 4; a -> b -->", "<!-- run before: import os -->", "```python",
            "a = 10_000", "```", "", "<!-- run after: assert b == 4 -->", "",
            "<!-- not run: too long -->", "", "```bash", "synther-buffers info x", "```",
        ]
    )  # fmt: skip
    first, second = blocks(page)
    assert (first.line, first.language, first.before) == (6, "python", "import os\n")
    assert (first.shown_as_run(), first.after) == ("b = 4\n", "assert b == 4")
    assert (second.language, second.is_run) == ("bash", False)
    first.changes = [("c", "d")]
    with pytest.raises(AssertionError, match="no 'c' to replace"):
        first.shown_as_run()


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="needs synther-buffers[docs]")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MUJOCO_GL": "disable"}
    command = [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going", "-q", str(DOCS), str(tmp_path / "site")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-5_000:]
    index = (tmp_path / "site" / "api" / "sb3.html").read_text()
    assert "synther_buffers.sb3.SynthERBuffer" in index
