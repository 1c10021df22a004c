"""Recording work as a CUDA graph, and doing it where that cannot be."""

import logging

import pytest
import torch

from synther_buffers.diffusion import graphs
from synther_buffers.diffusion.graphs import Recorded

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def test_off_cuda_the_work_is_done_at_every_call() -> None:
    calls: list[int] = []
    work = Recorded(torch.device("cpu"), "counting")
    for _ in range(6):
        work(lambda: calls.append(1))
    assert len(calls) == 6
    assert work.graph is None


@needs_cuda
@pytest.mark.parametrize("index", range(torch.cuda.device_count()))
def test_it_is_recorded_on_its_own_device(index: int) -> None:
    device = torch.device("cuda", index)
    count = torch.zeros((), device=device)
    work = Recorded(device, "counting")
    with torch.cuda.device(0):
        for _ in range(6):
            work(lambda: count.add_(1.0))
    assert work.graph is not None
    assert count.item() == 6.0


@needs_cuda
def test_work_that_cannot_be_recorded_is_done_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    device = torch.device("cuda", 0)
    generator, stream = torch.Generator(device).manual_seed(0), torch.cuda.current_stream(device)
    drawn: list[float] = []

    def work() -> None:
        drawn.append(torch.rand((), generator=generator, device=device).item())  # waits for the device

    try:
        with caplog.at_level(logging.WARNING):
            for recorded in (Recorded(device, "drawing", generator), Recorded(device, "drawing again", generator)):
                for _ in range(6):
                    recorded(work)
                assert recorded.graph is None
        assert [record.message.split(" as a graph")[0] for record in caplog.records] == [
            "CUDA cannot record the drawing"
        ]
        assert len(set(drawn)) == 12
        assert torch.cuda.current_stream(device) == stream
        torch.rand(3, device=device)
    finally:
        graphs._refusing.clear()
