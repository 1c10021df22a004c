"""An executor with one process of its own, in which refreshes run beside the agent."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, cast

import cloudpickle

from ..public_paths import public
from ..validation import whole_number
from .refresh_worker import RemoteTracebackError, forget_frames, receive, send, wait_for_hello

logger = logging.getLogger(__name__)

#: Before anything is imported, which takes seconds and may print: Ctrl-C is for the agent, and standard output goes to
#: standard error, so that nothing stands between the messages.
_COMMAND = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
inlet, outlet, parent = os.dup(0), os.dup(1), os.getppid()
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(2, 1)
from synther_buffers.replay.refresh_worker import main
main(inlet, outlet, parent)
"""


@public
class RefreshProcess(Executor):
    """Runs one call after the other in a process of its own, ``refresh_on="process"`` with settings.

    The process starts with the first call and lives as long as this object. It never imports the script that started
    it, so scripts without ``if __name__ == "__main__"`` and notebooks work; what they define travels by value
    (cloudpickle). It ignores Ctrl-C, prints to standard error, and ends when this process ends, however that happens,
    or when nothing refers any more to this object or to the future of one of its calls. A pickle has the settings and
    not the process, and a forked copy starts one of its own.

    Args:
        num_threads: that PyTorch computes with there; None for as many as here. Another number rounds differently, so
            the synthetic rows differ in their last bits from those of a refresh here.
        timeout: seconds for one call, after which the process is killed and the call has failed; None for no limit.
            Starting the process does not count.

    Raises:
        ValueError, TypeError: `num_threads` or `timeout` is not a positive number.
        RuntimeError: Python does not know where its interpreter is, so that no process can be started.
    """

    def __init__(self, *, num_threads: int | None = None, timeout: float | None = None) -> None:
        if num_threads is not None:
            whole_number("num_threads", num_threads, 1)
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float)):
            raise TypeError(f"timeout is {timeout!r}; wanted a number of seconds, or None.")
        if timeout is not None and not 0 < timeout <= threading.TIMEOUT_MAX:
            raise ValueError(f"timeout is {timeout}; wanted a positive number of seconds, or None for no limit.")
        if not sys.executable:
            raise RuntimeError(
                "this Python does not know its own interpreter, so refresh_on='process' cannot start one."
            )
        self.num_threads, self.timeout = num_threads, timeout
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._one_at_a_time = threading.Lock()
        self._worker = _Worker(self._one_at_a_time)
        self._abandon = weakref.finalize(self, self._worker.abandon)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a function there.

        Raises:
            Exception: the function or its arguments cannot be pickled.
        """
        future = _Answer(self)
        messages = [(cloudpickle.dumps((fn, args, kwargs)), self.timeout)]
        preparation = self._preparation()
        if preparation is not None:
            messages.insert(0, (cloudpickle.dumps(preparation), None))
        # A daemon: at the end of the program nobody waits for a refresh that nothing will use.
        threading.Thread(target=self._here().answer, args=(future.asked, messages), daemon=True).start()
        return future

    def _preparation(self) -> tuple[Any, ...] | None:
        """A call that comes before each one and has no time limit, as function, arguments and named arguments."""
        return None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the process; a call that runs has failed. The next call starts another one."""
        self._here().end()

    @property
    def pid(self) -> int | None:
        """Of the process, None while there is none."""
        return self._here().pid

    def _here(self) -> _Worker:
        """What belongs to this process: in a forked copy of the one that had it, another one."""
        if self._worker.owner != os.getpid():
            self._abandon.detach()
            self._worker.close()
            self._start_afresh()
        return self._worker

    def __getstate__(self) -> dict[str, Any]:
        return {"num_threads": self.num_threads, "timeout": self.timeout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.num_threads, self.timeout = state["num_threads"], state["timeout"]
        self._start_afresh()

    def __repr__(self) -> str:
        return f"RefreshProcess(num_threads={self.num_threads}, timeout={self.timeout})"


class _Answer(Future[Any]):
    """Whoever waits for an answer keeps the executor; the thread that brings it keeps neither, but for callbacks."""

    def __init__(self, executor: RefreshProcess) -> None:
        super().__init__()
        self._executor = executor
        self.asked = _Asked(weakref.ref(self))

    def cancel(self) -> bool:
        cancelled = super().cancel()
        self.asked.cancelled |= cancelled
        return cancelled

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        self.asked.kept = self  # somebody waits, even if nobody keeps the future
        super().add_done_callback(fn)


@dataclass
class _Asked:
    """What the thread knows of an answer that somebody may wait for.

    Attributes:
        answer: gives the future as long as somebody keeps it.
        cancelled: whether it was cancelled before the call was made.
        kept: the future, if it has to live until it is done.
    """

    answer: weakref.ref[_Answer]
    cancelled: bool = False
    kept: _Answer | None = None

    def begin(self) -> bool:
        """Whether to make the call: also if nobody waits for its answer, but not if it was cancelled."""
        future = self.answer()
        return not self.cancelled if future is None else future.set_running_or_notify_cancel()


class _Worker:
    """The process, and what the threads that talk to it need; they do not hold the executor, so that it can go.

    Args:
        one_at_a_time: held by the thread that talks to the process.
    """

    def __init__(self, one_at_a_time: threading.Lock) -> None:
        self.owner = os.getpid()
        self._one_at_a_time = one_at_a_time
        self._process: subprocess.Popen[bytes] | None = None
        self._abandoned = False

    @property
    def pid(self) -> int | None:
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def answer(self, asked: _Asked, messages: list[tuple[bytes, float | None]]) -> None:
        """Send messages, each with its time limit, and have the answer to the last one, or the first error."""
        result, failure = None, None
        with self._one_at_a_time:
            if not asked.begin():
                return
            try:
                for message, timeout in messages:
                    result = _result(self._exchange(message, timeout))
            except BaseException as error:
                forget_frames(error)
                failure = error
        future, asked.kept = asked.answer(), None
        if future is None:
            return
        if failure is None:
            future.set_result(result)
        else:
            future.set_exception(failure)

    def end(self) -> None:
        """Kill the process; a call that runs has failed."""
        process = self._process
        if process is None or self.owner != os.getpid():
            return
        _kill_with_children(process)
        process.wait()
        if self._one_at_a_time.acquire(blocking=False):  # otherwise a thread reads from a pipe, and closes it itself
            _close_pipes(process)
            self._one_at_a_time.release()

    def abandon(self) -> None:
        """Kill the process for good; called by the garbage collector, in any thread."""
        self._abandoned = True
        self.end()

    def close(self) -> None:
        """Close this side of the pipes."""
        if self._process is not None:
            _close_pipes(self._process)

    def _exchange(self, message: bytes, timeout: float | None) -> dict[str, Any]:
        """Send a message and wait for the answer.

        Raises:
            TimeoutError: it took longer than `timeout`.
            RuntimeError: the process died.
        """
        process = self._running()
        late = threading.Event()

        def give_up() -> None:
            late.set()
            _kill_with_children(process)

        timer = None if timeout is None else threading.Timer(timeout, give_up)
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            send(cast(io.RawIOBase, process.stdin), message)
            reply = receive(cast(io.RawIOBase, process.stdout))
        except OSError:
            reply = None
        except Exception:  # no memory for the answer: what is left of it would be taken for the next one
            self.end()
            _close_pipes(process)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if reply is None:
            self.end()
            _close_pipes(process)
            if late.is_set():
                raise TimeoutError(f"the refresh took longer than timeout={timeout:g} seconds")
            raise RuntimeError(f"the refresh process died with exit code {process.returncode}")
        return cast(dict[str, Any], pickle.loads(reply))

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            if self._abandoned:
                raise RuntimeError("nobody waits for this refresh any more")
            # The same modules as here, in the same order; the folder of the script is one of them.
            paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
                start_new_session=True,
            )
            if self._abandoned:  # while it was started
                self.end()
            threading.Thread(target=_watch, args=(self._process,), daemon=True).start()
            wait_for_hello(cast(io.RawIOBase, self._process.stdout))
        return self._process


def _result(outcome: dict[str, Any]) -> Any:
    """The result in an answer, or its error raised; what was logged there is logged here."""
    for name, level, text in outcome["logged"]:
        with contextlib.suppress(Exception):  # of a user's own handler or filter
            logging.getLogger(name).log(level, "%s", text)
    if "result" in outcome:
        return outcome["result"]
    raise outcome["error"] from RemoteTracebackError(outcome["traceback"])


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        cast(io.RawIOBase, pipe).close()


def _watch(process: subprocess.Popen[bytes]) -> None:
    """When the process dies, so do its children: they hold its end of the pipes, at which the agent would wait."""
    process.wait()
    _kill_with_children(process)


def _kill_with_children(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own
    else:
        process.kill()
