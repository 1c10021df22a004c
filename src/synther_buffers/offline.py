"""Upsample a dataset: learn it once, write as many synthetic rows as wanted, and go on after a kill."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from tqdm import tqdm

from .datasets.base import Dataset
from .datasets.registry import final_path, output_format, unfinished_path, write_rows
from .transitions import Transitions, TransitionSpec
from .upsampling.diffusion_upsampler import DiffusionUpsampler
from .upsampling.factory import make_upsampler, resolve_factory
from .upsampling.presets import UpsamplerConfig, resolve_device
from .upsampling.protocol import FitReport, Upsampler, UpsamplerFactory
from .version import __version__

logger = logging.getLogger(__name__)

#: Rows learned at most, where nobody says how many: a few GB while training on wide observations.
TRAIN_ROWS = 1_000_000
#: Rows drawn at a time; what a kill loses at most.
CHUNK_ROWS = 100_000
#: Fewer rows than this are not worth a model.
MIN_ROWS = 100

_SETTINGS, _FIT, _MODEL, _OUTPUT = "settings.json", "fit.json", "model.safetensors", "output"


@dataclass(frozen=True)
class UpsampleReport:
    """What an upsampling did.

    Attributes:
        output: where the dataset lies.
        format: its format.
        num_rows, num_real, num_synthetic: rows written; real ones come first.
        num_train: rows learned.
        num_resumed: synthetic rows that an earlier, interrupted run had drawn.
        fit: of the upsampler, maybe by that earlier run.
        seconds: wall time of this run.
    """

    output: str
    format: str
    num_rows: int
    num_real: int
    num_synthetic: int
    num_train: int
    num_resumed: int
    fit: FitReport
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: a loss that was not measured is None."""
        data = asdict(self)
        data["fit"] = {key: None if value != value else value for key, value in data["fit"].items()}
        return data


def upsample(
    dataset: Dataset,
    num_samples: int,
    output: str | Path,
    *,
    upsampler: str | UpsamplerConfig | UpsamplerFactory = "auto",
    device: str | torch.device = "auto",
    train_rows: int = TRAIN_ROWS,
    include_real: bool = False,
    seed: int = 0,
    format: str | None = None,
    resume: bool = False,
    chunk_rows: int = CHUNK_ROWS,
    progress_bar: bool = True,
    allow_large_minari: bool = False,
) -> UpsampleReport:
    """Train on a dataset and write synthetic rows, in chunks.

    Until the output is complete, everything lies in a folder ``OUTPUT.partial`` beside it (``.ID.partial`` in Minari's
    store): the trained model and the
    chunks drawn so far. `resume` goes on from there; the output is the same, bit for bit, as without an interruption.
    The folder and the finished file need disk space at the same time.

    Args:
        dataset: what to learn; see `synther_buffers.datasets.open_dataset`.
        num_samples: synthetic rows to write.
        output: a ``.hdf5`` or ``.npz`` file, or a Minari id.
        upsampler: a preset's name, an `UpsamplerConfig`, or a factory, as a buffer takes it.
        device: where it trains and samples; ``auto`` is CUDA where there is one.
        train_rows: rows to learn at most: a uniform subset of the dataset, held in memory.
        include_real: write all rows of the dataset before the synthetic ones.
        seed: of everything random; the global random streams are neither read nor moved.
        format: of the output; None for what its name says.
        resume: go on with an interrupted run of the same settings, if there is one.
        chunk_rows: rows drawn at a time; another number gives other rows.
        progress_bar: show one on terminals.
        allow_large_minari: write more than 100,000 rows as a Minari dataset, which takes minutes.

    Raises:
        ValueError: an argument out of range, an unreadable dataset, an output that exists, an interrupted run that is
            in the way or had other settings, or too little disk space.
    """
    start = time.perf_counter()
    for name, value in (("num_samples", num_samples), ("train_rows", train_rows), ("chunk_rows", chunk_rows)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number, at least 1.")
    format = output_format(output, format)
    target = final_path(output, format)
    work = unfinished_path(target, format)
    if target.exists() and not (resume and work.exists()):
        raise ValueError(f"{target} exists already; choose another name or remove it.")
    num_real = len(dataset) if include_real else 0
    if len(dataset) < MIN_ROWS:
        raise ValueError(f"{dataset.path} has {len(dataset)} rows, too few to learn from; wanted {MIN_ROWS}.")
    if format == "minari":
        from .datasets.minari import check_size

        check_size(num_real + num_samples, allow_large_minari)
    spec = dataset.spec
    factory = resolve_factory(upsampler, resolve_device(device))
    model = make_upsampler(factory, spec, device=device, seed=seed, progress_bar=progress_bar)
    settings = {
        "dataset": dataset.fingerprint(),
        "num_samples": num_samples,
        "include_real": include_real,
        "train_rows": train_rows,
        "chunk_rows": chunk_rows,
        "seed": seed,
        "format": format,
        "upsampler": _describe(upsampler, model),
        "device": resolve_device(device).type,
        "version": __version__,
    }
    num_chunks = -(-num_samples // chunk_rows)
    num_done = len(list(work.glob("rows-*.safetensors")))
    if not target.exists():
        _check_space(target, spec, num_samples - num_done * chunk_rows + num_real + num_samples)
    _claim(work, settings, resume)
    if not target.exists():
        model = _trained(model, dataset, work, train_rows, seed, progress_bar)
        _draw(model, spec, work, num_samples, chunk_rows, progress_bar)

        def rows() -> Iterator[Transitions]:
            if include_real:
                yield from dataset.chunks()
            for index in range(num_chunks):
                yield _read_chunk(_chunk_file(work, index), spec)

        logger.info("Writing %s rows to %s.", f"{num_real + num_samples:,}", target)
        attributes = {"synther_buffers_settings": json.dumps(settings)}
        write_rows(work / _OUTPUT, output, format, rows, spec, num_real + num_samples, attributes, dataset.env_spec)
    fit = _read_fit(work)
    shutil.rmtree(work)
    return UpsampleReport(
        output=str(target),
        format=format,
        num_rows=num_real + num_samples,
        num_real=num_real,
        num_synthetic=num_samples,
        num_train=min(train_rows, len(dataset)),
        num_resumed=min(num_done * chunk_rows, num_samples),
        fit=fit,
        seconds=time.perf_counter() - start,
    )


def _claim(work: Path, settings: dict[str, Any], resume: bool) -> None:
    """Make the folder of a new run, or see that the one there is an interrupted run of these settings."""
    file = work / _SETTINGS
    if not file.exists():
        # Killed before it had begun, if there is a folder at all.
        work.mkdir(parents=True, exist_ok=True)
        _write_json(file, settings)
        return
    if not resume:
        raise ValueError(f"{work} is an unfinished run; go on with resume=True (--resume), or remove it.")
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        differs = [key for key in settings if before.get(key) != json.loads(json.dumps(settings[key]))]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove {work} and start again.") from error
    if differs:
        raise ValueError(
            f"{work} is an unfinished run with other settings: "
            + "; ".join(f"{key} was {_short(before.get(key))} and is {_short(settings[key])}" for key in differs)
            + ". Give the same ones, or remove it."
        )


def _trained(
    model: Upsampler, dataset: Dataset, work: Path, train_rows: int, seed: int, progress_bar: bool
) -> Upsampler:
    """The upsampler that has learned the dataset, from the folder if it lies there."""
    saved = work / _MODEL
    if saved.exists():
        loaded = DiffusionUpsampler.load(saved, spec=dataset.spec, device=getattr(model, "device", "auto"))
        loaded.progress_bar = progress_bar
        return loaded
    rows = dataset.subset(train_rows, seed)
    logger.info("Learning %s of %s rows.", f"{len(rows):,}", f"{len(dataset):,}")
    fit = model.fit(rows)
    _write_json(work / _FIT, asdict(fit))
    if isinstance(model, DiffusionUpsampler):
        model.save(saved)
    return model


def _draw(
    model: Upsampler, spec: TransitionSpec, work: Path, num_samples: int, chunk_rows: int, progress_bar: bool
) -> None:
    """Draw the chunks that are not there yet; each has the rows it would have had without an interruption."""
    starts = range(0, num_samples, chunk_rows)
    missing = [index for index in range(len(starts)) if not _chunk_file(work, index).exists()]
    if not missing:
        return
    first = missing[0]
    if isinstance(model, DiffusionUpsampler):
        # Each draw has a generator of its own, by its number.
        model.load_state_dict({**model.state_dict(), "num_draws": first})
    else:
        for start in starts[:first]:
            model.sample(min(chunk_rows, num_samples - start))
    bar = tqdm(
        desc="synther: rows", total=num_samples, initial=starts[first], unit_scale=True,
        disable=None if progress_bar else True,
    )  # fmt: skip
    with bar:
        for index in range(first, len(starts)):
            count = min(chunk_rows, num_samples - starts[index])
            rows = model.sample(count).to("cpu")
            spec.check(rows)
            if len(rows) != count:
                raise ValueError(f"the upsampler was asked for {count} rows and gave {len(rows)}.")
            file = _chunk_file(work, index)
            unfinished = file.with_suffix(".tmp")
            safetensors.torch.save_file({k: v.contiguous() for k, v in rows.flat().items()}, unfinished)
            os.replace(unfinished, file)
            bar.update(count)


def _chunk_file(work: Path, index: int) -> Path:
    return work / f"rows-{index:06d}.safetensors"


def _read_chunk(file: Path, spec: TransitionSpec) -> Transitions:
    try:
        rows = Transitions.from_flat(safetensors.torch.load_file(file))
        spec.check(rows)
    except (safetensors.SafetensorError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove it and resume.") from error
    return rows


def _read_fit(work: Path) -> FitReport:
    return FitReport(**json.loads((work / _FIT).read_text(encoding="utf-8")))


def _write_json(file: Path, data: Any) -> None:
    unfinished = file.with_suffix(".tmp")
    unfinished.write_text(json.dumps(data, indent=1), encoding="utf-8")
    os.replace(unfinished, file)


def _check_space(target: Path, spec: TransitionSpec, num_rows: int) -> None:
    """Refuse at once what would fail after hours of training."""
    folder = next(parent for parent in target.parents if parent.is_dir())
    needed, free = spec.empty(1).nbytes * num_rows, shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"{folder} has {free / 2**30:.1f} GiB free, but up to {needed / 2**30:.1f} GiB are needed until the output "
            "is complete."
        )


def _describe(given: Any, model: Upsampler) -> Any:
    """The upsampler's configuration as plain data, or the factory's name and parameters."""
    if isinstance(model, DiffusionUpsampler):
        return dict(model.config)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(given))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
