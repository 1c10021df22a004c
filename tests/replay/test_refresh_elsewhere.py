"""Refreshes beside the agent: the same rows, from a row count that is known before, and whatever happens to them."""

from __future__ import annotations

import copy
import gc
import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from elsewhere import Dies, DiesInSample, DiesInState, Exits, Fails, Pid, Slow, Warns, alive, wait_until
from toys import SPEC, TINY, Resampler, equal, gaussian

from synther_buffers import RefreshProcess, SyntheticReplay

TESTS = Path(__file__).parents[1]
ROWS = gaussian(1_000)


def replay(upsampler=Resampler, **options):
    defaults = {"retrain_every": 200, "num_synthetic": 300, "seed": 0, "progress_bar": False}
    return SyntheticReplay(SPEC, upsampler=upsampler, **{**defaults, "refresh_on": "process", **options})


def observe(buffer, total):
    """What an adapter does when a batch is drawn after `total` writes."""
    buffer.observe_total(total)
    if buffer.refresh_due:
        return buffer.refresh(ROWS[torch.arange(total)])
    return None


@pytest.fixture
def go_on(tmp_path, monkeypatch):
    """The file that `Slow` waits for; processes that start later know of it."""
    monkeypatch.setenv("GO_ON", str(tmp_path / "go on"))
    return tmp_path / "go on"


# -- the same rows, served when they should be -------------------------------------------------------------------------


@pytest.mark.parametrize("upsampler", [Resampler, TINY], ids=["resampler", "diffusion"])
def test_the_rows_are_those_of_a_refresh_here(upsampler):
    here, there = replay(upsampler, refresh_on="here"), replay(upsampler)
    for total in (200, 400):
        assert observe(here, total).refresh == total // 200
        observe(there, total)
        assert observe(there, total + 100).num_observed == total
        assert equal(there.rows, here.rows)


def test_they_serve_from_half_of_the_interval_on():
    buffer = replay()
    assert observe(buffer, 200) is None
    wait_until(buffer._pending.future.done)
    assert observe(buffer, 299) is None
    assert buffer.rows is None
    assert observe(buffer, 300).refresh == 1
    assert len(buffer.rows) == 300
    assert [observe(buffer, total) is None for total in (399, 400, 499, 500)] == [True, True, True, False]
    assert [report.num_observed for report in buffer.reports] == [200, 400]


@pytest.mark.parametrize(("lag", "served"), [(0, [200, 400]), (1, [201, 401]), (200, [400, 600])])
def test_the_lag_can_be_chosen(lag, served):
    buffer = replay(refresh_lag=lag)
    found = [total for total in range(200, 601) if observe(buffer, total) is not None]
    assert found[:2] == served


def test_as_ready_waits_for_nothing(go_on):
    buffer = replay(Slow, refresh_lag="as-ready")
    for total in (200, 400, 600):
        assert observe(buffer, total) is None
        assert buffer.rows is None
    go_on.touch()
    wait_until(lambda: buffer.refresh_due)
    assert observe(buffer, 601).num_observed == 200
    assert buffer._pending is not None, "the one that was missed has started"


def test_a_long_wait_is_said(go_on, caplog, monkeypatch):
    monkeypatch.setattr("synther_buffers.replay.refreshing._WORTH_A_LINE", 0.2)
    caplog.set_level("INFO")
    buffer = replay(Slow)
    observe(buffer, 200)
    threading.Timer(0.5, go_on.touch).start()
    observe(buffer, 300)
    assert "s for this refresh: refresh_lag was 100, and may be up to 200" in caplog.text


def test_at_fraction_0_nothing_starts():
    buffer = replay(synthetic_fraction=0.0)
    assert observe(buffer, 1_000) is None
    assert buffer.__dict__.get("_executor") is None


def test_the_process_is_another_one_and_stays_the_same_and_prints_disturb_nothing():
    buffer = replay(Pid, refresh_lag=0)
    pids = [observe(buffer, total).fit.loss for total in (200, 400)]
    assert pids[0] == pids[1] == buffer._executor.pid != os.getpid()


def test_the_process_has_its_own_number_of_threads():
    buffer = replay(TINY, refresh_on=RefreshProcess(num_threads=2), refresh_lag=0)
    before = torch.get_num_threads()
    buffer.observe_total(200)
    assert buffer.prepare_refresh(ROWS).num_threads == 2
    assert observe(buffer, 200) is not None
    assert torch.get_num_threads() == before


def test_any_executor_works():
    here = replay(refresh_on="here")
    with ThreadPoolExecutor(1) as pool:
        buffer = replay(refresh_on=pool)
        observe(here, 200)
        observe(buffer, 200)
        observe(buffer, 300)
    assert equal(buffer.rows, here.rows)


def test_warnings_of_the_other_process_are_logged_here(caplog):
    buffer = replay(Warns, refresh_lag=0)
    learned = observe(buffer, 200).num_real
    assert [(record.name, record.getMessage()) for record in caplog.records if record.levelname == "WARNING"] == [
        ("synther_buffers.toy", f"{learned} rows are few")
    ]


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upsampler", [Dies, DiesInSample, DiesInState])
def test_a_process_that_dies_costs_one_refresh(upsampler, caplog):
    buffer = replay(upsampler)
    for total in (200, 300):
        observe(buffer, total)
    rows, first = buffer.rows, buffer._executor.pid
    for total in (400, 500):
        assert observe(buffer, total) is None
    assert buffer.rows is rows
    assert "Synthetic refresh at 400 real transitions failed; the last synthetic set stays in service" in caplog.text
    assert "next attempt at 600" in caplog.text
    assert "the refresh process died with exit code -9" in caplog.text
    observe(buffer, 600)  # another process, in which the planted fault comes again
    wait_until(buffer._pending.future.done)
    assert buffer._executor.pid != first
    assert observe(buffer, 700) is None
    assert equal(buffer.rows, rows)


def test_an_exit_there_is_none_here(caplog):
    buffer = replay(Exits)
    for total in (200, 300, 400):
        observe(buffer, total)
    assert observe(buffer, 500) is None
    assert "the refresh was interrupted: SystemExit(3)" in caplog.text
    assert len(buffer.rows) == 300


def test_a_refresh_that_takes_too_long_has_failed(caplog, go_on):
    buffer = replay(Slow, refresh_on=RefreshProcess(timeout=0.5))
    observe(buffer, 200)
    wait_until(lambda: buffer._executor.pid is None or buffer._pending.future.done())
    assert observe(buffer, 300) is None
    assert "took longer than timeout=0.5 seconds" in caplog.text
    go_on.touch()
    buffer.options.refresh_on.timeout = None
    observe(buffer, 400)
    assert observe(buffer, 500) is not None


class Full(Executor):
    """Takes no more work."""

    def submit(self, fn, /, *args, **kwargs):
        raise RuntimeError("the queue is full")


def test_an_executor_that_takes_nothing(caplog):
    buffer = replay(refresh_on=Full())
    observe(buffer, 200)
    assert observe(buffer, 300) is None
    assert "failed; batches stay all real" in caplog.text
    assert "the queue is full" in caplog.text
    assert buffer._schedule.next_refresh == 400


def test_an_executor_that_was_shut_down(caplog):
    pool = ThreadPoolExecutor(1)
    buffer = replay(refresh_on=pool)
    pool.shutdown()
    observe(buffer, 200)
    assert observe(buffer, 300) is None
    assert "cannot schedule new futures after shutdown" in caplog.text


def test_what_cannot_be_pickled_is_one_failure(caplog):
    class Locked(Resampler):
        lock = threading.Lock()  # a class of a function travels by value, with what it holds

    buffer = replay(Locked)
    observe(buffer, 200)
    assert observe(buffer, 300) is None
    assert "cannot pickle" in caplog.text


def test_ctrl_c_while_waiting_keeps_the_refresh(go_on):
    buffer = replay(Slow)
    observe(buffer, 200)
    pending = buffer._pending
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        observe(buffer, 300)
    assert buffer._pending is pending
    go_on.touch()
    assert observe(buffer, 301).refresh == 1


class AtOnce(Executor):
    """Does what it is given at once, in this process."""

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@pytest.mark.parametrize("place", ["Transitions.to", "replay.refreshing.log_report"])
def test_ctrl_c_while_it_is_put_into_service_neither_loses_nor_doubles_it(place, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    buffer = replay(refresh_on=AtOnce())
    observe(buffer, 200)
    with monkeypatch.context() as patch:
        patch.setattr(f"synther_buffers.{place}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            observe(buffer, 300)
    observe(buffer, 301)
    assert [report.refresh for report in buffer.reports] == [1]
    assert len(buffer.rows) == 300
    assert not buffer.refresh_due


def test_rows_that_do_not_fit_where_they_serve_are_one_failure(monkeypatch, caplog):
    def no_room(*args, **kwargs):
        raise MemoryError("no room")

    buffer = replay(refresh_on=AtOnce())
    observe(buffer, 200)
    with monkeypatch.context() as patch:
        patch.setattr("synther_buffers.Transitions.to", no_room)
        assert observe(buffer, 300) is None
    assert "no room" in caplog.text
    assert not buffer.refresh_due
    observe(buffer, 400)
    assert observe(buffer, 500).refresh == 1


def test_reset_forgets_it(go_on):
    buffer = replay(Slow)
    observe(buffer, 200)
    buffer.reset()
    assert not buffer.refresh_due
    assert buffer._pending is None
    buffer._executor.shutdown()


# -- saving ------------------------------------------------------------------------------------------------------------


def restarted(buffer, way):
    if way == "deepcopy":
        return copy.deepcopy(buffer)
    if way == "pickle":
        return pickle.loads(pickle.dumps(buffer))
    other = replay(TINY)
    other.load_state_dict(buffer.state_dict())
    return other


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "state_dict"])
def test_saved_in_mid_flight_it_goes_on_as_if_nothing_had_happened(way):
    whole, saved = replay(TINY), replay(TINY)
    for buffer in (whole, saved):
        for total in (200, 300, 400):
            observe(buffer, total)
    again = restarted(saved, way)
    assert again._pending is not None
    for buffer in (whole, again):
        for total in (499, 500, 600, 700):
            observe(buffer, total)
    assert [report.num_observed for report in again.reports] == [200, 400, 600]
    assert equal(again.rows, whole.rows)
    assert torch.equal(again.draw_indices(20), whole.draw_indices(20))


def test_a_pending_refresh_is_done_here_if_it_is_loaded_to_refresh_here():
    saved, here = replay(), replay(refresh_on="here")
    observe(saved, 200)
    here.load_state_dict(saved.state_dict())
    assert observe(here, 299) is None
    assert observe(here, 300).num_observed == 200


@pytest.mark.parametrize("where", ["here", "process"])
def test_a_pending_refresh_is_done_on_the_device_of_the_machine_that_loads_it(where):
    saved = replay(TINY, upsampler_device="cpu")
    observe(saved, 200)
    state = saved.state_dict()
    assert "device" not in state["pending"]
    state["pending"]["device"] = "cuda:77"  # as a machine with GPUs has written it before
    loaded = replay(TINY, refresh_on=where, upsampler_device="cpu")
    loaded.load_state_dict(state)
    assert observe(loaded, 300).num_observed == 200


def test_settings_of_a_process_are_saved_and_the_process_is_not():
    buffer = replay(refresh_on=RefreshProcess(num_threads=2, timeout=30.0), refresh_lag=0)
    observe(buffer, 200)
    where = pickle.loads(pickle.dumps(buffer)).options.refresh_on
    assert (where.num_threads, where.timeout, where.pid) == (2, 30.0, None)


def test_an_executor_that_cannot_be_saved_is_replaced_and_that_is_said(caplog):
    with ThreadPoolExecutor(1) as pool:
        buffer = replay(refresh_on=pool)
        assert pickle.loads(pickle.dumps(buffer)).options.refresh_on == "here"
    assert "The executor of refresh_on (a ThreadPoolExecutor) cannot be saved" in caplog.text


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"refresh_on": "Process"}, ValueError, "refresh_on is 'Process'.*'process'"),
        ({"refresh_on": 3}, TypeError, "refresh_on is 3; wanted 'here', 'process' or"),
        ({"refresh_on": "here", "refresh_lag": 10}, ValueError, "refresh_lag is 10 while refresh_on is 'here'"),
        ({"refresh_lag": 201}, ValueError, "refresh_lag is 201, more than retrain_every=200"),
        ({"refresh_lag": -1}, ValueError, "refresh_lag is -1"),
        ({"refresh_lag": 1.5}, TypeError, "refresh_lag is 1.5"),
        ({"refresh_lag": "ready"}, ValueError, "refresh_lag is 'ready'; wanted"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        replay(**options)


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"timeout": float("inf")}, ValueError), ({"timeout": float("nan")}, ValueError),
     ({"num_threads": 0}, ValueError), ({"num_threads": 1.5}, TypeError), ({"timeout": 0}, ValueError),
     ({"timeout": "1"}, TypeError), ({"timeout": True}, TypeError)],
)  # fmt: skip
def test_bad_settings_of_the_process(settings, error):
    with pytest.raises(error, match=next(iter(settings))):
        RefreshProcess(**settings)


@pytest.mark.parametrize("keep", [True, False])
def test_a_call_that_was_cancelled_is_not_made(tmp_path, keep):
    process = RefreshProcess()
    with process._one_at_a_time:
        future: Future | None = process.submit((tmp_path / "made").touch)
        assert future.cancel()
        if not keep:
            future = None
            gc.collect()
    process.submit(os.getpid).result()
    assert not (tmp_path / "made").exists()


def test_who_left_a_callback_is_called_without_keeping_the_future():
    process, told = RefreshProcess(), queue.SimpleQueue()
    process.submit(os.getpid).add_done_callback(lambda future: told.put(future.result()))
    gc.collect()
    assert told.get(timeout=60) == process.pid


def forks_and_sleeps():
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    time.sleep(60)


def test_a_time_limit_ends_what_a_job_has_started_too():
    process = RefreshProcess(timeout=6.0)
    process.submit(os.getpid).result()
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        process.submit(forks_and_sleeps).result()
    assert time.monotonic() - start < 30


def test_a_killed_process_whose_child_lives_keeps_nobody_waiting():
    process = RefreshProcess()
    pid = process.submit(os.getpid).result()
    future = process.submit(forks_and_sleeps)
    time.sleep(1.0)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="died with exit code -9"):
        future.result(timeout=30)


def test_ctrl_c_while_it_starts_is_not_for_it():
    process = RefreshProcess()
    future = process.submit(os.getpid)
    wait_until(lambda: process.pid is not None)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    assert future.result() == process.pid


def test_what_is_printed_while_it_starts_disturbs_nothing(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("print('hello from a hook', flush=True)\n")
    monkeypatch.syspath_prepend(tmp_path)
    process = RefreshProcess()
    assert [process.submit(abs, -number).result() for number in (1, 2)] == [1, 2]


def test_a_logging_filter_that_raises_costs_nothing():
    def refuses(record):
        raise ValueError("planted")

    logger = logging.getLogger("synther_buffers.toy")
    logger.addFilter(refuses)
    try:
        buffer = replay(Warns, refresh_lag=0)
        assert observe(buffer, 200) is not None
    finally:
        logger.removeFilter(refuses)


def fails_deep_inside():
    return {}["a key that is not there"]


def test_an_error_has_the_traceback_of_the_other_process():
    with pytest.raises(KeyError) as caught:
        RefreshProcess().submit(fails_deep_inside).result()
    assert "in fails_deep_inside" in str(caught.value.__cause__)


# -- whole programs ----------------------------------------------------------------------------------------------------

PROGRAM = """
    import sys, torch
    from synther_buffers import SyntheticReplay
    from toys import SPEC, Resampler, gaussian

    class Own(Resampler):
        def fit(self, transitions, *, held_out=None):
            {fit}
            return super().fit(transitions, held_out=held_out)

    buffer = SyntheticReplay(SPEC, upsampler=Own, retrain_every=200, num_synthetic=300, progress_bar=False,
                             refresh_on="process")
    buffer.observe_total(200)
    buffer.refresh(gaussian(200))
    {then}
"""
SERVED = "buffer.observe_total(300); buffer.refresh(gaussian(300)); print(len(buffer.rows), flush=True)"
LEFT = "\n    ".join(
    ["import time", "while buffer._executor.pid is None: time.sleep(0.01)", "print(buffer._executor.pid, flush=True)"]
)


def start(fit, then, how, tmp_path):
    code = textwrap.dedent(PROGRAM.format(fit=fit, then=then))
    script = tmp_path / "script.py"
    script.write_text(code)
    command = {"script": [str(script)], "standard input": ["-"], "-c": ["-c", code]}[how]
    program = subprocess.Popen(
        [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)}, cwd=tmp_path,
    )  # fmt: skip
    if how == "standard input":
        program.stdin.write(code)
    program.stdin.close()
    program.stdin = None
    return program


@pytest.mark.slow
@pytest.mark.parametrize("how", ["script", "standard input", "-c"])
def test_a_program_without_a_guard_works_with_its_own_classes(how, tmp_path):
    program = start("pass", SERVED, how, tmp_path)
    output, errors = program.communicate(timeout=120)
    assert (program.returncode, output) == (0, "300\n"), errors


@pytest.mark.slow
@pytest.mark.parametrize("end", ["at its end", "killed", "interrupted"])
def test_nothing_is_left_behind(end, tmp_path):
    """The process is in the middle of a minute's work when its program ends."""
    wait = "import time; time.sleep(60)"
    then = LEFT if end == "at its end" else LEFT + "\n    time.sleep(60)"
    program = start(wait, then, "script", tmp_path)
    worker = int(program.stdout.readline())
    assert alive(worker) or end == "at its end"
    if end != "at its end":
        program.send_signal(signal.SIGKILL if end == "killed" else signal.SIGINT)
    program.communicate(timeout=60)
    wait_until(lambda: not alive(worker))


def test_after_a_failed_refresh_the_process_still_ends_with_its_buffer(monkeypatch):
    """Not only when the garbage collector comes by: what it holds, such as a GPU, stays taken so long."""
    monkeypatch.setattr(logging.getLogger("synther_buffers.replay.refreshing"), "disabled", True)  # records hold frames
    buffer = replay(Fails, refresh_lag=0)
    gc.collect()
    gc.disable()
    try:
        assert [observe(buffer, total) is None for total in (200, 400)] == [False, True]
        pid = buffer._executor.pid
        assert alive(pid)
        del buffer
        wait_until(lambda: not alive(pid), 10)
    finally:
        gc.enable()


def test_a_failed_call_keeps_nothing_alive():
    process = RefreshProcess()
    gc.collect()
    gc.disable()
    try:
        os.kill(process.submit(os.getpid).result(), signal.SIGKILL)
        future = process.submit(abs, -1)
        wait_until(future.done)
        pid = process.submit(os.getpid).result()
        del process, future
        wait_until(lambda: not alive(pid), 10)
    finally:
        gc.enable()


# -- on a GPU ----------------------------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("device", ["cpu", "cuda"], ids=["agent-on-cpu", "agent-on-gpu"])
def test_the_process_trains_on_the_gpu(device):
    # Rows of a CPU have other bits: noise on a GPU is another.
    here, there = (replay(TINY, refresh_on=way, upsampler_device="cuda", device=device) for way in ("here", "process"))
    for total in (200, 400):
        assert observe(here, total).refresh == total // 200
        observe(there, total)
        assert observe(there, total + 100).num_observed == total
        assert equal(there.rows, here.rows)
        assert there.sample(4).reward.device.type == device


@pytest.mark.cuda
def test_after_a_kill_another_process_has_the_gpu():
    buffer = replay(TINY, refresh_lag=0, upsampler_device="cuda")
    observe(buffer, 200)
    os.kill(buffer._executor.pid, signal.SIGKILL)
    wait_until(lambda: buffer._executor.pid is None)
    assert observe(buffer, 400).num_observed == 400


@pytest.mark.cuda
def test_saved_in_mid_flight_on_the_gpu_it_ends_as_if_nothing_had_happened():
    whole, saved = (replay(TINY, upsampler_device="cuda") for _ in range(2))
    observe(whole, 200)
    observe(saved, 200)
    loaded = pickle.loads(pickle.dumps(saved))
    assert observe(whole, 300).num_observed == observe(loaded, 300).num_observed == 200
    assert equal(whole.rows, loaded.rows)
