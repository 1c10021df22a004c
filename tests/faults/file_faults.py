"""Upsamplings in processes of their own that are killed, run out of disk or meet others, each at a seeded point."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import resource
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

from toys import TINY

from synther_buffers.datasets import open_dataset, upsample
from synther_buffers.upsampling.augmentation import Bootstrap

#: Audit events that change or open something, see Python's audit events table.
_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.listdir", "os.scandir"}
UPSAMPLERS = {"model": TINY, "bootstrap": Bootstrap}
#: A clean process, forked for each run. It has imported what takes seconds, by names that are installed: before Python
#: 3.12 it does not know the tests' folders, and passes over what it cannot import. Optimisers import Dynamo.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["synther_buffers.datasets.hdf5", "synther_buffers.datasets.minari", "torch._dynamo"])


@dataclass
class Fault:
    """What happens to a run.

    Attributes:
        kind: "none"; "kill" and "error" at file event number `number`; "kill_write" and "full_disk" at the first byte
            of a file beyond `number`; "appear": a file takes the output's name at event `number`.
    """

    kind: str = "none"
    number: int = 0


@dataclass
class Outcome:
    """How a run ended: "done", the name of an exception, or "killed"; and what it said."""

    ended: str
    said: str = ""
    events: list[str] = field(default_factory=list)


def start(folder, dataset, output, upsampler, fault=None, **settings):
    """Start an upsampling of 200 rows in another process; `wait` gives its outcome."""
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    arguments = (theirs, str(folder), str(dataset), str(output), upsampler, fault or Fault(), settings)
    process = _CONTEXT.Process(target=_run, args=arguments)
    process.start()
    theirs.close()
    return process, ours


def wait(started) -> Outcome:
    process, connection = started
    outcome = Outcome("killed")
    with contextlib.suppress(EOFError):
        outcome = connection.recv()
    process.join()
    if outcome.ended == "killed":
        assert process.exitcode in (-signal.SIGKILL, -signal.SIGXFSZ), f"ended with {process.exitcode}"
    else:
        assert process.exitcode == 0, f"ended with {process.exitcode} after {outcome}"
    return outcome


def run(*args, **kwargs) -> Outcome:
    return wait(start(*args, **kwargs))


def _run(connection, folder, dataset, output, upsampler, fault, settings):
    os.environ["MINARI_DATASETS_PATH"] = folder
    _install(folder, output, fault)
    try:
        settings = {"num_samples": 200, "chunk_rows": 60, "device": "cpu", "progress_bar": False} | settings
        report = upsample(open_dataset(dataset), output=output, upsampler=UPSAMPLERS[upsampler], **settings)
        connection.send(Outcome("done", f"{report.num_rows} rows, {report.num_resumed} resumed"))
    except Exception as error:
        connection.send(Outcome(type(error).__name__, str(error)))


def _install(folder, output, fault):
    if fault.kind in ("kill_write", "full_disk"):
        # Beyond its limit a process gets a signal that kills it, or, where that is ignored, an error from the write.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fault.kind == "kill_write" else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.number, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        return
    count = 0

    def hook(event, args):
        nonlocal count
        if event not in _EVENTS or not any(str(arg).startswith(folder) for arg in args if isinstance(arg, str | Path)):
            return
        count += 1
        if count != fault.number:
            return
        if fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind == "error":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif fault.kind == "appear":
            with contextlib.suppress(FileExistsError), open(output, "xb") as file:  # the run may have finished it
                file.write(b"someone else's")

    if fault.kind != "none":
        sys.addaudithook(hook)
