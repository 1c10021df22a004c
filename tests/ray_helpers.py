"""A cluster of two CPUs on the loopback, in a process of its own."""

import contextlib
import os
import subprocess
import sys

import psutil

_SERVE = """
import sys, ray
ray.init(address="local", num_cpus=int(sys.argv[1]), include_dashboard=False, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


class Cluster:
    """Processes that serve `address` until `stop`."""

    def __init__(self, num_cpus):
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(num_cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Its workers import the modules of the tests.
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"},
            text=True,
            start_new_session=True,
        )
        self.address = self.process.stdout.readline().strip()

    def stop(self):
        """All of them at once, as when a machine loses its power."""
        processes = [*psutil.Process(self.process.pid).children(recursive=True), self.process]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()
