"""The process of refreshes is killed at any moment: the agent goes on, and the next refresh has another process.

A few seeded moments; `--fault-cases 60` tries as many.
"""

import logging
import os
import signal
import threading
import time

import numpy as np
import torch
from elsewhere import alive, wait_until
from toys import SPEC, TINY, equal, gaussian

from synther_buffers import SyntheticReplay

ROWS = gaussian(1_000)


def observe(buffer, total):
    buffer.observe_total(total)
    return buffer.refresh(ROWS[torch.arange(total)]) if buffer.refresh_due else None


def test_a_kill_at_any_moment(fault_case, caplog):
    caplog.set_level(logging.WARNING)
    generator = np.random.default_rng([fault_case, *b"kill"])
    buffer = SyntheticReplay(
        SPEC, upsampler=TINY, retrain_every=100, num_synthetic=300, seed=0, progress_bar=False, refresh_on="process"
    )
    served = int(generator.integers(0, 2))
    for total in (100, 150)[: 2 * served]:
        observe(buffer, total)
    rows, start = buffer.rows, 100 + 100 * served
    began = time.perf_counter()
    if served:
        # How long one takes in a process that runs already; the first one has to start it.
        observe(buffer, start)
        wait_until(buffer._pending.future.done)
        took = time.perf_counter() - began
        observe(buffer, start + 50)
        start, rows, served = start + 100, buffer.rows, 2
    else:
        took = 5.0
    caplog.clear()
    observe(buffer, start)
    wait_until(lambda: buffer._executor.pid is not None)
    victim = buffer._executor.pid
    threading.Timer(took * generator.uniform(0.0, 1.2), os.kill, (victim, signal.SIGKILL)).start()
    report = observe(buffer, start + 50)
    failures = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    if report is None:
        assert len(failures) == 1
        assert "died with exit code -9" in failures[0]
        assert buffer.rows is rows
    else:  # it was faster than the kill
        assert failures == []
        served += 1
    wait_until(lambda: buffer._executor.pid != victim and not alive(victim))
    assert observe(buffer, start + 100) is None
    assert observe(buffer, start + 150).refresh == served + 1
    assert len(buffer.rows) == 300
    assert not equal(buffer.rows, rows) if rows is not None else True
