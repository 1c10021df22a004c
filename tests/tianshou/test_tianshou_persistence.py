"""Pickle, copy and HDF5: the real rows, the synthetic set and the model come back, and learning goes on."""

import copy
import pickle

import numpy as np
import pytest
import torch
from synther_buffers.tianshou import SynthERPrioritizedReplayBuffer, SynthERReplayBuffer
from tianshou.data import PrioritizedVectorReplayBuffer, VectorReplayBuffer
from tianshou_helpers import (
    PLAIN,
    TINY,
    assert_same,
    assert_same_rows,
    count_into,
    make_buffer,
    make_plain,
    refreshed,
    rows,
)

CLASSES = pytest.mark.parametrize("cls", PLAIN)


def via_pickle(buffer, tmp_path):
    return pickle.loads(pickle.dumps(buffer))


def via_deepcopy(buffer, tmp_path):
    return copy.deepcopy(buffer)


def via_hdf5(buffer, tmp_path):
    buffer.save_hdf5(str(tmp_path / "buffer.hdf5"))
    return type(buffer).load_hdf5(str(tmp_path / "buffer.hdf5"))


def via_compressed_hdf5(buffer, tmp_path):
    buffer.save_hdf5(str(tmp_path / "buffer.hdf5"), compression="gzip")
    return type(buffer).load_hdf5(str(tmp_path / "buffer.hdf5"))


ROUTES = pytest.mark.parametrize("route", [via_pickle, via_deepcopy, via_hdf5, via_compressed_hdf5])


@CLASSES
@ROUTES
def test_round_trip(cls, route, tmp_path):
    buffer = refreshed(cls)
    loaded = route(buffer, tmp_path)
    assert_same(loaded[:], buffer[:])
    everything = np.arange(700)
    written = np.concatenate((buffer.sample_indices(0), np.arange(400, 700)))
    assert_same(loaded[written], buffer[written])
    assert_same_rows(loaded.synthetic.rows, buffer.synthetic.rows)
    for name in ("next", "prev"):
        np.testing.assert_array_equal(getattr(loaded, name)(everything), getattr(buffer, name)(everything))
    assert loaded.synthetic.num_observed == 150
    # Both go on alike: the same batches, another refresh, the same batches again.
    for each in (buffer, loaded):
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        each.first = each.sample(32)
        count_into(each, 75, 160, ends=[101])
        each.second = each.sample(32)
        assert each.synthetic.num_refreshes == 2
    for attempt in ("first", "second"):
        left, right = getattr(loaded, attempt), getattr(buffer, attempt)
        np.testing.assert_array_equal(left[1], right[1])
        assert_same(left[0], right[0])
    held = [[part.observation.tolist() for part in each.synthetic.upsampler.trained[-1]] for each in (buffer, loaded)]
    assert held[0] == held[1]


@CLASSES
@ROUTES
def test_the_sub_buffers_are_views_again(cls, route, tmp_path):
    loaded = route(refreshed(cls), tmp_path)
    count_into(loaded, 75, 77)
    assert loaded.unfinished_index().tolist() == [76, 276]
    loaded.add(rows(77, terminated=True), [0])
    assert loaded.unfinished_index().tolist() == [276]
    # And after a key that is new to the storage.
    loaded.add(rows(78, terminated=True, policy={"state": np.ones((1, 2))}), [1])
    assert loaded.unfinished_index().tolist() == []
    assert np.shares_memory(loaded.buffers[1].rew, loaded.rew)


@CLASSES
@ROUTES
def test_an_empty_buffer_and_one_before_its_first_refresh(cls, route, tmp_path):
    empty = route(make_buffer(cls, buffer_num=2), tmp_path)
    assert len(empty) == 0
    count_into(empty, 0, 60)
    assert empty.sample(8)[1].max() >= 400
    early = make_buffer(cls, buffer_num=2)
    count_into(early, 0, 30)
    early = route(early, tmp_path)
    assert early.unfinished_index().tolist() == [29, 229]
    count_into(early, 30, 60, ends=[59])
    assert early.unfinished_index().tolist() == []
    assert early.synthetic.num_observed == 120
    assert early.sample(8)[1].max() >= 400


@CLASSES
def test_a_shallow_copy_shares_everything_as_tianshous_does(cls):
    for buffer in (refreshed(cls), make_plain(cls, buffer_num=2)):
        twin = copy.copy(buffer)
        assert type(twin) is type(buffer)
        assert twin is not buffer
        assert twin.__dict__.keys() == buffer.__dict__.keys()
        assert all(twin.__dict__[name] is value for name, value in buffer.__dict__.items())
        count_into(twin, 75, 77)
        assert len(twin) == len(buffer)
        assert twin.buffers[0] is buffer.buffers[0]
        assert buffer.unfinished_index().tolist() == [76, 276] if len(buffer) > 4 else True


def test_the_diffusion_model_is_saved_with_the_buffer(tmp_path):
    buffer = make_buffer(upsampler=TINY, num_synthetic=200)
    count_into(buffer, 0, 130)
    buffer.sample(2)
    for route in (via_pickle, via_hdf5):
        loaded = route(buffer, tmp_path)
        torch.manual_seed(5)
        assert_same_rows(loaded.synthetic.upsampler.sample(50), copy.deepcopy(buffer.synthetic).upsampler.sample(50))


def test_what_a_pickle_weighs():
    # 20,000 real rows of 4 numbers and as many synthetic ones: each is in the file once.
    buffer = make_buffer(size=20_000, num_synthetic=20_000)
    count_into(buffer, 0, 130)
    buffer.sample(2)
    plain = make_plain(size=20_000)
    count_into(plain, 0, 130)
    written = len(pickle.dumps(plain))  # Tianshou's has the rows twice
    assert len(pickle.dumps(buffer)) < written + 20_000 * 17 + 100_000


@CLASSES
def test_tianshous_class_reads_a_file_of_ours(cls, tmp_path):
    buffer, path = refreshed(cls), str(tmp_path / "buffer.hdf5")
    count_into(buffer, 75, 76, ids=[1])
    buffer.save_hdf5(path)
    plain = (VectorReplayBuffer if cls is SynthERReplayBuffer else PrioritizedVectorReplayBuffer).load_hdf5(path)
    assert len(plain) == 151
    assert len(plain.rew) == 400
    assert_same(plain[:], buffer[:])
    assert plain.unfinished_index().tolist() == [275]
    plain.add(rows(80, 2))
    np.testing.assert_array_equal(plain.sample_indices(8) >= 400, False)


@CLASSES
def test_a_file_of_tianshous_class_is_refused(cls, tmp_path):
    plain, path = make_plain(cls, buffer_num=2), str(tmp_path / "buffer.hdf5")
    count_into(plain, 0, 10)
    plain.save_hdf5(path)
    message = rf"buffer.hdf5: this file was not saved by {cls.__name__}: it has no settings of a synthetic set"
    with pytest.raises(ValueError, match=message):
        cls.load_hdf5(path)


def test_a_fraction_0_buffer_comes_back_too(tmp_path):
    for cls in (SynthERReplayBuffer, SynthERPrioritizedReplayBuffer):
        loaded = via_hdf5(refreshed(cls, synthetic_fraction=0.0), tmp_path)
        assert len(loaded.rew) == 400
        assert len(loaded.sample(5)[1]) == 5
