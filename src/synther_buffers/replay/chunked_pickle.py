"""Pickles between two processes that leave out what the other side has already.

Tensors are cut into chunks that are known by their digest. Of rows that were appended to, only the new ones travel; of
a model that came back a moment ago, nothing does.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from typing import Any

import cloudpickle
import torch

#: Bytes of a chunk, and of the smallest tensor that is cut into chunks.
_CHUNK = 16_384
_LEAST = 4_096


class Conversation:
    """One side of an exchange of messages. Each side reads every message of the other one, in order.

    Both remember the chunks of the last message in either direction. After a message that could not be read, both sides
    have to start afresh.
    """

    def __init__(self) -> None:
        self._sent: dict[bytes, bytes] = {}
        self._received: dict[bytes, bytes] = {}

    def dumps(self, value: Any) -> bytes:
        """A message with this value.

        Raises:
            Exception: it cannot be pickled.
        """
        chunks: dict[bytes, bytes] = {}
        file = io.BytesIO()
        _Pickler(file, chunks).dump(value)
        known = self._known()
        new = {digest: chunk for digest, chunk in chunks.items() if digest not in known}
        message = pickle.dumps((file.getvalue(), list(chunks), new), protocol=5)
        self._sent = chunks
        return message

    def loads(self, message: bytes) -> Any:
        """The value in a message of the other side. Only for messages that can be trusted.

        Raises:
            KeyError: it left out something that is not here.
        """
        body, digests, new = pickle.loads(message)
        known = {**self._known(), **new}
        chunks = {digest: known[digest] for digest in digests}
        value = _Unpickler(io.BytesIO(body), chunks).load()
        self._received = chunks
        return value

    def _known(self) -> dict[bytes, bytes]:
        return {**self._sent, **self._received}


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Puts tensors into `chunks`, and their digests into the pickle."""

    def __init__(self, file: io.BytesIO, chunks: dict[bytes, bytes]) -> None:
        super().__init__(file, protocol=5)
        self._chunks = chunks

    def persistent_id(self, value: Any) -> Any:
        if not _is_plain(value):
            return None
        data = memoryview(value.detach().reshape(-1).view(torch.uint8).numpy()).cast("B")
        digests = []
        for start in range(0, len(data), _CHUNK):
            chunk = bytes(data[start : start + _CHUNK])
            digest = hashlib.blake2b(chunk, digest_size=16).digest()
            self._chunks[digest] = chunk
            digests.append(digest)
        return value.dtype, tuple(value.shape), digests


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, chunks: dict[bytes, bytes]) -> None:
        super().__init__(file)
        self._chunks = chunks

    def persistent_load(self, pid: Any) -> torch.Tensor:
        dtype, shape, digests = pid
        data = bytearray().join(self._chunks[digest] for digest in digests)
        return torch.frombuffer(data, dtype=torch.uint8).view(dtype).reshape(shape)


def _is_plain(value: Any) -> bool:
    """A tensor that is nothing but its numbers, and large enough to be worth it."""
    return (
        type(value) is torch.Tensor
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.requires_grad
        and not value.is_quantized
        and value.nbytes >= _LEAST
    )
