"""What is in a dataset, and rows of several datasets with the same fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..transitions import Transitions, TransitionSpec
from .base import NO_ROWS, Dataset


def describe(dataset: Dataset) -> dict[str, Any]:
    """Format, rows and the range of each field as plain data, in one pass over the rows.

    Raises:
        ValueError: no row has a next observation.
    """
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
    if num_rows == 0:
        raise ValueError(NO_ROWS.format(dataset.path))
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
        ValueError: fields that the first one has not, of another shape, or values that its dtypes do not hold.
    """
    first = datasets[0]
    return first.spec, [_alike(dataset.subset(num_rows, seed), dataset, first) for dataset in datasets]


def chunks_alike(dataset: Dataset, first: Dataset) -> Iterator[Transitions]:
    """All rows of a dataset in chunks, with the fields and dtypes of another one.

    Raises:
        ValueError: as `read_alike`.
    """
    for rows in dataset.chunks():
        yield _alike(rows, dataset, first)


def _alike(rows: Transitions, dataset: Dataset, first: Dataset) -> Transitions:
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in rows.flat().items()}
    wanted = {field.name: field.shape for field in first.spec.fields}
    if shapes != wanted:
        name = min(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
        raise ValueError(
            f"{dataset.path} has other fields than {first.path}: {name} has rows of shape "
            f"{shapes.get(name, 'nothing')}, there {wanted.get(name, 'nothing')}."
        )
    columns = rows.flat()
    for field in first.spec.fields:
        given = columns[field.name]
        columns[field.name] = given.to(field.torch_dtype)
        # Floats are rounded; what is cut to an integer or a flag would be another value.
        if not field.torch_dtype.is_floating_point and not torch.equal(columns[field.name].to(given.dtype), given):
            raise ValueError(
                f"{dataset.path}: {field.name} has dtype {str(given.dtype).removeprefix('torch.')} with values that "
                f"{field.dtype}, its dtype in {first.path}, does not hold; store both with the same dtype."
            )
    return Transitions.from_flat(columns)
