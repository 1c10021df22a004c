"""Work that is the same every time, as one CUDA graph: a launch instead of one for each of its kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)

#: Times that the work runs one kernel at a time before it is recorded: CUDA's libraries set themselves up meanwhile.
_RUNS_BEFORE = 3
#: Where recordings are made, by device: PyTorch's own such stream belongs to whoever else records in this process.
_streams: dict[torch.device, torch.cuda.Stream] = {}
#: Devices on which a recording failed once; the next would fail likewise.
_refusing: set[torch.device] = set()


class Recorded:
    """Calls a function, which CUDA replays as a graph from the fourth call on.

    Where CUDA cannot record it, a warning says so, once, and it goes on kernel by kernel.

    Args:
        device: where the function runs.
        name: of what it does, for the warning.
        generator: the one source of its randomness, if it has any.

    Attributes:
        graph: once there is one.
    """

    def __init__(self, device: torch.device, name: str, generator: torch.Generator | None = None) -> None:
        self.device, self.name, self.generator = device, name, generator
        self.graph: torch.cuda.CUDAGraph | None = None
        self._runs_left = _RUNS_BEFORE if device.type == "cuda" else -1

    def __call__(self, function: Callable[[], None]) -> None:
        """Do the work once.

        Args:
            function: the same at every call; it reads and writes the same memory and never waits for the device. It is
                not kept: a method would keep its object, and all buffers, alive until the next garbage collection.
        """
        if self._runs_left == 0 and self.device not in _refusing:
            with torch.cuda.device(self.device):
                self._record(function)
        self._runs_left -= 1
        if self.graph is not None:
            self.graph.replay()
        else:
            function()

    def _record(self, function: Callable[[], None]) -> None:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        if self.device not in _streams:
            _streams[self.device] = torch.cuda.Stream()
        generators = [torch.cuda.default_generators[torch.cuda.current_device()]]
        if self.generator is not None:
            generators.append(self.generator)
        states = [generator.clone_state() for generator in generators]
        try:
            if self.generator is not None:
                graph.register_generator_state(self.generator)
            # What other threads do on the device meanwhile does no harm here, nor this to them.
            with torch.cuda.graph(graph, stream=_streams[self.device], capture_error_mode="thread_local"):
                function()
        except RuntimeError as error:
            # A recording that fails leaves its stream the current one, and generators that take part in none.
            torch.cuda.set_stream(stream)
            for generator, state in zip(generators, states, strict=True):
                generator.graphsafe_set_state(state)
            _refusing.add(self.device)
            logger.warning("CUDA cannot record the %s as a graph (%s); it runs kernel by kernel.", self.name, error)
            return
        self.graph = graph
