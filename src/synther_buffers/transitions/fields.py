"""The description of one tensor of a transition, from a space or from the tensor's values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

#: Separates the keys of nested observations in a field's name: ``observation.arm.position``.
SEPARATOR = "."
#: Without a space, integers that range over at most this many values are categories.
MAX_CATEGORIES = 1_024
#: A field of two or more dimensions with more elements is an image.
MAX_ELEMENTS = 2_048


@dataclass(frozen=True)
class Field:
    """One tensor of a transition.

    Attributes:
        name: its name in `Transitions.flat`.
        kind: ``continuous`` (a Box, also of integers), ``binary`` (0 or 1) or ``categorical``.
        shape: shape of one row, ``()`` for a scalar.
        dtype: NumPy's name of the dtype of real and synthetic rows.
        low, high: bounds per element in row-major order, infinite where there are none (continuous).
        num_categories, start: number of categories and the smallest one, per element (categorical).
        values: the float value that each category stands for, instead of an integer (n-step discounts).
    """

    name: str
    kind: Literal["continuous", "binary", "categorical"]
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    num_categories: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Number of elements in a row."""
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """Number of columns in the model: one per element, or one per category."""
        return sum(self.num_categories) if self.kind == "categorical" else self.size

    @property
    def elements(self) -> list[str]:
        """A name for each element of a row, in row-major order: ``reward``, or ``observation[0]`` and so on."""
        return [self.name] if self.shape == () else [f"{self.name}[{element}]" for element in range(self.size)]

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


def infer_field(name: str, tensors: list[Tensor], known: Field | None) -> Field:
    """The field of tensors ``[N, *shape]`` of one dtype; `known` is the field of earlier rows."""
    dtype, shape = tensors[0].dtype, tuple(tensors[0].shape[1:])
    kind, dtype_name, size = name.split(SEPARATOR)[0], str(dtype).removeprefix("torch."), math.prod(shape)
    if dtype.is_complex:
        raise TypeError(f"{name} has dtype {dtype_name}; wanted floats, integers or booleans.")
    if dtype == torch.bool:
        return Field(name, "binary", shape, dtype_name)
    if kind == "observation" and is_image(dtype_name, shape):
        raise ValueError(_image(name, f"{dtype_name} of shape {shape}"))
    if not dtype.is_floating_point and (kind == "action" or size == 1):
        values = [tensor.reshape(len(tensor), size).to(torch.int64) for tensor in tensors]
        start = torch.stack([value.amin(0) for value in values]).amin(0).clamp(max=0).cpu()
        stop = torch.stack([value.amax(0) for value in values]).amax(0).cpu() + 1
        if known is not None and known.kind == "categorical":
            first = torch.tensor(known.start, device="cpu")
            start = torch.minimum(start, first)
            stop = torch.maximum(stop, first + torch.tensor(known.num_categories, device="cpu"))
        if int((stop - start).max()) <= MAX_CATEGORIES and (known is None or known.kind == "categorical"):
            return Field(
                name,
                "categorical",
                shape,
                dtype_name,
                num_categories=tuple((stop - start).tolist()),
                start=tuple(start.tolist()),
            )
    return Field(name, "continuous", shape, dtype_name, low=(-math.inf,) * size, high=(math.inf,) * size)


def is_image(dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether a field of this dtype, by NumPy's name, and this shape of one row is an image."""
    return (dtype == "uint8" and len(shape) == 3) or (len(shape) >= 2 and math.prod(shape) > MAX_ELEMENTS)


def _check_categories(name: str, most: int) -> None:
    if most > MAX_CATEGORIES:
        raise ValueError(
            f"{name} has {most:,} categories, which makes {most:,} columns; the upsampler models at most "
            f"{MAX_CATEGORIES:,} for one element. Encode it first, for example as coordinates or an embedding."
        )


def _image(name: str, found: str) -> str:
    return (
        f"{name} is an image ({found}): the upsampler models vectors. Encode images "
        "first (a wrapper that replaces them with the features of a frozen encoder) and store the features."
    )


def space_fields(name: str, space: spaces.Space, bounds: tuple[float, float] | None = None) -> Iterator[Field]:
    """The fields of a space: one, or one for each leaf of a Dict."""
    if isinstance(space, spaces.Dict):
        for key, child in space.spaces.items():
            if SEPARATOR in str(key):
                raise ValueError(
                    f"{name}: the key {key!r} contains {SEPARATOR!r}, which separates nested keys; rename it."
                )
            yield from space_fields(f"{name}{SEPARATOR}{key}", child)
    elif isinstance(space, spaces.Box):
        dtype = np.dtype(space.dtype).name
        if is_image(dtype, tuple(space.shape)):
            raise ValueError(_image(name, f"{dtype} Box of shape {space.shape}"))
        size = math.prod(space.shape)
        low, high = (
            (space.low.ravel(), space.high.ravel()) if bounds is None else ([bounds[0]] * size, [bounds[1]] * size)
        )
        yield Field(
            name,
            "continuous",
            tuple(space.shape),
            np.dtype(space.dtype).name,
            low=tuple(float(value) for value in low),
            high=tuple(float(value) for value in high),
        )
    elif isinstance(space, spaces.Discrete):
        _check_categories(name, int(space.n))
        yield Field(
            name,
            "categorical",
            (),
            np.dtype(space.dtype).name,
            num_categories=(int(space.n),),
            start=(int(space.start),),
        )
    elif isinstance(space, spaces.MultiDiscrete):
        _check_categories(name, int(space.nvec.max()))
        yield Field(
            name,
            "categorical",
            tuple(space.shape),
            np.dtype(space.dtype).name,
            num_categories=tuple(int(n) for n in space.nvec.ravel()),
            start=tuple(int(n) for n in space.start.ravel()),
        )
    elif isinstance(space, spaces.MultiBinary):
        yield Field(name, "binary", tuple(space.shape), np.dtype(space.dtype).name)
    else:
        raise TypeError(
            f"{name} is a {type(space).__name__} space; supported are Box, Discrete, MultiDiscrete, MultiBinary "
            "and, for observations, Dict of these. Flatten or encode it first."
        )
