"""Rows of a spec, and what decoding makes of a matrix."""

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from synther_buffers.transitions import Transitions, TransitionSpec
from synther_buffers.transitions.codec import Codec


def box(width: int, dtype: type = np.float32) -> TransitionSpec:
    """A spec with `width` observations and one action."""
    return TransitionSpec.from_spaces(spaces.Box(-np.inf, np.inf, (width,), dtype), spaces.Box(-np.inf, np.inf, (1,)))


def rows_of(spec: TransitionSpec, num_rows: int, seed: int = 0, **columns: object) -> Transitions:
    """Normal values everywhere, but for what `columns` (``next_observation`` and so on) says; never terminal."""
    generator = torch.Generator().manual_seed(seed)
    rows = spec.empty(num_rows)
    for name, tensor in rows.flat().items():
        if name in columns:
            tensor.copy_(torch.as_tensor(columns[name]).reshape(tensor.shape))
        elif name == "terminated":
            tensor.zero_()
        else:
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    return rows


def noisy(matrix: Tensor, noise: float, seed: int = 0) -> Tensor:
    """What a model that has learned the rows up to some noise generates."""
    return matrix + noise * torch.randn(matrix.shape, generator=torch.Generator().manual_seed(seed))


def decode(codec: Codec, matrix: Tensor) -> Transitions:
    """The rows of a matrix, under thresholds of their own."""
    out = codec.spec.empty(len(matrix))
    codec.decode(matrix, out, codec.thresholds(matrix))
    return out
