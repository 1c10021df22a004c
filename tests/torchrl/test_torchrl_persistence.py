"""Saving, loading, copying, emptying; and what is random."""

import copy
import logging
import pickle
import random
from concurrent.futures import Executor, Future

import numpy as np
import pytest
import torch
from synther_buffers.torchrl import SynthERMemmapStorage, SynthERStorage, is_synthetic
from torchrl.data import TensorDictReplayBuffer
from torchrl.data.replay_buffers.writers import TensorDictRoundRobinWriter
from torchrl_helpers import PLAIN, TINY, Marked, assert_same, make_buffer, num_marked, rows

from synther_buffers.upsampling.checkpoint import pack, unpack

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


# -- a synthetic part that does not belong to the real rows ----------------------------------------------------------


def warnings_of(log):
    return [record.getMessage() for record in log.records if record.levelno == logging.WARNING]


def saved_over(tmp_path, first, num_rows):
    """A folder that ours saved first, and a plain buffer with other rows after it."""
    filled().dumps(tmp_path)
    plain = TensorDictReplayBuffer(storage=PLAIN[SynthERStorage](400))
    plain.extend(rows(num_rows, first))
    plain.dumps(tmp_path)


@pytest.mark.parametrize(("first", "num_rows"), [(5_000, 60), (5_000, 150), (5_000, 200)])
def test_synthetic_rows_beside_other_real_rows_are_not_loaded(tmp_path, log, first, num_rows):
    saved_over(tmp_path, first, num_rows)
    loaded = make_buffer()
    loaded.loads(tmp_path)
    assert loaded.storage.synthetic.rows is None
    assert [message for message in warnings_of(log) if "cannot be read" in message] == [
        "The saved synthetic rows and their model cannot be read (they belong to other real rows than those beside "
        "them). The real rows are all there; the next refresh trains anew."
    ]
    loaded.extend(rows(120, 9_000))
    assert num_marked(loaded.sample(8)) == 4
    assert (loaded.storage.synthetic.rows.observation[:, 0] < 9_120).all()
    assert loaded.storage.synthetic.num_observed == num_rows + 120


def test_synthetic_rows_beside_their_own_real_rows_are_loaded_into_any_storage(tmp_path, log):
    filled().dumps(tmp_path)
    for cls in STORAGES:
        for max_size in (150, 400, 1_000):
            loaded = make_buffer(cls, max_size=400)
            if max_size == 400:
                loaded.extend(rows(20, 7_000, more=torch.ones(20)))  # a key that the saved rows lack
                loaded.sample(4)
            loaded.loads(tmp_path)
            assert len(loaded.storage.synthetic.rows) == 90
    assert not [message for message in warnings_of(log) if "cannot be read" in message]


def test_synthetic_rows_beside_their_own_real_rows_and_later_ones_are_loaded(tmp_path):
    """As where another process writes while the buffer is saved."""
    saved_over(tmp_path, 0, 160)
    loaded = make_buffer()
    loaded.loads(tmp_path)
    assert len(loaded.storage.synthetic.rows) == 90


def test_a_state_whose_memory_was_written_since_is_loaded():
    """TorchRL's state is the storage's own memory."""
    buffer = filled()
    state = buffer.state_dict()
    buffer.extend(rows(400, 9_000))
    loaded = make_buffer()
    loaded.load_state_dict(state)
    assert len(loaded.storage.synthetic.rows) == 90


def test_a_part_that_was_saved_without_the_real_rows_mark_is_loaded(tmp_path):
    buffer = filled()
    buffer.dumps(tmp_path)
    file = tmp_path / "storage" / "synthetic.safetensors"
    content = unpack(file.read_bytes())
    for name in ("real", "num_written", "write_count"):
        del content[name]
    file.write_bytes(pack(content))
    loaded = make_buffer()
    loaded.loads(tmp_path)
    assert_same(next_batch(loaded), next_batch(buffer))


# -- synthetic rows that lack a field of the stored ones -------------------------------------------------------------


def late(first, num_rows):
    """Rows with an observation that earlier ones do not have."""
    return rows(num_rows, first, hidden=torch.zeros(num_rows, 2), next__hidden=torch.zeros(num_rows, 2))


def assert_real_until_the_next_refresh(buffer, log, data, lacking):
    for _ in range(3):
        batch = buffer.sample(32)
        assert num_marked(batch) == 0
        assert not is_synthetic(batch["index"]).any()
        assert not buffer.storage.synthetic.last_mask.any()
    assert [message for message in warnings_of(log) if "all real" in message] == [
        f"The synthetic rows do not fit the stored ones (they lack the fields {lacking}): batches are all real until "
        "the next refresh."
    ]
    buffer.extend(data)
    batch = buffer.sample(32)
    assert num_marked(batch) == 16
    assert int(buffer.storage.synthetic.last_mask.sum()) == 16


@pytest.mark.parametrize("way", [by_dump, by_state_dict])
def test_keys_that_are_modelled_from_a_load_on(way, tmp_path, log):
    buffer = make_buffer()
    buffer.extend(rows(150, cost=torch.arange(150.0)[:, None]))
    buffer.sample(8)
    loaded = way(buffer, SynthERStorage, tmp_path, {"modelled_keys": ["cost"]})
    more = rows(120, 150, cost=torch.arange(150.0, 270)[:, None])
    assert_real_until_the_next_refresh(loaded, log, more, "extra.cost")
    assert loaded.storage.synthetic.num_refreshes == 2


def test_keys_that_are_modelled_no_more_are_left_out(tmp_path):
    buffer = make_buffer(modelled_keys=["cost"])
    buffer.extend(rows(150, cost=torch.arange(150.0)[:, None]))
    buffer.sample(8)
    assert num_marked(by_dump(buffer, SynthERStorage, tmp_path, {}).sample(8)) == 4


def test_a_modelled_key_that_the_loaded_rows_lack(tmp_path, log):
    loaded = by_dump(filled(), SynthERStorage, tmp_path, {"modelled_keys": ["cost"]})
    for _ in range(2):
        assert num_marked(loaded.sample(8)) == 0
    (message,) = [message for message in warnings_of(log) if "all real" in message]
    assert "modelled_keys names 'cost', but the data have only" in message


def test_a_set_of_other_widths_is_not_served(log):
    wide = rows(150, 0)
    for part in (wide, wide["next"]):
        part["observation"] = part["observation"].repeat(1, 2)
    plain = TensorDictReplayBuffer(storage=PLAIN[SynthERStorage](400))
    plain.extend(wide)
    state = plain.state_dict()
    state["_storage"]["synthetic"] = filled().state_dict()["_storage"]["synthetic"]
    loaded = make_buffer()
    loaded.load_state_dict(state)
    assert num_marked(loaded.sample(8)) == 0
    (message,) = [message for message in warnings_of(log) if "all real" in message]
    assert "their observation has 2 elements a row, and the stored one 4" in message


@pytest.mark.parametrize("way", [by_copy, by_dump, by_state_dict])
def test_an_observation_that_came_late_before_saving(way, tmp_path, log):
    buffer = filled()
    buffer.extend(late(150, 10))
    buffer.sample(8)
    loaded = way(buffer, SynthERStorage, tmp_path, {})
    assert_real_until_the_next_refresh(loaded, log, late(160, 120), "observation.hidden, observation.observation")


class AtOnce(Executor):
    """Works when it is asked to; the result serves later."""

    def submit(self, work, *args, **kwargs):
        future = Future()
        future.set_result(work(*args, **kwargs))
        return future


def test_an_observation_that_comes_while_a_refresh_runs_elsewhere(log):
    buffer = make_buffer(refresh_on=AtOnce(), refresh_lag=60)
    buffer.extend(rows(120))
    assert num_marked(buffer.sample(8)) == 0
    buffer.extend(late(120, 60))
    assert buffer.storage.split_batch(8) == (8, 0)
    assert buffer.storage.synthetic.num_refreshes == 1
    buffer.extend(late(180, 60))
    buffer.sample(8)  # the next refresh is started
    assert len([message for message in warnings_of(log) if "all real" in message]) == 1
    buffer.extend(late(240, 60))
    batch = buffer.sample(8)
    assert num_marked(batch) == 4
    assert torch.equal(buffer[batch["index"]]["hidden"], batch["hidden"])


def test_reading_rows_that_no_longer_serve_is_an_error_of_the_index():
    buffer = filled()
    index = buffer.sample(32)["index"]
    buffer.extend(late(150, 10))
    loaded = by_copy(buffer, SynthERStorage, None, {})
    loaded.sample(8)
    with pytest.raises(IndexError, match="the index names synthetic rows that do not fit the stored ones"):
        loaded[index]


# -- counts that go back ---------------------------------------------------------------------------------------------


def ring(**kwargs):
    """A ring that has wrapped, after ten refreshes."""
    buffer = make_buffer(upsampler=Marked, **{"retrain_every": 100, **kwargs})
    for first in range(0, 1_000, 100):
        buffer.extend(rows(100, first))
        buffer.sample(8)
    assert buffer.storage.synthetic.num_refreshes == 10
    return buffer


def assert_refreshes_go_on(buffer, step=100):
    """As many refreshes as ever, and about as many held-out rows."""
    synthetic = buffer.storage.synthetic
    before = synthetic.num_refreshes
    observed = synthetic.num_observed
    for first in range(1_000, 2_000, step):
        buffer.extend(rows(step, first))
        buffer.sample(8)
        observed += step
        assert synthetic.num_observed == observed
    new = synthetic.reports[before:]
    assert len(new) == 1_000 // max(step, 100)
    assert all(report.num_held_out >= 8 for report in new), [report.num_held_out for report in new]


def test_a_second_buffer_that_only_reads():
    buffer = ring()
    TensorDictReplayBuffer(storage=buffer.storage)
    assert_refreshes_go_on(buffer)


def test_another_writer():
    buffer = ring()
    buffer.set_writer(TensorDictRoundRobinWriter())
    assert_refreshes_go_on(buffer)


@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("way", ["dumps", "state_dict"])
def test_a_storage_that_is_loaded_without_its_writer(tmp_path, way, ndim):
    def more(first):
        data = rows(100, first)
        return data if ndim == 1 else data.reshape(4, 25)

    buffer = make_buffer(ndim=ndim, retrain_every=100)
    for first in range(0, 950, 100):
        buffer.extend(more(first))
        buffer.sample(8)
    buffer.extend(more(1_000))  # not asked for yet
    loaded = make_buffer(ndim=ndim, retrain_every=100)
    if way == "dumps":
        buffer.storage.dumps(tmp_path)
        loaded.storage.loads(tmp_path)
    else:
        loaded.storage.load_state_dict(buffer.storage.state_dict())
    synthetic = loaded.storage.synthetic
    for count in range(1, 6):
        loaded.extend(more(1_000 + 100 * count))
        loaded.sample(8)
        assert synthetic.num_observed == 1_100 + 100 * count
    assert synthetic.num_refreshes == 15
    assert all(report.num_held_out >= 4 for report in synthetic.reports), synthetic.reports


def test_counting_goes_on_after_loading_the_whole_buffer(tmp_path):
    for way in (by_dump, by_state_dict, by_pickle, by_copy):
        buffer = ring()
        assert_refreshes_go_on(way(buffer, SynthERStorage, tmp_path, {"retrain_every": 100}))


def test_a_writer_that_was_replaced_is_counted_after_emptying_too():
    buffer = ring()
    buffer.empty(empty_write_count=False)
    for first in range(0, 400, 100):
        buffer.extend(rows(100, first))
    buffer.sample(8)
    assert buffer.storage.synthetic.num_observed == 400
    buffer.set_writer(TensorDictRoundRobinWriter())
    buffer.extend(rows(100, 400))
    buffer.sample(8)
    assert buffer.storage.synthetic.num_observed == 500


class WithTransitions(Marked):
    """Has rows in its state that cannot be written as plain data."""


def test_the_warning_about_an_upsampler_that_is_not_saved_is_short(tmp_path, log):
    buffer = filled(upsampler=WithTransitions)
    buffer.dumps(tmp_path)
    (message,) = [message for message in warnings_of(log) if "not saved" in message]
    assert len(message) < 300
    assert "\n" not in message
    assert "Transitions" in message
    assert message.endswith("wanted tensors and plain data. The synthetic rows are.")
