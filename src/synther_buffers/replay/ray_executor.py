"""An executor whose calls run on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from ..public_paths import public
from ..ray_cluster import LOCAL, require_ray
from .ray_driver import RaySettings, call_there, connect_there
from .refresh_process import RefreshProcess


@public
class RayExecutor(RefreshProcess):
    """Runs one call after the other in an actor of a Ray cluster: ``refresh_on=RayExecutor(...)``.

    A process of its own is connected to the cluster, so that the agent goes on whatever happens there. The actor keeps
    the last rows and the last model: only what is new travels. Every machine of the cluster that may run it needs this
    library, in the same version, and the module of an upsampler of your own. Leave `upsampler_device` at ``auto``: it
    is resolved where the actor runs.

    Args:
        num_gpus: of the actor, as Ray counts them; 0.5 shares one with another actor.
        num_cpus: of the actor.
        address: ``host:port`` of the cluster's head, ``auto`` for the cluster that this machine is a part of, ``local``
            to start one here that ends with the agent.
        num_threads: that PyTorch computes with there; None for as many as here.
        timeout: seconds for one call, None for no limit. Connecting to the cluster and waiting for room there do not
            count.
        actor_options: passed to Ray as they are, for example ``{"resources": {"fast": 1}, "runtime_env": {...}}``.

    Raises:
        ImportError: Ray is not installed.
        ValueError, TypeError: a number that is negative or none, or an address that is no text.
    """

    def __init__(
        self,
        *,
        num_gpus: float = 0,
        num_cpus: float = 1,
        address: str = LOCAL,
        num_threads: int | None = None,
        timeout: float | None = None,
        actor_options: Mapping[str, Any] | None = None,
    ) -> None:
        require_ray()
        for name, value in (("num_gpus", num_gpus), ("num_cpus", num_cpus)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} is {value!r}; wanted a number.")
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; wanted 0 or more.")
        if not isinstance(address, str):
            raise TypeError(f"address is {address!r}; wanted 'host:port', 'auto' or 'local'.")
        if actor_options is not None and not isinstance(actor_options, Mapping):
            raise TypeError(f"actor_options is {actor_options!r}; wanted names and values.")
        self._settings = RaySettings(address, num_cpus, num_gpus, dict(actor_options or {}))
        super().__init__(num_threads=num_threads, timeout=timeout)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a function there.

        Raises:
            Exception: the function or its arguments cannot be pickled.
        """
        return super().submit(call_there, self._settings, fn, args, kwargs)

    def _preparation(self) -> tuple[Any, ...]:
        return connect_there, (self._settings,), {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "settings": self._settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._settings = state["settings"]
        super().__setstate__(state)

    def __repr__(self) -> str:
        settings = self._settings
        return (
            f"RayExecutor(num_gpus={settings.num_gpus}, num_cpus={settings.num_cpus}, address={settings.address!r}, "
            f"num_threads={self.num_threads}, timeout={self.timeout})"
        )
