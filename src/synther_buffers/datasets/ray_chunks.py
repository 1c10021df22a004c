"""Drawing the chunks of an upsampling on a Ray cluster, whose workers write them into the same folder."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import socket
from functools import lru_cache
from itertools import islice
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

logger = logging.getLogger(__name__)

#: How often a chunk is begun again whose worker died.
_RETRIES = 5
#: Chunks that are handed out for each worker that there is room for. More would be drawn after an interruption too; the
#: second one is begun without a pause, and tells a cluster that can grow to do so.
_CHUNKS_A_WORKER = 2
#: Seconds until chunks that are not done after an interruption are left to the cluster: it may have no room for them.
_DONE_WITHIN = 120.0


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
    running: dict[Any, int] = {}
    try:
        needs, kind = ({"num_gpus": 1}, "GPU") if device == "cuda" else ({"num_cpus": 1}, "CPU")
        draw = ray.remote(max_retries=_RETRIES, **needs)(draw_in_worker)
        path = folder.path.resolve()
        model = digest_of(path / MODEL)
        waiting = iter(missing.items())
        done = num_samples - sum(missing.values())
        with progress("rows", num_samples, shown=progress_bar) as bar:
            while True:
                room = max(1, int(ray.cluster_resources().get(kind, 0)))
                for index, count in islice(waiting, max(0, _CHUNKS_A_WORKER * room - len(running))):
                    running[draw.remote(str(path), index, count, spec, device, model)] = count
                if not running:
                    break
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
        elif running:  # the cluster lives on, and would write into the folder when nobody expects it any more
            # Not `ray.cancel`: if a task is handed out or done at the same moment, Ray ends this process.
            logger.info("Waiting up to %.0f s for %d chunks that the cluster is drawing.", _DONE_WITHIN, len(running))
            with contextlib.suppress(ray.exceptions.RayError):
                ray.wait(list(running), num_returns=len(running), timeout=_DONE_WITHIN)


def digest_of(file: Path) -> str:
    """What tells the content of a file from any other."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def draw_in_worker(folder: str, index: int, count: int, spec: TransitionSpec, device: str, digest: str) -> None:
    """Draw one chunk into its file, from the model of this digest."""
    path = Path(folder)
    if not (path / MODEL).exists():
        raise OSError(f"{socket.gethostname()} does not see {path}; on Ray all machines need the folder of the output.")
    model = _model(path / MODEL, digest, spec, device)
    go_to(model, index)
    file = WorkFolder.file_of_rows(path, index)
    file.with_name(f"{file.name}.tmp").unlink(missing_ok=True)  # of a worker that died
    draw_chunk(model, spec, file, count)


@lru_cache(maxsize=1)
def _model(file: Path, digest: str, spec: TransitionSpec, device: str) -> DiffusionUpsampler:
    """The model, kept by a worker between its chunks; of another run with the same output, it is another one."""
    if digest_of(file) != digest:
        raise OSError(f"{socket.gethostname()} sees another {file} than the machine that started this; resume.")
    torch.set_num_threads(1)  # the same rows on every machine
    model = DiffusionUpsampler.load(file, spec=spec, device=device)
    model.progress_bar = False
    return model
