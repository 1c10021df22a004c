"""An executor with one process of its own, in which refreshes run beside the agent."""

from __future__ import annotations

import contextlib
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
from typing import Any, BinaryIO, cast

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
    (cloudpickle). It ignores Ctrl-C, prints to standard error, and ends when this process ends, however that happens.
    A pickle has the settings and not the process.

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
        self._process: subprocess.Popen[bytes] | None = None
        self._kill: weakref.finalize[..., RefreshProcess] | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a function there.

        Raises:
            Exception: the function or its arguments cannot be pickled.
        """
        future: Future[Any] = Future()
        message = cloudpickle.dumps((fn, args, kwargs))
        # A daemon: at the end of the program nobody waits for a refresh that nothing will use.
        threading.Thread(target=self._answer, args=(future, message), daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the process; a call that runs has failed. The next call starts another one."""
        if self._kill is not None:
            self._kill()

    @property
    def pid(self) -> int | None:
        """Of the process, None while there is none."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def _answer(self, future: Future[Any], message: bytes) -> None:
        with self._one_at_a_time:
            if not future.set_running_or_notify_cancel():
                return
            try:
                outcome = self._exchange(message)
            except BaseException as error:
                forget_frames(error)
                future.set_exception(error)
                return
        for name, level, text in outcome["logged"]:
            with contextlib.suppress(Exception):  # of a user's own handler or filter
                logging.getLogger(name).log(level, "%s", text)
        if "result" in outcome:
            future.set_result(outcome["result"])
        else:
            failure = outcome["error"]
            failure.__cause__ = RemoteTracebackError(outcome["traceback"])
            future.set_exception(failure)

    def _exchange(self, message: bytes) -> dict[str, Any]:
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

        timer = None if self.timeout is None else threading.Timer(self.timeout, give_up)
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            send(cast(BinaryIO, process.stdin), message)
            reply = receive(cast(BinaryIO, process.stdout))
        except OSError:
            reply = None
        except Exception:  # no memory for the answer: what is left of it would be taken for the next one
            self.shutdown()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if reply is None:
            self.shutdown()
            code, self._process = process.returncode, None
            if late.is_set():
                raise TimeoutError(f"the refresh took longer than timeout={self.timeout:g} seconds")
            raise RuntimeError(f"the refresh process died with exit code {code}")
        return cast(dict[str, Any], pickle.loads(reply))

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            # The same modules as here, in the same order; the folder of the script is one of them.
            paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
                start_new_session=True,
            )
            self._kill = weakref.finalize(self, _end, self._process, os.getpid())
            threading.Thread(target=_watch, args=(self._process,), daemon=True).start()
            wait_for_hello(cast(BinaryIO, self._process.stdout))
        return self._process

    def __getstate__(self) -> dict[str, Any]:
        return {"num_threads": self.num_threads, "timeout": self.timeout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.num_threads, self.timeout = state["num_threads"], state["timeout"]
        self._start_afresh()

    def __repr__(self) -> str:
        return f"RefreshProcess(num_threads={self.num_threads}, timeout={self.timeout})"


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


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """Kill the process and close the pipes, unless this is a forked copy of the one that started it."""
    if os.getpid() == owner:
        _kill_with_children(process)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what was not sent to a dead process
                cast(BinaryIO, pipe).close()
