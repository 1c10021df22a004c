"""What is in a dataset, and rows of several datasets with the same fields."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..transitions import Transitions, TransitionSpec
from .base import Dataset


def describe(dataset: Dataset) -> dict[str, Any]:
    """Format, rows and the range of each field as plain data, in one pass over the rows."""
    spec = dataset.spec
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    total: dict[str, float] = {}
    num_rows = 0
    for rows in dataset.chunks():
        num_rows += len(rows)
        for name, tensor in rows.flat().items():
            values = tensor.double()
            low[name] = min(low.get(name, np.inf), float(values.min()))
            high[name] = max(high.get(name, -np.inf), float(values.max()))
            total[name] = total.get(name, 0.0) + float(values.sum())
    return {
        "path": str(dataset.path),
        "format": dataset.format,
        "num_rows": num_rows,
        "num_dropped": dataset.num_dropped,
        "terminal_rate": total["terminated"] / num_rows,
        "fields": [
            {
                "name": field.name,
                "kind": field.kind,
                "dtype": field.dtype,
                "shape": list(field.shape),
                "min": low[field.name],
                "mean": total[field.name] / (num_rows * field.size),
                "max": high[field.name],
            }
            for field in spec.fields
        ],
    }


def read_alike(datasets: list[Dataset], num_rows: int, seed: int) -> tuple[TransitionSpec, list[Transitions]]:
    """Subsets of several datasets, with the fields and dtypes of the first one.

    Raises:
        ValueError: fields that the first one has not, or of another shape.
    """
    paths = [dataset.path for dataset in datasets]
    subsets = [dataset.subset(num_rows, seed) for dataset in datasets]
    first = datasets[0].spec
    for path, rows in zip(paths[1:], subsets[1:], strict=True):
        shapes = {name: tuple(tensor.shape[1:]) for name, tensor in rows.flat().items()}
        wanted = {field.name: field.shape for field in first.fields}
        if shapes != wanted:
            different = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
            name = different[0]
            raise ValueError(
                f"{path} has other fields than {paths[0]}: {name} has rows of shape {shapes.get(name, 'nothing')}, "
                f"there {wanted.get(name, 'nothing')}."
            )
    dtypes = {field.name: field.torch_dtype for field in first.fields}
    alike = [
        Transitions.from_flat({name: tensor.to(dtypes[name]) for name, tensor in rows.flat().items()})
        for rows in subsets
    ]
    return first, alike
