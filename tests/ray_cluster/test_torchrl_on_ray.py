"""TorchRL's collectors and replay buffers on Ray, with our storage."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TESTS = Path(__file__).parents[1]
HEAD = """
import json
from functools import partial
from synther_buffers.torchrl import SynthERStorage, is_synthetic
from toys import TINY
from torchrl.collectors import Collector
from torchrl.collectors.distributed import RayCollector
from torchrl.data import RayReplayBuffer, TensorDictReplayBuffer
from torchrl.envs import GymEnv

def env():
    return GymEnv("CartPole-v1")

storage = partial(SynthERStorage, 1_000, upsampler=TINY, retrain_every=120, num_synthetic=200, progress_bar=False)
cluster = {"address": "local", "num_cpus": 3, "include_dashboard": False, "log_to_driver": False}
one = {"num_cpus": 1, "num_gpus": 0}

def share(buffer):
    return int(is_synthetic(buffer.sample()["index"]).sum())
"""


def told_by(body):
    """What a script tells; the process is connected to the cluster that it starts."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(body)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(TESTS), "RAY_USAGE_STATS_ENABLED": "0"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("told ")]
    return json.loads(line.removeprefix("told "))


@pytest.mark.parametrize("sync", [True, False])
def test_batches_of_a_ray_collector_are_written_and_learned_here(sync):
    shares, length = told_by(
        f"""
        buffer = TensorDictReplayBuffer(storage=storage(), batch_size=32)
        collector = RayCollector(
            [env, env], None, frames_per_batch=40, total_frames=320, sync={sync}, remote_configs=one,
            ray_init_config=cluster,
        )
        shares = []
        for data in collector:
            buffer.extend(data.reshape(-1))
            shares.append(share(buffer))
        print("told", json.dumps([shares, len(buffer)]))
        """
    )
    assert length == 320
    assert shares[:2] == [0, 0]
    assert shares[-1] == 16


def test_a_replay_buffer_of_ray_has_our_storage():
    """It lives in an actor, and so do its refreshes."""
    shares, length = told_by(
        """
        buffer = RayReplayBuffer(
            replay_buffer_cls=TensorDictReplayBuffer, storage=storage, batch_size=32, remote_config=one,
            ray_init_config=cluster,
        )
        shares = []
        for data in Collector(env(), None, frames_per_batch=60, total_frames=240):
            buffer.extend(data.reshape(-1))
            shares.append(share(buffer))
        print("told", json.dumps([shares, len(buffer)]))
        buffer.shutdown()
        """
    )
    assert (shares, length) == ([0, 16, 16, 16], 240)


def test_collectors_of_ray_write_into_a_replay_buffer_of_ray():
    shares, length = told_by(
        """
        buffer = RayReplayBuffer(
            replay_buffer_cls=TensorDictReplayBuffer, storage=storage, batch_size=32, remote_config=one,
            ray_init_config=cluster,
        )
        collector = RayCollector(
            [env, env], None, frames_per_batch=40, total_frames=320, remote_configs=one, ray_init_config=cluster,
            replay_buffer=buffer,
        )
        shares = [share(buffer) for _ in collector if len(buffer)]
        print("told", json.dumps([shares, len(buffer)]))
        buffer.shutdown()
        """
    )
    assert length >= 320
    assert shares[-1] == 16
