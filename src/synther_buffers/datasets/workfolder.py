"""The folder of an upsampling that is not finished: provably ours, one process at a time, new files only."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

from .files import new_file

try:
    import fcntl
except ImportError:  # Windows: two processes on one output are kept apart by new files alone
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

SETTINGS, FIT, MODEL, OUTPUT = "settings.json", "fit.json", "model.safetensors", "output"
_LOCK = "lock"
_ROWS = re.compile(r"rows-\d{6,}\.safetensors")
_NAMES = re.compile(rf"(settings\.json|fit\.json|model\.safetensors|{_ROWS.pattern})(\.tmp)?|output|lock")
#: What a run that was killed before it had begun leaves; nothing of it is used.
_BEGINNING = {_LOCK, f"{SETTINGS}.tmp"}


class WorkFolder:
    """A folder that this process has locked; `claim` makes one. A kill gives the lock back, nothing else has to.

    Attributes:
        path: where it lies.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def claim(cls, path: Path, settings: dict[str, Any], resume: bool) -> WorkFolder:
        """Make the folder of a new run, or take over that of an interrupted run of the same settings.

        Args:
            path: where; its parent is made if it is missing.
            settings: of the run, as JSON gives them back.
            resume: an interrupted run may be taken over.

        Raises:
            ValueError: something is there that is not provably an interrupted run of ours, or one of other settings,
                or that another process works on, or any if not `resume`.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        try:
            path.mkdir(0o700)
        except FileExistsError:
            try:
                _check_folder(path)
            except FileNotFoundError:
                raise _busy(path) from None
        folder = cls(path, _locked(path))
        try:
            names = check_ours(path)
            if SETTINGS in names:
                folder._check_settings(settings, resume)
                for name in names:
                    if name.endswith(".tmp"):
                        (path / name).unlink()
            elif set(names) <= _BEGINNING:
                (path / f"{SETTINGS}.tmp").unlink(missing_ok=True)
                folder.write_json(SETTINGS, settings)
            else:
                raise ValueError(
                    f"{path} has {', '.join(sorted(set(names) - _BEGINNING)[:3])} but no {SETTINGS}, so nothing tells "
                    "whose rows these are; remove it, or choose another output."
                )
        except BaseException:
            folder.close()
            raise
        return folder

    def _check_settings(self, settings: dict[str, Any], resume: bool) -> None:
        if not resume:
            raise ValueError(f"{self.path} is an unfinished run; go on with resume=True (--resume), or remove it.")
        differs = differences(self.read_json(SETTINGS), settings)
        if differs:
            raise ValueError(
                f"{self.path} is an unfinished run with other settings: {'; '.join(differs)}. "
                "Give the same ones, or remove it."
            )

    @staticmethod
    def file_of_rows(path: Path, index: int) -> Path:
        """The file of a chunk of rows in the folder at `path`."""
        return path / f"rows-{index:06d}.safetensors"

    def rows(self, index: int) -> Path:
        """The file of a chunk of rows."""
        return self.file_of_rows(self.path, index)

    def write_json(self, name: str, data: Any) -> None:
        """Write plain data to the file of this name."""
        write_whole(self.path / name, json.dumps(data, indent=1).encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """What `write_json` wrote.

        Raises:
            ValueError: it is damaged or missing.
        """
        file = self.path / name
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(data, dict):
                raise ValueError("no JSON object")
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} is damaged ({error}); remove {self.path} and start again.") from error
        return data

    def output(self) -> Path:
        """Where to write the output: nothing is there, what an interrupted run left is removed."""
        output = self.path / OUTPUT
        _remove(output)
        return output

    def remove(self) -> None:
        """Remove the folder, under another name first: half removed, it is never taken for a run."""
        removing = _removing(self.path)
        try:
            sweep(self.path)
            os.rename(self.path, removing)
            self.close()
            sweep(self.path)
        except (OSError, ValueError) as error:
            logger.warning("The output is complete, but its work folder could not be removed: %s", error)

    def close(self) -> None:
        """Give the lock back; the folder stays."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def write_whole(file: Path, data: bytes) -> None:
    """Write a whole file; it has its name only when it is complete."""
    unfinished = file.with_name(f"{file.name}.tmp")
    with new_file(unfinished) as stream:
        stream.write(data)
    os.replace(unfinished, file)


def num_chunks(path: Path) -> int:
    """Chunks of rows that lie in a folder, be it claimed or not."""
    return len(list(path.glob("rows-*.safetensors")))


def sweep(path: Path) -> None:
    """Finish the removal of a work folder that was cut short.

    Raises:
        ValueError: what has its name is not ours.
    """
    removing = _removing(path)
    if not os.path.lexists(removing):
        return
    try:
        for name in check_ours(removing):
            _remove(removing / name)
        removing.rmdir()
    except FileNotFoundError:
        pass  # another process does the same


def differences(before: Any, settings: dict[str, Any]) -> list[str]:
    """What differs from earlier settings, in words; both as JSON gives them back."""
    before = before if isinstance(before, dict) else {}
    return [
        f"{key} was {_short(before.get(key))} and is {_short(settings[key])}"
        for key in settings
        if before.get(key) != settings[key]
    ]


def check_ours(path: Path) -> list[str]:
    """The names of what lies in a folder that only an upsampling of this user can have made.

    It is a real directory, its files are plain ones, all belong to this user, and there is nothing else.

    Raises:
        ValueError: anything else; the message says what.
    """
    owner = _check_folder(path)
    names = []
    with os.scandir(path) as entries:
        for entry in entries:
            plain = entry.is_file(follow_symlinks=False)
            if not _NAMES.fullmatch(entry.name):
                raise _refused(path, f"it holds {entry.name}, which no upsampling writes")
            if not (plain or (entry.name == OUTPUT and entry.is_dir(follow_symlinks=False))):
                raise _refused(path, f"its {entry.name} is no plain file")
            if entry.stat(follow_symlinks=False).st_uid != owner:
                raise _refused(path, f"its {entry.name} belongs to another user")
            names.append(entry.name)
    return names


def _check_folder(path: Path) -> int:
    """The number of this user, whom the folder belongs to."""
    state = path.lstat()
    if not stat.S_ISDIR(state.st_mode):
        raise _refused(path, "it is no folder of an upsampling but a " + ("link" if path.is_symlink() else "file"))
    # What this user's files look like here: some network file systems show other owners than the process has.
    with tempfile.TemporaryFile(dir=path.parent) as mine:
        owner = os.fstat(mine.fileno()).st_uid
    if state.st_uid != owner:
        raise _refused(path, "it belongs to another user")
    return owner


def _busy(path: Path) -> ValueError:
    return ValueError(f"another process works on {path}, or has just finished; wait for it, or choose another output.")


def _refused(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} is in the way: {what}. Remove it, or choose another output.")


def _locked(path: Path) -> int:
    """Lock the folder for as long as the descriptor is open: a kill closes it, so that no lock is ever stale.

    Raises:
        ValueError: another process has it.
    """
    file = path / _LOCK
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        lock = os.open(file, flags, 0o600)
    except FileNotFoundError:
        raise _busy(path) from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise _refused(path, f"its {_LOCK} is no plain file") from None
        raise
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The one who had it may have finished, and removed the folder, since the file was opened.
        if not os.path.samestat(os.fstat(lock), file.lstat()):
            raise _busy(path)
    except (BlockingIOError, FileNotFoundError):
        os.close(lock)
        raise _busy(path) from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
            os.close(lock)
            raise
        logger.warning("The file system of %s has no locks (%s): start no second run of this output.", path, error)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _removing(path: Path) -> Path:
    return path.with_name(f"{path.name}.removing")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
