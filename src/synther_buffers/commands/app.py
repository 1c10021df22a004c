"""``synther-buffers``: the commands together, and the entry point."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..version import __version__
from .compare import compare
from .estimate import estimate
from .evaluate import evaluate
from .info import info
from .plot import plot
from .upsample import upsample

app = typer.Typer(
    name="synther-buffers",
    help="Synthetic transitions for reinforcement learning: train a diffusion model on a dataset, write, judge and "
    "picture synthetic rows; estimate what a buffer's refreshes cost; compare an agent with and without them.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. "
    "Results go to stdout, messages and progress to stderr.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


class _OptionalAddress(TyperCommand):
    """Has ``--ray`` without an address mean the cluster that this machine is a part of."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the address that was left out."""
        given = list(args)
        for place in reversed([place for place, word in enumerate(given) if word == "--ray"]):
            if place + 1 == len(given) or given[place + 1].startswith("-"):
                given.insert(place + 1, "auto")
        return super().parse_args(ctx, given)


# In the order of `--help`.
app.command()(info)
app.command(cls=_OptionalAddress)(upsample)
app.command()(evaluate)
app.command()(plot)
app.command()(estimate)
app.command()(compare)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Tell the version and stop.", is_eager=True, callback=_tell_version)
    ] = False,
) -> None:
    pass


def main() -> None:
    """The entry point; ends the process with an exit code."""
    app(prog_name="synther-buffers")
