"""The actor of refreshes on Ray, or the process that is connected to it, is killed at any moment: the agent goes on.

A few seeded moments; `--fault-cases 60` tries as many.
"""

import logging
import os
import signal
import time

import numpy as np
import pytest
import torch
from elsewhere import alive, wait_until
from toys import SPEC, TINY, gaussian

from synther_buffers import RayExecutor, SyntheticReplay

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROWS = gaussian(1_000)


def observe(buffer, total):
    buffer.observe_total(total)
    return buffer.refresh(ROWS[torch.arange(total)]) if buffer.refresh_due else None


def test_a_kill_at_any_moment(cluster, fault_case, caplog):
    caplog.set_level(logging.WARNING)
    # Ended by name: the traceback in a record that the test keeps refers to the buffer, and an actor that outlives its
    # test has a CPU of the two.
    with RayExecutor(address=cluster.address) as executor:
        kill_once(executor, fault_case, caplog)


def kill_once(executor, fault_case, caplog):
    buffer = SyntheticReplay(
        SPEC, upsampler=TINY, retrain_every=200, num_synthetic=300, seed=0, progress_bar=False, refresh_on=executor
    )
    generator = np.random.default_rng([fault_case, *b"ray"])
    observe(buffer, 200)
    assert observe(buffer, 300).refresh == 1
    rows = buffer.rows
    victim = executor.pid if fault_case % 2 else executor.submit(os.getpid).result()
    observe(buffer, 400)
    time.sleep(generator.uniform(0.0, 0.5))
    os.kill(victim, signal.SIGKILL)
    report = observe(buffer, 500)
    failures = [record for record in caplog.records if "failed" in record.getMessage()]
    assert len(failures) == (report is None)
    assert (buffer.rows is rows) == (report is None)
    wait_until(lambda: executor.pid != victim and not alive(victim))
    for total in range(600, 1_001, 100):
        observe(buffer, total)
    assert [report.num_observed for report in buffer.reports][-2:] == [600, 800]
