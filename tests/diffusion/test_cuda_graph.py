"""Work as a CUDA graph, and directly where that cannot be."""

import logging

import pytest
import torch

from synther_buffers.diffusion.cuda_graph import CudaGraph, eager


def test_off_cuda_the_work_is_done_at_every_call() -> None:
    calls: list[int] = []
    work = CudaGraph(torch.device("cpu"), "counting")
    for _ in range(6):
        work(lambda: calls.append(1))
    with eager():
        work(lambda: calls.append(1))
    assert len(calls) == 7
    assert work.graph is None


def count_to_six(device: torch.device) -> tuple[CudaGraph, float]:
    count = torch.zeros((), device=device)
    work = CudaGraph(device, "counting")
    for _ in range(6):
        work(lambda: count.add_(1.0))
    return work, count.item()


@pytest.mark.cuda
class TestOnCuda:
    @pytest.mark.parametrize("index", range(torch.cuda.device_count()))
    def test_it_is_captured_on_its_own_device(self, index: int) -> None:
        with torch.cuda.device(0):
            work, count = count_to_six(torch.device("cuda", index))
        assert work.graph is not None
        assert count == 6.0

    def test_eager_inside_and_graphs_again_afterwards(self) -> None:
        device = torch.device("cuda")
        with eager():
            work, count = count_to_six(device)
        assert work.graph is None
        assert count == 6.0
        work, count = count_to_six(device)
        assert work.graph is not None
        assert count == 6.0

    def test_inside_eager_a_graph_that_is_there_is_not_replayed(self) -> None:
        work, _ = count_to_six(torch.device("cuda"))
        calls: list[int] = []
        with eager():
            work(lambda: calls.append(1))
        assert calls == [1]

    @pytest.mark.parametrize("waits_for_the_device", [True, False])
    def test_work_that_cannot_be_captured_is_done_all_the_same(
        self, waits_for_the_device: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A copy to the host invalidates a capture; an error of Python's ends it in good order."""
        device = torch.device("cuda", torch.cuda.current_device())
        generator, stream = torch.Generator(device).manual_seed(0), torch.cuda.current_stream()
        default = torch.cuda.default_generators[torch.cuda.current_device()]
        total = torch.zeros((), device=device)

        def work() -> None:
            drawn = torch.rand((), generator=generator, device=device)
            if waits_for_the_device:
                drawn = torch.tensor(drawn.item(), device=device)
            elif torch.cuda.is_current_stream_capturing():
                raise ValueError("not while capturing")
            total.add_(drawn)

        drawing, before = CudaGraph(device, "drawing", (generator,)), default.get_state()
        with caplog.at_level(logging.WARNING):
            for _ in range(6):
                drawing(work)
        assert drawing.graph is None
        assert [record.message.split(" as a graph")[0] for record in caplog.records] == [
            "CUDA cannot capture the drawing"
        ]
        # The numbers are those of six calls, none of which was lost or drawn twice.
        again = torch.Generator(device).manual_seed(0)
        wanted = torch.stack([torch.rand((), generator=again, device=device) for _ in range(6)]).sum()
        torch.testing.assert_close(total, wanted)
        assert torch.equal(generator.get_state(), again.get_state())
        assert torch.equal(default.get_state(), before)
        assert torch.cuda.current_stream() == stream
        # Other work, and other graphs, go on as before.
        torch.rand(3, device=device)
        assert count_to_six(device)[0].graph is not None

    def test_a_capture_that_failed_keeps_no_memory(self) -> None:
        device = torch.device("cuda", torch.cuda.current_device())

        def work() -> None:
            torch.zeros(64 * 2**20, device=device).sum().item()

        graph = CudaGraph(device, "summing")
        for _ in range(6):
            graph(work)
        del graph
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(device)
        graph = CudaGraph(device, "summing")
        for _ in range(6):
            graph(work)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        assert torch.cuda.memory_reserved(device) < before + 64 * 2**20
