"""Saved replay buffers as they are found: actions that nobody scaled, counters of an odd kind."""

import pickle

import h5py
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import save_to_pkl
from tianshou.data import Batch
from tianshou.data import ReplayBuffer as TianshouBuffer

from synther_buffers.datasets import open_dataset
from synther_buffers.datasets.description import describe

OBSERVATION = spaces.Box(-np.inf, np.inf, (1,), np.float32)


def read_actions(path, space, actions):
    buffer = ReplayBuffer(len(actions), OBSERVATION, space, device="cpu")
    for step, action in enumerate(actions):
        observation = np.array([[step]], np.float32)
        buffer.add(observation, observation + 1, np.array([[action]]), np.ones(1), np.zeros(1, bool), [{}])
    save_to_pkl(path, buffer)
    return open_dataset(path, allow_pickle=True).subset(10**6).action[:, 0].tolist()


@pytest.mark.parametrize(
    ("bounds", "stored", "wanted"),
    [
        ((-2.0, 2.0), [-1.0, 0.25, 1.0], [-2.0, 0.5, 2.0]),  # what an algorithm stores
        ((-2.0, 2.0), [-1.9375, 0.25, 1.9375], [-1.9375, 0.25, 1.9375]),  # what a loop of one's own stores
        ((0.0, 4.0), [0.5, 3.5], [0.5, 3.5]),
        ((0.0, 4.0), [-0.5, 0.5], [1.0, 3.0]),
        ((-np.inf, np.inf), [-8.5, 0.25, 10.5], [-8.5, 0.25, 10.5]),
        ((-np.inf, np.inf), [-0.5, 0.25], [-0.5, 0.25]),
        ((0.0, np.inf), [0.5, 0.25], [0.5, 0.25]),
        ((-1.0, 1.0), [-0.5, 0.25], [-0.5, 0.25]),
    ],
)
def test_sb3_actions_are_unscaled_where_they_can_have_been_scaled(tmp_path, bounds, stored, wanted):
    assert read_actions(tmp_path / "buffer.pkl", spaces.Box(*bounds, (1,), np.float32), stored) == wanted


def test_sb3_actions_a_rounding_beyond_1_are_scaled_ones(tmp_path):
    above = float(np.nextafter(np.float32(1), np.float32(2)))
    (found,) = read_actions(tmp_path / "buffer.pkl", spaces.Box(-2.0, 2.0, (1,), np.float32), [above])
    assert found == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize("size", [1, 4])
def test_sb3_buffers_of_a_single_row_without_a_next_observation(tmp_path, size):
    buffer = ReplayBuffer(
        size, OBSERVATION, OBSERVATION, device="cpu", optimize_memory_usage=True, handle_timeout_termination=False
    )
    buffer.add(np.zeros((1, 1)), np.ones((1, 1)), np.zeros((1, 1)), np.ones(1), np.zeros(1, bool), [{}])
    save_to_pkl(tmp_path / "buffer.pkl", buffer)
    with pytest.raises(ValueError, match=r"buffer\.pkl: no row has a next observation; there is nothing to learn"):
        describe(open_dataset(tmp_path / "buffer.pkl", allow_pickle=True))


def filled(size=5, **changes):
    buffer = TianshouBuffer(size)
    for step in range(3):
        observation = np.array([step], np.float32)
        buffer.add(
            Batch(
                obs=observation, act=np.zeros(1), rew=1.0, obs_next=observation + 1,
                terminated=False, truncated=False, info={},
            )
        )  # fmt: skip
    vars(buffer).update(changes)
    return buffer


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"stack_num": np.array([1, 2])}, "a damaged Tianshou buffer: stack_num has 2 values; wanted one"),
        ({"stack_num": 1.5}, "a damaged Tianshou buffer: stack_num has dtype float64 and shape"),
        ({"stack_num": 4}, "stack_num=4; rows of stacked frames are not supported"),
        ({"maxsize": np.inf}, "a damaged Tianshou buffer: maxsize has dtype float64 and shape"),
        ({"maxsize": np.array([[5, 5], [5, 5]])}, r"maxsize has dtype int64 and shape \(2, 2\); wanted whole numbers"),
        ({"_size": np.array([])}, "a damaged Tianshou buffer: _size has dtype float64 and shape"),
        ({"_size": np.array([], np.int64)}, "a damaged Tianshou buffer: _size has 0 values; wanted one"),
        ({"last_index": np.array([2, 3])}, "1 offsets, 1 lengths and 2 last indices; wanted one of each for a ring"),
        ({"last_index": np.array([[2]])}, r"last_index has dtype int64 and shape \(1, 1\)"),
    ],
)
@pytest.mark.parametrize("kind", ["hdf5", "pickle"])
def test_tianshou_counters_of_an_odd_kind(tmp_path, kind, changes, match):
    path = tmp_path / "buffer"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(filled(**changes)))
    else:
        filled().save_hdf5(str(path))
        with h5py.File(path, "a") as file:
            for key, value in changes.items():
                holder = file if key in file else file.attrs
                if key in file:
                    del file[key]
                holder[key] = value
    with pytest.raises(ValueError, match=match) as info:
        open_dataset(path, allow_pickle=True)
    assert str(path) in str(info.value)


@pytest.mark.parametrize("key", ["maxsize", "_size", "last_index"])
def test_tianshou_counters_that_are_missing(tmp_path, key):
    buffer = filled()
    del vars(buffer)[key]
    (tmp_path / "buffer.pkl").write_bytes(pickle.dumps(buffer))
    with pytest.raises(ValueError, match=rf"damaged one: it has no {key}|holds a ReplayBuffer; wanted"):
        open_dataset(tmp_path / "buffer.pkl", allow_pickle=True)
