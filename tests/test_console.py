"""What a user without any setting sees of a refresh: run in processes of their own, whose logging nobody configured."""

import logging
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

SCRIPT = """
import logging, sys, torch
{before}
sys.path.insert(0, {tests!r})
from toys import SPEC, TINY, gaussian
from synther_buffers import SyntheticReplay
import synther_buffers.upsampling.progress as progress
progress.SECONDS_BETWEEN_LINES = {between}
state = torch.get_rng_state()
replay = SyntheticReplay(SPEC, upsampler=TINY, retrain_every=200, num_synthetic=300, seed=0, {keywords})
replay.observe_total(400)
assert replay.refresh(gaussian(400)) is not None
replay.observe_total(800)
assert replay.refresh(gaussian(800)) is not None
assert torch.equal(torch.get_rng_state(), state)
"""


def command(before: str = "", keywords: str = "", between: float = 1e9) -> list[str]:
    tests = str(Path(__file__).parent)
    return [sys.executable, "-c", SCRIPT.format(before=before, keywords=keywords, between=between, tests=tests)]


def stderr(**options: object) -> list[str]:
    """Lines that the script writes to a pipe."""
    done = subprocess.run(command(**options), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "nan" not in done.stderr.lower()
    return done.stderr.splitlines()


def test_a_line_at_the_start_and_one_at_the_end() -> None:
    first, second, third, fourth = (line for line in stderr() if "Synthetic refresh" in line)
    assert re.fullmatch(
        r"Synthetic refresh at 400 real transitions: learning \d+ rows, which takes about \d+ s here\.", first
    )
    assert re.match(r"Synthetic refresh 1 done in [\d.]+ s: 300 synthetic rows, loss [\d.]+, ", second)
    assert re.fullmatch(
        r"Synthetic refresh at 800 real transitions: learning \d+ rows; the last one took \d+ s\.", third
    )
    assert fourth.startswith("Synthetic refresh 2 done")


@pytest.mark.parametrize(
    "options",
    [
        {"keywords": "progress_bar=False"},
        {"before": "logging.basicConfig()"},  # at WARNING, its default
        {"before": "logging.getLogger('synther_buffers').setLevel(logging.WARNING)"},
        {"before": "logging.getLogger('synther_buffers').addHandler(logging.NullHandler())"},
        {"before": "logging.disable(logging.INFO)"},
    ],
)
def test_whoever_wants_silence_has_it(options: dict[str, str]) -> None:
    assert not [line for line in stderr(**options) if "done in" in line or "learning" in line]


def test_a_handler_of_the_users_gets_the_lines_instead() -> None:
    lines = stderr(before="logging.basicConfig(level=logging.INFO, format='mine %(message)s')")
    assert len([line for line in lines if line.startswith("mine Synthetic refresh")]) == 4
    assert not [line for line in lines if line.startswith("Synthetic")]


def test_a_pipe_gets_lines_of_progress_and_no_bar() -> None:
    lines = stderr(between=0.0)
    assert [line for line in lines if re.match(r"synther: training: \d+ of 30, loss [\d.]+, at most \d+ s to go", line)]
    assert not [line for line in lines if "\r" in line or "|" in line]
    assert not [line for line in stderr() if "synther: training" in line]


def on_a_terminal(**options: object) -> str:
    """All that the script writes to a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    process = subprocess.Popen(command(**options), stderr=theirs)
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the terminal is closed
            break
        if not part:
            break
        written += part
    os.close(ours)
    assert process.wait() == 0, written
    return written.decode()


def test_a_terminal_gets_a_bar() -> None:
    assert "synther: training:" in on_a_terminal()
    assert "synther: training:" not in on_a_terminal(keywords="progress_bar=False")


def test_a_display_of_rich_on_a_terminal_gets_lines_and_no_bar() -> None:
    pytest.importorskip("rich")
    display = (
        "from rich.console import Console; from rich.live import Live; "
        "live = Live(console=Console(stderr=True, force_terminal=True)); live.start()"
    )
    written = on_a_terminal(before=display)
    assert "done in" in written
    assert "synther: training" not in written


def test_logging_is_as_it_was() -> None:
    """The library adds no handler and sets no level."""
    import synther_buffers  # noqa: F401

    package = logging.getLogger("synther_buffers")
    assert (package.handlers, package.level) == ([], logging.NOTSET)
