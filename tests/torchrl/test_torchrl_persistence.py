"""Saving, loading, copying, emptying; and what is random."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from synther_buffers.torchrl import SynthERMemmapStorage, SynthERStorage
from torchrl.data import TensorDictReplayBuffer
from torchrl_helpers import PLAIN, TINY, Marked, assert_same, make_buffer, num_marked, rows

STORAGES = [SynthERStorage, SynthERMemmapStorage]


def filled(cls=SynthERStorage, **kwargs):
    buffer = make_buffer(cls, **kwargs)
    buffer.extend(rows(150))
    buffer.sample(8)
    return buffer


def next_batch(buffer, num_rows=32):
    torch.manual_seed(11)
    return buffer.sample(num_rows)


def by_pickle(buffer, cls, tmp_path, kwargs):
    return pickle.loads(pickle.dumps(buffer))


def by_copy(buffer, cls, tmp_path, kwargs):
    return copy.deepcopy(buffer)


def by_dump(buffer, cls, tmp_path, kwargs):
    buffer.dumps(tmp_path / "buffer")
    loaded = make_buffer(cls, **kwargs)
    loaded.loads(tmp_path / "buffer")
    return loaded


def by_state_dict(buffer, cls, tmp_path, kwargs):
    torch.save(buffer.state_dict(), tmp_path / "state.pt")
    loaded = make_buffer(cls, **kwargs)
    # Plain tensors and containers: the safe loader takes them.
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    return loaded


WAYS = [
    # TorchRL's memory-mapped storage does not pickle either.
    *((SynthERStorage, way) for way in (by_pickle, by_copy, by_dump, by_state_dict)),
    *((SynthERMemmapStorage, way) for way in (by_copy, by_dump, by_state_dict)),
]


@pytest.mark.filterwarnings("ignore:Loading the storage on an uninitialized TensorDict")
@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize(("cls", "way"), WAYS)
def test_a_copy_gives_the_same_batches_and_goes_on(cls, way, ndim, tmp_path):
    kwargs = {"upsampler": TINY, "num_synthetic": 200, "ndim": ndim, "max_size": 400}
    buffer = make_buffer(cls, **kwargs)

    def more(first):
        data = rows(160, first)
        return data if ndim == 1 else data.reshape(4, 40)

    buffer.extend(more(0))
    buffer.sample(8)
    loaded = way(buffer, cls, tmp_path, kwargs)
    assert len(loaded) == 160
    assert_same(loaded[:], buffer[:])
    assert_same(next_batch(loaded), next_batch(buffer))
    # Both learn on, to the same rows.
    batches = []
    for each in (buffer, loaded):
        each.extend(more(160))
        batches.append(next_batch(each))
        assert each.storage.synthetic.num_refreshes == 2
    assert_same(*batches)


@pytest.mark.filterwarnings("ignore:Loading the storage on an uninitialized TensorDict")
@pytest.mark.parametrize("cls", STORAGES)
def test_plain_storages_load_what_ours_saved_and_ours_what_they_saved(cls, tmp_path):
    ours, plain = filled(cls), TensorDictReplayBuffer(storage=PLAIN[cls](400))
    ours.dumps(tmp_path / "ours")
    plain.loads(tmp_path / "ours")
    assert_same(plain[:], ours[:])
    again = TensorDictReplayBuffer(storage=PLAIN[cls](400))
    again.load_state_dict(ours.state_dict())
    assert_same(again[:], ours[:])

    plain.dumps(tmp_path / "plain")
    for way in ("loads", "load_state_dict"):
        loaded = make_buffer(cls)
        getattr(loaded, way)(tmp_path / "plain" if way == "loads" else plain.state_dict())
        assert loaded.storage.synthetic.rows is None
        # As many rows as were written before, so a refresh is due.
        assert num_marked(loaded.sample(8)) == 4
        assert_same(loaded[:], ours[:])


def test_loading_replaces_a_synthetic_set(tmp_path):
    early = make_buffer()
    early.extend(rows(100))
    early.dumps(tmp_path / "early")
    late = filled()
    late.loads(tmp_path / "early")
    assert late.storage.synthetic.rows is None
    assert num_marked(late.sample(8)) == 0


def test_emptying_forgets_all():
    for keep_count in (False, True):
        buffer = filled()
        buffer.empty(empty_write_count=not keep_count)
        synthetic = buffer.storage.synthetic
        assert (synthetic.rows, synthetic.num_observed, synthetic.num_refreshes) == (None, 0, 0)
        buffer.extend(rows(119))
        assert num_marked(buffer.sample(8)) == 0
        buffer.extend(rows(1, 119))
        assert num_marked(buffer.sample(8)) == 4
        assert synthetic.num_observed == 120


def test_what_is_learned_is_what_is_stored_after_emptying():
    buffer = filled()
    buffer.empty()
    buffer.extend(rows(130, 1000))
    buffer.sample(8)
    assert (buffer.storage.synthetic.rows.observation[:, 0] >= 1000).all()


# -- randomness ----------------------------------------------------------------------------------------------------


def global_state():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002


def test_building_writing_and_refreshing_move_no_global_stream():
    before = global_state()
    buffer = make_buffer(upsampler=TINY, num_synthetic=100, seed=None)
    buffer.extend(rows(150))
    assert buffer.storage.split_batch(8) == (4, 4)
    buffer.storage.add_synthetic(torch.arange(4), 4)
    assert buffer.storage.synthetic.num_refreshes == 1
    assert global_state() == before


def test_the_same_seed_gives_the_same_batches():
    batches = []
    for global_seed, seed in ((1, 5), (2, 5), (1, 6), (5, None)):
        torch.manual_seed(global_seed)
        buffer = make_buffer(upsampler=TINY, num_synthetic=100, seed=seed)
        buffer.extend(rows(150))
        batches.append(next_batch(buffer))
    assert_same(batches[0], batches[1])
    # No seed: torch's.
    assert_same(batches[0], batches[3])
    assert not torch.equal(batches[0]["observation"], batches[2]["observation"])


@pytest.mark.parametrize("cls", STORAGES)
def test_stored_rows_are_the_plain_storages_bit_for_bit(cls):
    ours, plain = make_buffer(cls, max_size=130), TensorDictReplayBuffer(storage=PLAIN[cls](130))
    for first in range(0, 300, 25):
        for buffer in (ours, plain):
            buffer.extend(rows(25, first))
        batch = ours.sample(16)
        batch["observation"].fill_(-1)
        batch["next", "reward"].fill_(-1)
        assert_same(ours[:], plain[:])
    assert ours.storage.synthetic.num_refreshes == 2
    # A batch is a copy: writing into it reaches neither the real rows nor the synthetic ones.
    assert (ours.storage.synthetic.rows.observation >= -300).all()
    assert num_marked(ours.sample(16)) == 8


class Observing(Marked):
    """Notes what it is given: plain rows, gradients on."""

    def fit(self, transitions, *, held_out=None):
        assert torch.is_grad_enabled()
        assert not transitions.observation.is_inference()
        return super().fit(transitions, held_out=held_out)


def test_the_upsampler_trains_with_gradients_whatever_the_caller_does():
    buffer = make_buffer(upsampler=Observing)
    with torch.inference_mode():
        buffer.extend(rows(150))
        buffer.sample(8)
    assert buffer.storage.synthetic.num_refreshes == 1
