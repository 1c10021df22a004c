"""Replaying a function as a CUDA graph: one launch instead of one for each kernel."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch

logger = logging.getLogger(__name__)

#: Calls that run directly before the capture, in which CUDA's libraries initialise.
_WARM_UP_CALLS = 3
#: PyTorch 2.14 registers a generator with a graph when the capture first uses it; doing it explicitly is deprecated.
_REGISTERS_GENERATORS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 14)

_eager: ContextVar[bool] = ContextVar("synther_buffers_eager", default=False)
#: The side stream of each device, on which work warms up and is captured. One stream for all graphs, because CUDA's
#: libraries keep a workspace for each stream; one user at a time, because a capture records all work of its stream.
_streams: dict[torch.device, torch.cuda.Stream] = {}
_stream_lock = threading.Lock()
#: Captures that CUDA invalidated. PyTorch's allocator may still refer to them, so they are never freed.
_failed: list[torch.cuda.CUDAGraph] = []


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Inside this context, every `CudaGraph` of the thread calls its function directly, kernel by kernel."""
    token = _eager.set(True)
    try:
        yield
    finally:
        _eager.reset(token)


class CudaGraph:
    """Calls a function, on CUDA three times directly and from the fourth time on as a replayed graph.

    If CUDA cannot capture the function, a warning says so, and further calls are direct.

    Args:
        device: where the function runs; on devices other than CUDA it is called directly.
        name: what the function does, for the warning.
        generators: on `device`, from which the function draws.

    Attributes:
        graph: None before the capture.
    """

    def __init__(self, device: torch.device, name: str, generators: tuple[torch.Generator, ...] = ()) -> None:
        self.device, self.name, self.generators = device, name, generators
        self.graph: torch.cuda.CUDAGraph | None = None
        self._warm_up_calls = _WARM_UP_CALLS
        self._captures = device.type == "cuda"

    def __call__(self, function: Callable[[], None]) -> None:
        """Call the function once, or replay its graph.

        Args:
            function: the same at every call. It reads and writes the same memory each time and never waits for the
                device. It is not kept: a bound method would keep its object, and all its memory, alive until the next
                garbage collection.
        """
        if not self._captures or _eager.get():
            function()
            return
        with torch.cuda.device(self.device):
            if self.graph is None and self._warm_up_calls > 0:
                self._warm_up_calls -= 1
                self._on_side_stream(function)
                return
            if self.graph is None:
                self._capture(function)
            if self.graph is not None:
                self.graph.replay()
                return
        function()

    def _on_side_stream(self, function: Callable[[], None]) -> None:
        """Call the function on the stream of the capture, in order with the work before and after it."""
        current = torch.cuda.current_stream()
        with _stream_lock:
            side = self._side_stream()
            side.wait_stream(current)
            try:
                with torch.cuda.stream(side):
                    function()
            finally:
                current.wait_stream(side)

    def _capture(self, function: Callable[[], None]) -> None:
        stream, pool, graph = torch.cuda.current_stream(), torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
        # The default generator takes part in every capture, whether it is used or not.
        generators = (torch.cuda.default_generators[torch.cuda.current_device()], *self.generators)
        states = [generator.clone_state() for generator in generators]
        try:
            if not _REGISTERS_GENERATORS:
                for generator in self.generators:
                    graph.register_generator_state(generator)
            # thread_local: work of other threads on the device does not invalidate the capture.
            with (
                _stream_lock,
                torch.cuda.graph(graph, pool=pool, stream=self._side_stream(), capture_error_mode="thread_local"),
            ):
                function()
        except Exception as error:  # what CUDA refuses to capture, for whatever reason, runs without a graph
            # A failed capture may leave its stream current and its generators in the state of a capture.
            torch.cuda.set_stream(stream)
            _release(graph, pool)
            for generator, state in zip(generators, states, strict=True):
                generator.graphsafe_set_state(state)
            self._captures = False
            logger.warning("CUDA cannot capture the %s as a graph (%s); it runs kernel by kernel.", self.name, error)
            return
        self.graph = graph

    def _side_stream(self) -> torch.cuda.Stream:
        device = torch.device("cuda", torch.cuda.current_device())
        if device not in _streams:
            _streams[device] = torch.cuda.Stream()
        return _streams[device]


def _release(graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
    """Give back the memory pool of a capture that failed.

    PyTorch's allocator is not notified of the end of a capture that CUDA itself invalidated. Until the end of the
    process it would treat the capture as active and postpone the reuse of memory that several streams share.
    """
    try:
        graph.pool()
    except RuntimeError:  # the capture was not ended
        _failed.append(graph)
        device = torch.cuda.current_device()
        for give_back in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            with contextlib.suppress(RuntimeError, AttributeError):
                getattr(torch._C, give_back)(device, pool)
    graph.reset()
