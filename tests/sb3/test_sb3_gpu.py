"""Buffers whose algorithm runs on a GPU; skipped where there is none."""
# ruff: noqa: NPY002  # SB3 draws from NumPy's global stream

import pickle

import numpy as np
import pytest
import torch
from batches import real_places, synthetic_places
from sb3_helpers import (
    MARK,
    PLAIN,
    SPACES,
    TINY,
    Marked,
    assert_same_rows,
    flat_batch,
    kwargs_for,
    num_marked,
    random_into,
)
from stable_baselines3 import SAC
from synther_buffers.sb3 import SynthERBuffer

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("case", ["vector", "float64", "discrete", "dict", "n-step"])
def test_batches_lie_on_the_gpu(case):
    cls, observation_space, action_space = SPACES[case]
    plain = PLAIN[cls](400, observation_space, action_space, "cuda", n_envs=2)
    ours = cls(400, observation_space, action_space, "cuda", n_envs=2, upsampler=Marked, retrain_every=120)
    random_into([plain, ours], 100, observation_space, action_space)
    ours.sample(2)
    np.random.seed(5)
    batch = flat_batch(ours.sample(33))
    np.random.seed(5)
    for name, tensor in flat_batch(plain.sample(17)).items():
        assert batch[name].device.type == "cuda"
        assert (batch[name].dtype, batch[name].shape) == (tensor.dtype, (33, *tensor.shape[1:]))
        assert torch.equal(batch[name][real_places(33)], tensor)
    assert (batch["rewards"][synthetic_places(33)] == MARK).all()


def test_an_agent_trains_on_the_gpu_and_its_buffer_moves_to_the_cpu(tmp_path):
    kwargs = kwargs_for(SynthERBuffer, upsampler=TINY) | {"device": "cuda"}
    model = SAC("MlpPolicy", "Pendulum-v1", **kwargs).learn(200)
    buffer = model.replay_buffer
    assert buffer.synthetic.num_refreshes == 1
    assert buffer.synthetic.rows.device.type == "cuda"
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    on_cpu = SAC("MlpPolicy", "Pendulum-v1", **kwargs | {"device": "cpu"})
    on_cpu.load_replay_buffer(tmp_path / "buffer.pkl")
    batch = on_cpu.replay_buffer.sample(32)
    assert batch.rewards.device.type == "cpu"
    assert_same_rows(on_cpu.replay_buffer.synthetic.rows, buffer.synthetic.rows.to("cpu"))
    on_cpu.learn(100, reset_num_timesteps=False)
    assert on_cpu.replay_buffer.synthetic.num_refreshes == 2


def test_a_copy_on_the_gpu_gives_the_same_batches():
    cls, observation_space, action_space = SPACES["vector"]
    buffer = cls(400, observation_space, action_space, "cuda", upsampler=Marked, retrain_every=120)
    random_into([buffer], 150, observation_space, action_space)
    buffer.sample(8)
    copied = pickle.loads(pickle.dumps(buffer))
    np.random.seed(5)
    expected = buffer.sample(32)
    np.random.seed(5)
    batch = copied.sample(32)
    assert num_marked(batch) == 16
    for name, tensor in flat_batch(expected).items():
        assert torch.equal(flat_batch(batch)[name], tensor)
