"""Upsample a dataset: learn it once, write as many synthetic rows as wanted, and go on after a kill."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch

from ..transitions import Transitions
from ..upsampling.diffusion_upsampler import DiffusionUpsampler
from ..upsampling.factory import make_upsampler, resolve_factory
from ..upsampling.presets import UpsamplerConfig, resolve_device
from ..upsampling.protocol import FitReport, Upsampler, UpsamplerFactory
from ..version import __version__
from .base import Dataset
from .chunks import draw_here, read_chunk
from .files import check_space, place
from .ray_chunks import check_drawable, draw_on_ray
from .registry import (
    attributes_of,
    check_keys,
    check_timeouts,
    final_path,
    output_format,
    unfinished_path,
    write_rows,
)
from .workfolder import FIT, MODEL, WorkFolder, differences, num_chunks, sweep

logger = logging.getLogger(__name__)

#: Rows learned at most, where nobody says how many: a few GB while training on wide observations.
TRAIN_ROWS = 1_000_000
#: Rows drawn at a time; what a kill loses at most.
CHUNK_ROWS = 100_000
#: Fewer rows than this are not worth a model.
MIN_ROWS = 100

#: Where an output says what it is: the settings of its run, and the figures of its fit.
_SETTINGS_KEY, _FIT_KEY = "synther_buffers_settings", "synther_buffers_fit"


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
        data["fit"] = _without_nan(data["fit"])
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
    timeouts: bool = True,
    ray: str | None = None,
) -> UpsampleReport:
    """Train on a dataset and write synthetic rows, in chunks.

    Until the output is complete, everything lies in a folder ``OUTPUT.partial`` beside it (``.ID.partial`` in Minari's
    store): the trained model and the chunks drawn so far. `resume` goes on from there; the output is the same, bit for
    bit, as without an interruption. A folder of that name that is not provably such a run of this user is refused, and
    so is one that another process works on. The folder and the finished file need disk space at the same time.

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
        resume: go on with an interrupted run of the same settings, if there is one; an output that such a run has
            completed is left as it is, and reported.
        chunk_rows: rows drawn at a time; another number gives other rows.
        progress_bar: show one on terminals.
        allow_large_minari: write more than 100,000 rows as a Minari dataset, which takes minutes.
        timeouts: write D4RL's ``timeouts`` into HDF5, where each row is an episode of its own. Readers that skip rows
            with a timeout would skip every row but terminal ones: give them a file without.
        ray: draw the rows on a Ray cluster, a chunk a task: ``local`` for one that is started on this machine,
            ``auto``, or the address of one. All its machines need this library and see the folder of the output. The
            model is trained here. The rows do not depend on how many workers there are; on CPUs each computes with
            one thread, so that their last bits may differ from those of a run without Ray and with more threads.

    Raises:
        ImportError: Ray is wanted and not installed.
        ConnectionError: the Ray cluster does not answer.
        ValueError: an argument out of range, an unreadable dataset, an output that exists, a key of the observation
            that its format cannot hold, an interrupted run that is in the way or had other settings, a folder in its
            place that is none, or too little disk space.
        OSError: the disk is full, or cannot be written; `resume` goes on once it can.
    """
    start = time.perf_counter()
    for name, value in (("num_samples", num_samples), ("train_rows", train_rows), ("chunk_rows", chunk_rows)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number, at least 1.")
    format = output_format(output, format)
    check_timeouts(timeouts, format)
    target = final_path(output, format)
    work = unfinished_path(target, format)
    if os.path.lexists(target) and not resume:
        raise ValueError(f"{target} exists already; choose another name or remove it.")
    num_real = len(dataset) if include_real else 0
    num_rows = num_real + num_samples
    if len(dataset) < MIN_ROWS:
        raise ValueError(f"{dataset.path} has {len(dataset)} rows, too few to learn from; wanted {MIN_ROWS}.")
    if format == "minari":
        from .minari import check_size

        check_size(num_rows, allow_large_minari)
    spec = dataset.spec
    check_keys(spec, format)
    factory = resolve_factory(upsampler, resolve_device(device))
    model = make_upsampler(factory, spec, device=device, seed=seed, progress_bar=progress_bar)
    if ray is not None:
        check_drawable(ray, model)
    settings = {
        "dataset": dataset.fingerprint(),
        "num_samples": num_samples,
        "include_real": include_real,
        "train_rows": train_rows,
        "chunk_rows": chunk_rows,
        "seed": seed,
        "format": format,
        "timeouts": timeouts,
        "upsampler": _describe(upsampler, model),
        "device": resolve_device(device).type,
        "version": __version__,
    }
    settings = json.loads(json.dumps(settings))  # as they come back from a file

    def report(num_resumed: int, fit: FitReport) -> UpsampleReport:
        return UpsampleReport(
            output=str(target),
            format=format,
            num_rows=num_rows,
            num_real=num_real,
            num_synthetic=num_samples,
            num_train=min(train_rows, len(dataset)),
            num_resumed=num_resumed,
            fit=fit,
            seconds=time.perf_counter() - start,
        )

    def finished() -> UpsampleReport:
        return report(num_samples, _finished(target, format, settings))

    if os.path.lexists(target):
        done = finished()
        if os.path.lexists(work):
            WorkFolder.claim(work, settings, resume).remove()
        sweep(work)
        return done
    num_done = num_chunks(work)
    row_bytes = spec.empty(1).nbytes
    check_space(
        target, row_bytes * (num_samples - num_done * chunk_rows) + _written_bytes(format, row_bytes) * num_rows
    )
    folder = WorkFolder.claim(work, settings, resume)
    try:
        if os.path.lexists(target):  # by another process, which had the folder a moment ago
            folder.remove()
            if not resume:
                raise ValueError(f"{target} exists already; choose another name or remove it.")
            return finished()
        num_done = num_chunks(work)
        model, fit = _trained(model, dataset, folder, train_rows, seed, progress_bar)
        if ray is None:
            draw_here(model, spec, folder, num_samples, chunk_rows, progress_bar)
        else:
            draw_on_ray(ray, spec, folder, num_samples, chunk_rows, settings["device"], progress_bar)

        def rows() -> Iterator[Transitions]:
            if include_real:
                yield from dataset.chunks()
            for index in range(-(-num_samples // chunk_rows)):
                yield read_chunk(folder.rows(index), spec)

        logger.info("Writing %s rows to %s.", f"{num_rows:,}", target)
        # The seconds are left out: equal runs write equal files.
        told = {**_without_nan(asdict(fit)), "seconds": 0.0, "phases": {}}
        attributes = {_SETTINGS_KEY: json.dumps(settings), _FIT_KEY: json.dumps(told)}
        unfinished = folder.output()
        write_rows(unfinished, output, format, rows, spec, num_rows, attributes, dataset.env_spec, timeouts)
        place(unfinished, target)
        folder.remove()
    finally:
        folder.close()
    return report(min(num_done * chunk_rows, num_samples), fit)


def _finished(target: Path, format: str, settings: dict[str, Any]) -> FitReport:
    """The fit of a complete output, if a run of these settings has written it.

    Raises:
        ValueError: it is something else.
    """
    attributes = attributes_of(target, format)
    try:
        differs = differences(json.loads(attributes[_SETTINGS_KEY]), settings)
        fit = _as_fit(json.loads(attributes[_FIT_KEY]))
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{target} exists already, and no run of these settings wrote it; choose another name or remove it."
        ) from None
    if differs:
        raise ValueError(
            f"{target} exists already, of a run with other settings: {'; '.join(differs)}. "
            "Choose another name or remove it."
        )
    return fit


def _trained(
    model: Upsampler, dataset: Dataset, folder: WorkFolder, train_rows: int, seed: int, progress_bar: bool
) -> tuple[Upsampler, FitReport]:
    """The upsampler that has learned the dataset, from the folder if it lies there, and what its fit reported."""
    saved = folder.path / MODEL
    if saved.exists():
        loaded = DiffusionUpsampler.load(saved, spec=dataset.spec, device=getattr(model, "device", "auto"))
        loaded.progress_bar = progress_bar
        try:
            return loaded, _as_fit(folder.read_json(FIT))
        except TypeError as error:
            raise ValueError(
                f"{folder.path / FIT} is damaged ({error}); remove {folder.path} and start again."
            ) from error
    rows = dataset.subset(train_rows, seed)
    logger.info("Learning %s of %s rows.", f"{len(rows):,}", f"{len(dataset):,}")
    fit = model.fit(rows)
    folder.write_json(FIT, _without_nan(asdict(fit)))
    if isinstance(model, DiffusionUpsampler):
        try:
            model.save(saved)
        except safetensors.SafetensorError as error:
            raise OSError(f"the trained model could not be written to {saved} ({error}).") from error
    return model, fit


def _as_fit(data: dict[str, Any]) -> FitReport:
    """What `_without_nan` made plain."""
    values: dict[str, Any] = {key: math.nan if value is None else value for key, value in data.items()}
    return FitReport(**values)


def _without_nan(fit: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a loss that was not measured is None."""
    return {key: None if value != value else value for key, value in fit.items()}


def _written_bytes(format: str, row_bytes: int) -> int:
    """Bytes of a row in an output of this format, at most."""
    if format == "minari":
        from .minari import ROW_BYTES

        return ROW_BYTES + row_bytes
    return row_bytes + 1  # HDF5's timeouts


def _describe(given: Any, model: Upsampler) -> Any:
    """The upsampler's configuration as plain data, or the factory's name and parameters."""
    if isinstance(model, DiffusionUpsampler):
        return dict(model.config)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(given))
