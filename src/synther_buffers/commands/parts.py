"""What the commands share: their options, how they fail, and where they write."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from safetensors import SafetensorError

from .names import INPUT_FORMATS, completion

if TYPE_CHECKING:
    from ..datasets import Dataset

#: Exit codes.
FAILURE, USAGE = 1, 2
#: Rows of the real and of the synthetic dataset that commands read which compare them.
SHOWN_ROWS = 50_000

_DATASET_HELP = (
    "A file (D4RL's HDF5, SynthER's npz, a replay buffer saved by Stable-Baselines3 or Tianshou), the directory of a "
    "Minari dataset, or the id of a local one."
)
DatasetArgument = Annotated[str, typer.Argument(metavar="DATASET", help=_DATASET_HELP, show_default=False)]
RealArgument = Annotated[str, typer.Argument(metavar="REAL", help=f"The real rows. {_DATASET_HELP}")]
SyntheticArgument = Annotated[str, typer.Argument(metavar="SYNTHETIC", help="The synthetic rows, likewise.")]
InputFormatOption = Annotated[
    str | None,
    typer.Option(
        "--input-format",
        help=f"Format of the dataset, if it cannot be guessed: {', '.join(INPUT_FORMATS)}.",
        show_default=False,
        autocompletion=completion(*INPUT_FORMATS),
    ),
]
RealFormatOption = Annotated[
    str | None,
    typer.Option(
        "--input-format",
        help=f"Format of the real rows, if it cannot be guessed: {', '.join(INPUT_FORMATS)}. SYNTHETIC is told by "
        "its first bytes.",
        show_default=False,
        autocompletion=completion(*INPUT_FORMATS),
    ),
]
PickleOption = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Unpickle where the format needs it. A pickle can run any code: only files "
                 "from people you trust."),
]  # fmt: skip
JsonOption = Annotated[bool, typer.Option("--json", help="Write one JSON object to stdout instead of text.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of everything random: the same seed gives the same result.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no messages but warnings.")]
RowsOption = Annotated[int, typer.Option(min=1, help="Rows to read of REAL and of SYNTHETIC: a uniform subset.")]
KeyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        metavar="FIELD=NAME",
        help="What the HDF5 or npz calls a field, like observation=x, action=x, reward=x, next_observation=x, "
        "terminated=x or truncated=x; once for each. D4RL's names and usual others (obs, act, rew, done) need none.",
        show_default=False,
    ),
]
NoTerminalsOption = Annotated[
    bool,
    typer.Option("--no-terminals", help="The HDF5 or npz does not say which rows are terminal: none is."),
]


def replaced_format(*options: str) -> Any:
    """A hidden option ``--format`` that ends in a usage error, which names the options that say what of."""

    def refuse(value: str | None) -> None:
        if value is not None:
            fail(f"--format is {value!r}, but says not of what; write {' or '.join(options)}.", USAGE)

    return typer.Option("--format", hidden=True, is_eager=True, callback=refuse)


def log_to_stderr(quiet: bool) -> None:
    """Messages to stderr, so that stdout holds the result alone."""
    level = logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr, force=True)


@contextmanager
def failing(after_interrupt: str = "an upsampling goes on with --resume.") -> Iterator[None]:
    """What a user can do something about ends in one line and exit code 1; anything else is our bug and is shown."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except (ValueError, ImportError, OSError, RuntimeError, MemoryError, SafetensorError) as error:
        fail(str(error) or repr(error), FAILURE)
    except KeyboardInterrupt:
        fail(f"interrupted; {after_interrupt}", 130)


@contextmanager
def usage() -> Iterator[None]:
    """An option's value that is wrong in itself: exit code 2."""
    try:
        yield
    except (ValueError, TypeError) as error:
        fail(str(error), USAGE)


def fail(message: str, code: int) -> NoReturn:
    """End with a line on stderr."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


def write_json(data: Any) -> None:
    """One object to stdout."""
    typer.echo(json.dumps(data, allow_nan=False))


def open_named(
    path: str, format: str | None, allow_pickle: bool, keys: Mapping[str, str] | None = None, terminals: bool = True
) -> Dataset:
    """Open a dataset of a command; an unknown format is wrong usage."""
    from ..datasets import open_dataset

    if format is not None and format not in INPUT_FORMATS:
        fail(f"--input-format is {format!r}; known formats: {', '.join(INPUT_FORMATS)}.", USAGE)
    return open_dataset(path, format, allow_pickle, keys=keys, terminals=terminals)


def named_keys(pairs: list[str] | None) -> dict[str, str]:
    """What ``--key FIELD=NAME`` says."""
    from ..datasets.flat import ALIASES

    keys = {}
    for pair in pairs or []:
        field, equals, name = pair.partition("=")
        if not equals or not name or field not in ALIASES or field in keys:
            fail(f"--key is {pair!r}; wanted FIELD=NAME, once for each of {', '.join(ALIASES)}.", USAGE)
        keys[field] = name
    return keys


def open_alike(
    paths: list[str], allow_pickle: bool, key: list[str] | None, no_terminals: bool, input_format: str | None
) -> list[Dataset]:
    """Real and synthetic datasets, and maybe one more of real rows. Names and format of the synthetic one are ours."""
    keys = named_keys(key)
    return [
        open_named(path, None, allow_pickle)
        if index == 1
        else open_named(path, input_format, allow_pickle, keys, not no_terminals)
        for index, path in enumerate(paths)
    ]


def confirm_minari(num_rows: int, yes: bool) -> bool:
    """Ask before a Minari output that takes minutes; whether it may be written."""
    from ..datasets.minari import MAX_ROWS, cost

    if num_rows <= MAX_ROWS or yes:
        return yes
    question = f"{num_rows:,} rows as a Minari dataset take {cost(num_rows)}"
    if not sys.stdin.isatty():
        fail(f"{question}; confirm with --yes, or write .hdf5 or .npz.", USAGE)
    if not typer.confirm(f"{question} (.hdf5 or .npz: seconds). Go on?", err=True):
        fail("nothing was written.", FAILURE)
    return True
