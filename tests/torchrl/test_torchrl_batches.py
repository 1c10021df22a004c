"""What a batch holds: how many synthetic rows, and every key of a real one."""

import numpy as np
import pytest
import torch
from batches import assert_every_slice_is_fair, mask
from synther_buffers.torchrl import SynthERMemmapStorage, SynthERStorage, is_synthetic
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, ReplayBuffer, TensorDictReplayBuffer
from torchrl.data.replay_buffers.writers import TensorDictMaxValueWriter, TensorDictRoundRobinWriter
from torchrl.envs.transforms import MultiStepTransform
from torchrl_helpers import (
    MARK,
    PLAIN,
    TINY,
    Marked,
    assert_same,
    make_buffer,
    make_storage,
    num_marked,
    real_of,
    rows,
    synthetic_of,
)

from synther_buffers import ReturnToGo

STORAGES = [SynthERStorage, SynthERMemmapStorage]


# -- how many, and which -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", STORAGES)
def test_batches_are_real_up_to_the_first_refresh_and_half_synthetic_from_then_on(cls):
    buffer = make_buffer(cls)
    buffer.extend(rows(119))
    assert num_marked(buffer.sample(32)) == 0
    buffer.extend(rows(1, 119))
    for batch_size, num_synthetic in ((32, 16), (33, 16), (1, 0), (2, 1)):
        batch = buffer.sample(batch_size)
        assert batch.batch_size == (batch_size,)
        assert num_marked(batch) == num_synthetic == int(is_synthetic(batch["index"]).sum())
    assert [report.num_observed for report in buffer.storage.synthetic.reports] == [120]


@pytest.mark.parametrize(("fraction", "num_synthetic"), [(0.0, 0), (0.3, 3), (0.75, 7), (1.0, 10)])
def test_the_fraction_is_exact_in_every_batch(fraction, num_synthetic):
    buffer = make_buffer(synthetic_fraction=fraction)
    buffer.extend(rows(200))
    assert [num_marked(buffer.sample(10)) for _ in range(5)] == [num_synthetic] * 5


def test_iterating_over_the_buffer_gives_mixed_batches_and_over_the_storage_real_rows():
    buffer = make_buffer(batch_size=32)
    buffer.extend(rows(150))
    for _, batch in zip(range(3), buffer, strict=False):
        assert num_marked(batch) == 16
    assert [float(row["observation"][0]) for row in buffer.storage] == list(range(150))


def test_the_rows_of_a_batch_are_real_ones_and_rows_of_the_synthetic_set():
    buffer = make_buffer()
    buffer.extend(rows(150))
    batch = buffer.sample(200)
    real, synthetic = real_of(batch), synthetic_of(batch)
    assert torch.equal(real["observation"][:, 0], real["index"].float())
    assert (real["next", "reward"] == 1).all()
    generated = buffer.storage.synthetic.rows
    j = (-(2**40) - synthetic["index"]) % 2**32
    assert len(j.unique()) > 50
    assert torch.equal(synthetic["observation"], generated.observation[j])
    assert torch.equal(synthetic["action"], generated.action[j])
    assert torch.equal(synthetic["next", "observation"], generated.next_observation[j])
    assert torch.equal(synthetic["next", "terminated"][:, 0], generated.terminated[j])


def test_the_model_learns_every_row_of_a_ring_that_has_wrapped():
    buffer = make_buffer(max_size=130, retrain_every=130, start_after=200)
    for first in range(0, 200, 25):
        buffer.extend(rows(25, first))
    buffer.sample(32)
    synthetic = buffer.storage.synthetic
    learned = synthetic.upsampler.rows.observation[:, 0]
    # Rows 70..199 are stored; a run of 4 is held out.
    assert len(learned) + synthetic.reports[0].num_held_out == 130
    assert set(learned.tolist()) <= set(range(70, 200))
    assert synthetic.reports[0].num_held_out == 4


def test_rows_held_out_stay_so_while_the_ring_moves():
    buffer = make_buffer(max_size=150, retrain_every=50, start_after=150)
    learned = []
    for first in range(0, 400, 50):
        buffer.extend(rows(50, first))
        if first >= 100:
            buffer.sample(32)
            learned.append(set(buffer.storage.synthetic.upsampler.rows.observation[:, 0].tolist()))
    assert len(learned) == 6
    ever = set()
    for number, now in enumerate(learned):
        stored = set(range(50 * number, 50 * number + 150))
        held = stored - now
        assert held
        # What is held out now was never learned before.
        assert not held & ever
        ever |= now


def test_a_terminal_is_what_stops_bootstrapping():
    data = rows(150)
    cut = torch.arange(150) % 10 == 4
    data["next", "truncated"] = cut[:, None]
    data["next", "done"] = data["next", "done"] | cut[:, None]
    buffer = make_buffer()
    buffer.extend(data)
    buffer.sample(32)
    learned = buffer.storage.synthetic.upsampler.rows
    assert torch.equal(learned.terminated, learned.observation[:, 0] % 20 == 19)


# -- the plain storage's batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefilled", [False, True], ids=["fraction 0", "before the first refresh"])
@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("cls", STORAGES)
def test_all_real_batches_are_the_plain_storages_and_draw_as_much(cls, ndim, prefilled):
    settings = {"retrain_every": 400} if prefilled else {"synthetic_fraction": 0.0}
    ours = make_buffer(cls, ndim=ndim, **settings)
    plain = TensorDictReplayBuffer(storage=PLAIN[cls](400, ndim=ndim))
    for buffer in (ours, plain):
        buffer.extend(rows(160) if ndim == 1 else rows(160).reshape(4, 40))
    states, batches = [], []
    for buffer in (ours, plain):
        torch.manual_seed(7)
        batches.append([buffer.sample(32) for _ in range(3)])
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    for mine, theirs in zip(*batches, strict=True):
        assert_same(mine, theirs)
    assert_same(ours[:], plain[:])
    assert len(ours) == len(plain) == 160


def test_real_rows_are_drawn_as_the_plain_storage_draws_them():
    ours, plain = make_buffer(), TensorDictReplayBuffer(storage=PLAIN[SynthERStorage](400))
    for buffer in (ours, plain):
        buffer.extend(rows(160))
    ours.sample(32)
    torch.manual_seed(7)
    mine, after = ours.sample(32), torch.get_rng_state()
    torch.manual_seed(7)
    theirs = plain.sample(16)
    assert torch.equal(after, torch.get_rng_state())
    assert_same(real_of(mine), theirs)


def test_slices_length_and_stats_know_real_rows_only():
    buffer = make_buffer()
    buffer.extend(rows(150))
    buffer.sample(32)
    assert len(buffer) == len(buffer.storage) == 150
    assert buffer[:].batch_size == (150,)
    assert torch.equal(buffer[:]["observation"][:, 0], torch.arange(150.0))
    assert float(buffer[-1]["observation"][0]) == 149
    assert buffer[torch.arange(150) < 3].batch_size == (3,)
    assert buffer.stats()["size"] == 150
    assert (buffer["next", "reward"] == 1).all()


def test_an_old_index_gives_the_same_rows_again():
    buffer = make_buffer()
    buffer.extend(rows(150))
    batch = buffer.sample(32)
    again = buffer[batch["index"]]
    for key in ("observation", "action", ("next", "reward"), ("next", "observation"), ("next", "done"), "index"):
        assert torch.equal(again[key], batch[key]), key
    # In any order, and mixed with places counted from the end.
    order = torch.randperm(32)
    assert torch.equal(buffer.storage.get(batch["index"][order])["observation"], batch["observation"][order])
    synthetic = synthetic_of(batch)["index"]
    last = torch.cat((torch.tensor([-1]), synthetic[-2:]))
    assert buffer.storage.get(last)["next", "reward"].flatten().tolist() == [1, MARK, MARK]
    assert float(buffer.storage.get(int(synthetic[-1]))["next", "reward"]) == MARK
    assert buffer.storage.get(synthetic[-1:].numpy())["next", "reward"].tolist() == [[MARK]]
    with pytest.raises(IndexError, match="names synthetic rows that a refresh has replaced"):
        buffer.storage.get(torch.tensor([-(2**40) - 90]))


# -- every key of a real row ---------------------------------------------------------------------------------------


def assert_keys_dtypes_shapes(batch, data):
    """A batch has each key of the data, in the dtype and row shape of the data."""
    stored = dict(data.items(include_nested=True, leaves_only=True))
    for key, tensor in stored.items():
        assert batch[key].dtype == tensor.dtype, key
        assert batch[key].shape[1:] == tensor.shape[data.batch_dims :], key
    assert {*stored, "index"} == set(batch.keys(include_nested=True, leaves_only=True))


def test_a_synthetic_row_is_an_episode_of_one_step():
    data = rows(150)
    buffer = make_buffer()
    buffer.extend(data)
    batch = synthetic_of(buffer.sample(256))
    assert_keys_dtypes_shapes(batch, data)
    terminated = batch["next", "terminated"]
    assert terminated.any()
    assert not terminated.all()
    assert batch["next", "done"].all()
    assert torch.equal(batch["next", "truncated"], ~terminated)
    assert (batch["collector", "traj_ids"] == -1).all()
    for flag in ("done", "terminated", "truncated"):
        assert not batch[flag].any()


def test_without_a_terminated_flag_done_says_it():
    data = rows(150).exclude(("next", "terminated"), ("next", "truncated"), "terminated", "truncated")
    buffer = make_buffer()
    buffer.extend(data)
    batch = synthetic_of(buffer.sample(256))
    assert torch.equal(batch["next", "done"][:, 0], batch["observation"][:, 0] % 20 == 19)

    data = rows(150).exclude(("next", "terminated"), "terminated")
    cut = (torch.arange(150) % 10 == 4)[:, None]
    data["next", "truncated"], data["next", "done"] = cut, data["next", "done"] | cut
    buffer = make_buffer()
    buffer.extend(data)
    batch = synthetic_of(buffer.sample(256))
    # A time limit ends an episode, but does not stop bootstrapping; `done` would.
    assert torch.equal(batch["next", "done"][:, 0], batch["observation"][:, 0] % 20 == 19)
    assert not batch["next", "truncated"].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32])
def test_dtypes_are_the_stored_ones(dtype):
    data = rows(150)
    for key in ("observation", ("next", "observation"), ("next", "reward")):
        data[key] = data[key].to(dtype)
    buffer = make_buffer()
    buffer.extend(data)
    batch = buffer.sample(64)
    assert_keys_dtypes_shapes(batch, data)
    assert num_marked(batch) == 32


def test_rewards_and_flags_without_a_last_dimension():
    data = rows(150)
    for key in (("next", "reward"), ("next", "done"), ("next", "terminated"), "done", "action"):
        data[key] = data[key][:, 0]
    buffer = make_buffer()
    buffer.extend(data)
    batch = buffer.sample(64)
    assert_keys_dtypes_shapes(batch, data)
    assert num_marked(batch) == 32


def test_several_and_nested_observations():
    arm, mode = torch.randn(150, 2, 3), torch.randint(3, (150, 1))
    data = rows(150, arm__pose=arm, next__arm__pose=arm + 1, mode=mode, next__mode=(mode + 1) % 3)
    buffer = make_buffer(upsampler=TINY)
    buffer.extend(data)
    batch = synthetic_of(buffer.sample(256))
    assert_keys_dtypes_shapes(batch, data)
    names = [field.name for field in buffer.storage.synthetic.spec.observation]
    assert sorted(names) == ["observation.arm.pose", "observation.mode", "observation.observation"]
    assert set(batch["mode"].flatten().tolist()) <= {0, 1, 2}
    assert torch.isfinite(batch["arm", "pose"]).all()


def test_agents_with_a_common_reward():
    observation, action = torch.randn(150, 3, 4), torch.rand(150, 3, 2)
    flags = torch.zeros(150, 3, 1, dtype=torch.bool)
    data = rows(150).exclude("observation", ("next", "observation"), "action")
    data["agents", "observation"], data["next", "agents", "observation"] = observation, observation + 1
    data["agents", "action"], data["next", "agents", "terminated"] = action, flags
    data["next", "agents", "done"] = flags.clone()
    buffer = make_buffer()
    buffer.extend(data)
    batch = synthetic_of(buffer.sample(256))
    assert_keys_dtypes_shapes(batch, data)
    assert torch.equal(batch["next", "agents", "observation"], batch["agents", "observation"] + 1)
    assert batch["next", "agents", "done"].all()
    # The flag of the row, for each agent.
    assert torch.equal(batch["next", "agents", "terminated"], batch["next", "terminated"][:, None].expand(-1, 3, 1))


# -- actions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_one_hot_actions_stay_one_hot(dtype):
    category = torch.arange(150) % 4
    data = rows(150)
    data["action"] = torch.nn.functional.one_hot(category, 4).to(dtype)
    buffer = make_buffer(upsampler=TINY)
    buffer.extend(data)
    batch = synthetic_of(buffer.sample(512))
    assert_keys_dtypes_shapes(batch, data)
    assert (batch["action"].to(torch.float32).sum(1) == 1).all()
    assert ((batch["action"] == 0) | (batch["action"] == 1)).all()
    action = buffer.storage.synthetic.spec.action
    assert (action.kind, action.shape, action.num_categories) == ("categorical", (), (4,))
    assert len(batch["action"].to(torch.int64).argmax(1).unique()) == 4


def test_one_hot_actions_of_several_agents():
    category = torch.stack((torch.arange(150) % 3, torch.arange(150) % 2), 1)
    data = rows(150).exclude("action")
    data["agents", "action"] = torch.nn.functional.one_hot(category, 3)
    buffer = make_buffer()
    buffer.extend(data)
    batch = synthetic_of(buffer.sample(256))
    index = batch["observation"][:, 0].to(torch.int64)
    assert torch.equal(batch["agents", "action"].argmax(-1), torch.stack((index % 3, index % 2), 1))
    assert batch["agents", "action"].dtype == torch.int64


def test_a_new_action_widens_the_spec():
    buffer = make_buffer(retrain_every=100)
    data = rows(200)
    data["action"] = torch.nn.functional.one_hot((torch.arange(200) % 2) + 2 * (torch.arange(200) >= 100), 5)
    buffer.extend(data[:100])
    buffer.sample(32)
    assert buffer.storage.synthetic.spec.action.num_categories == (2,)
    buffer.extend(data[100:])
    batch = synthetic_of(buffer.sample(256))
    assert buffer.storage.synthetic.spec.action.num_categories == (4,)
    index = batch["observation"][:, 0].to(torch.int64)
    assert torch.equal(batch["action"].argmax(-1), index % 2 + 2 * (index >= 100))
    assert batch["action"].shape == (128, 5)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_categorical_actions_are_whole_and_in_range(shape):
    data = rows(150)
    data["action"] = (torch.arange(150) % 3).reshape(150, *shape)
    buffer = make_buffer(upsampler=TINY)
    buffer.extend(data)
    batch = synthetic_of(buffer.sample(512))
    assert_keys_dtypes_shapes(batch, data)
    assert set(batch["action"].flatten().tolist()) == {0, 1, 2}


def test_bounded_actions_stay_in_the_range_of_the_data():
    buffer = make_buffer(upsampler=TINY)
    data = rows(150)
    data["action"] = torch.rand(150, 1) * 4 - 2
    buffer.extend(data)
    action = synthetic_of(buffer.sample(512))["action"]
    assert data["action"].min() <= action.min()
    assert action.max() <= data["action"].max()
    assert len(action.unique()) > 50


# -- keys it does not know -----------------------------------------------------------------------------------------


def test_unknown_keys_are_filled_from_a_real_row_of_the_batch():
    index = torch.arange(150)
    more = {
        "loc": index[:, None].float(),
        "next__energy": 1000 + index,
        "step_count": index,
        "next__step_count": index + 1,
    }
    data = rows(150, **more)
    buffer = make_buffer()
    buffer.extend(data)
    batch = buffer.sample(64)
    assert_keys_dtypes_shapes(batch, data)
    real, synthetic = real_of(batch), synthetic_of(batch)
    for key in ("loc", ("next", "energy"), "step_count", ("next", "step_count")):
        # All of them from the same row, so that what belongs together stays so.
        assert torch.equal(synthetic[key], real[key])
    names = {field.name for field in buffer.storage.synthetic.spec.fields}
    assert names == {"observation", "action", "reward", "next_observation", "terminated"}


def test_with_few_real_rows_in_a_batch_they_fill_several_synthetic_ones():
    buffer = make_buffer(synthetic_fraction=0.75)
    buffer.extend(rows(150, loc=torch.arange(150.0)))
    batch = buffer.sample(12)
    assert torch.equal(synthetic_of(batch)["loc"], real_of(batch)["loc"].repeat(3))
    buffer = make_buffer(synthetic_fraction=1.0)
    buffer.extend(rows(150, loc=torch.arange(150.0)))
    assert (buffer.sample(12)["loc"] == 0).all()


def test_declared_keys_are_modelled():
    index = torch.arange(150)
    data = rows(150, cost=index.float()[:, None], next__energy=1000.0 + index, gear=index % 4)
    buffer = make_buffer(modelled_keys=["cost", ("next", "energy"), "gear"])
    buffer.extend(data)
    batch = synthetic_of(buffer.sample(64))
    assert_keys_dtypes_shapes(batch, data)
    row = batch["observation"][:, 0]
    assert torch.equal(batch["cost"][:, 0], row)
    assert torch.equal(batch["next", "energy"], 1000 + row)
    assert torch.equal(batch["gear"], row.to(torch.int64) % 4)
    kinds = {field.name: field.kind for field in buffer.storage.synthetic.spec.extra}
    assert kinds == {"extra.cost": "continuous", "extra.next.energy": "continuous", "extra.gear": "categorical"}


def test_keys_that_come_late_reach_every_row_of_a_batch():
    buffer = make_buffer(retrain_every=100)
    buffer.extend(rows(100))
    buffer.sample(32)
    data = rows(50, 100, loc=torch.ones(50), next__note=torch.ones(50, dtype=torch.int64))
    buffer.extend(data)
    batch = buffer.sample(64)
    assert_keys_dtypes_shapes(batch, data)
    assert num_marked(batch) == 32
    buffer.extend(rows(50, 150, loc=torch.ones(50), next__note=torch.ones(50, dtype=torch.int64)))
    assert num_marked(buffer.sample(64)) == 32
    assert buffer.storage.synthetic.num_refreshes == 2


def test_an_observation_that_comes_late_is_learned_at_the_next_refresh():
    buffer = make_buffer(retrain_every=100)
    buffer.extend(rows(100))
    buffer.sample(32)
    more = {"speed": torch.ones(100, 1), "next__speed": torch.full((100, 1), 2.0)}
    buffer.extend(rows(100, 100, **more))
    batch = synthetic_of(buffer.sample(256))
    assert buffer.storage.synthetic.num_refreshes == 2
    late = batch["observation"][:, 0] >= 100
    assert late.any()
    assert torch.equal(batch["speed"][:, 0], late.float())
    assert torch.equal(batch["next", "speed"][:, 0], 2 * late.float())


# -- several dimensions, several steps -----------------------------------------------------------------------------


def test_a_storage_of_two_dimensions():
    """Environment b writes rows b * 1000 + t."""
    buffer = make_buffer(ndim=2, max_size=400, retrain_every=120)
    chunk = torch.stack([rows(30, 1000 * env) for env in range(4)])
    buffer.extend(chunk)
    batch = buffer.sample(64)
    assert buffer.storage.synthetic.reports[0].num_observed == 120
    assert batch.batch_size == (64,)
    assert batch["index"].shape == (64, 2)
    assert num_marked(batch) == 32 == int(is_synthetic(batch["index"]).sum())
    real, synthetic = real_of(batch), synthetic_of(batch)
    time, env = real["index"].unbind(1)
    assert torch.equal(real["observation"][:, 0], (1000 * env + time).float())
    assert torch.equal(synthetic["next", "observation"][:, 0], synthetic["observation"][:, 0] + 1)
    again = buffer.storage.get(batch["index"].unbind(1))
    assert torch.equal(again["observation"], batch["observation"])
    # 100 slots of 4: the ring wraps, and rows are counted whole.
    for first in (30, 60, 90, 120):
        buffer.extend(torch.stack([rows(30, 1000 * env + first) for env in range(4)]))
    assert num_marked(buffer.sample(64)) == 32
    synthetic = buffer.storage.synthetic
    assert synthetic.num_observed == 600
    learned = synthetic.upsampler.rows.observation[:, 0]
    assert set((learned % 1000).tolist()) <= set(range(50, 150))
    assert set((learned // 1000).tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("cls", STORAGES)
@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("way", ["gathered", "read key by key", "n-step", "nested keys", "read again"])
def test_every_slice_of_a_batch_is_a_fair_mix(cls, ndim, way):
    """Some clients sample for many updates at once and cut the batch."""
    more = {"sensors": {"left": torch.rand(160, 2)}, "next__sensors": {"left": torch.rand(160, 2)}}
    data = rows(160, **(more if way == "nested keys" else {}))
    buffer = make_buffer(cls, ndim=ndim, transform=MultiStepTransform(3, 0.9) if way == "n-step" else None)
    buffer.extend(data if ndim == 1 else data.reshape(4, 40))
    batch = buffer.sample(32 * 20)
    if way == "read key by key":
        buffer.storage._gatherer = None  # as after a new key has come
        batch = buffer.sample(32 * 20)
    if way == "read again":
        batch = buffer.storage.get(batch["index"] if ndim == 1 else tuple(batch["index"].unbind(1)))
    assert_every_slice_is_fair(batch["next", "reward"].flatten().numpy() == MARK)


def test_an_info_index_tells_the_synthetic_rows_too():
    buffer = make_buffer(ndim=2)
    buffer.extend(rows(160).reshape(4, 40))
    _, info = buffer.sample(10, return_info=True)
    assert is_synthetic(info["index"]).tolist() == mask(10).tolist()


@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_n_step_rows(gamma):
    buffer = make_buffer(transform=MultiStepTransform(3, gamma))
    for first in range(0, 160, 40):
        buffer.extend(rows(40, first))
    batch = buffer.sample(256)
    spec = buffer.storage.synthetic.spec
    assert spec.discounts == pytest.approx([gamma, gamma**2, gamma**3] if gamma < 1 else [1.0])
    assert_keys_dtypes_shapes(batch, buffer[:].exclude("index"))
    for part in (real_of(batch), synthetic_of(batch)):
        index, steps = part["observation"][:, 0], part["steps_to_next_obs"]
        # Three steps, but none over the end of an episode.
        expected = torch.minimum(torch.tensor(3.0), 20 - index % 20)
        assert torch.equal(part["next", "observation"][:, 0], index + expected)
        assert torch.allclose(part["gamma"], gamma**expected)
        if gamma < 1:
            assert torch.equal(steps, expected.to(steps.dtype))
            assert torch.equal(part["nonterminal"], expected > 1)


def test_n_step_rows_span_their_steps_before_any_episode_ends():
    """One discount is there then, or with gamma 1 ever; a row may still not reach into those that are held out."""
    buffer = make_buffer()
    more = {"gamma": torch.full((150, 1), 0.729), "steps_to_next_obs": torch.full((150, 1), 3)}
    buffer.extend(rows(150, **more, nonterminal=torch.ones(150, 1, dtype=torch.bool)))
    assert buffer.storage.row_order().max_steps == 3


def test_trajectories_of_flattened_environments_are_told_apart():
    """Four environments a step, flattened; only the first one has rewards. Episodes have 50 steps."""
    buffer = make_buffer()
    for step in range(100):
        some = rows(4, collector__traj_ids=torch.arange(4) + 4 * (step // 50))
        some["next", "reward"] = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
        for flag in ("done", "terminated"):
            some["next", flag] = torch.full((4, 1), step % 50 == 49)
        buffer.extend(some)
    storage = buffer.storage
    found = ReturnToGo(discount=0.9).relevance(storage.real_transitions(), storage.row_order()).reshape(100, 4)
    expected = torch.tensor([(1 - 0.9**left) / 0.1 for left in range(50, 0, -1)] * 2, dtype=torch.float64)
    torch.testing.assert_close(found[:, 0], expected)
    assert (found[:, 1:] == 0).all()


# -- buffers, writers, transforms ----------------------------------------------------------------------------------


def test_a_plain_replay_buffer_and_its_info():
    buffer = ReplayBuffer(storage=make_storage())
    buffer.extend(rows(150))
    batch, info = buffer.sample(32, return_info=True)
    assert num_marked(batch) == 16
    assert is_synthetic(info["index"]).tolist() == mask(32).tolist()
    assert "index" not in batch.keys()  # noqa: SIM118


def test_transforms_see_both_kinds_of_row():
    buffer = make_buffer()
    buffer.append_transform(lambda data: data.set("double", 2 * data["next", "reward"]))
    buffer.extend(rows(150))
    batch = buffer.sample(32)
    assert torch.equal(batch["double"], 2 * batch["next", "reward"])
    assert num_marked(batch) == 16


def test_prefetching_threads_refresh():
    buffer = make_buffer(batch_size=32, prefetch=3)
    shares = []
    for first in range(0, 400, 20):
        buffer.extend(rows(20, first))
        shares.append(num_marked(buffer.sample()))
    assert set(shares) == {0, 16}
    assert shares[-1] == 16
    # Batches are drawn up to three ahead: the last refresh may not have been asked for yet.
    assert buffer.storage.synthetic.num_refreshes in (2, 3)


def test_add_one_by_one():
    buffer = make_buffer(max_size=130)
    for row in rows(140):
        buffer.add(row)
    assert num_marked(buffer.sample(32)) == 16
    assert buffer.storage.synthetic.num_observed == 140


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_writing_and_sampling_without_gradients(mode):
    buffer = make_buffer(upsampler=TINY)
    with mode():
        buffer.extend(rows(130))
        batch = buffer.sample(32)
    assert buffer.storage.synthetic.num_refreshes == 1
    assert int(is_synthetic(batch["index"]).sum()) == 16
    with torch.enable_grad():
        again = buffer.sample(32)
    assert torch.isfinite(again["observation"]).all()


def test_two_buffers_share_a_storage():
    storage = make_storage()
    first = TensorDictReplayBuffer(storage=storage)
    second = TensorDictReplayBuffer(storage=storage)
    first.extend(rows(150))
    assert num_marked(first.sample(8)) == 4
    assert num_marked(second.sample(10)) == 5
    assert storage.synthetic.num_observed == 150


def test_lists_of_rows_are_stacked():
    buffer = ReplayBuffer(storage=make_storage())
    buffer.extend(list(rows(130)))
    assert num_marked(buffer.sample(8)) == 4


def test_text_beside_the_tensors_is_kept():
    data = TensorDict({**rows(130).to_dict(), "task": "reach"}, [130])
    buffer = make_buffer()
    buffer.extend(data)
    batch = buffer.sample(32)
    assert num_marked(batch) == 16
    assert list(batch["task"]) == ["reach"] * 32


def test_a_storage_set_later_is_refreshed_too():
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(130))
    # TorchRL attaches neither the buffer nor its writer to the new storage.
    buffer.set_storage(make_storage(max_size=130))
    buffer.set_writer(TensorDictRoundRobinWriter())
    for first in range(0, 400, 50):
        buffer.extend(rows(50, first))
        buffer.sample(8)
    assert num_marked(buffer.sample(8)) == 4
    assert [report.num_observed for report in buffer.storage.synthetic.reports] == [150, 300]


def test_a_writer_that_keeps_the_best_rows():
    buffer = make_buffer(max_size=130, writer=TensorDictMaxValueWriter(rank_key="rank"))
    for first in range(0, 300, 50):
        buffer.extend(rows(50, first, rank=torch.arange(first, first + 50).float()))
    assert num_marked(buffer.sample(8)) == 4
    learned = buffer.storage.synthetic.upsampler.rows.observation[:, 0]
    # The 130 best of 300.
    assert set(learned.tolist()) <= set(range(170, 300))
    assert buffer.storage.synthetic.num_observed >= 130


def test_generations_and_conditional_updates_pass_synthetic_rows_over():
    buffer = make_buffer(writer=TensorDictRoundRobinWriter(track_generations=True))
    buffer.extend(rows(150, version=torch.zeros(150, dtype=torch.int64)))
    batch = buffer.sample(16)
    assert batch["index_generation"].tolist() == np.where(mask(16), -1, 0).tolist()
    handles = {"index": batch["index"], "generation": batch["index_generation"]}
    result = buffer.update_if_present(**handles, patch={"version": torch.ones(16, dtype=torch.int64)})
    assert result.updated.tolist() == (~mask(16)).tolist()
    assert int(buffer[:]["version"].sum()) == len(real_of(batch)["index"].unique())


def test_a_dtype_that_numpy_lacks_is_gathered_all_the_same():
    buffer = make_buffer(retrain_every=100)
    buffer.extend(rows(100, loc=torch.arange(100).to(torch.bfloat16)))
    for _ in range(2):
        batch = buffer.sample(64)
        assert batch["loc"].dtype == torch.bfloat16
        assert num_marked(batch) == 32
        assert torch.equal(batch["next", "observation"], batch["observation"] + torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize("ndim", [1, 2])
def test_real_rows_stay_right_when_the_storages_memory_moves(ndim):
    """Sending a storage to worker processes moves its tensors into shared memory, in place."""
    buffer = make_buffer(retrain_every=100, ndim=ndim)
    data = rows(200)
    buffer.extend(data if ndim == 1 else data.reshape(40, 5))
    buffer.sample(8)
    buffer.storage._storage.share_memory_()
    held = torch.full((50_000,), 3.5)  # over what was freed
    batch = real_of(buffer.sample(64))
    torch.testing.assert_close(batch["next", "observation"], batch["observation"] + torch.tensor([1.0, -1.0]))
    assert (batch["next", "reward"] == 1).all()
    assert (held == 3.5).all()


def test_the_index_of_a_batch_is_good_until_the_next_refresh():
    buffer = make_buffer(retrain_every=100)
    buffer.extend(rows(100))
    batch = buffer.sample(32)
    assert torch.equal(buffer[batch["index"]]["observation"], batch["observation"])
    buffer.extend(rows(100, 100))
    buffer.sample(32)
    with pytest.raises(IndexError, match="the index names synthetic rows that a refresh has replaced"):
        buffer[batch["index"]]


def test_a_users_own_key_called_index_is_a_real_rows():
    buffer = make_buffer(retrain_every=100)
    buffer.extend(rows(150, item__index=torch.arange(150) % 5))
    assert set(synthetic_of(buffer.sample(64))["item", "index"].tolist()) <= set(range(5))


def test_observations_may_have_another_dtype_next():
    buffer = make_buffer(retrain_every=100)
    data = rows(150)
    data["next", "observation"] = data["next", "observation"].double()
    buffer.extend(data)
    batch = buffer.sample(64)
    assert num_marked(batch) == 32
    assert (batch["observation"].dtype, batch["next", "observation"].dtype) == (torch.float32, torch.float64)


# -- reading -------------------------------------------------------------------------------------------------------


def single_reads(address):
    """An address of one row, in every form that a storage takes."""
    number = int(address)
    return [number, np.int64(number), address, np.array(number), [number], address.reshape(1), np.array([number])]


@pytest.mark.parametrize("cls", STORAGES)
def test_reading_a_synthetic_row_changes_no_real_one(cls):
    buffer = make_buffer(cls)
    buffer.extend(rows(150))
    batch = buffer.sample(32)
    before = buffer[:].clone()
    synthetic = synthetic_of(batch)
    for place in range(3):
        for index in single_reads(synthetic["index"][place]):
            for read in (buffer.storage.get(index), buffer.storage[index], buffer[index]):
                assert read.batch_size in ((), (1,))
                assert torch.equal(read["observation"].reshape(2), synthetic["observation"][place])
                assert read["next", "reward"].item() == MARK
                read["observation"].fill_(-5)
                read["next", "reward"].fill_(-5)
    for index in batch["index"].tolist():
        buffer[index]
    buffer[batch["index"]]
    assert_same(buffer[:], before)
    assert buffer.storage.synthetic.rows.observation.min() > -150


def test_reading_a_synthetic_row_of_a_storage_of_two_dimensions_changes_no_real_one():
    buffer = make_buffer(ndim=2)
    buffer.extend(rows(160).reshape(4, 40))
    synthetic = synthetic_of(buffer.sample(32))
    before = buffer[:].clone()
    time, env = synthetic["index"][0]
    for index in ((time, env), (int(time), int(env)), (time.reshape(1), env.reshape(1)), synthetic["index"].unbind(1)):
        read = buffer.storage.get(index)
        assert torch.equal(read["observation"].reshape(-1, 2)[0], synthetic["observation"][0])
        read["observation"].fill_(-5)
    assert_same(buffer[:], before)


def test_a_column_major_leaf_shows_the_rows_that_were_written_after_a_refresh():
    def block(first, num_steps):
        data = torch.stack([rows(num_steps, 1000 * env + first) for env in range(4)])
        for key in ("observation", ("next", "observation")):
            data[key] = data[key].permute(2, 0, 1).contiguous().permute(1, 2, 0)
        return data

    buffer = make_buffer(ndim=2)
    buffer.extend(block(0, 40))
    assert not buffer.storage._storage["observation"].is_contiguous()
    buffer.sample(8)
    buffer.extend(block(40, 20))
    batch = buffer.sample(256)
    assert num_marked(batch) == 128
    time, env = real_of(batch)["index"].unbind(1)
    assert (time >= 40).any()
    assert torch.equal(real_of(batch)["observation"][:, 0], (1000 * env + time).float())


@pytest.mark.parametrize("ndim", [1, 2])
def test_nested_tensordicts_keep_their_batch_size_and_names(ndim):
    observation = torch.randn(150, 3, 4)
    data = rows(150).exclude("observation", ("next", "observation"))
    data["agents"] = TensorDict({"observation": observation, "body": {"mass": torch.ones(150, 3, 1)}}, [150, 3])
    data["agents", "body"].batch_size = [150, 3, 1]
    data["next", "agents"] = TensorDict({"observation": observation + 1}, [150, 3], names=[None, "agent"])
    buffer = make_buffer(ndim=ndim)
    data = data if ndim == 1 else data.reshape(5, 30)
    buffer.extend(data[:, :10] if ndim == 2 else data[:110])
    read = buffer.sample(32)
    assert num_marked(read) == 0
    buffer.extend(data[:, 10:] if ndim == 2 else data[110:])
    gathered = buffer.sample(32)
    assert num_marked(gathered) == 16
    assert buffer.storage._gatherer is not None
    for key in ("agents", ("agents", "body"), "next", ("next", "agents"), "collector"):
        assert gathered[key].batch_size == read[key].batch_size, key
        assert gathered[key].names == read[key].names, key
    assert gathered["agents"].batch_size == (32, 3)
    real = real_of(gathered)
    torch.testing.assert_close(real["next", "agents", "observation"], real["agents", "observation"] + 1)


@pytest.mark.parametrize("upsampler", [Marked, TINY])
def test_rows_that_require_gradients_are_learned(upsampler):
    weight = torch.ones(1, requires_grad=True)
    buffer = make_buffer(upsampler=upsampler)
    data = rows(150)
    data["action"] = data["action"] * weight
    buffer.extend(data)
    for way in ("gathered", "read key by key"):
        batch = buffer.sample(32)
        assert int(is_synthetic(batch["index"]).sum()) == 16, way
        buffer.storage._gatherer = None
    learned = buffer.storage.synthetic.upsampler
    assert not (learned.rows if upsampler is Marked else buffer.storage.synthetic.rows).action.requires_grad


def test_what_a_refresh_is_given_is_learned_without_gradients():
    real = make_buffer(retrain_every=400)
    real.extend(rows(150))
    transitions = real.storage.real_transitions()
    transitions.action = transitions.action * torch.ones(1, requires_grad=True)
    synthetic = make_storage().synthetic
    synthetic.observe_total(150)
    assert synthetic.refresh(transitions) is not None
    assert not synthetic.upsampler.rows.action.requires_grad
