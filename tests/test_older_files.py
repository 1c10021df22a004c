"""Files of version 3: the real rows of every framework's buffer load, and the synthetic part with them where it can."""

import logging
import pickle
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.save_util import load_from_pkl
from synther_buffers.sb3 import SynthERBuffer
from synther_buffers.tianshou import SynthERReplayBuffer
from synther_buffers.torchrl import SynthERStorage
from torchrl.data import TensorDictReplayBuffer

DATA = Path(__file__).parent / "data" / "version3"
#: The ring of 130 rows saw 150: observation (i, -i), action sin i, reward 1, terminal every 20th.
KEPT = [*range(130, 150), *range(20, 130)]


def assert_goes_on(replay, add, sample):
    """The synthetic set of the file serves, and the next refresh works."""
    assert replay.num_refreshes == 1
    assert replay.num_observed == 150
    assert len(replay.rows) == 60
    sample(8)
    for i in range(150, 260):
        add(i)
    sample(8)
    assert replay.num_refreshes == 2
    assert "left the model's normalisation" in replay.reports[-1].fit.reason  # it went on from the model of the file


def test_stable_baselines3():
    buffer = load_from_pkl(DATA / "sb3_buffer.pkl")
    assert type(buffer) is SynthERBuffer
    assert buffer.observations[:, 0, 0].tolist() == KEPT
    assert buffer.actions[:, 0, 0] == pytest.approx(np.sin(KEPT), abs=1e-6)

    def add(i):
        o = np.array([[i, -i]], np.float32)
        buffer.add(o, o + 1, np.sin([[i]]).astype(np.float32), np.ones(1), np.array([i % 20 == 19]), [{}])

    assert_goes_on(buffer.synthetic, add, buffer.sample)


def test_a_model_of_stable_baselines3():
    model = SAC.load(DATA / "sb3_model.zip", env=gym.make("Pendulum-v1"))
    model.learning_starts = 50
    model.learn(130)
    assert model.replay_buffer.synthetic.upsampler.settings.train_steps == 20
    assert model.replay_buffer.synthetic.num_refreshes == 1


@pytest.mark.parametrize("form", ["hdf5", "pickle"])
def test_tianshou(form):
    if form == "hdf5":
        buffer = SynthERReplayBuffer.load_hdf5(str(DATA / "tianshou_buffer.hdf5"))
    else:
        buffer = pickle.loads((DATA / "tianshou_buffer.pkl").read_bytes())
    assert type(buffer) is SynthERReplayBuffer
    assert sorted(buffer[:].obs[:, 0].tolist()) == sorted(KEPT)
    batch, index = buffer.sample(8)
    assert (index >= buffer.maxsize).sum() == 4
    assert np.isfinite(batch.obs).all()
    assert buffer.synthetic.num_refreshes == 1


def test_torchrl_dumps(caplog):
    storage = SynthERStorage(130, retrain_every=100, num_synthetic=60, progress_bar=False)
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=8)
    with caplog.at_level(logging.WARNING):
        buffer.loads(DATA / "torchrl_buffer")
    assert buffer[:]["observation"][:, 0].tolist() == KEPT
    assert storage.synthetic.num_refreshes == 0
    assert "saved by an older version, which pickled the synthetic rows" in caplog.text


def test_torchrl_state(caplog):
    storage = SynthERStorage(130, retrain_every=100, num_synthetic=60, progress_bar=False)
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=8)
    with caplog.at_level(logging.WARNING):
        buffer.load_state_dict(torch.load(DATA / "torchrl_state.pt", weights_only=False))
    assert buffer[:]["observation"][:, 0].tolist() == KEPT
    assert len([record for record in caplog.records if "cannot be read" in record.message]) == 1


def test_torchrl_pickle():
    buffer = pickle.loads((DATA / "torchrl_buffer.pkl").read_bytes())
    assert type(buffer.storage) is SynthERStorage
    assert buffer[:]["observation"][:, 0].tolist() == KEPT
    assert buffer.storage.synthetic.num_refreshes == 1


def test_torchrls_state_needs_no_pickle(tmp_path):
    buffer = pickle.loads((DATA / "torchrl_buffer.pkl").read_bytes())
    buffer.sample()
    torch.save(buffer.state_dict()["_storage"]["synthetic"], tmp_path / "synthetic.pt")
    packed = torch.load(tmp_path / "synthetic.pt", weights_only=True).numpy().tobytes()
    assert b"synther_buffers.replay" not in packed
    length = int.from_bytes(packed[:8], "little")
    assert packed[8:9] == b"{"  # a safetensors header
    assert 0 < length < len(packed)


@pytest.mark.parametrize("damage", ["cut", "version"])
def test_a_state_that_cannot_be_read_costs_the_model_never_the_rows(damage, caplog):
    buffer = load_from_pkl(DATA / "sb3_buffer.pkl")
    state = buffer.synthetic.state_dict()
    broken = {**state, "version": 99} if damage == "version" else {key: state[key] for key in ("version", "spec")}
    buffer.synthetic.load_state_dict(broken)
    assert buffer.observations[:, 0, 0].tolist() == KEPT
    assert buffer.synthetic.rows is None
    assert len([record for record in caplog.records if "cannot be read" in record.message]) == 1
    assert buffer.synthetic.num_observed == 150
    buffer.sample(8)
    assert buffer.synthetic.num_refreshes == 1
