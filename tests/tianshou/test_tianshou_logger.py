"""The figures of each refresh as curves in Tianshou's own loggers (docs/tianshou.md)."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tianshou.algorithm.algorithm_base import policy_within_training_step
from tianshou.data import Collector
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils import TensorboardLogger, WandbLogger
from tianshou_helpers import CounterEnv, envs, make_buffer, sac
from torch.utils.tensorboard import SummaryWriter


@pytest.fixture(params=["TensorboardLogger", "WandbLogger"])
def logger(request, tmp_path, monkeypatch):
    """W&B's reads what is written for TensorBoard; a stand-in for its package, which wants an account."""
    writer = SummaryWriter(str(tmp_path))
    if request.param == "TensorboardLogger":
        return TensorboardLogger(writer, training_interval=1)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=SimpleNamespace(_label=lambda **_: None)))
    logger = WandbLogger(training_interval=1)
    logger.load(writer)
    return logger


def test_each_refresh_is_a_point_of_every_curve(logger, tmp_path):
    buffer = make_buffer()

    def log_refreshes(epoch=0, env_step=0):
        for report in buffer.synthetic.new_reports():
            logger.write("synther/env_step", report.num_observed, report.metrics())

    algorithm = sac(CounterEnv())
    collector = Collector(algorithm, envs(CounterEnv), buffer, exploration_noise=True)
    collector.reset()
    with policy_within_training_step(algorithm.policy):
        collector.collect(n_step=60, random=True)
    algorithm.run_training(
        OffPolicyTrainerParams(
            training_collector=collector,
            max_epochs=1,
            epoch_num_steps=300,
            collection_step_num_env_steps=20,
            batch_size=32,
            update_step_num_gradient_steps_per_sample=0.25,
            training_fn=log_refreshes,
            logger=logger,
            verbose=False,
            show_progress=False,
        )
    )
    # The refresh of the last training step.
    assert [report.refresh for report in buffer.synthetic.reports] == [1, 2, 3]
    log_refreshes()
    curves = TensorboardLogger.restore_logged_data(str(tmp_path))["synther"]
    np.testing.assert_array_equal(curves["env_step"], [120, 240, 360])
    for number, report in enumerate(buffer.synthetic.reports):
        assert report.metrics().keys() == curves.keys() - {"env_step"}
        for name, value in report.metrics().items():
            assert curves[name][number] == pytest.approx(value, rel=1e-6), name
