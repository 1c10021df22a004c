"""The process of `RefreshProcess`: calls what comes in and sends back what comes out, until its parent is gone.

Messages are pickles behind their length in eight bytes, on what were standard input and standard output. They come from
the process that started this one, and from nobody else.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import queue
import signal
import struct
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

_LENGTH = struct.Struct(">Q")
#: Sent before the first message. What the interpreter or a package prints while it starts comes before it.
HELLO = b"\0synther-buffers refresh worker\0"
#: Seconds between two looks at whether the parent still lives.
_LOOK_EVERY = 1.0


# The streams have no buffers: a fork in the middle of a message would copy a buffer that is locked and half full, and
# the copy would wait for ever when it closes it, or write its content a second time.


def send(stream: io.RawIOBase, message: bytes) -> None:
    """Write a message.

    Raises:
        OSError: the other side is gone.
    """
    for part in (_LENGTH.pack(len(message)), message):
        rest = memoryview(part)
        while rest:
            rest = rest[stream.write(rest) or 0 :]


def wait_for_hello(stream: io.RawIOBase) -> bool:
    """Skip what was printed before; False if the other side is gone."""
    seen = b""
    while not seen.endswith(HELLO):
        byte = stream.read(1)
        if not byte:
            return False
        seen = seen[-len(HELLO) :] + byte
    return True


def receive(stream: io.RawIOBase) -> bytes | bytearray | None:
    """The next message; None if the other side is gone."""
    header = _read(stream, _LENGTH.size)
    return None if header is None else _read(stream, _LENGTH.unpack(header)[0])


def _read(stream: io.RawIOBase, length: int) -> bytearray | None:
    data = bytearray(length)
    rest = memoryview(data)
    while rest:
        count = stream.readinto(rest)
        if not count:
            return None
        rest = rest[count:]
    return data


class _Warnings(logging.Handler):
    """Keeps what the package warns of, for the parent to log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append((record.name, record.levelno, record.getMessage()))


class RemoteTracebackError(Exception):
    """The traceback of an error in another process, as the cause of that error here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def forget_frames(error: BaseException | None) -> None:
    """Drop the traceback of an error that is dealt with.

    Its frames refer to what refers to the error, so that until the garbage collector comes by, nothing in them is
    freed: not a buffer, and not the process and the GPU that belong to it.
    """
    while error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def answer(
    message: bytes | bytearray,
    loads: Callable[[Any], Any] = pickle.loads,
    dumps: Callable[[Any], bytes] = pickle.dumps,
) -> bytes:
    """Call the function in a message; its result or its exception, and what was logged, as a message."""
    kept = _Warnings()
    logger = logging.getLogger("synther_buffers")
    logger.addHandler(kept)
    logger.propagate = False
    try:
        function, args, kwargs = loads(message)
        result = function(*args, **kwargs)
        return dumps({"result": result, "logged": kept.records})
    except BaseException as error:  # whatever happens in a job must not end the process
        return dumps({"error": _readable(error), "traceback": traceback.format_exc(), "logged": kept.records})
    finally:
        logger.removeHandler(kept)


def _readable(error: BaseException) -> BaseException:
    """The error, or one that tells of it: some cannot be pickled, and some pickle and cannot be read."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def end() -> None:
    """End this process, and what its jobs have started."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def main(inlet_fd: int, outlet_fd: int, parent: int) -> None:
    """Answer messages until the parent closes its end or dies.

    Args:
        inlet_fd: file descriptor of what comes in.
        outlet_fd: of what goes out.
        parent: process id.
    """
    inlet, outlet = os.fdopen(inlet_fd, "rb", buffering=0), os.fdopen(outlet_fd, "wb", buffering=0)
    outlet.write(HELLO)
    messages: queue.SimpleQueue[bytes | bytearray] = queue.SimpleQueue()

    def read() -> None:
        while (message := receive(inlet)) is not None:
            messages.put(message)
        end()  # also in the middle of a job, whose result nobody wants any more

    def watch() -> None:
        # A parent that was killed does not close its end if another child of it has a copy.
        while os.getppid() == parent:
            time.sleep(_LOOK_EVERY)
        end()

    for work in (read, watch):
        threading.Thread(target=work, daemon=True).start()
    while True:
        reply = answer(messages.get())
        with contextlib.suppress(OSError):  # the parent is gone, and `read` ends this process
            send(outlet, reply)
