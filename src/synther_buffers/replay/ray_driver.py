"""What the process of `RayExecutor` does: it hands each call to an actor of a Ray cluster, and waits.

It is a process of its own because Ray ends a process whose cluster it cannot reach any more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..ray_cluster import connect
from .chunked_pickle import Conversation
from .refresh_worker import RemoteTracebackError, answer

#: Seconds until an actor that the cluster has no room for is given up.
_ROOM_WITHIN = 300.0
#: Seconds in which an actor that has nothing to do says that it is there.
_IS_THERE_WITHIN = 30.0


@dataclass(frozen=True)
class RaySettings:
    """Where calls go, and what they need there; see `RayExecutor`."""

    address: str
    num_cpus: float
    num_gpus: float
    actor_options: Mapping[str, Any]


class Actor:
    """Lives in the cluster and answers one message after the other; it remembers the last rows and the last model."""

    def __init__(self) -> None:
        self._conversation = Conversation()

    def ready(self) -> None:
        """Answer once it is there."""

    def answer(self, message: bytes) -> bytes:
        """Make the call in a message; what came out of it as a message."""
        return answer(message, self._conversation.loads, self._conversation.dumps)


class _Line:
    """The actor, and this side of the conversation with it."""

    def __init__(self, settings: RaySettings) -> None:
        self._ray = connect(settings.address)
        self._conversation = Conversation()
        options = {"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus, **settings.actor_options}
        self._actor = self._ray.remote(Actor).options(**options).remote()
        try:
            self._ray.get(self._actor.ready.remote(), timeout=_ROOM_WITHIN)
        except self._ray.exceptions.GetTimeoutError:
            self.close()
            raise TimeoutError(
                f"the Ray cluster had no room for an actor with {options} within {_ROOM_WITHIN:.0f} s; "
                f"it has {self._ray.cluster_resources()}"
            ) from None

    def exchange(self, call: tuple[Any, ...]) -> dict[str, Any]:
        """What the actor answers to a call.

        Raises:
            RuntimeError: it died.
        """
        message = self._conversation.dumps(call)
        try:
            reply = self._ray.get(self._actor.answer.remote(message))
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise RuntimeError(f"the Ray actor of the refreshes is lost ({type(error).__name__}: {reason})") from None
        return self._conversation.loads(reply)

    def is_there(self) -> bool:
        """Whether the actor still answers: it may have died since the last call."""
        try:
            self._ray.get(self._actor.ready.remote(), timeout=_IS_THERE_WITHIN)
        except self._ray.exceptions.RayError:
            return False
        return True

    def close(self) -> None:
        self._ray.kill(self._actor)


_line: _Line | None = None


def connect_there(settings: RaySettings) -> None:
    """Have an actor in the cluster that answers.

    Raises:
        ConnectionError, TimeoutError: the cluster does not answer, or has no room.
    """
    global _line
    line, _line = _line, None
    _line = line if line is not None and line.is_there() else _Line(settings)


def call_there(settings: RaySettings, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a function in the cluster; connect to it first if that was not done.

    Raises:
        ConnectionError, TimeoutError: the cluster does not answer, or has no room.
        RuntimeError: the actor died.
        Exception: whatever the function raised.
    """
    global _line
    line, _line = _line, None  # after an error the next call has another actor
    if line is None:
        line = _Line(settings)
    outcome = line.exchange((function, args, kwargs))
    for name, level, text in outcome["logged"]:
        logging.getLogger(name).log(level, "%s", text)
    if "result" not in outcome:
        line.close()
        raise outcome["error"] from RemoteTracebackError(outcome["traceback"])
    _line = line
    return outcome["result"]
