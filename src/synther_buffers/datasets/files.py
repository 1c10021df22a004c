"""New files: made where nothing was, complete before they get their name, never put in place of another."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

#: What a file system without hard links answers.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


@contextmanager
def new_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A file that was not there before, open for writing; on the disk when the block ends.

    Raises:
        FileExistsError: there is something of that name, be it a symlink that leads nowhere.
    """
    with os.fdopen(os.open(path, _NEW, 0o666), "w+b") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def place(unfinished: Path, target: Path) -> None:
    """Give a complete file or directory its name, unless something has it meanwhile.

    Raises:
        ValueError: something has it; nothing was changed.
    """
    try:
        if unfinished.is_dir():
            # Over an empty directory this succeeds, which loses nothing; over anything else it fails.
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
            os.rename(unfinished, target)
            return
        try:
            os.link(unfinished, target)  # the one call that fails if the name is taken
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
            os.rename(unfinished, target)
            return
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise ValueError(
                f"{target} appeared while its rows were written; it was left as it is, and they were not put there."
            ) from error
        raise
    os.unlink(unfinished)


class SafeWriter(io.RawIOBase):
    """A file for libraries that do not survive a write that fails: they are told that it went well.

    HDF5 keeps what it could not write, tries again when the interpreter ends, and crashes. `check` raises the error.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the first error of a write, if there was one."""
        if self._error is not None:
            raise self._error

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return os.lseek(self._file.fileno(), offset, whence)

    def tell(self) -> int:
        return os.lseek(self._file.fileno(), 0, os.SEEK_CUR)

    def readinto(self, buffer: Any, /) -> int:
        return os.readv(self._file.fileno(), [buffer])

    def write(self, data: Any, /) -> int:
        if self._error is None:
            with self._noted():
                view = memoryview(data)
                while view:
                    view = view[os.write(self._file.fileno(), view) :]
        return len(data)

    def truncate(self, size: int | None = None, /) -> int:
        size = self.tell() if size is None else size
        if self._error is None:
            with self._noted():
                os.ftruncate(self._file.fileno(), size)
        return size

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._error = self._error or error


def size_text(num_bytes: float) -> str:
    """Bytes in the unit that shows a few digits of them."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while num_bytes >= 1024 and len(units) > 1:
        num_bytes /= 1024
        del units[0]
    return f"{num_bytes:.0f} {units[0]}" if units[0] == "bytes" or num_bytes >= 100 else f"{num_bytes:.1f} {units[0]}"


def check_space(target: Path, num_bytes: int) -> None:
    """Refuse at once what would fail for want of space after hours.

    Raises:
        ValueError: naming the folder, and what is free and needed.
    """
    folder = next(parent for parent in target.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise ValueError(
            f"{folder} has {size_text(free)} free, but up to {size_text(num_bytes)} are needed until {target.name} is "
            "complete."
        )
