"""What a transition is: the rows of a replay buffer (`Transitions`) and their description (`TransitionSpec`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

Observation = Tensor | dict[str, "Observation"]

#: Separates the keys of nested observations in a field's name: ``observation.arm.position``.
SEPARATOR = "."
#: Where no space tells, integers that range over at most this many values are categories.
MAX_CATEGORIES = 1_024
#: The matrix that the upsampler learns may have so many columns.
MAX_COLUMNS = 4_096
#: A field of two or more dimensions with more elements is an image.
MAX_ELEMENTS = 2_048


@dataclass
class Transitions:
    """A batch of N transitions; every tensor has N rows.

    Attributes:
        observation: ``[N, *shape]``, or a (nested) dict of such tensors for a Dict space.
        action: ``[N, *shape]``, as the framework stores it.
        reward: ``[N]`` float32; for n-step rows the discounted sum over the k steps.
        next_observation: like ``observation``; for n-step rows the one k steps later.
        terminated: ``[N]`` bool: bootstrapping stops here. A time limit does not set it.
        discount: ``[N]`` float32, gamma ** k of each n-step row; None for one-step rows.
        extra: further tensors ``[N, *shape]`` that are learned and generated with the rest; None for none.
    """

    observation: Observation
    action: Tensor
    reward: Tensor
    next_observation: Observation
    terminated: Tensor
    discount: Tensor | None = None
    extra: Observation | None = None

    def __len__(self) -> int:
        return self.reward.shape[0]

    def flat(self) -> dict[str, Tensor]:
        """The tensors by field name, nested observations as ``observation.key``."""
        out: dict[str, Tensor] = {}
        for attribute in fields(self):
            value = getattr(self, attribute.name)
            if value is not None:
                out.update(_flatten(attribute.name, value))
        return out

    @classmethod
    def from_flat(cls, columns: Mapping[str, Tensor]) -> Transitions:
        """The inverse of `flat`."""
        nested: dict[str, Any] = {}
        for name, tensor in columns.items():
            *path, leaf = name.split(SEPARATOR)
            node = nested
            for key in path:
                node = node.setdefault(key, {})
            node[leaf] = tensor
        return cls(**nested)

    def __getitem__(self, index: Any) -> Transitions:
        """The rows at `index` (a slice, a mask or an index tensor)."""
        return self.from_flat({name: tensor[index] for name, tensor in self.flat().items()})

    def to(self, device: torch.device | str) -> Transitions:
        """The same rows on another device."""
        return self.from_flat({name: tensor.to(device) for name, tensor in self.flat().items()})

    @property
    def device(self) -> torch.device:
        return self.reward.device

    @property
    def nbytes(self) -> int:
        """Bytes of memory the rows take."""
        return sum(tensor.nbytes for tensor in self.flat().values())


def _flatten(name: str, value: Observation) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    else:
        for key, child in value.items():
            yield from _flatten(f"{name}{SEPARATOR}{key}", child)


@dataclass(frozen=True)
class Field:
    """One tensor of a transition.

    Attributes:
        name: its name in `Transitions.flat`.
        kind: ``continuous`` (a Box, also of integers), ``binary`` (0 or 1) or ``categorical``.
        shape: shape of one row, ``()`` for a scalar.
        dtype: NumPy's name of the dtype of a real row; synthetic rows get the same.
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
        """Number of columns that a model has for it: one per element, or one per category."""
        return sum(self.num_categories) if self.kind == "categorical" else self.size

    @property
    def elements(self) -> list[str]:
        """A name for each element of a row, in row-major order: ``reward``, or ``observation[0]`` and so on."""
        return [self.name] if self.shape == () else [f"{self.name}[{element}]" for element in range(self.size)]

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


@dataclass(frozen=True)
class TransitionSpec:
    """The fields of a transition, with their shapes, dtypes and bounds.

    Build it with `from_spaces`, or with `infer` where no spaces are at hand; it is plain data, can be compared, pickled
    and written as JSON.
    """

    observation: tuple[Field, ...]
    action: Field
    discounts: tuple[float, ...] = ()
    extra: tuple[Field, ...] = ()

    @classmethod
    def from_spaces(
        cls,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        action_bounds: tuple[float, float] | None = None,
        discounts: tuple[float, ...] = (),
    ) -> TransitionSpec:
        """Describe the transitions of an environment.

        Args:
            observation_space: Box of any shape, Discrete, MultiDiscrete, MultiBinary, or a Dict of these.
            action_space: the same, without Dict.
            action_bounds: bounds of a Box action as the framework stores it, where they differ from the space's.
            discounts: gamma ** k for each k that an n-step row can have; empty for one-step rows.

        Raises:
            TypeError: a space that is not supported.
            ValueError: an image observation (a uint8 Box of rank 3, or a Box of rank 2 or more with over 2,048
                elements), over 1,024 categories of one element, or over 4,096 columns in all.
        """
        observation = tuple(_space_fields("observation", observation_space))
        if isinstance(action_space, spaces.Dict):
            raise TypeError(
                f"action_space is {action_space}: Dict actions are not supported; "
                "flatten them first, for example with gymnasium.wrappers."
            )
        (action,) = _space_fields("action", action_space, action_bounds)
        return _not_too_wide(cls(observation, action, tuple(float(value) for value in discounts)))

    @classmethod
    def infer(cls, transitions: Transitions, known: TransitionSpec | None = None) -> TransitionSpec:
        """Describe transitions by what they look like.

        Floats are continuous without bounds (generated values stay in the range of the data in any case) and booleans
        binary. Integers are categories from 0, or from the smallest value if that is negative, to the largest one:
        those of an action, and single ones; elsewhere, and where they range over more than 1,024 values, they are
        continuous and rounded.

        Args:
            transitions: at least one row.
            known: what earlier rows looked like; categories that these rows do not show are kept.

        Raises:
            ValueError: no rows, an image observation (uint8 of rank 3, or rank 2 or more with over 2,048 elements), or
                over 4,096 columns in all.
            TypeError: a dtype that is no number.
        """
        if len(transitions) == 0:
            raise ValueError("transitions has no rows; at least one is needed to see what they are like.")
        columns = transitions.flat()
        before = {} if known is None else {field.name: field for field in known.fields}

        def field(name: str) -> Field:
            tensors = [columns[other] for other in (name, f"next_{name}") if other in columns]
            return _inferred(name, tensors, before.get(name))

        discounts: set[float] = set() if known is None else set(known.discounts)
        if transitions.discount is not None:
            discounts |= set(torch.unique(transitions.discount).tolist())
            if len(discounts) > MAX_CATEGORIES:
                raise ValueError(f"discount has {len(discounts)} different values; wanted gamma ** k for a few k.")
        return _not_too_wide(
            cls(
                tuple(field(name) for name in columns if name.split(SEPARATOR)[0] == "observation"),
                field("action"),
                tuple(sorted(discounts, reverse=True)),  # gamma ** 1 first
                tuple(field(name) for name in columns if name.split(SEPARATOR)[0] == "extra"),
            )
        )

    @property
    def next_observation(self) -> tuple[Field, ...]:
        """The observation's fields under the names of the next observation's."""
        return tuple(_renamed(field, "next_" + field.name) for field in self.observation)

    @property
    def fields(self) -> tuple[Field, ...]:
        """Every field, in the order in which `Transitions.flat` gives the tensors."""
        scalars: tuple[Field, ...] = (Field("terminated", "binary", dtype="bool"),)
        if self.discounts:
            scalars += (
                Field(
                    "discount", "categorical", num_categories=(len(self.discounts),), start=(0,), values=self.discounts
                ),
            )
        reward = Field("reward", "continuous", low=(-math.inf,), high=(math.inf,))
        return (*self.observation, self.action, reward, *self.next_observation, *scalars, *self.extra)

    def check(self, transitions: Transitions) -> None:
        """Raise a ValueError that names the first field of `transitions` that does not fit this spec."""
        columns = transitions.flat()
        wanted = [field.name for field in self.fields]
        if set(columns) != set(wanted):
            raise ValueError(f"transitions have the fields {sorted(columns)}, but the spec wants {sorted(wanted)}.")
        for field in self.fields:
            tensor = columns[field.name]
            if tuple(tensor.shape) != (len(transitions), *field.shape):
                raise ValueError(
                    f"{field.name} has shape {tuple(tensor.shape)}, but the spec wants "
                    f"{(len(transitions), *field.shape)} (rows first)."
                )
            if tensor.dtype != field.torch_dtype:
                raise ValueError(f"{field.name} has dtype {tensor.dtype}, but the spec wants {field.torch_dtype}.")

    def empty(self, num_rows: int, device: torch.device | str = "cpu") -> Transitions:
        """Uninitialised rows of this spec, the memory that bulk writes fill."""
        return Transitions.from_flat(
            {
                field.name: torch.empty((num_rows, *field.shape), dtype=field.torch_dtype, device=device)
                for field in self.fields
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TransitionSpec:
        """The spec that `to_dict` wrote."""

        def field(entry: Mapping[str, Any]) -> Field:
            values: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
            }
            return Field(**values)

        return cls(
            tuple(field(entry) for entry in data["observation"]),
            field(data["action"]),
            tuple(data["discounts"]),
            tuple(field(entry) for entry in data.get("extra", ())),
        )


def _renamed(field: Field, name: str) -> Field:
    return replace(field, name=name)


def _inferred(name: str, tensors: list[Tensor], known: Field | None) -> Field:
    """The field that tensors ``[N, *shape]`` of one dtype look like, together with what is known of it."""
    dtype, shape = tensors[0].dtype, tuple(tensors[0].shape[1:])
    kind, dtype_name, size = name.split(SEPARATOR)[0], str(dtype).removeprefix("torch."), math.prod(shape)
    if dtype.is_complex:
        raise TypeError(f"{name} has dtype {dtype_name}; wanted floats, integers or booleans.")
    if dtype == torch.bool:
        return Field(name, "binary", shape, dtype_name)
    if kind == "observation" and _is_image(dtype_name, shape):
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


def _not_too_wide(spec: TransitionSpec) -> TransitionSpec:
    """The same spec, or a ValueError that names the widest field."""
    columns = sum(field.width for field in spec.fields)
    if columns > MAX_COLUMNS:
        widest = max(spec.fields, key=lambda field: field.width)
        raise ValueError(
            f"a transition has {columns:,} columns, {widest.width:,} of them in {widest.name}; the upsampler models at "
            f"most {MAX_COLUMNS:,}. Store fewer features, for example those of an encoder."
        )
    return spec


def _is_image(dtype: str, shape: tuple[int, ...]) -> bool:
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


def _space_fields(name: str, space: spaces.Space, bounds: tuple[float, float] | None = None) -> Iterator[Field]:
    """The fields of a space: one, or one for each leaf of a Dict."""
    if isinstance(space, spaces.Dict):
        for key, child in space.spaces.items():
            if SEPARATOR in str(key):
                raise ValueError(
                    f"{name}: the key {key!r} contains {SEPARATOR!r}, which separates nested keys; rename it."
                )
            yield from _space_fields(f"{name}{SEPARATOR}{key}", child)
    elif isinstance(space, spaces.Box):
        dtype = np.dtype(space.dtype).name
        if _is_image(dtype, tuple(space.shape)):
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
