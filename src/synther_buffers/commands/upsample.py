"""``synther-buffers upsample``: train on a dataset and write synthetic rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .names import AUGMENTATIONS, OUTPUT_FORMATS, PRESETS, completion
from .parts import (
    USAGE,
    DatasetArgument,
    InputFormatOption,
    JsonOption,
    KeyOption,
    NoTerminalsOption,
    PickleOption,
    QuietOption,
    SeedOption,
    confirm_minari,
    fail,
    failing,
    log_to_stderr,
    named_keys,
    open_named,
    replaced_format,
    usage,
    write_json,
)

if TYPE_CHECKING:
    from ..upsampling.presets import UpsamplerConfig


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
        str,
        typer.Option(
            help=f"Size of model and training: auto (by device), {', '.join(PRESETS)}.",
            autocompletion=completion("auto", *PRESETS),
        ),
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
        typer.Option(
            help=f"Instead of a model, perturb real rows: {', '.join(AUGMENTATIONS)}.",
            show_default=False,
            autocompletion=completion(*AUGMENTATIONS),
        ),
    ] = None,
    train_rows: Annotated[
        int, typer.Option(min=1, help="Rows to learn at most: a uniform subset, held in memory.")
    ] = 1_000_000,
    seed: SeedOption = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto is CUDA where there is one.")] = "auto",
    input_format: InputFormatOption = None,
    output_format: Annotated[
        str | None,
        typer.Option(
            help=f"Format of the output, if its name does not tell: {', '.join(OUTPUT_FORMATS)}.",
            show_default=False,
            autocompletion=completion(*OUTPUT_FORMATS),
        ),
    ] = None,
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
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Draw on a Ray cluster: host:port of its head, auto for that of this machine (if left out), or local "
            "to start one here. Its machines need this library and see the folder of the output.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a large Minari output.")] = False,
    quiet: QuietOption = False,
    key: KeyOption = None,
    no_terminals: NoTerminalsOption = False,
    allow_pickle: PickleOption = False,
    as_json: JsonOption = False,
    format: Annotated[str | None, replaced_format("--output-format", "--input-format")] = None,
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
    if output_format is not None and output_format not in OUTPUT_FORMATS:
        message = f"--output-format is {output_format!r}; formats that can be written: {', '.join(OUTPUT_FORMATS)}."
        fail(message, USAGE)
    from ..datasets import upsample as run
    from ..datasets.registry import check_timeouts
    from ..datasets.registry import output_format as format_of

    with failing():
        opened = open_named(dataset, input_format, allow_pickle, named_keys(key), not no_terminals)
        with usage():
            kind = format_of(output, output_format)
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
            format=kind,
            resume=resume,
            chunk_rows=chunk_rows,
            progress_bar=not quiet,
            allow_large_minari=yes,
            timeouts=not no_timeouts,
            ray=ray,
        )
    if as_json:
        write_json(report.to_dict())
        return
    real = f"{report.num_real:,} real and " if report.num_real else ""
    typer.echo(f"{report.output}: {real}{report.num_synthetic:,} synthetic rows, in {report.seconds:.0f} s")
    typer.echo(f"next: synther-buffers evaluate {dataset} {output}")


def _upsampler(preset: str, file: Path | None, augmentation: str | None, device: str) -> tuple[Any, int]:
    """What to give to `datasets.upsample`, and how many rows by default; usage errors end here."""
    if augmentation is not None:
        if file is not None or preset != "auto":
            fail("--augmentation trains no model; leave out --preset and --config.", USAGE)
        if augmentation not in AUGMENTATIONS:
            fail(f"--augmentation is {augmentation!r}; known ones: {', '.join(AUGMENTATIONS)}.", USAGE)
        from ..upsampling import augmentation as augmentations

        return augmentations.AUGMENTATIONS[augmentation], 100_000
    from ..upsampling.presets import resolve_config, resolve_device

    with usage():
        base = resolve_config(preset, resolve_device(device))
        config = base if file is None else _merged(base, file)
    return config, config.num_synthetic


def _merged(base: UpsamplerConfig, file: Path) -> UpsamplerConfig:
    """The configuration with what a JSON file says in place of the preset's values."""
    from ..upsampling.presets import merge_config

    try:
        changes = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is no JSON ({error}).") from error
    return merge_config(base, changes, str(file))
