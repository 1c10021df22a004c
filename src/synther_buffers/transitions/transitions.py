"""What a transition is: the rows of a replay buffer (`Transitions`) and their description (`TransitionSpec`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from ..public_paths import public
from .fields import MAX_CATEGORIES, SEPARATOR, Field, infer_field, space_fields

Observation = Tensor | dict[str, "Observation"]

#: Largest number of columns of the matrix that the upsampler learns.
MAX_COLUMNS = 4_096


@public
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
                out.update(flatten(attribute.name, value))
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


def flatten(name: str, value: Observation) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a nested dict by field name, ``name.key``."""
    if isinstance(value, Tensor):
        yield name, value
    else:
        for key, child in value.items():
            yield from flatten(f"{name}{SEPARATOR}{key}", child)


def concatenate(parts: list[Transitions]) -> Transitions:
    """Rows of several batches in one."""
    columns = [part.flat() for part in parts]
    return Transitions.from_flat({name: torch.cat([column[name] for column in columns]) for name in columns[0]})


@public
@dataclass(frozen=True)
class TransitionSpec:
    """The fields of a transition, with their shapes, dtypes and bounds.

    Build it with `from_spaces`, or with `infer` if there are no spaces. It is plain data that can be compared, pickled
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
            action_bounds: bounds of a Box action as the framework stores it, if they differ from the space's.
            discounts: gamma ** k for each k that an n-step row can have; empty for one-step rows.

        Raises:
            TypeError: a space that is not supported.
            ValueError: an image observation (a uint8 Box of rank 3, or a Box of rank 2 or more with over 2,048
                elements), over 1,024 categories of one element, or over 4,096 columns in all.
        """
        observation = tuple(space_fields("observation", observation_space))
        if isinstance(action_space, spaces.Dict):
            raise TypeError(
                f"action_space is {action_space}: Dict actions are not supported; "
                "flatten them first, for example with gymnasium.wrappers."
            )
        (action,) = space_fields("action", action_space, action_bounds)
        return _not_too_wide(cls(observation, action, tuple(float(value) for value in discounts)))

    @classmethod
    def infer(cls, transitions: Transitions, known: TransitionSpec | None = None) -> TransitionSpec:
        """Describe transitions by their dtypes and values.

        Floats are continuous without bounds (generated values stay in the range of the data in any case) and booleans
        binary. The integers of an action, and of any field with a single element, are categories from 0, or from the
        smallest value if that is negative, to the largest one. Other integers, and those that range over more than
        1,024 values, are continuous and rounded.

        Args:
            transitions: at least one row.
            known: the spec of earlier rows; its categories are kept even if these rows do not have them.

        Raises:
            ValueError: no rows, an image observation (uint8 of rank 3, or rank 2 or more with over 2,048 elements), or
                over 4,096 columns in all.
            TypeError: a dtype that is not numeric.
        """
        if len(transitions) == 0:
            raise ValueError("transitions has no rows; at least one is needed to see what they are like.")
        columns = transitions.flat()
        before = {} if known is None else {field.name: field for field in known.fields}

        def field(name: str) -> Field:
            tensors = [columns[other] for other in (name, f"next_{name}") if other in columns]
            return infer_field(name, tensors, before.get(name))

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
