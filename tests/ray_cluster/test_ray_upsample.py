"""Upsampling a dataset on a Ray cluster: the same file whatever the workers, also if some are lost."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import torch
from datasets.datasets_helpers import TINY, equal, rows
from elsewhere import wait_until
from ray_helpers import Cluster

from synther_buffers import DiffusionUpsampler, ray_cluster
from synther_buffers.datasets import open_dataset, ray_chunks, upsample, write_dataset
from synther_buffers.datasets.chunks import read_chunk
from synther_buffers.datasets.workfolder import MODEL, WorkFolder
from synther_buffers.upsampling.augmentation import Bootstrap

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TESTS = Path(__file__).parents[1]
SMALL = {"device": "cpu", "chunk_rows": 60, "progress_bar": False, "upsampler": TINY, "seed": 3}
RUN = """
import json, sys
from datasets.datasets_helpers import TINY
from synther_buffers.datasets import open_dataset, upsample
source, target, address, num, chunk, resume = sys.argv[1:]
report = upsample(
    open_dataset(source), int(num), target, ray=address or None, chunk_rows=int(chunk), resume=resume == "True",
    upsampler=TINY, seed=3, device="cpu", progress_bar=False,
)
print(json.dumps(report.to_dict()))
"""


@pytest.fixture
def source(tmp_path):
    return write_dataset(tmp_path / "real.hdf5", rows(300))


def start(source, target, address="", num=200, chunk=60, resume=False):
    """In a process of its own, as a command is: it connects to the cluster."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, (source, target, address, num, chunk, resume))],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    out, err = process.communicate()
    assert process.returncode == 0, err[-3_000:]
    return json.loads(out.splitlines()[-1])


def test_the_file_is_that_of_a_run_without_ray(tmp_path, source, cluster):
    here, there = tmp_path / "here.npz", tmp_path / "there.npz"
    ended(start(source, here))
    report = ended(start(source, there, cluster.address))
    assert here.read_bytes() == there.read_bytes()
    assert (report["num_rows"], report["num_resumed"]) == (200, 0)
    assert not list(tmp_path.glob("*.partial"))


def test_it_does_not_depend_on_the_number_of_workers(tmp_path, source, cluster):
    alone = Cluster(1)
    try:
        runs = [
            start(source, tmp_path / f"{index}.npz", address, 300, 30)
            for index, address in enumerate((alone.address, cluster.address))
        ]
        for run in runs:
            ended(run)
    finally:
        alone.stop()
    assert (tmp_path / "0.npz").read_bytes() == (tmp_path / "1.npz").read_bytes()


def workers(cluster):
    """Processes that draw."""
    found = []
    for process in psutil.Process(cluster.process.pid).children(recursive=True):
        try:
            if process.cmdline()[:1] == ["ray::draw_in_worker"]:
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def test_a_lost_workers_chunk_is_drawn_again(tmp_path, source, cluster):
    ended(start(source, tmp_path / "whole.npz", num=120_000, chunk=20_000))
    run = start(source, tmp_path / "lost.npz", cluster.address, num=120_000, chunk=20_000)
    for _ in range(2):
        wait_until(lambda: workers(cluster) or run.poll() is not None, 60)
        assert run.poll() is None, "it was over before a worker could be killed"
        time.sleep(0.3)
        for worker in workers(cluster)[:1]:
            worker.kill()
    ended(run)
    assert (tmp_path / "whole.npz").read_bytes() == (tmp_path / "lost.npz").read_bytes()


def test_a_run_that_was_killed_goes_on(tmp_path, source, cluster):
    target = tmp_path / "rows.npz"
    run = start(source, target, cluster.address, num=120_000, chunk=20_000)
    folder = tmp_path / "rows.npz.partial"
    wait_until(lambda: len(list(folder.glob("rows-*.safetensors"))) >= 2, 90)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    report = ended(start(source, target, cluster.address, num=120_000, chunk=20_000, resume=True))
    assert report["num_resumed"] >= 40_000
    ended(start(source, tmp_path / "whole.npz", num=120_000, chunk=20_000))
    assert (tmp_path / "whole.npz").read_bytes() == target.read_bytes()


def test_a_cluster_that_does_not_answer_is_told_before_the_training(tmp_path, source):
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at '127.0.0.1:9'"):
        upsample(open_dataset(source), 200, tmp_path / "rows.npz", ray="127.0.0.1:9", **SMALL)
    assert not (tmp_path / "rows.npz.partial").exists()


def test_auto_is_told_before_the_training_too(tmp_path, source, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at '127.0.0.1:9', which is 'auto' here"):
        upsample(open_dataset(source), 200, tmp_path / "rows.npz", ray="auto", **SMALL)
    assert not (tmp_path / "rows.npz.partial").exists()


def test_auto_where_this_machine_is_part_of_no_cluster(monkeypatch):
    import ray._private.services as services

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda folder: None)
    with pytest.raises(ConnectionError, match="this machine is part of no Ray cluster that 'auto' could find"):
        ray_cluster.check_answers("auto")
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: {"127.0.0.1:9"})
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at '.*:9', which is 'auto' here"):
        ray_cluster.check_answers("auto")


def test_auto_finds_a_cluster(cluster, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    ray_cluster.check_answers("auto")


def test_a_cluster_that_went_away_during_the_training_loses_nothing(tmp_path, source, monkeypatch):
    monkeypatch.setattr(ray_chunks, "check_answers", lambda address: None)
    dataset = open_dataset(source)
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at '127.0.0.1:9'"):
        upsample(dataset, 200, tmp_path / "rows.npz", ray="127.0.0.1:9", **SMALL)
    assert (tmp_path / "rows.npz.partial" / "model.safetensors").exists()
    monkeypatch.setattr(DiffusionUpsampler, "fit", None)  # it is not trained again
    assert upsample(dataset, 200, tmp_path / "rows.npz", resume=True, **SMALL).num_synthetic == 200


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"ray": "nowhere"}, ValueError, "wanted 'host:port', 'auto' or 'local'"),
        ({"ray": 3}, TypeError, "ray is 3; wanted 'local'"),
        ({"ray": "local", "upsampler": Bootstrap}, ValueError, "only a diffusion model can be drawn from on Ray"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, source, options, error, words):
    with pytest.raises(error, match=words):
        upsample(open_dataset(source), 200, tmp_path / "rows.npz", **{**SMALL, **options})


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path):
    with pytest.raises(OSError, match=r"does not see .*elsewhere; on Ray all machines need the folder of the output"):
        ray_chunks.draw_in_worker(str(tmp_path / "elsewhere"), 0, 10, rows(3), "cpu", "")


@pytest.fixture
def as_worker():
    """What a worker leaves behind in its process is undone."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    ray_chunks._model.cache_clear()


def trained(folder, seed):
    """A model that lies in the folder."""
    data = rows(300)
    model = DiffusionUpsampler(open_dataset(write_dataset(folder / f"{seed}.npz", data)).spec, TINY, "cpu", seed=seed)
    model.fit(data)
    model.save(folder / MODEL)
    return model


def test_a_worker_draws_from_the_model_that_lies_there_now(tmp_path, as_worker):
    for seed in (1, 2):
        model = trained(tmp_path, seed)
        digest = ray_chunks.digest_of(tmp_path / MODEL)
        ray_chunks.draw_in_worker(str(tmp_path), 0, 10, model.spec, "cpu", digest)
        assert equal(read_chunk(WorkFolder.file_of_rows(tmp_path, 0), model.spec), model.sample(10))


def test_a_worker_that_sees_another_model_says_so(tmp_path, as_worker):
    model = trained(tmp_path, 1)
    digest = ray_chunks.digest_of(tmp_path / MODEL)
    trained(tmp_path, 2)
    with pytest.raises(OSError, match=r"sees another .*model.safetensors than the machine that started this"):
        ray_chunks.draw_in_worker(str(tmp_path), 0, 10, model.spec, "cpu", digest)


def test_what_a_dead_worker_left_is_replaced(tmp_path, as_worker):
    model = trained(tmp_path, 1)
    (tmp_path / "rows-000002.safetensors.tmp").write_bytes(b"half a chunk")
    ray_chunks.draw_in_worker(str(tmp_path), 2, 10, model.spec, "cpu", ray_chunks.digest_of(tmp_path / MODEL))
    for _ in range(2):
        model.sample(10)
    assert equal(read_chunk(tmp_path / "rows-000002.safetensors", model.spec), model.sample(10))
    assert not list(tmp_path.glob("*.tmp"))


JOINED = """
import os, signal, sys, time
from pathlib import Path
import ray
from datasets.datasets_helpers import TINY
from synther_buffers.datasets import open_dataset, upsample

folder = Path(sys.argv[1])
small = {"upsampler": TINY, "device": "cpu", "progress_bar": False, "ray": "auto"}
ray.init(address=sys.argv[2], log_to_driver=False, logging_level="ERROR")
"""


def in_the_callers_cluster(body, tmp_path, cluster):
    """What a program prints that is connected to the cluster already."""
    run = subprocess.run(
        [sys.executable, "-c", JOINED + textwrap.dedent(body), str(tmp_path), cluster.address],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert run.returncode == 0, run.stderr[-3_000:]
    return run.stdout.splitlines()


def test_a_second_run_with_the_same_output_has_its_own_rows(tmp_path, source, cluster):
    body = """
        for seed in (1, 2):
            upsample(open_dataset(folder / "real.hdf5"), 60, folder / "rows.npz", seed=seed, chunk_rows=60, **small)
            (folder / "rows.npz").rename(folder / f"{seed}.npz")
    """
    in_the_callers_cluster(body, tmp_path, cluster)
    for seed in (1, 2):
        upsample(open_dataset(source), 60, tmp_path / f"here{seed}.npz", **{**SMALL, "seed": seed})
        assert (tmp_path / f"{seed}.npz").read_bytes() == (tmp_path / f"here{seed}.npz").read_bytes()


def test_an_interrupted_run_ends_in_the_callers_cluster_too(tmp_path, source, cluster):
    body = """
        import threading
        chunks = lambda: len(list(folder.glob("rows.npz.partial/rows-*.safetensors")))

        def interrupt():
            while not chunks():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        try:
            upsample(open_dataset(folder / "real.hdf5"), 6_000_000, folder / "rows.npz", chunk_rows=20_000, **small)
        except KeyboardInterrupt:
            before = chunks()
            time.sleep(6)
            print(before > 0, chunks() - before)
    """
    assert in_the_callers_cluster(body, tmp_path, cluster) == ["True 0"]


def test_the_command(tmp_path, source, cluster):
    """A user with a cluster that needs no token, as one of `ray start --head` is."""
    (tmp_path / "small.json").write_text('{"train_steps": 20, "network": {"width": 32, "depth": 1}}')
    command = [sys.executable, "-m", "synther_buffers.commands", "upsample", str(source), "-n", "200", "-q"]
    command += ["-o", str(tmp_path / "rows.npz"), "--chunk-rows", "60", "--config", str(tmp_path / "small.json")]
    done = subprocess.run([*command, "--ray", cluster.address], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "200 synthetic rows" in done.stdout
    done = subprocess.run(
        [*command, "--ray", "127.0.0.1:9", "-o", str(tmp_path / "b.npz")], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "no Ray cluster answers" in done.stderr
    assert "Traceback" not in done.stderr
