"""The figures of each refresh as curves in TorchRL's own loggers (docs/torchrl.md)."""

import csv

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchrl.record.loggers.csv import CSVLogger
from torchrl.record.loggers.tensorboard import TensorboardLogger
from torchrl_helpers import make_buffer, rows


def csv_curve(folder, name):
    with (folder / "run" / "scalars" / f"{name}.csv").open() as file:
        return [(int(step), float(value)) for step, value in csv.reader(file)]


def tensorboard_curve(folder, name):
    events = EventAccumulator(str(folder / "run"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


@pytest.mark.parametrize(("logger_class", "curve"), [(CSVLogger, csv_curve), (TensorboardLogger, tensorboard_curve)])
def test_each_refresh_is_a_point_of_every_curve(tmp_path, logger_class, curve):
    logger, buffer = logger_class("run", log_dir=str(tmp_path)), make_buffer()
    for first in range(0, 400, 20):
        buffer.extend(rows(20, first))
        for _ in range(3):
            buffer.sample(8)
        for report in buffer.storage.synthetic.new_reports():
            logger.log_metrics(report.metrics("synther/"), step=report.num_observed)
    if logger_class is TensorboardLogger:
        logger.experiment.flush()
    reports = buffer.storage.synthetic.reports
    assert [report.num_observed for report in reports] == [120, 240, 360]
    for name in reports[0].metrics():
        wanted = [(report.num_observed, pytest.approx(report.metrics()[name], rel=1e-6)) for report in reports]
        assert curve(tmp_path, f"synther/{name}") == wanted, name
