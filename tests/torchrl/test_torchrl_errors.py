"""What users get wrong, and what they are told; refreshes that fail."""

import importlib
import logging
import sys

import pytest
import torch
from synther_buffers.torchrl import SynthERMemmapStorage, SynthERStorage
from tensordict import TensorDict, tensorclass
from torchrl.data import HERReplayBuffer, ReplayBuffer, TensorDictReplayBuffer
from torchrl.data.replay_buffers.writers import RoundRobinWriter, TensorDictRoundRobinWriter
from torchrl_helpers import TINY, Marked, make_buffer, make_storage, num_marked, rows
from toys import fails_at

STORAGES = [SynthERStorage, SynthERMemmapStorage]


# -- data that are no transitions ----------------------------------------------------------------------------------


def without(*keys):
    return rows(10).exclude(*keys)


def with_keys(**values):
    return rows(10, **values)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            without("next"),
            r"no observation under 'next', only 'action', .*: a transition needs its next observation, as in "
            r"\('next', 'observation'\) beside 'observation'\. Store transitions as TorchRL's collectors write them",
        ),
        (without(("next", "observation")), r"no observation under 'next'.* without compact_obs"),
        (without(("next", "reward")), r"the data have no \('next', 'reward'\), only 'action'"),
        (without("action"), r"the data have no 'action', only 'done'"),
        (
            without(("next", "done"), ("next", "terminated")),
            r"neither \('next', 'terminated'\) nor \('next', 'done'\).*nothing says where an episode ends",
        ),
        (
            with_keys(pixels=torch.zeros(10, 3, 8, 8, dtype=torch.uint8))
            .set(("next", "pixels"), torch.zeros(10, 3, 8, 8, dtype=torch.uint8)),
            r"'pixels' is an image \(uint8 of shape \[3, 8, 8\]\): the upsampler models vectors\. Encode images first",
        ),
        (
            with_keys(next__reward=torch.zeros(10, 4, 1)),
            r"\('next', 'reward'\) of shape \[4, 1\] in each row; wanted one reward per row.*several agents",
        ),
        (
            without("action").set(("action", "arm"), torch.zeros(10, 1)).set(("action", "leg"), torch.zeros(10, 1)),
            r"several actions, \('action', 'arm'\), \('action', 'leg'\): only one is supported\. Concatenate them",
        ),
        (
            with_keys(steps_to_next_obs=torch.ones(10)),
            "'steps_to_next_obs' but no 'gamma': n-step rows need both",
        ),
    ],
    ids=["next", "next obs", "reward", "action", "flags", "image", "rewards", "actions", "n-step"],
)  # fmt: skip
@pytest.mark.parametrize("cls", STORAGES)
def test_data_that_are_no_transitions(cls, data, message):
    buffer = make_buffer(cls)
    with pytest.raises(ValueError, match=message):
        buffer.extend(data.clone())
    with pytest.raises(ValueError, match=message):
        buffer.add(data[0].clone())
    # Nothing was stored, and transitions are still welcome.
    assert len(buffer) == 0
    make_buffer(cls, synthetic_fraction=0.0).extend(data.clone())


def test_a_key_with_a_dot_is_refused():
    data = rows(10)
    data["arm.left"], data["next", "arm.left"] = torch.zeros(10, 1), torch.zeros(10, 1)
    with pytest.raises(ValueError, match=r"the key 'arm\.left' contains '\.', which separates nested keys; rename it"):
        make_buffer().extend(data)


@tensorclass
class Row:
    """What `ReplayBuffer` takes too."""

    observation: torch.Tensor


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (torch.zeros(10, 3), "Tensor"),
        ((torch.zeros(10), torch.ones(10)), "tuple"),
        ({"observation": torch.zeros(10)}, "dict"),
        ([torch.zeros(3), torch.zeros(3)], "Tensor"),
        (Row(torch.zeros(10, 3), batch_size=[10]), "Row"),
    ],
)
def test_data_that_are_no_tensordict(data, name):
    buffer = ReplayBuffer(storage=make_storage())
    with pytest.raises(TypeError, match=rf"SynthERStorage stores transitions as tensordicts \(got {name}\)"):
        buffer.extend(data)
    ReplayBuffer(storage=make_storage(synthetic_fraction=0.0)).extend(data)


def test_whole_trajectories_as_rows_are_refused():
    message = (
        r"the data have batch size \[4, 10\], but a storage with ndim=1 wants 1 batch dimension here\. "
        r"Flatten them first \(data\.reshape\(-1\)\), or build the storage with ndim=2"
    )
    with pytest.raises(ValueError, match=message):
        make_buffer().extend(rows(40).reshape(4, 10))
    with pytest.raises(ValueError, match=r"batch size \[10\], but a storage with ndim=1 wants 0 batch dimensions here"):
        make_buffer().add(rows(10))
    data = rows(40).reshape(4, 10)
    data.batch_size = [4]
    with pytest.raises(ValueError, match="If rows are whole trajectories, flatten them"):
        make_buffer().extend(data)


def test_batches_of_another_shape_than_the_first():
    buffer = make_buffer(ndim=2)
    buffer.extend(rows(40).reshape(4, 10))
    message = r"batch size \[10, 8\], but earlier ones were stored as \[100, 4\]: all but the first dimension have to"
    with pytest.raises(ValueError, match=message):
        buffer.extend(rows(80).reshape(8, 10))
    with pytest.raises(ValueError, match=r"batch size \[2, 4, 10\], but a storage with ndim=1 wants 1 batch dimension"):
        make_buffer().extend(rows(80).reshape(2, 4, 10))


# -- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"upsampler": "fast"}, ValueError, "unknown preset 'fast'; known presets: auto, cpu, gpu"),
        ({"upsampler": 3}, TypeError, "upsampler is 3; wanted the name of a preset, an UpsamplerConfig or a factory"),
        ({"upsampler_device": "gpu0"}, ValueError, "the device 'gpu0' cannot be used here.*try 'auto' or 'cpu'"),
        ({"synthetic_fraction": 1.5}, ValueError, r"synthetic_fraction is 1\.5; it must lie between 0"),
        ({"synthetic_fraction": "half"}, TypeError, "synthetic_fraction is 'half' .*wanted a number from 0 to 1"),
        ({"retrain_every": 0}, ValueError, "retrain_every is 0; it must be at least 1"),
        ({"start_after": 0.5}, TypeError, r"start_after is 0\.5 \(float\); wanted a whole number"),
        ({"num_synthetic": 0}, ValueError, "num_synthetic is 0; it must be at least 1"),
        ({"seed": -1}, ValueError, "seed is -1; it must be at least 0"),
        ({"retrain_evry": 100}, TypeError, "'retrain_evry'. Did you mean 'retrain_every'"),
        ({"modelled_keys": "cost"}, TypeError, "modelled_keys is 'cost'; wanted a sequence of keys"),
        ({"modelled_keys": [3]}, TypeError, "modelled_keys has 3; wanted a string or a tuple of strings"),
    ],
)
@pytest.mark.parametrize("cls", STORAGES)
def test_bad_arguments_are_named(cls, kwargs, error, message):
    with pytest.raises(error, match=message):
        make_storage(cls, **kwargs)


@pytest.mark.parametrize("cls", STORAGES)
def test_a_storage_smaller_than_the_refresh_interval_is_refused_when_it_is_written(cls):
    buffer = make_buffer(cls, retrain_every=401)
    with pytest.raises(ValueError, match=r"retrain_every=401 is more than max_size=400: .* or raise max_size"):
        buffer.extend(rows(10))
    assert len(buffer) == 0


def test_a_declared_key_has_to_be_there():
    buffer = make_buffer(modelled_keys=[("next", "cost")])
    with pytest.raises(ValueError, match=r"modelled_keys names \('next', 'cost'\), but the data have only 'action'"):
        buffer.extend(rows(10))


def test_hindsight_replay_is_refused():
    with pytest.raises(TypeError, match="SynthERStorage does not support HERReplayBuffer"):
        HERReplayBuffer(lambda data: data["next", "reward"], storage=make_storage())
    HERReplayBuffer(lambda data: data["next", "reward"], storage=make_storage(synthetic_fraction=0.0))


def test_without_torchrl_the_import_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchrl", None)
    monkeypatch.delitem(sys.modules, "synther_buffers.torchrl")
    with pytest.raises(ImportError, match=r'needs TorchRL: pip install "synther-buffers\[torchrl\]"'):
        importlib.import_module("synther_buffers.torchrl")


# -- a refresh that fails ------------------------------------------------------------------------------------------


def test_after_a_failed_refresh_the_last_synthetic_rows_stay(log):
    buffer = make_buffer(upsampler=fails_at(2, Marked, FloatingPointError))
    buffer.extend(rows(120))
    buffer.sample(8)
    first = buffer.storage.synthetic.rows
    buffer.extend(rows(120, 120))
    assert num_marked(buffer.sample(8)) == 4
    assert buffer.storage.synthetic.rows is first
    errors = [record.getMessage() for record in log.records if record.levelno == logging.ERROR]
    assert errors == [
        "Synthetic refresh at 240 real transitions failed; the last synthetic set stays in service. "
        "Learning goes on, next attempt at 360. (FloatingPointError('planted failure'))"
    ]
    buffer.extend(rows(120, 240))
    buffer.sample(8)
    assert buffer.storage.synthetic.rows is not first


def test_several_one_hot_blocks_are_named(log):
    data = rows(150)
    block = torch.nn.functional.one_hot(torch.arange(150) % 3, 3)
    data["action"] = torch.cat((block, block.roll(1, 0)), 1)
    buffer = make_buffer()
    buffer.extend(data)
    assert num_marked(buffer.sample(8)) == 0
    assert "actions of 6 zeros and ones, 2 ones in each, look like several one-hot blocks (MultiOneHot)" in log.text


def test_rows_that_are_not_finite_are_left_out(log):
    buffer = make_buffer(retrain_every=200)
    data = rows(200)
    data["next", "reward"][50] = torch.nan
    buffer.extend(data)
    buffer.sample(8)
    assert buffer.storage.synthetic.reports[0].num_dropped == 1
    assert "1 real rows have NaN or infinity in reward; such rows are not learned." in log.text


def test_the_real_upsampler_learns_text_beside_the_tensors_without_a_word(log):
    data = TensorDict({**rows(130).to_dict(), "task": "reach"}, [130])
    buffer = TensorDictReplayBuffer(storage=make_storage(upsampler=TINY))
    buffer.extend(data)
    buffer.sample(8)
    assert buffer.storage.synthetic.num_refreshes == 1
    assert not [record for record in log.records if record.levelno >= logging.ERROR]


# -- a write that was refused leaves no trace ------------------------------------------------------------------------


REFUSED = {
    "trajectories": lambda: rows(120).reshape(4, 30),
    "images": lambda: with_images((3, 8, 8), torch.uint8),
    "no reward": lambda: without(("next", "reward")),
    "no tensordict": lambda: torch.zeros(10, 3),
}


def with_images(shape, dtype):
    return with_keys(pixels=torch.zeros(10, *shape, dtype=dtype), next__pixels=torch.zeros(10, *shape, dtype=dtype))


@pytest.mark.filterwarnings("ignore:Using `add.*with a TensorDict that has batch_size")
@pytest.mark.parametrize("writer", [RoundRobinWriter, TensorDictRoundRobinWriter])
@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("cls", STORAGES)
def test_after_a_refused_write_the_first_row_goes_to_the_first_place(cls, what, writer):
    buffer = ReplayBuffer(storage=make_storage(cls), writer=writer())
    data = REFUSED[what]()
    for refused in (lambda: buffer.extend(data), lambda: buffer.add(data[0])):
        with pytest.raises((ValueError, TypeError)):
            refused()
        assert buffer.write_count == 0
    assert buffer.extend(rows(120)).tolist() == list(range(120))
    assert len(buffer) == buffer.write_count == 120
    assert buffer[:]["observation"][:, 0].tolist() == list(range(120))
    assert buffer.storage.split_batch(8) == (4, 4)
    assert buffer.storage.synthetic.num_observed == 120


def test_a_refused_write_between_others_leaves_no_trace():
    for ndim, refused in ((1, rows(40).reshape(4, 10)), (2, rows(80).reshape(8, 10))):
        buffer = make_buffer(ndim=ndim)
        more = [rows(40, first) if ndim == 1 else rows(40, first).reshape(4, 10) for first in (0, 40)]
        buffer.extend(more[0])
        with pytest.raises(ValueError, match="the data have batch size"):
            buffer.extend(refused)
        buffer.extend(more[1])
        assert len(buffer) == 80
        assert set(buffer[:]["observation"][..., 0].flatten().tolist()) == set(range(80))


def test_a_storage_that_is_too_small_refuses_without_a_trace():
    buffer = make_buffer(retrain_every=401)
    with pytest.raises(ValueError, match="retrain_every=401 is more than max_size=400"):
        buffer.extend(rows(10))
    assert buffer.write_count == 0


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((3, 64, 64), torch.uint8),
        ((3, 64, 64), torch.float32),
        ((84, 84), torch.uint8),
        ((4, 3, 32, 32), torch.uint8),
    ],
)
def test_images_of_any_kind_are_refused_at_the_first_write(shape, dtype):
    name = str(dtype).removeprefix("torch.")
    message = rf"'pixels' is an image \({name} of shape \[{', '.join(map(str, shape))}\]\): the upsampler models"
    buffer = make_buffer()
    with pytest.raises(ValueError, match=message):
        buffer.extend(with_images(shape, dtype))
    with pytest.raises(ValueError, match=message):
        make_buffer(modelled_keys=["pixels"]).extend(with_images(shape, dtype).exclude(("next", "pixels")))
    # What nobody models may be an image.
    make_buffer().extend(with_images(shape, dtype).exclude(("next", "pixels")))


def test_long_trajectories_as_rows_are_no_images():
    data = rows(2_400).reshape(2, 1_200)
    data.batch_size = [2]
    with pytest.raises(ValueError, match="If rows are whole trajectories, flatten them"):
        make_buffer().extend(data)
