"""Whatever an upsampler does in a refresh: no real row changes, the last good set serves, and learning goes on.

Some hundred seeded cases; `--fault-cases 1000` runs as many.
"""

import contextlib
import logging
import sys

import numpy as np
import pytest
import torch
from conformance_sb3 import SB3
from conformance_tianshou import Tianshou, TianshouPrioritized
from conformance_torchrl import TorchRL
from gymnasium import spaces
from refresh_faults import Core, Factory, draw
from toys import equal

DEFAULT_CASES = {"test_refreshes_that_go_wrong": 250, "test_an_interrupt_anywhere": 100}
OBSERVATION, ACTION = spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Box(-1.0, 1.0, (1,), np.float32)
#: Where a refresh happens, and how often: the core is fast, and the adapters differ in what they do with a new set.
PLACES = [(Core(), 0.4), (SB3(), 0.3), (Tianshou(), 0.1), (TianshouPrioritized(), 0.05), (TorchRL(), 0.15)]
EVERY = 20


class Run:
    """A buffer with its plain twin, filled in step."""

    def __init__(self, adapter, folder):
        self.adapter, self.factory, self.step = adapter, Factory(), 0
        self.buffer = adapter.make(
            150, OBSERVATION, ACTION, upsampler=self.factory, retrain_every=EVERY, start_after=110, num_synthetic=60,
            progress_bar=False, refresh_log=folder / "log.jsonl",
        )  # fmt: skip
        self.plain = adapter.make_plain(150, OBSERVATION, ACTION)
        self.replay = adapter.synthetic(self.buffer)

    def add(self, count):
        for _ in range(count):
            step, self.step = self.step, self.step + 1
            rows = {
                "observation": np.array([[step, -step]], np.float32),
                "action": np.cos([[step]], dtype=np.float32),
                "reward": np.ones(1, np.float32),
                "next_observation": np.array([[step + 1, -step - 1]], np.float32),
                "terminated": np.array([step % 50 == 49]),
                "truncated": np.array([step % 50 == 24]),
            }
            for buffer in (self.buffer, self.plain):
                self.adapter.add(buffer, rows)

    def check(self, served):
        """The real rows are the plain buffer's; a batch has half its rows from the set of this refresh."""
        batch = self.adapter.sample(self.buffer, 32)
        real, plain = self.adapter.stored(self.buffer), self.adapter.stored(self.plain)
        for name in real:
            np.testing.assert_array_equal(real[name], plain[name], err_msg=name)
        synthetic = batch["reward"] < 0
        assert set(batch["reward"][synthetic]) == ({-float(served)} if served else set())
        assert synthetic.sum() == (16 if served else 0)
        np.testing.assert_array_equal(batch["next_observation"], batch["observation"] + [1.0, -1.0])
        if served:
            assert self.replay.rows.flat().keys() == self.factory.drawn[served].flat().keys()
            assert equal(self.replay.rows, self.factory.drawn[served])
            assert not any(tensor.requires_grad or tensor.is_inference() for tensor in self.replay.rows.flat().values())


#: Said of a refresh that goes well, and rightly so: there are few gradient steps here, and the rows are copies.
OF_OTHER_MATTERS = ("The algorithm takes about", "The model copies", "The synthetic rows are far from the real ones")


def warnings(log):
    """What was said of refreshes that went wrong."""
    said = [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]
    return [message for message in said if not message.startswith(OF_OTHER_MATTERS)]


def begin(generator, folder):
    """A buffer of any kind after up to two refreshes that went well, and their number; the next one is a row away."""
    adapter = PLACES[generator.choice(len(PLACES), p=[share for _, share in PLACES])][0]
    run = Run(adapter, folder)
    served = int(generator.integers(0, 3))
    run.add(109)
    for refresh in range(served):
        run.add(1)
        run.check(served=refresh + 1)
        run.add(EVERY - 1)
    return run, served


def test_refreshes_that_go_wrong(tmp_path, fault_case, log):
    generator = np.random.default_rng([fault_case, *b"refresh"])
    run, served = begin(generator, tmp_path)
    adapter = run.adapter
    fault = draw(generator)
    while fault.point == "load_state_dict" and served == 0:  # there is no state yet
        fault = draw(generator)
    for attempt in range(int(generator.integers(1, 3))):
        run.add(EVERY if attempt else 1)
        model = run.factory.state
        log.clear()
        run.factory.fault = fault
        if fault.interrupts:
            with pytest.raises(type(fault.error)):
                adapter.sample(run.buffer, 32)
            assert run.replay.refresh_due
            assert warnings(log) == []
            assert run.replay.num_refreshes == served
            run.factory.fault = None
            served += 1
            run.check(served)  # the next batch makes up for it
            assert run.replay.reports[-1].num_observed == run.step
            continue
        if fault.said:
            run.check(served)
            (said,) = warnings(log)
            stays = "the last synthetic set stays in service" if served else "batches stay all real"
            assert f"Synthetic refresh at {run.step} real transitions failed; {stays}. Learning goes on" in said
            assert fault.said in said
            assert not run.replay.refresh_due
        else:
            adapter.sample(run.buffer, 32)
            served += 1
            run.factory.write()
            run.check(served)
            assert all("cannot be written" in said and fault.point == "config" for said in warnings(log)), warnings(log)
        assert run.replay.num_refreshes == served
        run.factory.fault = None
        run.factory.state = model if fault.said else run.factory.state
    # The model goes on from the last good one, and the next refresh is on schedule.
    log.clear()
    run.add(EVERY - 1)
    assert not run.replay.refresh_due
    run.add(1)
    run.check(served + 1)
    assert run.replay.num_refreshes == served + 1
    assert torch.equal(run.replay.upsampler.weights, torch.full((3,), served + 1.0))
    assert warnings(log) == []


class Interrupt:
    """Ctrl-C before a line of the library: the one of this number among those that run inside the block."""

    def __init__(self, number):
        self.number, self.count = number, 0

    def __enter__(self):
        sys.settrace(self._called)
        return self

    def __exit__(self, *exception):
        sys.settrace(None)

    def _called(self, frame, event, argument):
        return self._line if "/synther_buffers/" in frame.f_code.co_filename else None

    def _line(self, frame, event, argument):
        if event == "line":
            self.count += 1
            if self.count == self.number:
                raise KeyboardInterrupt
        return self._line


def test_an_interrupt_anywhere(tmp_path, fault_case, log):
    """Not only where the upsampler runs: also while the rows are read, or the new set is put into service."""
    generator = np.random.default_rng([fault_case, *b"anywhere"])
    run, served = begin(generator, tmp_path)
    run.add(1)
    twin = Run(run.adapter, tmp_path / "twin")
    twin.add(110)
    with Interrupt(None) as lines:
        twin.adapter.sample(twin.buffer, 32)
    log.clear()
    with contextlib.suppress(KeyboardInterrupt), Interrupt(int(generator.integers(1, lines.count + 1))) as there:
        run.adapter.sample(run.buffer, 32)
    assert warnings(log) == []
    # Where the new set was in service before the interrupt, it may be made once more.
    run.adapter.sample(run.buffer, 32)
    assert not run.replay.refresh_due
    made = run.replay.upsampler.num_fits
    assert made in (served + 1, served + 2), there.count
    assert run.replay.num_refreshes in (made, made - 1)
    run.check(made)
    run.add(EVERY)
    run.check(made + 1)
    assert warnings(log) == []
