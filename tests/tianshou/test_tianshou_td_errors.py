"""TD errors that Tianshou's algorithms report: which rows have them, and what becomes of them."""

import copy

import numpy as np
import pytest
import torch
from synther_buffers.tianshou import SynthERPrioritizedReplayBuffer, SynthERReplayBuffer
from tianshou.data import Batch
from toys import TINY

OPTIONS = {"upsampler": TINY, "retrain_every": 150, "num_synthetic": 100, "progress_bar": False, "guidance": "td-error"}


def row(number, envs=1):
    """Row i of each environment: observation i, reward 1; the last of every ten is terminal."""
    value = np.full((envs, 1), number, np.float32)
    ended = np.full(envs, number % 10 == 9)
    nothing = np.zeros(envs, np.bool_)
    return Batch(
        obs=value, act=value / 1_000, rew=np.ones(envs), terminated=ended, truncated=nothing, done=ended, obs_next=value
    )


def filled(num_rows, size=200, envs=1, cls=SynthERReplayBuffer, **options):
    buffer = cls(size, envs, **OPTIONS | options)
    for number in range(num_rows):
        buffer.add(row(number, envs))
    return buffer


def errors(buffer):
    return buffer.synthetic.td_error(buffer.real_transitions())


def test_a_buffer_without_the_guidance_is_told_nothing():
    assert not hasattr(SynthERReplayBuffer(200, retrain_every=100), "update_weight")
    assert hasattr(filled(3), "update_weight")


def test_with_a_function_of_the_users_nothing_is_asked_of_the_algorithm():
    buffer = filled(3)
    buffer.synthetic.bind_td_error(lambda rows: rows.reward)
    assert not hasattr(buffer, "update_weight")


@pytest.mark.parametrize("envs", [1, 2])
def test_reported_errors_belong_to_their_rows(envs):
    buffer = filled(20, envs=envs)  # with two environments, rows 0 to 19 and 100 to 119
    buffer.update_weight(np.array([3, buffer.maxsize + 5, 7]), np.array([-1.0, 50.0, 3.0]))
    found = errors(buffer)
    assert len(found) == 20 * envs
    assert found[[3, 7, 0]].tolist() == [1, 3, 2]
    if envs == 2:
        buffer.update_weight(np.array([104]), np.array([8.0]))
        assert errors(buffer)[24] == 8


def test_a_row_that_is_overwritten_loses_its_error():
    buffer = filled(200)
    buffer.update_weight(np.array([0, 1]), np.array([4.0, 2.0]))
    buffer.add(row(200))  # slot 0
    assert errors(buffer)[:2].tolist() == [2, 2]
    buffer.reset()
    with pytest.raises(RuntimeError, match="no TD error"):
        errors(filled(1))


@pytest.mark.parametrize(
    "reported", [torch.tensor(0.5), torch.ones(2, 3), None, "text"], ids=["scalar", "matrix", "none", "text"]
)
def test_errors_of_another_shape_do_not_stop_the_agent(reported, log):
    buffer = filled(20)
    buffer.update_weight(np.array([3, 7]), np.array([1.0, 3.0]))
    for _ in range(2):
        buffer.update_weight(np.array([3, 205]), reported)
    assert errors(buffer)[[3, 7]].tolist() == [1, 3]
    assert log.text.count("The TD errors that were reported cannot be kept") == 1


@pytest.mark.parametrize("reported", [torch.ones(2, 1), [1.0, 1.0], torch.ones(2, dtype=torch.bfloat16)])
def test_errors_in_other_forms_are_kept(reported):
    buffer = filled(20)
    buffer.update_weight([3, 205], reported)
    assert errors(buffer)[3] == 1


def test_copies_and_files_keep_them(tmp_path):
    buffer = filled(20)
    buffer.update_weight(np.array([3, 7]), np.array([1.0, 3.0]))
    buffer.save_hdf5(str(tmp_path / "buffer.hdf5"))
    loaded = SynthERReplayBuffer.load_hdf5(str(tmp_path / "buffer.hdf5"))
    for again in (copy.deepcopy(buffer), loaded):
        buffer.update_weight(np.array([3]), np.array([9.0]))
        assert errors(again)[[3, 7]].tolist() == [1, 3]


def test_priorities_and_errors_are_both_set():
    buffer = filled(20, cls=SynthERPrioritizedReplayBuffer, alpha=0.6, beta=0.4)
    buffer.update_weight(np.array([3, 7]), np.array([1.0, 3.0]))
    assert errors(buffer)[[3, 7]].tolist() == [1, 3]
    assert buffer.weight[3] < buffer.weight[7]
