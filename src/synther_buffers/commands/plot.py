"""``synther-buffers plot``: pictures of real against synthetic rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .names import IMAGE_FORMATS, completion
from .parts import (
    SHOWN_ROWS,
    USAGE,
    JsonOption,
    KeyOption,
    NoTerminalsOption,
    PickleOption,
    RealArgument,
    RealFormatOption,
    RowsOption,
    SeedOption,
    SyntheticArgument,
    fail,
    failing,
    log_to_stderr,
    open_alike,
    replaced_format,
    write_json,
)
from .pictures import draw, load_plots


def plot(
    real: RealArgument,
    synthetic: SyntheticArgument,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="A folder for the pictures; made if it is missing.", show_default=False),
    ],
    image_format: Annotated[
        str,
        typer.Option(help=f"Of the pictures: {', '.join(IMAGE_FORMATS)}.", autocompletion=completion(*IMAGE_FORMATS)),
    ] = "png",
    rows: RowsOption = SHOWN_ROWS,
    seed: SeedOption = 0,
    input_format: RealFormatOption = None,
    key: KeyOption = None,
    no_terminals: NoTerminalsOption = False,
    allow_pickle: PickleOption = False,
    as_json: JsonOption = False,
    format: Annotated[str | None, replaced_format("--image-format")] = None,
) -> None:
    """Draw real against synthetic rows: marginals, correlations, a projection to two dimensions.

    Pictures of the same names in the folder are replaced. What cannot be drawn of these rows is told, and left out.

        synther-buffers plot walker2d.hdf5 walker2d_synthetic.hdf5 --output pictures
    """
    log_to_stderr(quiet=False)
    if image_format not in IMAGE_FORMATS:
        fail(f"--image-format is {image_format!r}; wanted png, pdf or svg.", USAGE)
    with failing():
        load_plots()
        from ..datasets.description import read_alike

        datasets = open_alike([real, synthetic], allow_pickle, key, no_terminals, input_format)
        spec, (real_rows, synthetic_rows) = read_alike(datasets, rows, seed)
        output.mkdir(parents=True, exist_ok=True)
        written = []
        for name, figure in draw(real_rows, synthetic_rows, spec):
            if isinstance(figure, str):
                typer.echo(f"{name}: not drawn ({figure})", err=True)
                continue
            figure.savefig(output / f"{name}.{image_format}", dpi=200)
            written.append(str(output / f"{name}.{image_format}"))
        if not written:
            raise ValueError("none of the pictures could be drawn of these rows.")
    if as_json:
        write_json({"pictures": written})
    else:
        typer.echo("\n".join(written))
