"""Refreshes on a Ray cluster: the same rows, and an agent that goes on whatever happens there."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from elsewhere import Dies, DiesInSample, DiesInState, Warns, alive, wait_until
from ray_helpers import Cluster
from toys import SPEC, TINY, Resampler, equal, gaussian

from synther_buffers import RayExecutor, SyntheticReplay

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TESTS = Path(__file__).parents[1]
ROWS = gaussian(1_000)


def replay(executor, upsampler=Resampler, **options):
    defaults = {"retrain_every": 200, "num_synthetic": 300, "seed": 0, "progress_bar": False, "refresh_lag": 0}
    return SyntheticReplay(SPEC, upsampler=upsampler, **{**defaults, "refresh_on": executor, **options})


def observe(buffer, total):
    buffer.observe_total(total)
    return buffer.refresh(ROWS[torch.arange(total)]) if buffer.refresh_due else None


class FillsTheMemory(Resampler):
    def fit(self, transitions, *, held_out=None):
        bytearray(2**60)


def test_the_rows_are_those_of_a_refresh_here(cluster):
    here = replay("here", TINY, refresh_lag=None)
    there = replay(RayExecutor(address=cluster.address), TINY, refresh_lag=100)
    for total in (200, 400, 600):
        assert observe(here, total).refresh == total // 200
        assert observe(there, total) is None
        assert observe(there, total + 100).num_observed == total
        assert equal(there.rows, here.rows)


@pytest.mark.parametrize("upsampler", [Dies, DiesInSample, DiesInState])
def test_a_killed_actor_is_one_failed_refresh(cluster, upsampler, caplog):
    buffer = replay(RayExecutor(address=cluster.address), upsampler)
    assert observe(buffer, 200).refresh == 1
    rows = buffer.rows
    assert observe(buffer, 400) is None
    assert buffer.rows is rows
    (failure,) = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert "the Ray actor of the refreshes is lost" in failure
    assert observe(buffer, 600) is None  # it dies again, in another actor
    pid = buffer._executor.pid
    assert pid is not None


def test_errors_and_warnings_come_back(cluster, caplog):
    executor = RayExecutor(address=cluster.address)
    assert observe(replay(executor, Warns), 200) is not None
    assert "rows are few" in caplog.text
    assert observe(replay(executor, FillsTheMemory), 200) is None
    assert "MemoryError" in caplog.text
    assert "in fit" in caplog.text, "the traceback of the actor"
    assert executor.submit(abs, -3).result() == 3


def test_an_address_that_nobody_answers(caplog):
    buffer = replay(RayExecutor(address="127.0.0.1:9"))
    start = time.monotonic()
    assert observe(buffer, 200) is None
    assert time.monotonic() - start < 60
    assert "no Ray cluster answers at '127.0.0.1:9'" in caplog.text
    assert "batches stay all real. Learning goes on" in caplog.text
    assert observe(buffer, 400) is None


def test_a_cluster_that_ends_is_a_failed_refresh(caplog):
    served = Cluster(1)
    buffer = replay(RayExecutor(address=served.address, timeout=90))
    assert observe(buffer, 200).refresh == 1
    rows = buffer.rows
    served.stop()
    assert observe(buffer, 400) is None
    assert observe(buffer, 600) is None
    assert buffer.rows is rows
    assert len([record for record in caplog.records if "failed" in record.getMessage()]) == 2


def test_a_call_that_takes_too_long(cluster):
    executor = RayExecutor(address=cluster.address, timeout=30)
    assert executor.submit(abs, -1).result() == 1
    executor.timeout = 2
    with pytest.raises(TimeoutError, match="longer than timeout=2 seconds"):
        executor.submit(time.sleep, 60).result()
    executor.timeout = None
    assert executor.submit(abs, -2).result() == 2


def test_the_time_limit_does_not_count_the_connection(cluster, tmp_path, monkeypatch):
    """Connecting alone takes longer than the limit here."""
    slow = """
        from synther_buffers import ray_cluster
        connect = ray_cluster.connect

        def slowly(address):
            import time
            time.sleep(4)
            return connect(address)

        ray_cluster.connect = slowly
    """
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(slow))
    monkeypatch.syspath_prepend(tmp_path)
    executor = RayExecutor(address=cluster.address, timeout=3)
    assert executor.submit(abs, -1).result() == 1
    with pytest.raises(TimeoutError, match="longer than timeout=3 seconds"):
        executor.submit(time.sleep, 60).result()


def test_auto_where_no_cluster_answers(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    start = time.monotonic()
    executor = RayExecutor(address="auto")
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at '127.0.0.1:9', which is 'auto' here"):
        executor.submit(abs, -1).result(60)
    assert time.monotonic() - start < 60


def test_no_room_in_the_cluster(cluster):
    script = f"""
        from synther_buffers.replay import ray_driver
        ray_driver._ROOM_WITHIN = 3.0
        try:
            ray_driver.call_there(ray_driver.RaySettings({cluster.address!r}, 1, 8, {{}}), abs, (-1,), {{}})
        except TimeoutError as error:
            print(error)
    """
    told = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    ).stdout
    assert "had no room for an actor with {'num_cpus': 1, 'num_gpus': 8} within 3 s; it has {" in told


def test_saved_in_mid_flight_it_ends_as_if_nothing_had_happened(cluster):
    # Three actors at a time, and two CPUs.
    whole, saved = (replay(RayExecutor(address=cluster.address, num_cpus=0.5), TINY, refresh_lag=100) for _ in range(2))
    for buffer in (whole, saved):
        observe(buffer, 200)
    loaded = pickle.loads(pickle.dumps(saved))
    assert repr(loaded.options.refresh_on) == repr(saved.options.refresh_on)
    assert observe(whole, 300).num_observed == observe(loaded, 300).num_observed == 200
    assert equal(whole.rows, loaded.rows)


def test_an_unguarded_script_with_a_cluster_of_its_own_leaves_nothing_behind(tmp_path):
    (tmp_path / "agent.py").write_text(
        textwrap.dedent(
            """
            import os, sys, time
            import torch
            from toys import SPEC, Resampler, gaussian
            from synther_buffers import RayExecutor, SyntheticReplay

            class Mine(Resampler):
                pass

            buffer = SyntheticReplay(
                SPEC, upsampler=Mine, retrain_every=200, num_synthetic=300, seed=0, progress_bar=False,
                refresh_on=RayExecutor(), refresh_lag=0,
            )
            buffer.observe_total(200)
            print(buffer.refresh(gaussian(200)).num_real, flush=True)
            import psutil
            for process in psutil.Process().children(recursive=True):
                print(process.pid, flush=True)
            print("end", flush=True)
            time.sleep(60)
            """
        )
    )
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    agent = subprocess.Popen(
        [sys.executable, str(tmp_path / "agent.py")], stdout=subprocess.PIPE, text=True, env=environment
    )
    with agent:
        assert int(agent.stdout.readline()) > 100
        pids = [int(line) for line in iter(agent.stdout.readline, "end\n")]
        assert len(pids) > 3
        agent.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in pids), 60)
