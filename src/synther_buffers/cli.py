"""The command line: ``synther-buffers info | upsample | evaluate | plot``."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from .command_parts import (
    USAGE,
    DatasetArgument,
    JsonOption,
    KeyOption,
    NoTerminalsOption,
    PickleOption,
    QuietOption,
    RealArgument,
    RowsOption,
    SeedOption,
    SyntheticArgument,
    confirm_minari,
    fail,
    failing,
    log_to_stderr,
    named_keys,
    open_named,
    read_alike_named,
    usage,
    write_json,
)
from .upsampling.augmentation import AUGMENTATIONS
from .upsampling.presets import PRESETS, UpsamplerConfig, merge_config, resolve_config, resolve_device
from .version import __version__

try:
    import typer
except ImportError as error:
    raise ImportError('the command line needs typer: pip install "synther-buffers[offline]"') from error

#: Rows of each dataset that `evaluate` and `plot` read.
SHOWN_ROWS = 50_000
#: The pictures of `plot`: functions of `synther_buffers.plots`, called with (real, synthetic, spec).
PICTURES = ("marginals", "correlations", "projection")

app = typer.Typer(
    name="synther-buffers",
    help="Train a diffusion model on a dataset of transitions, and write, judge and picture synthetic ones.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage. Results go to stdout, messages and progress to stderr.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


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


@app.command()
def info(
    dataset: DatasetArgument,
    format: Annotated[str | None, typer.Option(help="Its format, if it cannot be guessed.")] = None,
    key: KeyOption = None,
    no_terminals: NoTerminalsOption = False,
    allow_pickle: PickleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say what is in a dataset: format, rows, and the range of each field.

    The whole dataset is read, in chunks.

        synther-buffers info walker2d_medium_replay.hdf5
    """
    log_to_stderr(quiet=False)
    with failing():
        opened = open_named(dataset, format, allow_pickle, named_keys(key), not no_terminals)
        from .datasets.description import describe

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


@app.command()
def upsample(
    dataset: DatasetArgument,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="Where to write: a .hdf5 or .npz file, or a Minari id like mine/walk-v0 "
            "for up to some 10,000 rows. Must not exist.",
            show_default=False,
        ),
    ],
    num_samples: Annotated[
        int | None,
        typer.Option(
            "--num-samples",
            "-n",
            min=1,
            help="Synthetic rows to write, for example 5_000_000; by default what the preset says.",
            show_default=False,
        ),
    ] = None,
    include_real: Annotated[
        bool, typer.Option("--include-real", help="Write all rows of the dataset first, then the synthetic ones.")
    ] = False,
    preset: Annotated[
        str, typer.Option(help=f"Size of model and training: auto (by device), {', '.join(PRESETS)}.")
    ] = "auto",
    config: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with what shall differ from the preset, for example "
            '{"train_steps": 20000, "network": {"width": 512}}.',
            show_default=False,
        ),
    ] = None,
    augmentation: Annotated[
        str | None,
        typer.Option(help=f"Instead of a model, perturb real rows: {', '.join(AUGMENTATIONS)}.", show_default=False),
    ] = None,
    train_rows: Annotated[
        int, typer.Option(min=1, help="Rows to learn at most: a uniform subset, held in memory.")
    ] = 1_000_000,
    seed: SeedOption = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto is CUDA where there is one.")] = "auto",
    format: Annotated[str | None, typer.Option(help="Format of the output, if its name does not tell.")] = None,
    input_format: Annotated[str | None, typer.Option(help="Format of the dataset, if it cannot be guessed.")] = None,
    no_timeouts: Annotated[
        bool,
        typer.Option(
            "--no-timeouts",
            help="Leave `timeouts` out of a .hdf5 output, where every row but terminal ones has one: for readers that "
            "skip such rows.",
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run of the same settings, if there is one.")
    ] = False,
    chunk_rows: Annotated[int, typer.Option(min=1, help="Rows drawn at a time; what a kill loses at most.")] = 100_000,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a large Minari output.")] = False,
    quiet: QuietOption = False,
    key: KeyOption = None,
    no_terminals: NoTerminalsOption = False,
    allow_pickle: PickleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train on a dataset and write synthetic rows.

    A diffusion model learns at most `--train-rows` rows of the dataset and then draws as many as you like, in chunks.
    Until all are there they lie in OUTPUT.partial, with the trained model; after a kill, `--resume` goes on, and the
    file is the same as without it. Terminal rows come at the data's rate; a time limit is no terminal.

        synther-buffers upsample walker2d.hdf5 -n 5_000_000 -o walker2d_synthetic.hdf5

        synther-buffers upsample mine/walker2d-v0 -n 1000 -o mine/walker2d-synthetic-v0

        synther-buffers upsample buffer.pkl --allow-pickle --include-real -n 1_000_000 -o mixed.npz
    """
    log_to_stderr(quiet)
    upsampler, default_samples = _upsampler(preset, config, augmentation, device)
    num_samples = num_samples or default_samples
    from .datasets import upsample as run

    with failing():
        opened = open_named(dataset, input_format, allow_pickle, named_keys(key), not no_terminals)
        with usage():
            from .datasets.registry import check_timeouts, output_format

            kind = output_format(output, format)
            check_timeouts(not no_timeouts, kind)
        if kind == "minari":
            total = num_samples + (len(opened) if include_real else 0)
            yes = confirm_minari(total, yes)
        report = run(
            opened,
            num_samples,
            output,
            upsampler=upsampler,
            device=device,
            train_rows=train_rows,
            include_real=include_real,
            seed=seed,
            format=format,
            resume=resume,
            chunk_rows=chunk_rows,
            progress_bar=not quiet,
            allow_large_minari=yes,
            timeouts=not no_timeouts,
        )
    if as_json:
        write_json(report.to_dict())
        return
    real = f"{report.num_real:,} real and " if report.num_real else ""
    typer.echo(f"{report.output}: {real}{report.num_synthetic:,} synthetic rows, in {report.seconds:.0f} s")
    typer.echo(f"next: synther-buffers evaluate {dataset} {output}")


@app.command()
def evaluate(
    real: RealArgument,
    synthetic: SyntheticArgument,
    train: Annotated[
        str | None,
        typer.Option(
            help="The rows that were trained on, if REAL are others: adds the distance to the closest one.",
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
    rows: RowsOption = SHOWN_ROWS,
    seed: SeedOption = 0,
    key: KeyOption = None,
    no_terminals: NoTerminalsOption = False,
    allow_pickle: PickleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say how close synthetic rows are to real ones.

    Similarity of columns and of pairs of columns, a classifier that tells the sets apart, neighbourhoods, the rate of
    terminals; with `--env` what a simulator makes of the same actions. REAL should be rows that were not trained on.

        synther-buffers evaluate walker2d.hdf5 walker2d_synthetic.hdf5 --env Walker2d-v5 --json
    """
    log_to_stderr(quiet=False)
    with failing():
        from .evaluation import metrics

        spec, (real_rows, synthetic_rows, *train_rows) = read_alike_named(
            [real, synthetic, *([] if train is None else [train])], rows, seed, allow_pickle, key, no_terminals
        )
        simulator = None
        if env is not None:
            with usage():
                simulator = _simulator(env)
        result = metrics.evaluate(
            real_rows,
            synthetic_rows,
            spec,
            train=train_rows[0] if train_rows else None,
            simulator=simulator,
            seed=seed,
        ).to_dict()
    if as_json:
        write_json({"real": real, "synthetic": synthetic, **result})
        return
    for name, value in _lines(result):
        typer.echo(f"{name:<36} {value}")


@app.command()
def plot(
    real: RealArgument,
    synthetic: SyntheticArgument,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="A folder for the pictures; made if it is missing.", show_default=False),
    ],
    format: Annotated[str, typer.Option(help="Of the pictures: png, pdf or svg.")] = "png",
    rows: RowsOption = SHOWN_ROWS,
    seed: SeedOption = 0,
    key: KeyOption = None,
    no_terminals: NoTerminalsOption = False,
    allow_pickle: PickleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw real against synthetic rows: marginals, correlations, a projection to two dimensions.

    synther-buffers plot walker2d.hdf5 walker2d_synthetic.hdf5 --output pictures
    """
    log_to_stderr(quiet=False)
    if format not in ("png", "pdf", "svg"):
        raise typer.BadParameter(f"{format!r} is unknown; wanted png, pdf or svg.", param_hint="--format")
    with failing():
        plots = importlib.import_module("synther_buffers.plots")  # only now: it needs matplotlib
        spec, (real_rows, synthetic_rows) = read_alike_named(
            [real, synthetic], rows, seed, allow_pickle, key, no_terminals
        )
        output.mkdir(parents=True, exist_ok=True)
        written = []
        for name in PICTURES:
            figure = getattr(plots, name)(real_rows, synthetic_rows, spec)
            figure.savefig(output / f"{name}.{format}", dpi=200)
            written.append(str(output / f"{name}.{format}"))
    if as_json:
        write_json({"pictures": written})
    else:
        typer.echo("\n".join(written))


def main() -> None:
    """The entry point."""
    app()


# -- parts -----------------------------------------------------------------------------------------------------------


def _upsampler(preset: str, file: Path | None, augmentation: str | None, device: str) -> tuple[Any, int]:
    """What to give to `datasets.upsample`, and how many rows by default; usage errors end here."""
    if augmentation is not None:
        if file is not None or preset != "auto":
            fail("--augmentation trains no model; leave out --preset and --config.", USAGE)
        if augmentation not in AUGMENTATIONS:
            fail(f"augmentation is {augmentation!r}; known ones: {', '.join(AUGMENTATIONS)}.", USAGE)
        return AUGMENTATIONS[augmentation], 100_000
    with usage():
        base = resolve_config(preset, resolve_device(device))
        config = base if file is None else _merged(base, file)
    return config, config.num_synthetic


def _merged(base: UpsamplerConfig, file: Path) -> UpsamplerConfig:
    """The configuration with what a JSON file says in place of the preset's values."""
    try:
        changes = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is no JSON ({error}).") from error
    return merge_config(base, changes, str(file))


def _simulator(env: str) -> Any:
    import gymnasium

    from .evaluation.simulators import MujocoSimulator

    try:
        return MujocoSimulator(env)
    except gymnasium.error.Error as error:
        raise ValueError(f"env is {env!r}: {error}") from error


def _lines(result: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The figures of a nested result, a line each."""
    for key, value in result.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            yield from _lines(value, f"{name}: ")
        elif value is not None:
            yield name, f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
