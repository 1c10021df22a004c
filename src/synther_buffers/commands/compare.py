"""``synther-buffers compare``: what a user's own training gains from synthetic rows."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .parts import USAGE, JsonOption, fail, failing, log_to_stderr, write_json

if TYPE_CHECKING:
    from ..comparison import Comparison, Run


def compare(
    training: Annotated[
        str,
        typer.Argument(
            metavar="SCRIPT.py:FUNCTION",
            help="A function `train(seed, synthetic_fraction)` of yours, which trains an agent and returns its return: "
            "a number, or a curve [(environment steps, return), ...].",
            show_default=False,
        ),
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Pairs of trainings, with the seeds 0, 1, ...")] = 5,
    fraction: Annotated[float, typer.Option(help="Share of synthetic rows against which real rows stand.")] = 0.5,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at a time.")] = 1,
    results: Annotated[
        Path | None,
        typer.Option(
            help="A file of JSON lines for the trainings as they end; those that it has are not repeated.",
            show_default=False,
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", "-o", help="Draw it too: a .png, .pdf or .svg file.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train your agent with and without synthetic rows, over seeds, and say what it gained.

    Each training has a process of its own. The interval is that of the mean difference, paired by seed.

        synther-buffers compare my_script.py:train --seeds 5 --results runs.jsonl -o gain.png
    """
    log_to_stderr(quiet=False)
    script, colon, function = training.rpartition(":")
    if not colon or not function.isidentifier():
        fail(f"{training!r} names no function; wanted SCRIPT.py:FUNCTION, like my_script.py:train.", USAGE)
    if picture is not None and picture.suffix not in (".png", ".pdf", ".svg"):
        fail(f"--picture is {str(picture)!r}; wanted a name that ends in .png, .pdf or .svg.", USAGE)
    if picture is not None and not picture.absolute().parent.is_dir():
        fail(f"--picture is {str(picture)!r}; its folder is not there.", USAGE)
    if not 0.0 < fraction <= 1.0:
        fail(f"--fraction is {fraction}; wanted a share above 0, at most 1.", USAGE)
    with failing("the same command goes on where it stopped if it has --results."):
        from .. import comparison

        if picture is not None:
            from ..plots import comparison as draw  # now: what is missing shows before hours of training
        found = comparison.compare(
            script,
            function,
            seeds=range(seeds),
            fraction=fraction,
            jobs=jobs,
            results=results,
            on_run=lambda run: typer.echo(_line(run), err=True),
        )
    if as_json:
        ends = {
            name: value if math.isfinite(value) else None for name, value in (("low", found.low), ("high", found.high))
        }
        write_json({**asdict(found), **ends, "verdict": found.verdict})
    else:
        typer.echo("\n".join(_table(found)))
    if picture is not None:
        with failing():
            draw(found).savefig(picture, dpi=200)


def _line(run: Run) -> str:
    rows = f"{run.synthetic_fraction:.0%} synthetic" if run.synthetic_fraction else "real rows"
    return f"seed {run.seed}, {rows}: {run.score:.4g} in {run.seconds:.0f} s"


def _table(found: Comparison) -> list[str]:
    real, mixed = (found.scores(share) for share in (0.0, found.fraction))
    lines = [f"{'seed':<6} {'real rows':>12} {f'{found.fraction:.0%} synthetic':>14} {'difference':>12}"]
    for seed, first, second, difference in zip(found.seeds, real, mixed, found.differences, strict=True):
        lines.append(f"{seed:<6} {first:>12.4g} {second:>14.4g} {difference:>+12.4g}")
    interval = "" if math.isnan(found.low) else f", 95 % interval {found.low:+.4g} to {found.high:+.4g}"
    times = [found.seconds(share) for share in (0.0, found.fraction)]
    return [
        *lines,
        f"mean difference {found.mean:+.4g}{interval}",
        found.verdict,
        f"a training takes {times[0]:.0f} s with real rows alone, {times[1]:.0f} s with synthetic ones",
    ]
