"""What `--help` says, that it is quick, and that shells complete."""

import os
import subprocess
import sys

import pytest
from commands_helpers import run

from synther_buffers import __version__, datasets
from synther_buffers.commands import names
from synther_buffers.commands.app import app
from synther_buffers.upsampling.augmentation import AUGMENTATIONS
from synther_buffers.upsampling.presets import PRESETS

#: Those that read datasets.
COMMANDS = ("info", "upsample", "evaluate", "plot")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_the_command(command):
    text = run(command, "--help").stdout
    assert f"synther-buffers {command} walker2d" in text  # an example
    assert "--allow-pickle" in text
    assert "--input-format" in text
    assert "--format" not in text.replace("--input-format", "")


def test_help_of_the_whole():
    text = run("--help").stdout
    for word in (*COMMANDS, "--install-completion", "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted"):
        assert word in text


def test_version():
    assert run("--version").stdout.strip() == __version__


def test_names_in_help_are_those_of_the_library():
    assert tuple(PRESETS) == names.PRESETS
    assert tuple(AUGMENTATIONS) == names.AUGMENTATIONS
    assert datasets.FORMATS == names.INPUT_FORMATS
    assert datasets.OUTPUT_FORMATS == names.OUTPUT_FORMATS
    text = run("upsample", "--help").stdout
    for name in (*PRESETS, *AUGMENTATIONS):
        assert name in text


def test_help_waits_for_no_heavy_import():
    code = """
import sys
from synther_buffers.commands.app import app
for arguments in (["--help"], *([command, "--help"] for command in sys.argv[1:])):
    assert not app(arguments, standalone_mode=False)
print("heavy:", *sorted({name.split(".")[0] for name in sys.modules} & {
    "torch", "numpy", "gymnasium", "matplotlib", "sklearn", "scipy", "h5py", "minari", "mujoco"
}))
"""
    every = [command.callback.__name__ for command in app.registered_commands]
    assert set(COMMANDS) <= set(every)
    done = subprocess.run([sys.executable, "-c", code, *every], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "heavy:"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("up", ["upsample"]),
        ("upsample --preset paper-online", ["paper-online", "paper-online-dmc"]),
        ("upsample --augmentation g", ["gaussian"]),
        ("plot --image-format s", ["svg"]),
    ],
)
def test_a_shell_completes(typed, offered):
    words = f"synther-buffers {typed}"
    asked = {"_SYNTHER_BUFFERS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-m", "synther_buffers.commands"], env={**os.environ, **asked}, capture_output=True, text=True
    )
    assert done.stdout.split() == offered, done.stderr
