"""Does an agent wait less if refreshes run beside it? SAC at UTD 10 with refreshes here, in a process, and with none.

    python benchmarks/refresh_elsewhere.py [--steps 4000] [--refresh-lag 1000] [--agent sbx] [--ways none process]

Each run is a process of its own, on the cores it was given; the ways alternate. The agent computes with one thread,
as far as that can be had: sbx's needs more than a core, because JAX computes while Python goes on. The seconds begin
with the first gradient step; sbx compiles then, for about ten seconds. The bytes that
travel for a refresh are measured too: those of a job and of its result, and what of the job travels to an actor that
has the last rows and the last model.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
import subprocess
import sys
import time
from statistics import median
from typing import Any

_TOY = {
    "network": {"width": 16, "depth": 1},
    "train_steps": 30,
    "warm_steps": 10,
    "num_synthetic": 1_000,
    "budget": None,
    "outcome_steps": 0,
    "terminal_steps": 10,
}
WAYS = {
    "none": {"synthetic_fraction": 0.0},
    "here": {"refresh_on": "here"},
    "process": {"refresh_on": "process"},
}


def run(agent: str, way: str, env: str, steps: int, utd: int, every: int, lag: int | None, toy: bool) -> dict[str, Any]:
    """Train one agent; seconds, final parameters as a number, and what travelled."""
    import numpy as np
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from synther_buffers.sb3 import SynthERBuffer

    from synther_buffers.replay import pending, refreshing
    from synther_buffers.replay.chunked_pickle import Conversation

    if agent == "sbx":
        from sbx import SAC
    else:
        from stable_baselines3 import SAC
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    sizes: dict[str, list[int]] = {"job": [], "result": [], "new": []}
    here, there = Conversation(), Conversation()
    submit, commit = pending.PendingRefresh.submit, refreshing.RefreshingReplay.commit

    def submitted(self: Any, executor: Any) -> None:
        if self.future is None:
            sizes["job"].append(len(pickle.dumps(self.job)))
            message = here.dumps(self.job)
            sizes["new"].append(len(message))
            there.loads(message)
        submit(self, executor)

    def committed(self: Any, result: Any) -> Any:
        sizes["result"].append(len(pickle.dumps(result)))
        here.loads(there.dumps(result))
        return commit(self, result)

    pending.PendingRefresh.submit = submitted
    refreshing.RefreshingReplay.commit = committed
    begin = 200 if toy else 1_000
    started: list[float] = []

    class Clock(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == begin:
                started.append(time.perf_counter())
            return True

    settings: dict[str, Any] = {"upsampler": _TOY} if toy else {}
    model = SAC(
        "MlpPolicy",
        env,
        buffer_size=steps,
        learning_starts=begin,
        gradient_steps=utd,
        seed=0,
        replay_buffer_class=SynthERBuffer,
        replay_buffer_kwargs={
            "retrain_every": every, "start_after": begin, "progress_bar": False, **settings, **WAYS[way],
            **({"refresh_lag": lag} if way == "process" else {}),
        },
    )  # fmt: skip
    model.learn(steps, callback=Clock())
    seconds = time.perf_counter() - started[0]
    observation = np.zeros(model.observation_space.shape, np.float32)
    reports = model.replay_buffer.synthetic.reports
    return {
        "way": way,
        "seconds": seconds,
        "action": np.asarray(model.predict(observation, deterministic=True)[0]).tolist(),
        "refreshes": len(reports),
        "refresh_seconds": sum(report.seconds for report in reports),
        "bytes_job": sizes["job"],
        "bytes_result": sizes["result"],
        "bytes_new": sizes["new"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--steps", type=int, default=4_000)
    parser.add_argument("--utd", type=int, default=10)
    parser.add_argument("--retrain-every", type=int, default=1_000)
    parser.add_argument("--refresh-lag", type=int, help="of the process (default: half of --retrain-every)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--agent", choices=["sbx", "sb3"], default="sbx")
    parser.add_argument("--toy", action="store_true", help="a short run of each, to see that it works")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="which to compare")
    parser.add_argument("--way", choices=list(WAYS), help="make this run here and print its line")
    parser.add_argument("--out", help="where to write the JSON (default: benchmarks/results/refresh_elsewhere.json)")
    args = parser.parse_args()
    if args.toy:
        args.steps, args.repeats, args.retrain_every, args.env = 500, 1, 100, "Pendulum-v1"
    if args.way:
        line = run(args.agent, args.way, args.env, args.steps, args.utd, args.retrain_every, args.refresh_lag, args.toy)
        print(json.dumps(line))
        return
    from measuring import machine, write

    print(machine())
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "MUJOCO_GL": "disable",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    }  # fmt: skip
    lines = []
    names = ("env", "steps", "retrain_every", "refresh_lag", "agent", "utd")
    flags = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in names if getattr(args, name) is not None]
    for _ in range(args.repeats):
        for way in args.ways:
            command = [sys.executable, __file__, "--way", way, *flags]
            done = subprocess.run(
                [*command, *(["--toy"] if args.toy else [])], env=environment, stdout=subprocess.PIPE, check=True
            )
            lines.append(json.loads(done.stdout.splitlines()[-1]))
            print(lines[-1], flush=True)
    seconds = {way: median(line["seconds"] for line in lines if line["way"] == way) for way in args.ways}
    found = {
        **vars(args),
        "cores": os.cpu_count(),
        "median_seconds": seconds,
        "in_times_of_none": {way: value / seconds["none"] for way, value in seconds.items() if "none" in seconds},
        "same_twice": None
        if args.repeats < 2
        else len({str(line["action"]) for line in lines if line["way"] == "process"}) == 1,
        "runs": lines,
    }
    print({name: found[name] for name in ("median_seconds", "in_times_of_none", "same_twice")})
    write("refresh_elsewhere", found, args.out)


if __name__ == "__main__":
    main()
