"""``synther-buffers info``: what is in a dataset."""

from __future__ import annotations

from typing import Annotated

import typer

from .parts import (
    DatasetArgument,
    InputFormatOption,
    JsonOption,
    KeyOption,
    NoTerminalsOption,
    PickleOption,
    failing,
    log_to_stderr,
    named_keys,
    open_named,
    replaced_format,
    write_json,
)


def info(
    dataset: DatasetArgument,
    input_format: InputFormatOption = None,
    key: KeyOption = None,
    no_terminals: NoTerminalsOption = False,
    allow_pickle: PickleOption = False,
    as_json: JsonOption = False,
    format: Annotated[str | None, replaced_format("--input-format")] = None,
) -> None:
    """Say what is in a dataset: format, rows, and the range of each field.

    The whole dataset is read, in chunks.

        synther-buffers info walker2d_medium_replay.hdf5
    """
    log_to_stderr(quiet=False)
    with failing():
        opened = open_named(dataset, input_format, allow_pickle, named_keys(key), not no_terminals)
        from ..datasets.description import describe

        described = describe(opened)
    if as_json:
        write_json(described)
        return
    typer.echo(f"{described['path']}: {described['format']}, {described['num_rows']:,} rows")
    if described["num_dropped"]:
        typer.echo(f"{described['num_dropped']:,} more rows have no next observation and are left out")
    typer.echo(f"terminal: {100 * described['terminal_rate']:.3f} % of the rows")
    typer.echo(f"{'field':<28} {'kind':<12} {'dtype':<8} {'shape':<10} {'min':>11} {'mean':>11} {'max':>11}")
    for field in described["fields"]:
        shape = "x".join(map(str, field["shape"])) or "scalar"
        numbers = " ".join(f"{field[name]:>11.4g}" for name in ("min", "mean", "max"))
        typer.echo(f"{field['name']:<28} {field['kind']:<12} {field['dtype']:<8} {shape:<10} {numbers}")
