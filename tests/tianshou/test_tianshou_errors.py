"""Bad input is refused in Tianshou's vocabulary, by the name of what is wrong."""

import sys

import numpy as np
import pytest
from synther_buffers.tianshou import SynthERPrioritizedReplayBuffer
from tianshou.data import Batch, Collector
from tianshou_helpers import PLAIN, CounterEnv, dqn, envs, make_buffer, rows

CLASSES = pytest.mark.parametrize("cls", PLAIN)


@CLASSES
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ignore_obs_next": True}, ValueError, "ignore_obs_next=True is not supported"),
        ({"stack_num": 4}, ValueError, "stack_num=4 is not supported"),
        ({"save_only_last_obs": True}, ValueError, "save_only_last_obs=True is not supported"),
        ({"size": 0}, ValueError, "total_size is 0"),
        ({"size": 4.5}, TypeError, "total_size is 4.5"),
        ({"buffer_num": 0}, ValueError, "buffer_num is 0"),
        ({"buffer_num": True}, TypeError, "buffer_num is True"),
        ({"synthetic_fracton": 0.5}, TypeError, "does not know the keyword 'synthetic_fracton'"),
        ({"synthetic_fraction": 1.5}, ValueError, "synthetic_fraction is 1.5"),
        ({"upsampler": "gpuu"}, ValueError, "gpuu"),
        ({"num_synthetic": 0}, ValueError, "num_synthetic is 0"),
        ({"retrain_every": -1}, ValueError, "retrain_every is -1"),
    ],
)
def test_constructor(cls, arguments, error, message):
    with pytest.raises(error, match=message):
        make_buffer(cls, **arguments)


@CLASSES
def test_a_ring_smaller_than_the_refresh_interval_is_refused_when_it_is_written(cls):
    with pytest.raises(ValueError, match="retrain_every=120 is more than total_size=119"):
        make_buffer(cls, 119).add(rows(0))
    # 121 rows for two environments are 61 each; 100 for three 34 each: the user's number is the one to be named.
    make_buffer(cls, 121, 2, retrain_every=122).add(rows(0, 2))
    with pytest.raises(ValueError, match="retrain_every=120 is more than the 102 rows that total_size=100 holds"):
        make_buffer(cls, 100, 3).add(rows(0, 3))


@CLASSES
@pytest.mark.parametrize("given", [2, 5])
def test_rows_of_another_number_of_environments(cls, given):
    """A buffer that was loaded into a script with other environments than it was saved with."""
    buffer = make_buffer(cls, buffer_num=4)
    with pytest.raises(ValueError, match=rf"the batch has {given} rows for 4 sub-buffers \(buffer_num=4\)"):
        buffer.add(rows(0, given))
    with pytest.raises(ValueError, match=rf"the batch has {given} rows for 3 sub-buffers \(buffer_ids\)"):
        buffer.add(rows(0, given), [0, 1, 3])
    assert len(buffer) == 0
    assert [child._ep_len for child in buffer.buffers] == [0] * 4


def test_priorities_belong_to_the_prioritised_class():
    with pytest.raises(TypeError, match=r"SynthERReplayBuffer does not know the keyword 'alpha'"):
        make_buffer(alpha=0.6)
    with pytest.raises(TypeError, match="alpha"):
        SynthERPrioritizedReplayBuffer(20_000)


def without(batch, key):
    return Batch({name: value for name, value in batch.items() if name != key})


def with_(batch, **more):
    return Batch({**dict(batch.items()), **more})


IMAGE = np.zeros((1, 3, 8, 8), np.uint8)
TEXT = np.array(["left"], object)


@CLASSES
@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (without(rows(0), "obs_next"), ValueError, r"the batch has no obs_next, only \['act', .*'truncated'\]"),
        (with_(rows(0), obs=IMAGE, obs_next=IMAGE), ValueError, r"is an image \(uint8 of shape \(3, 8, 8\)\)"),
        (with_(rows(0), obs=Batch(camera=IMAGE), obs_next=Batch(camera=IMAGE)), ValueError, "camera is an image"),
        (with_(rows(0), obs=Batch(word=TEXT), obs_next=Batch(word=TEXT)), TypeError, r"obs\.word holds Python objects"),
        (with_(rows(0), act=Batch(arm=np.zeros(1))), TypeError, r"act has the keys \['arm'\]: Dict and Tuple actions"),
        (with_(rows(0), rew=np.zeros((1, 2))), ValueError, r"rew has shape \(1, 2\), but one number a row"),
        (
            with_(rows(0), obs=Batch({"a.b": np.zeros(1)}), obs_next=Batch({"a.b": np.zeros(1)})),
            ValueError,
            r"obs: the key 'a\.b' contains '\.'",
        ),
    ],
)
def test_first_rows(cls, batch, error, message):
    buffer = make_buffer(cls)
    with pytest.raises(error, match=message):
        buffer.add(batch)
    assert len(buffer) == 0
    buffer.add(rows(0))
    assert len(buffer) == 1


def test_later_rows_without_next_observations():
    buffer = make_buffer()
    buffer.add(rows(0))
    with pytest.raises(ValueError, match="no obs_next"):
        buffer.add(without(rows(1), "obs_next"))
    assert len(buffer) == 1


def test_other_ways_in():
    plain = {"size": 120, "retrain_every": 120}
    with pytest.raises(ValueError, match="no obs_next"):
        make_buffer(**plain).set_batch(Batch(without(rows(0, 120), "obs_next"), done=np.zeros(120, np.bool_)))
    source = make_buffer(synthetic_fraction=0.0, ignore_obs_next=True)
    source.add(rows(0))
    target = make_buffer()
    with pytest.raises(ValueError, match="no obs_next"):
        target.update(source)


def test_more_environments_than_sub_buffers():
    buffer = make_buffer(buffer_num=2)
    with pytest.raises(ValueError, match="buffer_ids has 2, but there are only 2 sub-buffers"):
        buffer.add(rows(0, 2), [1, 2])
    with pytest.raises(ValueError, match="buffer_ids has -1, but there are only 2 sub-buffers"):
        buffer.add(rows(0, 2), [0, -1])
    assert len(buffer) == 0
    env = CounterEnv(num_actions=2)
    with pytest.raises(ValueError, match="only 2 buffers"):
        Collector(dqn(env), envs(lambda: env, 3), buffer)


def test_without_tianshou(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("synther_buffers.tianshou")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tianshou", None)
    with pytest.raises(
        ImportError, match=r'synther_buffers\.tianshou needs Tianshou: pip install "synther-buffers\[ti'
    ):
        import synther_buffers.tianshou  # noqa: F401
