"""The callback that puts each refresh's figures into the logger."""

import csv
import json
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from sb3_helpers import TINY, CounterEnv, Marked, count_into, kwargs_for, make_buffer, small
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.logger import configure
from synther_buffers.sb3 import SynthERBuffer, SynthERCallback

NAMES = {
    "refresh",
    "loss",
    "held_out_loss",
    "warm_start",
    "fit_seconds",
    "sample_seconds",
    "seconds",
    "real_rows",
    "synthetic_rows",
    "marginal_similarity",
    "marginal_similarity_of_real",
    "correlation_similarity",
    "correlation_similarity_of_real",
    "train_steps",
    "copy_share",
    "closest_record_ratio",
    "outcome_gap",
    "quality_share",
}
#: What needs held-out rows, 20 of them, to be measured.
JUDGED = {name for name in NAMES if "similarity" in name} | {"copy_share", "closest_record_ratio", "outcome_gap"}


def test_a_loaded_file_of_a_plain_buffer_is_named_as_the_cause(tmp_path, log):
    plain = SAC("MlpPolicy", CounterEnv(), **small(buffer_size=1_000)).learn(20)
    plain.save_replay_buffer(tmp_path / "plain")
    model = SAC("MlpPolicy", CounterEnv(), **kwargs_for(SynthERBuffer))
    model.load_replay_buffer(tmp_path / "plain")
    model.learn(10, callback=SynthERCallback())
    (message,) = (record.getMessage() for record in log.records if record.name.endswith("callback"))
    assert message.startswith(
        "No batch will have synthetic rows: the model was made with replay_buffer_class=SynthERBuffer, but its replay "
        "buffer is a ReplayBuffer. load_replay_buffer has put it there, from a file that a plain buffer was saved in."
    )
    assert "Leave the loading out" in message


def test_options_of_a_loaded_file_that_are_not_those_asked_for_are_named(tmp_path, log):
    saved = SAC("MlpPolicy", CounterEnv(), **kwargs_for(SynthERBuffer, synthetic_fraction=0.5))
    saved.save_replay_buffer(tmp_path / "saved")
    model = SAC("MlpPolicy", CounterEnv(), **kwargs_for(SynthERBuffer, synthetic_fraction=0.0))
    model.learn(10, callback=SynthERCallback())
    assert "other options" not in log.text
    model.load_replay_buffer(tmp_path / "saved")
    model.learn(10, callback=SynthERCallback())
    assert "asks for: synthetic_fraction=0.5 (not 0.0). load_replay_buffer keeps those of the file" in log.text


def test_rows_that_came_without_add_are_no_run_that_is_too_short(log):
    model = SAC("MlpPolicy", CounterEnv(), **kwargs_for(SynthERBuffer))
    model.replay_buffer.pos = 115
    model.learn(10, callback=SynthERCallback())
    assert "This run ends" not in log.text
    assert model.replay_buffer.synthetic.num_observed == 125


def logged_model(folder, **kwargs):
    model = SAC("MlpPolicy", CounterEnv(length=20), verbose=1, **kwargs_for(SynthERBuffer, **kwargs))
    model.set_logger(configure(str(folder), ["csv", "json"]))
    return model


def logged(folder):
    """The lines of the JSON log, each a dict."""
    return [json.loads(line) for line in (folder / "progress.json").read_text().splitlines()]


def refresh_lines(folder):
    return [line for line in logged(folder) if "synther/refresh" in line]


@pytest.mark.parametrize("upsampler", [Marked, TINY])
def test_each_refresh_is_a_line_in_the_log(tmp_path, upsampler):
    model = logged_model(tmp_path, upsampler=upsampler)
    model.learn(300, callback=SynthERCallback(), log_interval=1)
    lines = refresh_lines(tmp_path)
    assert [line["synther/refresh"] for line in lines] == [1, 2]
    # Refreshed in the training after steps 120 and 240, and written at once.
    assert [line["time/total_timesteps"] for line in lines] == [120, 240]
    for line, report in zip(lines, model.replay_buffer.synthetic.reports, strict=True):
        assert {name.removeprefix("synther/") for name in line if name.startswith("synther/")} == NAMES - JUDGED
        assert line["synther/loss"] == pytest.approx(report.fit.loss)
        assert line["synther/synthetic_rows"] == 300
        assert line["synther/real_rows"] == report.num_real
    with (tmp_path / "progress.csv").open() as file:
        assert {f"synther/{name}" for name in NAMES - JUDGED} <= set(next(csv.reader(file)))


def test_the_replay_buffer_can_be_saved_while_a_logger_writes(tmp_path):
    model = logged_model(tmp_path, upsampler=TINY)
    checkpoint = CheckpointCallback(100, str(tmp_path / "checkpoints"), save_replay_buffer=True)
    model.learn(250, callback=[SynthERCallback(), checkpoint], log_interval=1)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    resumed = logged_model(tmp_path / "resumed", upsampler=TINY)
    resumed.load_replay_buffer(tmp_path / "buffer.pkl")
    assert resumed.replay_buffer.synthetic.num_refreshes == 2
    resumed.load_replay_buffer(tmp_path / "checkpoints" / "rl_model_replay_buffer_200_steps.pkl")
    assert resumed.replay_buffer.synthetic.num_refreshes == 1


def test_after_a_load_only_new_refreshes_are_recorded(tmp_path):
    model = logged_model(tmp_path / "first")
    model.learn(150, callback=SynthERCallback(), log_interval=1)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    resumed = logged_model(tmp_path / "second")
    resumed.load_replay_buffer(tmp_path / "buffer.pkl")
    resumed.learn(150, callback=SynthERCallback(), log_interval=1)
    assert [line["synther/refresh"] for line in refresh_lines(tmp_path / "second")] == [2]


def test_a_refresh_of_the_last_training_is_recorded(tmp_path):
    model = logged_model(tmp_path)
    model.learn(120, callback=SynthERCallback())
    assert [line["synther/refresh"] for line in refresh_lines(tmp_path)] == [1]


def test_no_refresh_is_lost_between_two_logs(tmp_path):
    model = logged_model(tmp_path)
    model.learn(450, callback=SynthERCallback(), log_interval=10_000)
    assert [line["synther/refresh"] for line in refresh_lines(tmp_path)] == [1, 2, 3]


def test_an_upsampler_without_a_report_does_not_end_the_training(tmp_path, log):
    class Silent(Marked):
        def fit(self, transitions, *, held_out=None):
            super().fit(transitions, held_out=held_out)

    model = logged_model(tmp_path, upsampler=Silent)
    model.learn(150, callback=SynthERCallback(), log_interval=1)
    assert model.num_timesteps == 150
    assert refresh_lines(tmp_path) == []
    assert log.text.count("Silent.fit returned None; wanted a FitReport.") == 2  # the warning, and its traceback


def test_a_run_too_short_for_a_refresh_is_warned_about_at_its_start(tmp_path, log):
    model = logged_model(tmp_path)
    with log.at_level(logging.WARNING):
        model.learn(90, callback=SynthERCallback())
    assert "This run ends after 90 transitions, before the first refresh at start_after=120" in log.text


@pytest.mark.parametrize(("steps", "warned"), [(140, True), (150, False)])
def test_a_run_is_too_short_if_a_refresh_elsewhere_does_not_serve_in_it(steps, warned, log):
    with ThreadPoolExecutor(1) as pool:
        model = SAC("MlpPolicy", CounterEnv(), **kwargs_for(SynthERBuffer, retrain_every=100, refresh_on=pool))
        model.learn(steps, callback=SynthERCallback())
    said = [record.getMessage() for record in log.records if "This run ends" in record.getMessage()]
    wanted = (
        "This run ends after 140 transitions, before the first refresh at start_after=100 serves, from 150 on: it will "
        "see no synthetic rows. Lower start_after, retrain_every or refresh_lag, or run longer."
    )
    assert said == ([wanted] if warned else [])
    assert (model.replay_buffer.synthetic.rows is None) == warned


@pytest.mark.parametrize(
    ("batch_size", "drawn", "ratio"), [(64, 640, None), (64, 128, "2.0"), (32, 32, "1.0"), (512, 512, "1.0")]
)
def test_a_batch_that_is_cut_for_several_updates_counts_as_them(batch_size, drawn, ratio, log):
    """As sbx does it: one batch of batch_size * gradient_steps rows after each step."""

    class Cutting(SAC):
        def train(self, gradient_steps, batch_size):
            self.replay_buffer.sample(drawn)

    options = kwargs_for(SynthERBuffer) | {"batch_size": batch_size}
    Cutting("MlpPolicy", CounterEnv(), **options).learn(300, callback=SynthERCallback())
    said = [record.getMessage() for record in log.records if "for each real transition" in record.getMessage()]
    assert len(said) == (ratio is not None)
    assert all(f"takes about {ratio} gradient steps" in message for message in said)


def test_a_callback_serves_several_runs(tmp_path):
    model, callback = logged_model(tmp_path), SynthERCallback()
    model.learn(150, callback=callback, log_interval=1)
    model.learn(150, callback=callback, log_interval=1, reset_num_timesteps=False)
    assert [line["synther/refresh"] for line in refresh_lines(tmp_path)] == [1, 2]


def test_a_buffer_that_is_reset_starts_counting_again(tmp_path):
    model, callback = logged_model(tmp_path), SynthERCallback()
    model.learn(150, callback=callback, log_interval=1)
    model.replay_buffer.reset()
    callback.on_rollout_start()
    model.learn(150, callback=callback, log_interval=1)
    assert [line["synther/refresh"] for line in refresh_lines(tmp_path)] == [1, 1]


def test_a_plain_buffer_is_warned_about_once(log):
    model = SAC("MlpPolicy", CounterEnv(), **small(buffer_size=500))
    with log.at_level(logging.WARNING):
        model.learn(120, callback=SynthERCallback())
    messages = [record.getMessage() for record in log.records]
    assert messages == [
        "SynthERCallback has nothing to record: the replay buffer is ReplayBuffer. "
        "Pass replay_buffer_class=SynthERBuffer."
    ]


def test_the_refresh_log_gets_a_line_for_each_refresh(tmp_path):
    path = tmp_path / "logs" / "refreshes.jsonl"
    buffer = make_buffer(SynthERBuffer, refresh_log=path, upsampler=TINY, seed=3)
    for start in (0, 120, 240):
        count_into(buffer, start, start + 120)
        buffer.sample(8)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["refresh"], line["num_observed"], line["seed"]) for line in lines] == [
        (1, 120, 3),
        (2, 240, 3),
        (3, 360, 3),
    ]
