"""The mask of a batch's synthetic rows, for every sampler and number of dimensions."""

import pytest
import torch
from synther_buffers.torchrl import SynthERMemmapStorage, SynthERStorage, is_synthetic
from torchrl.data import (
    PrioritizedSampler,
    SamplerWithoutReplacement,
    SliceSampler,
    TensorDictReplayBuffer,
)
from torchrl.data.replay_buffers import Sequence, Transition
from torchrl.envs.transforms import MultiStepTransform
from torchrl_helpers import MARK, make_buffer, make_storage, no_priorities, num_marked, rows

CLASSES = [SynthERStorage, SynthERMemmapStorage]


def check(buffer, sizes=(1, 2, 33, 64)):
    """The mask of each batch is that of its marked rows; the sum of the last."""
    for size in sizes:
        batch = buffer.sample(size)
        mask = buffer.storage.synthetic.last_mask
        assert torch.equal(mask, (batch["next", "reward"] == MARK).flatten())
        assert torch.equal(mask, is_synthetic(batch["index"]))
    return int(mask.sum())


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("ndim", [1, 2])
def test_random_batches(cls, ndim):
    buffer = make_buffer(cls, ndim=ndim)
    buffer.extend(rows(80) if ndim == 1 else rows(80).reshape(4, 20))
    assert check(buffer) == 0
    buffer.extend(rows(80) if ndim == 1 else rows(80).reshape(4, 20))
    assert check(buffer) == 32


@pytest.mark.skipif(bool(no_priorities()), reason=no_priorities())
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("ndim", [1, 2])
def test_prioritised_batches(cls, ndim):
    buffer = make_buffer(cls, ndim=ndim, sampler=PrioritizedSampler(400, 1.0, 1.0))
    buffer.extend(rows(160) if ndim == 1 else rows(160).reshape(4, 40))
    for _ in range(2):
        assert check(buffer) == 32
        batch = buffer.sample(33)
        batch["td_error"] = torch.rand(33)
        buffer.update_tensordict_priority(batch)


def test_all_synthetic_batches():
    buffer = make_buffer(synthetic_fraction=1.0)
    buffer.extend(rows(160))
    assert check(buffer) == 64


def test_n_step_rows():
    buffer = make_buffer(transform=MultiStepTransform(3, 0.9))
    buffer.extend(rows(160))
    assert check(buffer) == 32


@pytest.mark.parametrize("fraction", [0.0, 0.5])
@pytest.mark.parametrize(
    "make_sampler",
    [lambda: SliceSampler(num_slices=4, end_key=("next", "done")), SamplerWithoutReplacement],
    ids=["slices", "without replacement"],
)
def test_samplers_of_real_rows_only(make_sampler, fraction):
    buffer = make_buffer(sampler=make_sampler(), synthetic_fraction=fraction)
    buffer.extend(rows(160))
    assert check(buffer, (32, 64)) == 0


def test_sequences_are_as_long_as_all_their_rows():
    buffer = make_buffer(sample_unit=Sequence(length=4, done_key=("next", "done")))
    buffer.extend(rows(160))
    buffer.sample(8)
    assert buffer.storage.synthetic.last_mask.tolist() == [False] * 32


def test_single_transitions_as_a_sample_unit():
    buffer = make_buffer(sample_unit=Transition())
    buffer.extend(rows(160))
    assert check(buffer) == 32


def test_two_buffers_of_one_storage_share_the_mask_of_the_last_batch():
    storage = make_storage()
    mixed = TensorDictReplayBuffer(storage=storage)
    slices = TensorDictReplayBuffer(storage=storage, sampler=SliceSampler(num_slices=2, end_key=("next", "done")))
    mixed.extend(rows(160))
    assert check(mixed) == 32
    assert check(slices, (8,)) == 0
    assert check(mixed, (8,)) == 4


def test_reading_rows_changes_nothing():
    buffer = make_buffer()
    buffer.extend(rows(160))
    batch = buffer.sample(33)
    mask = buffer.storage.synthetic.last_mask
    for index in (3, slice(None), [1, 2], torch.arange(5), batch["index"]):
        buffer[index]
        buffer.storage[index]
    assert torch.equal(buffer.storage.synthetic.last_mask, mask)


def test_a_batch_that_is_looked_up_again_is_the_last_one():
    buffer = make_buffer()
    buffer.extend(rows(160))
    index = buffer.sample(33)["index"][:10]
    buffer.sample(8)
    assert num_marked(buffer.storage.get(index)) == int(buffer.storage.synthetic.last_mask.sum())
    assert len(buffer.storage.synthetic.last_mask) == 10


def test_an_index_that_is_written_into_does_not_change_the_mask():
    buffer = make_buffer()
    buffer.extend(rows(160))
    batch = buffer.sample(32)
    batch["index"].zero_()
    assert int(buffer.storage.synthetic.last_mask.sum()) == num_marked(batch) == 16
