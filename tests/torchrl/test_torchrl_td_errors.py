"""TD errors that are recorded in a storage: which rows have them, and what becomes of them."""

import copy

import pytest
import torch
from synther_buffers.torchrl import SynthERStorage
from tensordict import TensorDict
from torchrl.data import PrioritizedSampler, TensorDictReplayBuffer
from torchrl_helpers import no_priorities
from toys import TINY

OPTIONS = {"upsampler": TINY, "retrain_every": 150, "num_synthetic": 100, "progress_bar": False, "guidance": "td-error"}


def rows(first, stop):
    """Row i: observation i, reward 1."""
    value = torch.arange(first, stop, dtype=torch.float32)[:, None]
    flags = torch.zeros(len(value), 1, dtype=torch.bool)
    nothing = {"done": flags, "terminated": flags, "truncated": flags}
    return TensorDict(
        {
            "observation": value,
            "action": value / 1_000,
            "next": {"observation": value, "reward": torch.ones(len(value), 1), **nothing},
        },
        batch_size=len(value),
    )


def errors(storage):
    return storage.synthetic.td_error(storage.real_transitions())


def test_recorded_errors_belong_to_their_rows():
    storage = SynthERStorage(200, **OPTIONS)
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=64)
    buffer.extend(rows(0, 160))
    batch = buffer.sample()  # a refresh: half of the rows are synthetic from here on
    batch = buffer.sample()
    errors_of_batch = 0.5 + batch["observation"][:, 0].abs()
    storage.record_td_errors(batch["index"], -errors_of_batch)
    real = batch["index"] >= 0
    assert 0 < int(real.sum()) < 64
    found = errors(storage)
    for index, error in zip(batch["index"][real].tolist(), errors_of_batch[real].tolist(), strict=True):
        assert found[index] == pytest.approx(error)


def test_a_row_that_is_overwritten_loses_its_error():
    storage = SynthERStorage(200, **OPTIONS)
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=4)
    buffer.extend(rows(0, 200))
    storage.record_td_errors(torch.tensor([0, 1, 5]), torch.tensor([4.0, 2.0, 6.0]))
    buffer.extend(rows(200, 201))  # slot 0
    assert errors(storage)[[0, 1, 5]].tolist() == [4, 2, 6]  # the mean of 2 and 6 is 4 again
    buffer.extend(rows(201, 202))
    assert errors(storage)[[0, 1, 5]].tolist() == [6, 6, 6]
    assert errors(copy.deepcopy(storage))[[0, 1, 5]].tolist() == [6, 6, 6]
    buffer.empty()
    buffer.extend(rows(0, 5))
    with pytest.raises(RuntimeError, match="no TD error"):
        errors(storage)


@pytest.mark.parametrize(
    "cursor",
    [1, -199, range(1, 2), slice(1, 2), torch.tensor([1]), [1], torch.arange(200) == 1, (torch.tensor([1]), 0)],
    ids=str,
)
def test_an_index_of_any_kind_is_forgotten(cursor):
    storage = SynthERStorage(200, **OPTIONS)
    TensorDictReplayBuffer(storage=storage, batch_size=4).extend(rows(0, 200))
    storage.record_td_errors(torch.tensor([0, 1, 5]), torch.tensor([4.0, 2.0, 6.0]))
    storage._forget_td_errors(cursor)
    assert errors(storage)[[0, 1, 5]].tolist() == [4, 5, 6]


def test_a_storage_of_two_dimensions_has_them_by_row():
    storage = SynthERStorage(100, ndim=2, **OPTIONS | {"retrain_every": 100})
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=4)
    buffer.extend(rows(0, 40).reshape(20, 2))
    # The buffer extends along the second dimension: two slots of 20 rows.
    storage.record_td_errors(torch.tensor([[0, 1], [1, 0]]), torch.tensor([1.0, 5.0]))
    found = errors(storage)
    assert len(found) == 40
    assert found[[1, 20, 0]].tolist() == [1, 5, 3]


@pytest.mark.skipif(bool(no_priorities()), reason=no_priorities())
def test_a_prioritized_sampler_records_what_its_priorities_are_made_of():
    storage = SynthERStorage(200, **OPTIONS)
    sampler = PrioritizedSampler(200, alpha=0.7, beta=0.5)
    buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=8, priority_key="td_error")
    buffer.extend(rows(0, 20))
    batch = buffer.sample()
    batch["td_error"] = batch["observation"][:, 0] + 1.0
    buffer.update_tensordict_priority(batch)
    found = errors(storage)
    for index in batch["index"].tolist():
        assert found[index] == index + 1
    others = [index for index in range(20) if index not in batch["index"].tolist()]
    mean = (batch["index"].unique() + 1.0).mean()
    assert found[others].tolist() == pytest.approx([float(mean)] * len(others))


def test_without_the_guidance_nothing_is_kept():
    storage = SynthERStorage(200, **OPTIONS | {"guidance": None})
    TensorDictReplayBuffer(storage=storage, batch_size=4).extend(rows(0, 20))
    storage.record_td_errors(torch.tensor([0]), torch.tensor([1.0]))
    assert len(storage.synthetic._recorded.errors) == 0
