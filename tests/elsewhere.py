"""Upsamplers for refreshes in another process, which imports this module."""

import logging
import os
import signal
import sys
import time
from pathlib import Path

from toys import Resampler


class Pid(Resampler):
    """Says in its loss which process it was fitted in."""

    def fit(self, transitions, *, held_out=None):
        sys.stdout.write("a line on standard output\n")
        sys.stdout.flush()
        report = super().fit(transitions, held_out=held_out)
        return type(report)(**{**vars(report), "loss": float(os.getpid())})


class Warns(Resampler):
    def fit(self, transitions, *, held_out=None):
        logging.getLogger("synther_buffers.toy").warning("%d rows are few", len(transitions))
        return super().fit(transitions, held_out=held_out)


class Dies(Resampler):
    """Kills its process in one of the phases of the second refresh."""

    phase = "fit"

    def _die(self, phase):
        if phase == self.phase and self.num_fits >= 1 + (phase != "fit"):
            os.kill(os.getpid(), signal.SIGKILL)

    def fit(self, transitions, *, held_out=None):
        self._die("fit")
        return super().fit(transitions, held_out=held_out)

    def sample(self, num_samples):
        self._die("sample")
        return super().sample(num_samples)

    def state_dict(self):
        self._die("state_dict")
        return super().state_dict()


class DiesInSample(Dies):
    phase = "sample"


class DiesInState(Dies):
    phase = "state_dict"


class Exits(Resampler):
    """Ends the program at its second fit, as far as it can."""

    def fit(self, transitions, *, held_out=None):
        if self.num_fits == 1:
            sys.exit(3)
        return super().fit(transitions, held_out=held_out)


class Fails(Resampler):
    """Raises in its second fit."""

    def fit(self, transitions, *, held_out=None):
        if self.num_fits == 1:
            raise ValueError("planted")
        return super().fit(transitions, held_out=held_out)


class Slow(Resampler):
    """Takes a minute, unless the file that its process was told of is there."""

    def fit(self, transitions, *, held_out=None):
        end = time.monotonic() + 60
        while time.monotonic() < end and not Path(os.environ["GO_ON"]).exists():
            time.sleep(0.02)
        return super().fit(transitions, held_out=held_out)


def alive(pid):
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
