"""One batch from two stores: real rows of the storage and synthetic rows, interleaved, leaf by leaf."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from ..replay.interleaving import batch_order, batch_order_on, gather
from .layout import Key


class Gatherer:
    """The leaves of a storage beside those of the synthetic set, ready to be gathered.

    Indexing a tensordict and overwriting half of the result would write each leaf twice; and on the CPU NumPy gathers a
    batch in half of torch's time.

    Args:
        stored: the storage's rows, ``[max_size]`` or of several dimensions, for which `can_gather` is True.
        synthetic: the leaves that synthetic rows fill by themselves, ``[M, *shape]``.
    """

    def __init__(self, stored: TensorDictBase, synthetic: Mapping[Key, Tensor]) -> None:
        self._device = stored.device
        self._shape = stored.batch_size
        # Views, in which rows that are written later are seen; detached, because NumPy takes no others.
        pairs = [(key, _by_row(leaf.detach(), self._shape), synthetic.get(key)) for key, leaf in leaves_of(stored)]
        self._keys = {key for key, *_ in pairs}
        self._on_cpu = all(leaf.device.type == "cpu" and leaf.dtype not in _NOT_NUMPYS for _, leaf, _ in pairs)
        # A constant becomes one row: NumPy would copy an expanded array in full.
        self._tensors = [
            (key, leaf, rows[:1] if rows is not None and self._on_cpu and _is_constant(rows) else rows)
            for key, leaf, rows in pairs
        ]
        # Deepest first, because a node is made of its children.
        self._nodes = sorted(_nodes_of(stored), key=lambda node: -len(node[0]))

    def knows(self, data: Any) -> bool:
        """Whether the storage had every key of these rows when the leaves were taken."""
        return isinstance(data, TensorDictBase) and all(key in self._keys for key, _ in leaves_of(data))

    def rows(self, read_at: Tensor | tuple[Tensor, ...], rows: Tensor) -> TensorDict:
        """A batch of new memory.

        Args:
            read_at: ``[N]`` places in the storage, or one such tensor for each of its dimensions. The last
                ``len(rows)`` are for the synthetic rows, which take from there the keys that they do not fill.
            rows: rows of the synthetic set, interleaved with the real ones in the batch.
        """
        at = read_at if isinstance(read_at, Tensor) else _flat(read_at, self._shape)
        first = len(at) - len(rows)
        if self._on_cpu:
            found: Iterable[tuple[Key, Tensor]] = self._from_arrays(at.numpy(), rows.numpy(), first)
        else:
            found = self._from_tensors(at, rows, first)
        nested: dict[str, Any] = {}
        for key, value in found:
            node = nested
            for part in key[:-1]:
                node = node.setdefault(part, {})
            node[key[-1]] = value
        # Not by the constructor, which checks each leaf again: that takes a quarter of the time of a batch.
        for key, shape, _ in self._nodes:
            node = nested
            for part in key[:-1]:
                node = node[part]
            size = torch.Size([len(at), *shape])
            node[key[-1]] = TensorDict._new_unsafe(node[key[-1]], batch_size=size, device=self._device)
        batch = TensorDict._new_unsafe(nested, batch_size=torch.Size([len(at)]), device=self._device)
        for key, _, names in self._nodes:
            if any(names):  # only now, because the tensordicts around a node would drop them
                batch.get(key).names = [None, *names]
        return batch

    def _from_arrays(self, at: Any, rows: Any, first: int) -> Iterable[tuple[Key, Tensor]]:
        order = batch_order(first, len(rows))
        for key, leaf, filling in self._tensors:
            # Made for each batch, because a tensor's memory moves when it is shared with a worker process.
            stored = leaf.numpy()
            if filling is None:
                yield key, torch.from_numpy(stored.take(at[order], 0))
                continue
            yield key, torch.from_numpy(gather(stored, at[:first], filling.numpy(), rows))

    def _from_tensors(self, at: Tensor, rows: Tensor, first: int) -> Iterable[tuple[Key, Tensor]]:
        order = batch_order_on(first, len(rows), rows.device)
        for key, stored, synthetic in self._tensors:
            if synthetic is None:
                yield key, stored.index_select(0, at[order])
                continue
            both = stored.new_empty((len(at), *stored.shape[1:]))
            torch.index_select(stored, 0, at[:first], out=both[:first])
            torch.index_select(synthetic, 0, rows, out=both[first:])
            yield key, both.index_select(0, order)


def leaves_of(stored: TensorDictBase) -> Iterator[tuple[Key, Any]]:
    """Every leaf, with its key as a tuple; anything but a plain tensordict is a leaf."""
    for name, value in stored.items():
        if type(value) is TensorDict:
            yield from (((name, *key), leaf) for key, leaf in leaves_of(value))
        else:
            yield (name,), value


def can_gather(stored: Any) -> bool:
    """Whether a `Gatherer` takes this storage: a plain tensordict of plain tensors, of which it can have views."""
    return type(stored) is TensorDict and all(
        type(leaf) is Tensor and _has_rows_in_order(leaf, stored.batch_dims) for _, leaf in leaves_of(stored)
    )


def _has_rows_in_order(leaf: Tensor, num_dims: int) -> bool:
    """Whether the first dimensions of a leaf can become one without a copy."""
    dims = [dim for dim in range(num_dims) if leaf.size(dim) != 1]
    return all(leaf.stride(outer) == leaf.stride(inner) * leaf.size(inner) for outer, inner in pairwise(dims))


def _by_row(leaf: Tensor, shape: torch.Size) -> Tensor:
    """A view of a leaf ``[*shape, ...]`` as ``[N, ...]``."""
    return leaf.view(shape.numel(), *leaf.shape[len(shape) :])


def _nodes_of(stored: TensorDictBase) -> list[tuple[Key, torch.Size, list[str | None]]]:
    """The nested tensordicts with batch dimensions of their own: their key, and the sizes and names of these."""
    keys = {key[:end] for key, _ in leaves_of(stored) for end in range(1, len(key))}
    num_dims = stored.batch_dims
    nodes = [(key, stored.get(key)) for key in keys]
    return [
        (key, node.batch_size[num_dims:], node.names[num_dims:]) for key, node in nodes if node.batch_dims > num_dims
    ]


#: Dtypes that NumPy does not have.
_NOT_NUMPYS = {torch.bfloat16, *(dtype for dtype in vars(torch).values() if str(dtype).startswith("torch.float8"))}


def _is_constant(rows: Tensor) -> bool:
    return rows.ndim > 0 and rows.stride(0) == 0


def _flat(coordinates: tuple[Tensor, ...], shape: torch.Size) -> Tensor:
    """Places in the flattened storage."""
    at = coordinates[0]
    for coordinate, size in zip(coordinates[1:], shape[1:], strict=True):
        at = at * size + coordinate
    return at
