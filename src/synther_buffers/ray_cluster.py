"""Connecting to a Ray cluster, or to one that is started on this machine for this process alone."""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
import sys
from typing import Any

#: Seconds until a machine that does not answer is given up.
_PATIENCE = 10.0
#: A cluster that lives on this machine and as long as this process.
LOCAL = "local"


def require_ray() -> None:
    """Check that Ray is installed.

    Raises:
        ImportError: it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise ImportError("Ray is not installed: pip install 'synther-buffers[ray]'.")


def connect(address: str) -> Any:
    """The module `ray`, connected.

    Args:
        address: ``local`` starts a cluster on this machine that ends with this process; ``auto`` is the one that this
            machine is a part of; otherwise ``host:port`` of a cluster's head, or ``ray://host:port`` of its client
            server.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: nobody answers there.
    """
    require_ray()
    ray = importlib.import_module("ray")
    if ray.is_initialized():  # by the caller, who knows where
        return ray
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        # A cluster that nobody else uses reports to nobody.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address=LOCAL, include_dashboard=False, **quiet)
        return ray
    check_answers(address)
    try:
        ray.init(address=address, **quiet)
    except ConnectionError as error:
        reason = error if error.__cause__ is None else error.__cause__  # a missing token, for example
        raise ConnectionError(f"no Ray cluster could be reached at {address!r}: {reason}") from error
    return ray


def check_answers(address: str) -> None:
    """Check that somebody answers at an address of `connect`, unless this process is connected.

    Ray waits for minutes for a machine that is not there, and then ends the process that asked.

    Raises:
        ValueError: it is no address.
        ConnectionError: nobody answers.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return
    found = _found() if address == "auto" else address
    if found == LOCAL:
        return
    host, _, port = found.removeprefix("ray://").rpartition(":")
    called = repr(found) if found == address else f"{found!r}, which is 'auto' here"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (ValueError, OverflowError):
        raise ValueError(
            f"the address of the Ray cluster is {called}; wanted 'host:port', 'auto' or 'local'."
        ) from None
    except OSError as error:
        raise ConnectionError(
            f"no Ray cluster answers at {called} ({error}). `ray start --head --port=6379` starts one there; "
            "address='local' starts one on this machine."
        ) from error


def _found() -> str:
    """The address that `ray.init` takes for ``auto``: of the environment, or of a cluster that runs on this machine.

    Raises:
        ConnectionError: there is none.
    """
    address = os.environ.get("RAY_ADDRESS") or "auto"
    if address != "auto":
        return address
    services = importlib.import_module("ray._private.services")
    try:
        return str(services.canonicalize_bootstrap_address("auto"))
    except ConnectionError:
        raise ConnectionError(
            "this machine is part of no Ray cluster that 'auto' could find. `ray start` makes it one; "
            "address='local' starts a cluster on this machine."
        ) from None
