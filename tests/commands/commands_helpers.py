"""Runs the command line within the process of the test."""

import json

from typer.testing import CliRunner

from synther_buffers.commands.app import app
from synther_buffers.datasets import open_dataset

#: Help texts are checked as one line, without the frames and breaks of the terminal.
WIDE = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


def run(*arguments, code=0, answer=None):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=answer, env=WIDE)
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def run_json(*arguments):
    """The one object on stdout; everything else must have gone to stderr."""
    return json.loads(run(*arguments, "--json").stdout)


def open_exists(path):
    try:
        open_dataset(path)
    except ValueError:
        return False
    return True
