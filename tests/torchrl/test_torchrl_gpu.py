"""Storages on a GPU; skipped where there is none."""

import pickle

import pytest
import torch
from synther_buffers.torchrl import SynthERStorage, is_synthetic
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl_helpers import TINY, assert_same, make_buffer, num_marked, real_of, rows

pytestmark = pytest.mark.cuda


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
@pytest.mark.parametrize("ndim", [1, 2])
def test_batches_lie_on_the_gpu_and_nothing_passes_the_host(ndim):
    data = (rows(160) if ndim == 1 else rows(160).reshape(4, 40)).to("cuda")
    buffer = make_buffer(SynthERStorage, device="cuda", ndim=ndim)
    plain = TensorDictReplayBuffer(storage=LazyTensorStorage(400, device="cuda", ndim=ndim))
    for each in (buffer, plain):
        each.extend(data.clone())
    buffer.sample(2)
    buffer.sample(33)
    try:
        torch.cuda.set_sync_debug_mode("error")
        torch.cuda.manual_seed(5)
        batch = buffer.sample(33)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.manual_seed(5)
    assert_same(real_of(batch), plain.sample(17))
    assert num_marked(batch) == 16 == int(is_synthetic(batch["index"]).sum())
    for tensor in batch.values(include_nested=True, leaves_only=True):
        assert tensor.device.type == "cuda"
    assert buffer.storage.synthetic.rows.device.type == "cuda"


def test_a_storage_learns_from_its_data_that_it_lies_on_the_gpu():
    buffer = make_buffer(device="auto", upsampler=TINY)
    buffer.extend(rows(150).to("cuda"))
    batch = buffer.sample(32)
    assert batch["observation"].device.type == "cuda"
    assert int(is_synthetic(batch["index"]).sum()) == 16


def test_a_copy_on_the_gpu_gives_the_same_batches():
    buffer = make_buffer(device="cuda", upsampler=TINY)
    buffer.extend(rows(150).to("cuda"))
    buffer.sample(8)
    copied = pickle.loads(pickle.dumps(buffer))
    batches = []
    for each in (buffer, copied):
        torch.cuda.manual_seed(5)
        batches.append(each.sample(32))
    assert_same(*batches)
