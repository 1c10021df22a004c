"""A forked copy of the agent has a refresh process of its own, and a buffer that is dropped takes its process along."""

import gc
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from elsewhere import Slow, alive, wait_until
from toys import SPEC, gaussian

from synther_buffers import RefreshProcess, SyntheticReplay

TESTS = Path(__file__).parents[1]
HEAD = """
    import gc, os, signal, sys, time
    from pathlib import Path
    from elsewhere import Slow
    from toys import SPEC, gaussian
    from synther_buffers import RefreshProcess, SyntheticReplay

    def observe(buffer, total):
        buffer.observe_total(total)
        return buffer.refresh(gaussian(total)) if buffer.refresh_due else None

    def replay(**options):
        buffer = SyntheticReplay(
            SPEC, upsampler=Slow, retrain_every=200, num_synthetic=300, seed=0, progress_bar=False,
            refresh_on=RefreshProcess(), **options,
        )
        observe(buffer, 200)
        time.sleep(0.5)
        return buffer

    def fork():
        pid = os.fork()
        signal.alarm(45)
        return pid
"""


def lines_of(body, tmp_path):
    """What a program prints that forks: the frameworks' threads make it one warning, which here is an error."""
    program = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HEAD) + textwrap.dedent(body)],
        env={**os.environ, "PYTHONPATH": str(TESTS), "GO_ON": str(tmp_path / "go on")},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert program.returncode == 0, program.stderr[-3_000:]
    return sorted(program.stdout.splitlines())


def test_a_forked_copy_has_a_process_of_its_own(tmp_path):
    body = """
        executor = RefreshProcess()
        executor.submit(abs, -1).result()
        shared = executor.pid
        pid = fork()
        name = "parent" if pid else "child"
        right = all(executor.submit((name + "{}").format, i).result(30) == f"{name}{i}" for i in range(20))
        print(name, right, executor.pid == shared, flush=True)
        if pid:
            _, status = os.waitpid(pid, 0)
            sys.exit(status)
    """
    assert lines_of(body, tmp_path) == ["child True False", "parent True True"]


def test_a_refresh_that_is_pending_at_a_fork_serves_in_both(tmp_path):
    body = """
        buffer = replay()
        pid = fork()
        name = "parent" if pid else "child"
        Path(os.environ["GO_ON"]).touch()
        report = observe(buffer, 300)
        print(name, report.num_observed, float(buffer.rows.observation.sum()), flush=True)
        if pid:
            _, status = os.waitpid(pid, 0)
            sys.exit(status)
    """
    child, parent = lines_of(body, tmp_path)
    assert child.startswith("child 200 ")
    assert child.split()[1:] == parent.split()[1:]


def test_a_refresh_that_is_pending_at_a_fork_is_not_taken_for_one_that_is_ready(tmp_path):
    body = """
        buffer = replay(refresh_lag="as-ready")
        pid = fork()
        if not pid:
            print("ready at once:", buffer.refresh_due, flush=True)
            Path(os.environ["GO_ON"]).touch()
            while not buffer.refresh_due:
                time.sleep(0.05)
            print("served:", observe(buffer, 300).num_observed, flush=True)
            sys.exit()
        _, status = os.waitpid(pid, 0)
        sys.exit(status)
    """
    assert lines_of(body, tmp_path) == ["ready at once: False", "served: 200"]


def test_a_forked_copy_that_ends_leaves_the_parents_refresh_alone(tmp_path):
    body = """
        buffer = replay()
        pid = fork()
        if not pid:
            del buffer
            gc.collect()
            print("child", flush=True)
            sys.exit()
        _, status = os.waitpid(pid, 0)
        Path(os.environ["GO_ON"]).touch()
        print("parent", observe(buffer, 300).num_observed, flush=True)
        sys.exit(status)
    """
    assert lines_of(body, tmp_path) == ["child", "parent 200"]


def test_a_buffer_that_is_dropped_in_mid_refresh_takes_its_process_along(tmp_path, monkeypatch):
    monkeypatch.setenv("GO_ON", str(tmp_path / "go on"))
    buffer = SyntheticReplay(
        SPEC, upsampler=Slow, retrain_every=200, num_synthetic=300, progress_bar=False, refresh_on="process"
    )
    gc.collect()
    gc.disable()
    try:
        buffer.observe_total(200)
        assert buffer.refresh_due
        buffer.refresh(gaussian(200))
        while (pid := buffer._executor.pid) is None:
            time.sleep(0.02)
        del buffer
        wait_until(lambda: not alive(pid), 10)
    finally:
        gc.enable()


def test_an_executor_that_is_dropped_answers_whoever_waits():
    future = RefreshProcess().submit(abs, -3)
    gc.collect()
    assert future.result(60) == 3
