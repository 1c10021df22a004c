"""SAC with sbx (SB3's algorithms in JAX) on a MuJoCo task, with or without synthetic transitions.

    python examples/sbx_sac.py --env HalfCheetah-v5 --steps 5000 --utd 10 --retrain-every 500

The script is `sb3_sac.py` with another algorithm class; an update takes less than half of its time. What it leaves in
--logdir is the same.
"""

from __future__ import annotations

import os

# JAX reads it when it is imported. One thread, because the agent and the upsampler take turns on the same cores.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

from experiment import parse_args
from sb3_sac import train
from sbx import SAC

if __name__ == "__main__":
    train(SAC, parse_args(__doc__.splitlines()[0], "runs/sbx_sac"))
