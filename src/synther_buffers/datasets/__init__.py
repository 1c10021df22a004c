"""Datasets of transitions: Minari, D4RL's HDF5, npz, what SB3 and Tianshou save; read, written and upsampled."""

from .base import CHUNK_ROWS, Dataset
from .registry import FORMATS, OUTPUT_FORMATS, open_dataset, write_dataset
from .upsampling import UpsampleReport, upsample

__all__ = [
    "CHUNK_ROWS",
    "FORMATS",
    "OUTPUT_FORMATS",
    "Dataset",
    "UpsampleReport",
    "open_dataset",
    "upsample",
    "write_dataset",
]
