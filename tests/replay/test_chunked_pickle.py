"""Messages that leave out what the other side has: they say the same, and they are short."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import SPEC, TINY, equal, gaussian

from synther_buffers import DiffusionUpsampler, SyntheticReplay
from synther_buffers.replay.chunked_pickle import Conversation
from synther_buffers.replay.refresh import run_refresh

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.uint8, torch.int64)


def there_and_back(value):
    here, there = Conversation(), Conversation()
    return there.loads(here.dumps(value))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 40), max_size=3),
    st.booleans(),
)
def test_tensors_arrive_as_they_were(dtype, shape, transposed):
    value = torch.randint(0, 2, [*shape, 100], generator=torch.Generator().manual_seed(0)).to(dtype)
    value = value.T if transposed and value.ndim == 2 else value
    arrived = there_and_back({"tensor": value, "twice": [value, 3, "text"]})
    for tensor in (arrived["tensor"], arrived["twice"][0]):
        assert (tensor.dtype, tensor.shape) == (value.dtype, value.shape)
        assert torch.equal(tensor, value)
    assert arrived["twice"][1:] == [3, "text"]


@pytest.mark.parametrize(
    "value", [torch.zeros(5_000, requires_grad=True), torch.zeros(0), torch.eye(100).to_sparse(), torch.tensor(3.0)]
)
def test_other_tensors_travel_as_they_always_do(value):
    arrived = there_and_back(value)
    assert (arrived.requires_grad, arrived.layout) == (value.requires_grad, value.layout)
    assert torch.equal(arrived.to_dense(), value.to_dense())


def test_a_tensor_that_arrived_can_be_written_to_and_changes_nothing_else():
    here, there = Conversation(), Conversation()
    value = torch.zeros(5_000)
    there.loads(here.dumps(value)).fill_(7.0)
    again = there.loads(here.dumps(value))
    assert torch.equal(again, value)


def test_what_the_other_side_has_does_not_travel():
    here, there = Conversation(), Conversation()
    rows = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    first = here.dumps(rows[:90_000])
    there.loads(first)
    back = there.dumps(rows)  # 90,000 of which came from here
    assert torch.equal(here.loads(back), rows)
    assert len(first) > 360_000
    assert 40_000 < len(back) < 70_000, "10,000 new numbers, and the chunk that they begin in"
    assert len(here.dumps(rows)) < 10_000, "digests alone"


def test_what_was_not_in_the_last_messages_is_forgotten_by_both():
    here, there = Conversation(), Conversation()
    value = torch.randn(5_000)
    for message in (value, 1, 2, value):
        dumped = here.dumps(message)
        there.loads(dumped)
        there_said = there.dumps(None)
        here.loads(there_said)
    assert len(dumped) > value.nbytes


def test_a_message_out_of_order_is_refused_and_not_misread():
    here, there = Conversation(), Conversation()
    value = torch.randn(5_000)
    here.dumps(value)  # lost
    with pytest.raises(KeyError):
        there.loads(here.dumps(value))


def test_a_value_that_cannot_be_pickled_changes_nothing():
    here, there = Conversation(), Conversation()
    value = torch.randn(5_000)
    there.loads(here.dumps(value))
    with pytest.raises(TypeError):
        here.dumps((value + 1, (number for number in ())))
    assert torch.equal(there.loads(here.dumps(value)), value)


def test_of_a_refresh_only_the_new_rows_travel():
    """The model came back with the last refresh; the rows are those of before and some more."""
    rows = gaussian(8_000)
    replay = SyntheticReplay(
        SPEC, upsampler=partial(DiffusionUpsampler, config=TINY), retrain_every=200, num_synthetic=300, seed=0
    )
    here, there = Conversation(), Conversation()
    sizes = []
    for total in (4_000, 8_000, 8_000):
        replay.observe_total(total)
        message = here.dumps(replay.prepare_refresh(rows[torch.arange(total)]))
        sizes.append(len(message))
        result = run_refresh(there.loads(message))
        returned = here.loads(there.dumps(result))
        assert equal(returned.rows, result.rows)
        replay.commit(returned)
    row_bytes = rows[:1].nbytes
    assert sizes[0] > 3_600 * row_bytes
    assert sizes[2] < sizes[1] / 3
    assert sizes[2] < 60_000
