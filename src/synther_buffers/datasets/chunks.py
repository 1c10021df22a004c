"""The chunks of rows of an upsampling: drawn one by one, each in a file of its own."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch

from ..transitions import Transitions, TransitionSpec
from ..upsampling.diffusion_upsampler import DiffusionUpsampler
from ..upsampling.progress import progress
from ..upsampling.protocol import Upsampler
from .workfolder import WorkFolder, write_whole


def missing_chunks(folder: WorkFolder, num_samples: int, chunk_rows: int) -> dict[int, int]:
    """Index and number of rows of the chunks that are not there yet."""
    return {
        index: min(chunk_rows, num_samples - start)
        for index, start in enumerate(range(0, num_samples, chunk_rows))
        if not folder.rows(index).exists()
    }


def go_to(model: DiffusionUpsampler, index: int) -> None:
    """Have the next draw be that of a chunk: each draw has a generator of its own, by its number."""
    model.load_state_dict({**model.state_dict(), "num_draws": index})


def draw_chunk(model: Upsampler, spec: TransitionSpec, file: Path, count: int) -> None:
    """Draw a chunk and write it to its file."""
    rows = model.sample(count).to("cpu")
    spec.check(rows)
    if len(rows) != count:
        raise ValueError(f"the upsampler was asked for {count} rows and gave {len(rows)}.")
    write_whole(file, safetensors.torch.save({key: tensor.contiguous() for key, tensor in rows.flat().items()}))


def draw_here(
    model: Upsampler, spec: TransitionSpec, folder: WorkFolder, num_samples: int, chunk_rows: int, progress_bar: bool
) -> None:
    """Draw the chunks that are not there yet; each has the rows it would have had without an interruption."""
    following = None  # the chunk that the next draw is of
    with progress("rows", num_samples, shown=progress_bar) as bar:
        for index, count in missing_chunks(folder, num_samples, chunk_rows).items():
            if isinstance(model, DiffusionUpsampler):
                if index != following:
                    go_to(model, index)
            else:  # what it has drawn is drawn again
                for _ in range(following or 0, index):
                    model.sample(chunk_rows)
            draw_chunk(model, spec, folder.rows(index), count)
            following = index + 1
            bar.update_to(index * chunk_rows + count)


def read_chunk(file: Path, spec: TransitionSpec) -> Transitions:
    """The rows of a chunk.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        rows = Transitions.from_flat(safetensors.torch.load_file(file))
        spec.check(rows)
    except (safetensors.SafetensorError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove it and resume.") from error
    return rows
