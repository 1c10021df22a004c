"""Saving and loading: the replay buffer, the agent, copies of the buffer."""
# ruff: noqa: NPY002  # SB3 draws from NumPy's global stream

import copy
import io
import pickle

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_helpers import (
    TINY,
    Marked,
    assert_same,
    assert_same_rows,
    box,
    count_into,
    kwargs_for,
    make_buffer,
    num_marked,
    parameters,
    random_into,
    record_batches,
    small,
)
from stable_baselines3 import SAC
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl
from synther_buffers.sb3 import SynthERBuffer, SynthERDictBuffer, SynthERNStepBuffer

from synther_buffers.upsampling.presets import PRESETS

DICT = spaces.Dict({"position": box(2), "mode": spaces.Discrete(3)})


def trained(num_steps=200, **kwargs):
    model = SAC("MlpPolicy", "Pendulum-v1", **kwargs_for(SynthERBuffer, **kwargs))
    return model.learn(num_steps)


# -- the replay buffer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upsampler", [Marked, TINY])
def test_a_loaded_replay_buffer_goes_on_where_the_saved_one_stopped(tmp_path, upsampler):
    saved = trained(upsampler=upsampler)
    saved.save_replay_buffer(tmp_path / "buffer.pkl")
    # Training goes on at once; only the buffer is loaded here, not the agent's count of steps.
    kwargs = kwargs_for(SynthERBuffer, upsampler=upsampler) | {"learning_starts": 0}
    resumed = SAC("MlpPolicy", "Pendulum-v1", **kwargs)
    resumed.load_replay_buffer(tmp_path / "buffer.pkl")
    assert_same_rows(resumed.replay_buffer.synthetic.rows, saved.replay_buffer.synthetic.rows)
    # As text, because NaN does not equal itself.
    assert str(resumed.replay_buffer.synthetic.reports) == str(saved.replay_buffer.synthetic.reports)
    for _ in range(3):
        batches = []
        for model in (saved, resumed):
            np.random.seed(5)
            batches.append(model.replay_buffer.sample(64))
        assert_same(*batches)

    resumed.learn(100, reset_num_timesteps=False)
    # The second refresh is due at 240 transitions in all, 40 after the load.
    assert [report.num_observed for report in resumed.replay_buffer.synthetic.reports] == [120, 240]
    assert torch.isfinite(parameters(resumed)).all()


@pytest.mark.parametrize("cls", [SynthERBuffer, SynthERNStepBuffer])
def test_the_next_refresh_after_a_load_is_the_one_that_would_have_come(cls):
    """The same rows in, the same synthetic rows out: model, warm start, held-out rows and draws are all restored."""
    buffer = make_buffer(cls, upsampler=TINY)
    random_into([buffer], 130, box(1), box(1))
    buffer.sample(8)
    loaded = pickle.loads(pickle.dumps(buffer))
    random_into([buffer, loaded], 130, box(1), box(1), seed=1)
    for each in (buffer, loaded):
        each.sample(8)
        assert each.synthetic.num_refreshes == 2
    assert_same_rows(loaded.synthetic.rows, buffer.synthetic.rows)
    first, second = buffer.synthetic.reports[-1], loaded.synthetic.reports[-1]
    assert first.fit.loss == second.fit.loss
    assert (first.fit.warm, first.num_held_out) == (second.fit.warm, second.num_held_out)


COPIES = {
    "pickle": lambda buffer: pickle.loads(pickle.dumps(buffer)),
    "cloudpickle": lambda buffer: cloudpickle.loads(cloudpickle.dumps(buffer)),
    "deepcopy": copy.deepcopy,
    "SB3's own": lambda buffer: load_from_pkl(io.BytesIO(saved_bytes(buffer))),
}


def saved_bytes(buffer):
    file = io.BytesIO()
    save_to_pkl(file, buffer)
    return file.getvalue()


@pytest.mark.parametrize("num_steps", [50, 150], ids=["before a refresh", "after a refresh"])
@pytest.mark.parametrize("cls", [SynthERBuffer, SynthERDictBuffer, SynthERNStepBuffer])
@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_the_buffer_gives_the_same_batches_and_is_its_own(way, cls, num_steps):
    space = DICT if cls is SynthERDictBuffer else box(3)
    buffer = make_buffer(cls, 400, space, box(2), n_envs=2, upsampler=TINY)
    random_into([buffer], num_steps, space, box(2))
    buffer.sample(8)
    copied = COPIES[way](buffer)
    assert copied.synthetic.num_observed == 2 * num_steps
    assert copied.synthetic.num_refreshes == buffer.synthetic.num_refreshes
    np.random.seed(5)
    expected = [buffer.sample(32) for _ in range(2)]
    np.random.seed(5)
    for batch in expected:
        assert_same(copied.sample(32), batch)
    copied.reset()
    assert (buffer.size(), buffer.synthetic.num_observed) == (num_steps, 2 * num_steps)
    assert (buffer.synthetic.rows is None) == (num_steps == 50)


def test_the_largest_seed_that_torch_may_have_been_given():
    torch.manual_seed(-1)
    buffer = make_buffer(SynthERBuffer, seed=None, upsampler=TINY)
    count_into(buffer, 0, 130)
    buffer.sample(8)
    assert buffer.synthetic.seed == 2**64 - 1
    assert buffer.synthetic.num_refreshes == 1
    copied = pickle.loads(pickle.dumps(buffer))
    np.random.seed(5)
    expected = buffer.sample(32)
    np.random.seed(5)
    assert_same(copied.sample(32), expected)


def test_what_is_saved_holds_the_synthetic_rows_once():
    buffer = make_buffer(SynthERBuffer, num_synthetic=20_000)
    count_into(buffer, 0, 130)
    buffer.synthetic.refresh(buffer.real_transitions(), buffer.row_order())
    before = len(pickle.dumps(buffer))
    buffer.sample(8)
    # Sampling keeps the rows in the layout of batches too.
    assert abs(len(pickle.dumps(buffer)) - before) < 1_000


def test_a_resumed_run_knows_its_ring_has_wrapped():
    buffer = make_buffer(SynthERBuffer, 200)
    count_into(buffer, 0, 250)
    buffer = pickle.loads(pickle.dumps(buffer))
    count_into(buffer, 250, 260)
    assert sorted(buffer.real_transitions().observation.flatten().tolist()) == list(range(60, 260))
    order = buffer.row_order()
    assert order.write_index.tolist() == buffer.real_transitions().observation.flatten().tolist()


# -- the agent -----------------------------------------------------------------------------------------------------


def saved_size(model, path):
    model.save(path)
    return path.stat().st_size


@pytest.mark.parametrize("upsampler", ["paper-offline", PRESETS["paper-online"], TINY, Marked])
@pytest.mark.parametrize("num_steps", [0, 200], ids=["untrained", "trained"])
def test_the_size_of_a_saved_agent_does_not_depend_on_the_upsampler(tmp_path, upsampler, num_steps):
    replay = {"num_synthetic": 20_000}
    if upsampler not in (TINY, Marked):
        # Too large to train here; the configuration alone is saved in any case.
        replay["retrain_every"] = 1_000
    plain = SAC("MlpPolicy", "Pendulum-v1", **small(buffer_size=1_000))
    ours = SAC("MlpPolicy", "Pendulum-v1", **kwargs_for(SynthERBuffer, upsampler=upsampler, **replay))
    sizes = [saved_size(model.learn(num_steps), tmp_path / f"{model.buffer_size}.zip") for model in (plain, ours)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


@pytest.mark.parametrize("upsampler", [Marked, TINY])
def test_a_loaded_agent_trains_on_mixed_batches_again(tmp_path, upsampler):
    model = trained(upsampler=upsampler)
    model.save(tmp_path / "agent.zip")
    loaded = SAC.load(tmp_path / "agent.zip", env=gym.make("Pendulum-v1"))
    assert type(loaded.replay_buffer) is SynthERBuffer
    assert loaded.replay_buffer.synthetic.rows is None
    assert torch.equal(parameters(loaded), parameters(model))
    batches = record_batches(loaded)
    loaded.learn(150)
    assert loaded.replay_buffer.synthetic.num_refreshes == 1
    assert not torch.equal(parameters(loaded), parameters(model))
    if upsampler is Marked:
        assert num_marked(batches[-1]) == 16


def test_agent_and_buffer_saved_together_resume(tmp_path):
    model = trained(upsampler=TINY)
    model.save(tmp_path / "agent.zip")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    loaded = SAC.load(tmp_path / "agent.zip", env=model.get_env())
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    loaded.learn(100, reset_num_timesteps=False)
    assert [report.num_observed for report in loaded.replay_buffer.synthetic.reports] == [120, 240]
    assert loaded.replay_buffer.size() == 300
