"""Which samplers mix, which get real rows only, and what priorities do."""

import logging

import numpy as np
import pytest
import torch
from batches import assert_every_slice_is_fair
from synther_buffers.torchrl import SynthERMemmapStorage, SynthERPrioritizedSampler, SynthERStorage, is_synthetic
from torchrl.data import (
    LazyTensorStorage,
    PrioritizedSampler,
    RandomSampler,
    SamplerWithoutReplacement,
    SliceSampler,
    TensorDictPrioritizedReplayBuffer,
    TensorDictReplayBuffer,
)
from torchrl.data.replay_buffers import Sequence, Transition
from torchrl.data.replay_buffers.samplers import ConsumingSampler
from torchrl_helpers import (
    assert_same,
    make_buffer,
    make_storage,
    no_priorities,
    num_marked,
    real_of,
    rows,
    synthetic_of,
)

needs_priorities = pytest.mark.skipif(bool(no_priorities()), reason=no_priorities())


# -- samplers that choose rows by their place ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make_sampler", "name"),
    [
        (lambda: SliceSampler(num_slices=4, end_key=("next", "done")), "SliceSampler"),
        (SamplerWithoutReplacement, "SamplerWithoutReplacement"),
        (lambda: ConsumingSampler(100), "ConsumingSampler"),
    ],
)
def test_samplers_that_choose_by_place_get_real_rows_and_one_warning(log, make_sampler, name):
    buffer = make_buffer(sampler=make_sampler())
    buffer.extend(rows(160))
    for _ in range(4):
        batch = buffer.sample(32)
        assert num_marked(batch) == 0
        assert not is_synthetic(batch["index"]).any()
    messages = [record.getMessage() for record in log.records if record.levelno == logging.WARNING]
    assert len(messages) == 1
    assert messages[0].startswith(f"Batches that {name} draws hold real rows only")
    # And nothing was trained for them.
    assert buffer.storage.synthetic.num_refreshes == 0


def test_sequences_get_real_rows_and_one_warning(log):
    buffer = make_buffer(sample_unit=Sequence(length=4, done_key=("next", "done")))
    buffer.extend(rows(160))
    for _ in range(3):
        assert num_marked(buffer.sample(8)) == 0
    messages = [record.getMessage() for record in log.records if record.levelno == logging.WARNING]
    assert len(messages) == 1
    assert messages[0].startswith(
        "Batches of all buffers of a storage with the sample unit Sequence hold real rows only"
    )


def test_single_transitions_as_a_sample_unit_are_mixed(log):
    buffer = make_buffer(sample_unit=Transition())
    buffer.extend(rows(160))
    assert num_marked(buffer.sample(8)) == 4
    assert not [record for record in log.records if record.levelno == logging.WARNING]


def test_at_fraction_0_nothing_is_said(log):
    buffer = make_buffer(sampler=SamplerWithoutReplacement(), synthetic_fraction=0.0)
    buffer.extend(rows(160))
    buffer.sample(8)
    assert not [record for record in log.records if record.levelno == logging.WARNING]


def test_a_sampler_set_later_is_looked_at_too(log):
    buffer = make_buffer()
    buffer.extend(rows(160))
    assert num_marked(buffer.sample(8)) == 4
    buffer.set_sampler(SamplerWithoutReplacement())
    assert num_marked(buffer.sample(8)) == 0
    assert "Batches that SamplerWithoutReplacement draws hold real rows only" in log.text
    buffer.set_sampler(RandomSampler())
    assert num_marked(buffer.sample(8)) == 4


def test_beside_a_buffer_of_slices_the_random_one_goes_on_mixing():
    storage = make_storage()
    mixed = TensorDictReplayBuffer(storage=storage)
    slices = TensorDictReplayBuffer(storage=storage, sampler=SliceSampler(num_slices=2, end_key=("next", "done")))
    mixed.extend(rows(160))
    assert num_marked(mixed.sample(8)) == 4
    assert num_marked(slices.sample(8)) == 0


# -- priorities ----------------------------------------------------------------------------------------------------


def prioritized(cls=SynthERStorage, *, alpha=1.0, beta=1.0, max_size=400, sampler_cls=PrioritizedSampler, **kwargs):
    return make_buffer(cls, max_size, sampler=sampler_cls(max_size, alpha, beta), **kwargs)


def priorities(buffer):
    """What the sum tree holds for each stored row."""
    tree = buffer._sampler._sum_tree
    return torch.as_tensor([tree[place] for place in range(len(buffer))])


@needs_priorities
@pytest.mark.parametrize("sampler_cls", [PrioritizedSampler, SynthERPrioritizedSampler])
@pytest.mark.parametrize("cls", [SynthERStorage, SynthERMemmapStorage])
def test_a_prioritised_batch_is_half_synthetic(cls, sampler_cls):
    buffer = prioritized(cls, sampler_cls=sampler_cls)
    buffer.extend(rows(150))
    for _ in range(3):
        batch = buffer.sample(33)
        assert num_marked(batch) == 16 == int(is_synthetic(batch["index"]).sum())
    assert torch.equal(real_of(batch)["observation"][:, 0], real_of(batch)["index"].float())
    assert batch["priority_weight"].shape == (33,)


@needs_priorities
@pytest.mark.parametrize("cls", [SynthERStorage, SynthERMemmapStorage])
@pytest.mark.parametrize("ndim", [1, 2])
def test_every_slice_of_a_prioritised_batch_is_a_fair_mix(cls, ndim):
    buffer = prioritized(cls, ndim=ndim)
    buffer.extend(rows(160) if ndim == 1 else rows(160).reshape(4, 40))
    batch = buffer.sample(32 * 20)
    assert_every_slice_is_fair(batch["next", "reward"].flatten().numpy() == -7.0)
    assert_every_slice_is_fair(is_synthetic(batch["index"]).numpy())


@needs_priorities
def test_before_a_refresh_and_at_fraction_0_priorities_draw_as_ever():
    for settings in ({"synthetic_fraction": 0.0}, {"retrain_every": 400}):
        ours = prioritized(**settings)
        plain = TensorDictReplayBuffer(storage=LazyTensorStorage(400), sampler=PrioritizedSampler(400, 1.0, 1.0))
        batches = []
        for buffer in (ours, plain):
            buffer.extend(rows(150))
            buffer.update_priority(torch.arange(150), torch.arange(150) + 1.0)
            np.random.seed(3)  # noqa: NPY002
            batches.append(buffer.sample(64))
        assert_same(*batches)


@needs_priorities
def test_updates_reach_the_real_rows_and_nothing_else():
    buffer = prioritized()
    buffer.extend(rows(150))
    before = priorities(buffer)
    batch = buffer.sample(64)
    # Row by row another error; those of synthetic rows are huge.
    synthetic = is_synthetic(batch["index"])
    batch["td_error"] = torch.where(synthetic, 1e6, 2.0 + batch["index"])
    buffer.update_tensordict_priority(batch)
    after = priorities(buffer)
    updated = torch.zeros(150, dtype=torch.bool)
    updated[batch["index"][~synthetic]] = True
    assert updated.any()
    assert torch.equal(after[~updated], before[~updated])
    assert torch.allclose(after[updated], 2.0 + torch.arange(150.0)[updated])
    assert buffer._sampler.default_priority < 1e6
    # The rows past the end of the written ones have none.
    assert sum(buffer._sampler._sum_tree[place] for place in range(150, 400)) == 0


@needs_priorities
def test_updates_in_the_forms_that_update_priority_takes():
    buffer = prioritized()
    buffer.extend(rows(150))
    batch = buffer.sample(64)
    buffer.update_priority(batch["index"], torch.full((64, 1), 5.0))
    drawn = real_of(batch)["index"]
    assert (priorities(buffer)[drawn] == 5).all()
    buffer.update_priority(batch["index"], 6.0)
    assert (priorities(buffer)[drawn] == 6).all()
    before = priorities(buffer)
    buffer.update_priority(synthetic_of(batch)["index"], torch.full((32,), 9.0))
    assert torch.equal(priorities(buffer), before)
    assert not buffer.storage.contains(synthetic_of(batch)["index"]).any()
    # What TorchRL's own writers use for "no row" goes on meaning that.
    buffer.update_priority(torch.tensor([-1, 3]), torch.tensor([7.0, 8.0]))
    assert float(priorities(buffer)[3]) == 8


@needs_priorities
def test_prioritised_sequences_get_real_rows_and_one_warning(log):
    buffer = prioritized(sample_unit=Sequence(length=4, done_key=("next", "done")))
    buffer.extend(rows(160))
    for _ in range(3):
        batch = buffer.sample(8)
        assert num_marked(batch) == 0
        batch["td_error"] = torch.rand(32)
        buffer.update_tensordict_priority(batch)
    messages = [record.getMessage() for record in log.records if record.levelno == logging.WARNING]
    assert len(messages) == 1
    assert messages[0].startswith(
        "Batches of all buffers of a storage with the sample unit Sequence hold real rows only"
    )


@needs_priorities
def test_updates_in_two_dimensions():
    buffer = prioritized(ndim=2, max_size=160, retrain_every=100)
    buffer.extend(torch.stack([rows(40, 1000 * env) for env in range(4)]))
    for _ in range(3):
        batch = buffer.sample(64)
        assert num_marked(batch) == 32
        synthetic = is_synthetic(batch["index"])
        batch["td_error"] = torch.where(synthetic, 1e6, 2.0 + batch["observation"][:, 0])
        buffer.update_tensordict_priority(batch)
        time, env = real_of(batch)["index"].unbind(1)
        assert torch.allclose(priorities(buffer)[time * 4 + env], 2.0 + real_of(batch)["observation"][:, 0])
    assert priorities(buffer).max() < 1e4


@needs_priorities
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_synthetic_row_weighs_what_a_real_one_of_mean_priority_weighs(beta):
    buffer = prioritized(beta=beta)
    buffer.extend(rows(150))
    # Priorities 1 and 3, half and half: the mean is 2.
    buffer.update_priority(torch.arange(150), torch.where(torch.arange(150) % 2 == 0, 1.0, 3.0))
    batch = buffer.sample(64)
    real = torch.where(real_of(batch)["index"] % 2 == 0, 1.0, 3.0**-beta)
    assert torch.allclose(real_of(batch)["priority_weight"], real)
    assert torch.allclose(synthetic_of(batch)["priority_weight"], torch.full((32,), 2.0**-beta))


@needs_priorities
def test_real_rows_are_drawn_by_their_priority():
    buffer = prioritized()
    buffer.extend(rows(150))
    buffer.update_priority(torch.arange(150), torch.full((150,), 1e-9))
    buffer.update_priority(torch.tensor([42]), 1.0)
    assert (real_of(buffer.sample(64))["index"] == 42).all()


@needs_priorities
def test_all_synthetic_prioritised_batches():
    buffer = prioritized(synthetic_fraction=1.0)
    buffer.extend(rows(150))
    batch = buffer.sample(16)
    assert num_marked(batch) == 16
    assert batch["priority_weight"].shape == (16,)
    buffer.update_priority(batch["index"], torch.full((16,), 9.0))
    assert (priorities(buffer) == 1).all()


@needs_priorities
def test_batches_with_one_real_row():
    buffer = prioritized()
    buffer.extend(rows(150))
    for batch_size in (1, 2):
        batch = buffer.sample(batch_size)
        assert len(real_of(batch)) == 1
        assert batch["priority_weight"].shape == (batch_size,)


@needs_priorities
@pytest.mark.parametrize("sync", [True, False])
def test_torchrls_prioritised_buffer_mixes(sync):
    buffer = TensorDictPrioritizedReplayBuffer(alpha=0.7, beta=0.5, storage=make_storage(), sync=sync)
    buffer.extend(rows(150))
    for _ in range(3):
        batch = buffer.sample(32)
        assert num_marked(batch) == 16
        batch["td_error"] = torch.rand(32)
        buffer.update_tensordict_priority(batch)
    assert torch.equal(real_of(batch)["observation"][:, 0], real_of(batch)["index"].float())


@needs_priorities
def test_whoever_holds_the_sampler_goes_on_holding_it():
    sampler = PrioritizedSampler(400, 1.0, 1.0)
    buffer = make_buffer(sampler=sampler)
    buffer.extend(rows(150))
    buffer.sample(8)
    assert buffer._sampler is sampler
    sampler.beta = 0.0
    assert (buffer.sample(8)["priority_weight"] == 1).all()


@needs_priorities
def test_a_prioritised_sampler_of_ours_with_a_plain_storage_is_a_plain_one():
    ours, plain = (
        TensorDictReplayBuffer(storage=LazyTensorStorage(400), sampler=cls(400, 1.0, 1.0))
        for cls in (SynthERPrioritizedSampler, PrioritizedSampler)
    )
    batches = []
    for buffer in (ours, plain):
        buffer.extend(rows(150))
        np.random.seed(3)  # noqa: NPY002
        batches.append(buffer.sample(16))
    assert_same(*batches)


@needs_priorities
def test_the_ring_wraps_under_priorities():
    buffer = prioritized(max_size=130, retrain_every=130)
    for first in range(0, 500, 25):
        buffer.extend(rows(25, first))
        batch = buffer.sample(32)
        batch["td_error"] = torch.rand(32)
        buffer.update_tensordict_priority(batch)
        assert (real_of(batch)["observation"][:, 0] > first + 25 - 131).all()
    assert num_marked(batch) == 16


@needs_priorities
def test_the_first_prioritised_batch_after_loading_is_mixed(tmp_path):
    buffer = prioritized()
    buffer.extend(rows(150))
    buffer.sample(8)
    buffer.dumps(tmp_path)
    again = prioritized()
    again.loads(tmp_path)
    assert num_marked(again.sample(32)) == 16


@needs_priorities
@pytest.mark.parametrize("as_index", [lambda index: index.numpy(), lambda index: index.tolist()])
@pytest.mark.parametrize("ndim", [1, 2])
def test_updates_take_arrays_and_lists_too(ndim, as_index):
    buffer = prioritized(ndim=ndim, max_size=160, retrain_every=100)
    buffer.extend(rows(160) if ndim == 1 else rows(160).reshape(4, 40))
    batch = buffer.sample(32)
    buffer.update_priority(as_index(batch["index"]), torch.full((32,), 5.0))
    assert int((priorities(buffer) == 5).sum()) == len(real_of(batch)["index"].unique(dim=0))


@pytest.mark.parametrize("as_index", [lambda index: index, lambda index: index.numpy(), lambda index: index.tolist()])
@pytest.mark.parametrize("ndim", [1, 2])
def test_no_synthetic_address_reaches_the_priorities_in_any_form(monkeypatch, ndim, as_index):
    """What is handed on to TorchRL's sampler, whose extension is not needed for this."""
    handed_on = []

    def update_priority(self, index, priority, *, storage=None):
        handed_on.append((torch.as_tensor(index), torch.as_tensor(priority)))

    monkeypatch.setattr(PrioritizedSampler, "update_priority", update_priority)
    sampler = object.__new__(SynthERPrioritizedSampler)
    index = torch.tensor([3, -(2**40) - 7, 5])
    index = index if ndim == 1 else torch.stack((index, torch.tensor([1, 2, 0])), 1)
    sampler.update_priority(as_index(index), torch.tensor([0.3, 9.0, 0.5]), storage=LazyTensorStorage(10, ndim=ndim))
    ((index_left, priority),) = handed_on
    assert torch.equal(index_left, index[[0, 2]])
    assert priority.tolist() == pytest.approx([0.3, 0.5])
