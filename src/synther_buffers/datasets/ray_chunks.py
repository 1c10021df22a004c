"""Drawing the chunks of an upsampling on a Ray cluster, whose workers write them into the same folder."""

from __future__ import annotations

import importlib
import socket
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..ray_cluster import check_answers, connect, require_ray
from ..transitions import TransitionSpec
from ..upsampling.diffusion_upsampler import DiffusionUpsampler
from ..upsampling.progress import progress
from ..upsampling.protocol import Upsampler
from .chunks import draw_chunk, go_to, missing_chunks
from .workfolder import MODEL, WorkFolder

#: How often a chunk is begun again whose worker died.
_RETRIES = 5


def check_drawable(address: str, model: Upsampler) -> None:
    """Check, before anything is trained, that workers could draw.

    Raises:
        ImportError: Ray is not installed.
        TypeError: the address is no text.
        ValueError: workers cannot load this upsampler from a file, or the address is none.
        ConnectionError: nobody answers at the address.
    """
    if not isinstance(address, str):
        raise TypeError(f"ray is {address!r}; wanted 'local', 'auto' or the address of a cluster.")
    require_ray()
    if not isinstance(model, DiffusionUpsampler):
        raise ValueError(f"only a diffusion model can be drawn from on Ray, and this is {type(model).__name__}.")
    check_answers(address)


def draw_on_ray(
    address: str,
    spec: TransitionSpec,
    folder: WorkFolder,
    num_samples: int,
    chunk_rows: int,
    device: str,
    progress_bar: bool,
) -> None:
    """Have the chunks drawn that are not there yet, each with the rows that it has in any other run.

    A chunk whose worker dies is drawn again by another one.

    Raises:
        ConnectionError: the cluster does not answer.
        OSError: workers died again and again, or cannot write. What is complete stays.
    """
    missing = missing_chunks(folder, num_samples, chunk_rows)
    if not missing:
        return
    ray: Any = importlib.import_module("ray")  # its annotations know at most ten arguments of fixed options
    ours = not ray.is_initialized()
    connect(address)
    try:
        needs = {"num_gpus": 1} if device == "cuda" else {"num_cpus": 1}
        draw = ray.remote(max_retries=_RETRIES, **needs)(draw_in_worker)
        running = {
            draw.remote(str(folder.path.resolve()), index, count, spec, device): count
            for index, count in missing.items()
        }
        done = num_samples - sum(missing.values())
        with progress("rows", num_samples, shown=progress_bar) as bar:
            while running:
                ready, _ = ray.wait(list(running))
                for reference in ready:
                    ray.get(reference)
                    done += running.pop(reference)
                bar.update_to(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(f"workers of the Ray cluster were lost ({type(error).__name__}: {reason}); resume.") from error
    finally:
        if ours:
            ray.shutdown()


def draw_in_worker(folder: str, index: int, count: int, spec: TransitionSpec, device: str) -> None:
    """Draw one chunk into its file."""
    path = Path(folder)
    if not (path / MODEL).exists():
        raise OSError(f"{socket.gethostname()} does not see {path}; on Ray all machines need the folder of the output.")
    model = _model(path / MODEL, spec, device)
    go_to(model, index)
    file = WorkFolder.file_of_rows(path, index)
    file.with_name(f"{file.name}.tmp").unlink(missing_ok=True)  # of a worker that died
    draw_chunk(model, spec, file, count)


@lru_cache(maxsize=1)
def _model(file: Path, spec: TransitionSpec, device: str) -> DiffusionUpsampler:
    """The model, kept by a worker between its chunks."""
    torch.set_num_threads(1)  # the same rows on every machine
    model = DiffusionUpsampler.load(file, spec=spec, device=device)
    model.progress_bar = False
    return model
