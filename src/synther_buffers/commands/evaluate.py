"""``synther-buffers evaluate``: how close synthetic rows are to real ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..version import __version__
from .html_page import check_page, render_page, write_page
from .parts import (
    SHOWN_ROWS,
    JsonOption,
    KeyOption,
    NoTerminalsOption,
    PickleOption,
    RealArgument,
    RealFormatOption,
    RowsOption,
    SeedOption,
    SyntheticArgument,
    failing,
    log_to_stderr,
    open_alike,
    replaced_format,
    usage,
    write_json,
)
from .pictures import load_plots, png_pictures

if TYPE_CHECKING:
    from ..transitions import Transitions, TransitionSpec


def evaluate(
    real: RealArgument,
    synthetic: SyntheticArgument,
    train: Annotated[
        str | None,
        typer.Option(
            help="The rows that were trained on, if REAL are others: adds the distance to the closest one of them all.",
            show_default=False,
        ),
    ] = None,
    env: Annotated[
        str | None,
        typer.Option(
            help="A Gymnasium MuJoCo environment, like Walker2d-v5: adds the error of dynamics and reward.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write one HTML page, too, with the figures and the pictures of `plot`. Must not exist.",
            show_default=False,
        ),
    ] = None,
    rows: RowsOption = SHOWN_ROWS,
    seed: SeedOption = 0,
    input_format: RealFormatOption = None,
    key: KeyOption = None,
    no_terminals: NoTerminalsOption = False,
    allow_pickle: PickleOption = False,
    as_json: JsonOption = False,
    format: Annotated[str | None, replaced_format("--input-format")] = None,
) -> None:
    """Say how close synthetic rows are to real ones.

    Similarity of columns and of pairs of columns, a classifier that tells the sets apart, neighbourhoods, the rate of
    terminals; with `--env` what a simulator makes of the same actions. REAL should be rows that were not trained on.
    Each figure comes with a verdict (good, fair, poor) and with what it means.

        synther-buffers evaluate walker2d.hdf5 walker2d_synthetic.hdf5 --env Walker2d-v5 --json

        synther-buffers evaluate walker2d.hdf5 walker2d_synthetic.hdf5 --html page.html
    """
    log_to_stderr(quiet=False)
    with failing():
        if html is not None:
            check_page(html)
            load_plots()
        from ..datasets.description import chunks_alike, read_alike
        from ..evaluation import metrics
        from ..evaluation.meanings import explain

        first, second, *others = open_alike(
            [real, synthetic, *([] if train is None else [train])], allow_pickle, key, no_terminals, input_format
        )
        spec, (real_rows, synthetic_rows) = read_alike([first, second], rows, seed)
        simulator = None
        if env is not None:
            with usage():
                simulator = _simulator(env)
        evaluation = metrics.evaluate(real_rows, synthetic_rows, spec, simulator=simulator, seed=seed)
        if others:
            # A copy is found only where its original is searched: in all training rows, be they more than memory holds.
            chunks = chunks_alike(others[0], first)
            closest = metrics.closest_record(real_rows, synthetic_rows, chunks, spec, seed=seed)
            evaluation = replace(evaluation, num_train=len(others[0]), closest=closest)
        result = evaluation.to_dict()
        lines = explain(result)
        if html is not None:
            page = render_page(
                real,
                synthetic,
                lines,
                _columns(real_rows, synthetic_rows, spec, seed),
                png_pictures(real_rows, synthetic_rows, spec),
                __version__,
            )
            write_page(html, page)
    if as_json:
        write_json({"real": real, "synthetic": synthetic, **result})
        return
    names, values = (max(map(len, column)) for column in zip(*((line.name, line.value) for line in lines), strict=True))
    typer.echo(f"{'figure':<{names}}  {'value':>{values}}  verdict  meaning")
    for line in lines:
        typer.echo(f"{line.name:<{names}}  {line.value:>{values}}  {line.verdict:<7}  {line.meaning}")
    if html is not None:
        typer.echo(f"page: {html}")


def _columns(real: Transitions, synthetic: Transitions, spec: TransitionSpec, seed: int) -> dict[str, float]:
    """The similarity of each column, of the rows that `metrics.evaluate` measures the fidelity of."""
    from ..evaluation.fidelity import column_similarities
    from ..evaluation.points import MAX_ROWS, thin

    return column_similarities(thin(real, MAX_ROWS, seed), thin(synthetic, MAX_ROWS, seed + 1), spec)


def _simulator(env: str) -> Any:
    import gymnasium

    from ..evaluation.simulators import MujocoSimulator

    try:
        return MujocoSimulator(env)
    except gymnasium.error.Error as error:
        raise ValueError(f"--env is {env!r}: {error}") from error
