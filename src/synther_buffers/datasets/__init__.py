"""Datasets of transitions: read and write Minari, D4RL's HDF5 and npz; read what SB3 and Tianshou save."""

from .base import CHUNK_ROWS, Dataset
from .registry import FORMATS, OUTPUT_FORMATS, open_dataset, write_dataset

__all__ = ["CHUNK_ROWS", "FORMATS", "OUTPUT_FORMATS", "Dataset", "open_dataset", "write_dataset"]
