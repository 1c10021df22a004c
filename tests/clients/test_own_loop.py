"""A training loop of one's own in the manner of CleanRL's single files: examples/own_loop.py."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("stable_baselines3", reason="needs synther-buffers[clients]")
sys.path.append(str(Path(__file__).parents[2] / "examples"))

from own_loop import parse, run

SMALL = ["--steps", "330", "--utd", "1", "--retrain-every", "150", "--train-steps", "10", "--learning-starts", "100"]
SMALL += ["--num-synthetic", "500", "--batch-size", "32", "--width", "16"]


def test_it_trains_on_mixed_batches_in_the_environments_units(capsys):
    agent, buffer = run(parse([*SMALL, "--env", "Pendulum-v1"]))
    assert "step 330: mean return" in capsys.readouterr().out
    assert [report.num_observed for report in buffer.synthetic.reports] == [150, 300]
    batch = buffer.sample(64)
    stored, synthetic = buffer.actions[:330, 0], buffer.synthetic.rows.action.numpy()
    assert max(abs(stored.min()), stored.max()) > 1.5  # Pendulum's torque goes to 2, and nothing scaled it
    assert stored.min() <= synthetic.min() < -1.2
    assert 1.2 < synthetic.max() <= stored.max()
    known = {row.tobytes() for row in buffer.synthetic.rows.observation.numpy()}
    assert sum(row.tobytes() in known for row in batch.observations.numpy()) == 32
    assert all(bool(parameter.isfinite().all()) for parameter in agent.actor.parameters())
    # An episode of 200 steps ended by its time limit: no terminal, among real rows and synthetic ones.
    assert buffer.dones.sum() == 1
    assert not buffer.synthetic.rows.terminated.any()


def test_without_synthetic_rows_it_is_sb3s_buffer(monkeypatch):
    import own_loop
    from stable_baselines3.common.buffers import ReplayBuffer

    def plain(*args, **options):
        return ReplayBuffer(*args)

    arguments = parse([*SMALL, "--no-synthetic"])
    ours, _ = run(arguments)
    monkeypatch.setattr(own_loop, "SynthERBuffer", plain)
    theirs, _ = run(arguments)
    for left, right in zip(ours.critics.parameters(), theirs.critics.parameters(), strict=True):
        np.testing.assert_array_equal(left.detach().numpy(), right.detach().numpy())
