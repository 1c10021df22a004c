"""What every adapter has to do: the nine invariants, by number, and the behaviours that all buffers share."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from batches import assert_every_slice_is_fair, synthetic_places
from gymnasium import spaces
from toys import SPEC, TINY, equal, fails_at, global_state

from synther_buffers import Curiosity, FitReport, FunctionGuidance, Novelty, ReturnToGo, TDError, Transitions
from synther_buffers.guidance import drawing
from synther_buffers.replay.refresh import run_refresh
from synther_buffers.upsampling.diffusion_upsampler import DiffusionUpsampler
from synther_buffers.upsampling.presets import resolve_config

OBSERVATION, ACTION = spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Box(-1.0, 1.0, (1,), np.float32)
MARK = -7.0


class Marked:
    """An upsampler that draws real rows and marks them by their reward; it remembers what it was given to learn."""

    def __init__(self, spec, *, device, seed, progress_bar):
        self.generator, self.rows, self.held_out = torch.Generator().manual_seed(seed % 2**63), None, None
        self.num_samples = 0

    @property
    def config(self):
        return {"upsampler": type(self).__name__}

    def fit(self, transitions, *, held_out=None):
        self.rows, self.held_out = transitions[torch.arange(len(transitions))], held_out
        return FitReport(loss=1.0, held_out_loss=1.0, steps=1, seconds=0.0, warm=False)

    def sample(self, num_samples):
        self.num_samples += 1
        rows = self.rows[torch.randint(len(self.rows), (num_samples,), generator=self.generator)]
        rows.reward = torch.full_like(rows.reward, MARK)
        return rows

    def state_dict(self):
        rows = {name: None if rows is None else rows.flat() for name, rows in self._rows().items()}
        return {**rows, "num_samples": self.num_samples, "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        for name in self._rows():
            setattr(self, name, None if state[name] is None else Transitions.from_flat(state[name]))
        self.num_samples = state["num_samples"]
        self.generator.set_state(state["generator"])

    def _rows(self):
        return {"rows": self.rows, "held_out": self.held_out}


def make(adapter, size=600, observation_space=OBSERVATION, action_space=ACTION, n_envs=1, **kwargs):
    defaults = {
        "upsampler": Marked,
        "retrain_every": 120,
        "num_synthetic": 300,
        "seed": 0,
        "progress_bar": False,
    }
    return adapter.make(size, observation_space, action_space, n_envs=n_envs, **defaults | kwargs)


def rows_of(step, n_envs=1, *, terminated=False, truncated=False):
    """Step i of environment e: observation (1000 e + i, -i), the next one a step further, action cos i, reward 1."""
    first = 1_000.0 * np.arange(n_envs) + step
    flags = {"terminated": terminated, "truncated": truncated}
    return {
        "observation": np.stack((first, np.full(n_envs, -float(step))), 1).astype(np.float32),
        "action": np.full((n_envs, 1), np.cos(step), np.float32),
        "reward": np.ones(n_envs, np.float32),
        "next_observation": np.stack((first + 1, np.full(n_envs, -float(step + 1))), 1).astype(np.float32),
        **{name: np.full(n_envs, flag) for name, flag in flags.items()},
    }


def fill(adapter, buffers, start, stop, n_envs=1, *, ends=10, cuts=()):
    """Steps `start` to `stop` - 1 into every buffer; every `ends`-th terminates, those in `cuts` are cut off."""
    for step in range(start, stop):
        cut = step in cuts
        rows = rows_of(step, n_envs, terminated=step % ends == ends - 1 and not cut, truncated=cut)
        for buffer in buffers:
            adapter.add(buffer, rows)


def random_rows(observation_space, action_space, n_envs, count, seed=0):
    """Random rows of any spaces, with terminations and time limits among them."""
    rng = np.random.default_rng(seed)
    observation_space.seed(seed)
    action_space.seed(seed)
    for _ in range(count):
        terminated = rng.random(n_envs) < 0.1
        yield {
            "observation": np.stack([observation_space.sample() for _ in range(n_envs)]),
            "action": np.stack([action_space.sample() for _ in range(n_envs)]),
            "reward": rng.normal(size=n_envs).astype(np.float32),
            "next_observation": np.stack([observation_space.sample() for _ in range(n_envs)]),
            "terminated": terminated,
            "truncated": ~terminated & (rng.random(n_envs) < 0.1),
        }


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
        assert left[name].dtype == right[name].dtype, name


def marked(rows):
    return int((rows["reward"] == MARK).sum())


def learned(adapter, buffer):
    """Everything that the upsampler was given at the last refresh, training and held-out rows."""
    upsampler = adapter.synthetic(buffer).upsampler
    return torch.cat((upsampler.rows.observation, upsampler.held_out.observation)).numpy()


# -- invariant 1: the real data stay the framework's -------------------------------------------------------------------


@pytest.mark.parametrize("n_envs", [1, 3])
def test_1_what_was_added_is_what_is_stored(adapter, n_envs):
    ours, plain = make(adapter, n_envs=n_envs), adapter.make_plain(600, OBSERVATION, ACTION, n_envs=n_envs)
    for start in range(0, 300 // n_envs, 50):
        fill(adapter, [ours, plain], start, start + 50, n_envs, cuts=[14, 77])
        if start:
            adapter.sample(ours, 32)
        assert_same(adapter.stored(ours), adapter.stored(plain))
        assert adapter.size(ours) == adapter.size(plain) == (start + 50) * n_envs
    assert adapter.synthetic(ours).num_refreshes >= 1


def test_1_a_full_ring_stays_the_frameworks(adapter):
    ours, plain = make(adapter, 200), adapter.make_plain(200, OBSERVATION, ACTION)
    fill(adapter, [ours, plain], 0, 330)
    assert marked(adapter.sample(ours, 64)) == 32
    fill(adapter, [ours, plain], 330, 350)
    assert_same(adapter.stored(ours), adapter.stored(plain))
    assert adapter.size(ours) == 200
    assert marked(adapter.stored(ours)) == 0


# -- invariant 2: fraction 0 is the framework's own buffer -------------------------------------------------------------


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("case", ["fraction 0", "before the first refresh"])
def test_2_batches_without_synthetic_rows_are_the_frameworks(adapter, case, n_envs):
    kwargs = {"synthetic_fraction": 0.0} if case == "fraction 0" else {"retrain_every": 600}
    ours, plain = make(adapter, n_envs=n_envs, **kwargs), adapter.make_plain(600, OBSERVATION, ACTION, n_envs=n_envs)
    fill(adapter, [ours, plain], 0, 150, n_envs, cuts=[14])
    batches = []
    for buffer in (ours, plain):
        adapter.seed(3)
        batches.append([adapter.sample(buffer, size) for size in (32, 1, 33)])
        batches[-1].append({"state": np.array(str(global_state()))})
    for left, right in zip(*batches, strict=True):
        assert_same(left, right)


def test_2_training_at_fraction_0_is_training_with_the_frameworks_buffer(adapter):
    plain = adapter.train("Pendulum-v1", 150, plain=True)
    ours = adapter.train("Pendulum-v1", 150, synthetic_fraction=0.0, retrain_every=120)
    np.testing.assert_array_equal(ours.parameters, plain.parameters)


# -- invariant 3: real data are read whole and right -------------------------------------------------------------------


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("steps", [60, 200, 201, 330])
def test_3_the_upsampler_gets_every_row_in_the_ring_and_no_other(adapter, n_envs, steps):
    buffer = make(adapter, 200 * n_envs, n_envs=n_envs, retrain_every=60 * n_envs, start_after=steps * n_envs)
    if steps * n_envs < 100:
        pytest.skip("too few rows for a refresh")
    fill(adapter, [buffer], 0, steps, n_envs)
    adapter.sample(buffer, 32)
    first = max(steps - 200, 0)
    expected = sorted(1_000.0 * env + step for env in range(n_envs) for step in range(first, steps))
    assert sorted(learned(adapter, buffer)[:, 0].tolist()) == expected


def test_3_rows_belong_together_and_time_limits_are_no_terminals(adapter):
    n_envs = adapter.num_envs
    buffer = make(adapter, n_envs=n_envs)
    fill(adapter, [buffer], 0, 60, n_envs, ends=20, cuts=[9, 33])
    batch = adapter.sample(buffer, 2_000)
    assert marked(batch) == 1_000
    np.testing.assert_array_equal(batch["next_observation"], batch["observation"] + [1.0, -1.0])
    steps = -batch["observation"][:, 1]
    np.testing.assert_array_equal(batch["terminated"], steps % 20 == 19)
    np.testing.assert_allclose(batch["action"][:, 0], np.cos(steps), atol=1e-6)
    assert {9.0, 33.0} <= set(steps[:1_000])
    assert {9.0, 33.0} & set(steps[1_000:])  # one of them may be held out


def test_3_held_out_rows_stay_held_out_while_the_ring_wraps(adapter):
    buffer = make(adapter, 400, retrain_every=100)
    held, trained = set(), set()
    for start in range(0, 1_200, 100):
        fill(adapter, [buffer], start, start + 100)
        adapter.sample(buffer, 32)
        upsampler = adapter.synthetic(buffer).upsampler
        held |= set(upsampler.held_out.observation[:, 0].tolist())
        trained |= set(upsampler.rows.observation[:, 0].tolist())
    assert held
    assert not held & trained
    assert held | trained == set(map(float, range(1_200)))


# -- invariant 4: a synthetic row is a legal row -----------------------------------------------------------------------

SPACES = {
    "float32": (OBSERVATION, ACTION),
    "float64": (spaces.Box(-np.inf, np.inf, (3,), np.float64), spaces.Box(-1.0, 1.0, (2,), np.float32)),
    "matrix": (spaces.Box(-1.0, 1.0, (2, 3), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float32)),
    "int8": (spaces.Box(-9, 9, (3,), np.int8), spaces.Box(-1.0, 1.0, (2,), np.float32)),
    "discrete actions": (OBSERVATION, spaces.Discrete(4)),
    "discrete observations": (spaces.Discrete(6), spaces.Discrete(3)),
    "multi-binary observations": (spaces.MultiBinary(4), spaces.Discrete(3)),
    "multi-discrete actions": (OBSERVATION, spaces.MultiDiscrete([3, 2])),
}


@pytest.mark.parametrize("case", SPACES)
def test_4_diffusion_rows_are_legal(adapter, case):
    observation_space, action_space = SPACES[case]
    if not adapter.supports(observation_space, action_space):
        pytest.skip(f"{adapter.name} does not store such rows")
    bounded = spaces.Box(-3.0, 3.0, observation_space.shape, observation_space.dtype)
    drawn = bounded if observation_space.dtype in (np.float32, np.float64) else observation_space
    ours = make(adapter, 400, observation_space, action_space, upsampler=TINY, num_synthetic=200)
    plain = adapter.make_plain(400, observation_space, action_space)
    for rows in random_rows(drawn, action_space, 1, 200):
        adapter.add(ours, rows)
        adapter.add(plain, rows)
    real, mixed = adapter.raw_sample(plain, 64), adapter.raw_sample(ours, 64)
    assert adapter.synthetic(ours).num_refreshes == 1
    assert real.keys() == mixed.keys()
    for name in real:
        assert mixed[name].dtype == real[name].dtype, name
        assert mixed[name].shape == real[name].shape, name
    stored, batch = adapter.stored(ours), adapter.sample(ours, 400)
    for name in ("observation", "action", "reward", "next_observation"):
        assert np.isfinite(batch[name].astype(np.float64)).all()
        assert (batch[name] >= stored[name].min(0)).all(), name
        assert (batch[name] <= stored[name].max(0)).all(), name
    if not isinstance(action_space, spaces.Box):
        assert set(np.unique(batch["action"])) <= set(np.unique(stored["action"]))


def test_4_constant_columns_and_the_rate_of_terminals_are_reproduced(adapter):
    config = replace(TINY, train_steps=200, terminal_steps=200, num_synthetic=2_000)
    buffer = make(adapter, 2_000, upsampler=config, retrain_every=1_000, num_synthetic=None)
    rng = np.random.default_rng(0)
    for _ in range(1_000):
        observation = np.array([[rng.normal(), 0.25]], np.float32)
        following = np.array([[rng.normal(), 0.25]], np.float32)
        adapter.add(
            buffer,
            {
                "observation": observation,
                "action": rng.uniform(-1, 1, (1, 1)).astype(np.float32),
                "reward": observation[:, 0],
                "next_observation": following,
                "terminated": following[:, 0] > 1.5,
                "truncated": np.zeros(1, np.bool_),
            },
        )
    batch = adapter.sample(buffer, 4_000)
    synthetic = {name: value[synthetic_places(len(value))] for name, value in batch.items()}
    assert (synthetic["observation"][:, 1] == 0.25).all()
    assert (synthetic["next_observation"][:, 1] == 0.25).all()
    rate = adapter.stored(buffer)["terminated"].mean()
    assert abs(synthetic["terminated"].mean() - rate) < 0.02  # both shares are of some thousand rows
    assert synthetic["next_observation"][synthetic["terminated"], 0].min() > 0.5


@pytest.mark.parametrize(
    ("space", "draw", "reaches"),
    [
        (spaces.Box(-2.0, 2.0, (1,), np.float32), lambda rng: rng.uniform(-2, 2), 1.8),
        (spaces.Box(-np.inf, np.inf, (1,), np.float32), lambda rng: 3.0 * rng.normal(), 6.0),
        (spaces.Box(-1.0, 1.0, (1,), np.float32), lambda rng: 40.0 + rng.uniform(-2, 2), 41.8),
    ],
    ids=["wider than 1", "unbounded", "outside its space"],
)
def test_4_actions_have_the_range_of_the_stored_ones(adapter, space, draw, reaches):
    """A loop of one's own stores what it likes: nothing is said about bounds or a scale."""
    config = replace(TINY, train_steps=300, model_terminals=False, num_synthetic=2_000)
    buffer = make(adapter, 1_000, OBSERVATION, space, upsampler=config, retrain_every=1_000, num_synthetic=None)
    rng = np.random.default_rng(0)
    for step in range(1_000):
        adapter.add(buffer, rows_of(step) | {"action": np.full((1, 1), draw(rng), np.float32)})
    adapter.sample(buffer, 32)
    stored, synthetic = adapter.stored(buffer)["action"], adapter.synthetic(buffer).rows.action.numpy()
    assert synthetic.max() > reaches
    assert synthetic.min() < (-reaches if reaches < 40.0 else 38.2)
    assert stored.min() <= synthetic.min() <= synthetic.max() <= stored.max()
    # So small a net smears a uniform distribution's edges, and what lies beyond the data is put at their limits.
    assert ((synthetic == stored.min()) | (synthetic == stored.max())).mean() < 0.15


# -- invariant 5: a refresh that fails ---------------------------------------------------------------------------------


class Turned(Marked):
    """Goes back where real rows go on."""

    def sample(self, num_samples):
        rows = super().sample(num_samples)
        rows.next_observation = 2 * rows.observation - rows.next_observation
        return rows


def test_13_the_quality_gate_shuts_a_bad_model_out_within_one_refresh(adapter):
    buffer, plain = make(adapter, upsampler=Turned, quality_gate=True), adapter.make_plain(600, OBSERVATION, ACTION)
    fill(adapter, [buffer, plain], 0, 130)
    for each in (buffer, plain):
        adapter.seed(2)
        adapter.sample(each, 32)
    assert adapter.synthetic(buffer).num_refreshes == 1
    assert adapter.synthetic(buffer).share_served == 0.0
    batches = []
    for each in (buffer, plain):
        adapter.seed(3)
        batches.append(adapter.sample(each, 32))
    assert_same(*batches)  # the framework's own batch, bit for bit


def elsewhere(adapter, size=600, **kwargs):
    """A buffer whose refreshes run in another process and serve 60 rows later."""
    return make(adapter, size, upsampler=TINY, refresh_on="process", refresh_lag=60, **kwargs)


def test_12_a_refresh_in_another_process_gives_the_same_rows_from_a_known_row_on(adapter):
    n_envs = adapter.num_envs
    here, there = make(adapter, upsampler=TINY, n_envs=n_envs), elsewhere(adapter, n_envs=n_envs)
    fill(adapter, [here, there], 0, 120 // n_envs, n_envs)
    adapter.sample(here, 32)
    plain = adapter.make_plain(600, OBSERVATION, ACTION, n_envs=n_envs)
    fill(adapter, [plain], 0, 120 // n_envs, n_envs)
    for start in range(120 // n_envs, 180 // n_envs, 10):
        adapter.seed(3)
        mixed = adapter.sample(there, 32)
        adapter.seed(3)
        assert_same(mixed, adapter.sample(plain, 32))  # until then every batch is the framework's own
        fill(adapter, [there, plain], start, start + 10, n_envs)
    adapter.sample(there, 32)
    assert equal(adapter.synthetic(there).rows, adapter.synthetic(here).rows)
    assert_same(adapter.stored(there), adapter.stored(plain))


def test_12_a_run_with_refreshes_in_another_process_is_the_same_twice(adapter):
    settings = {"upsampler": TINY, "retrain_every": 100, "num_synthetic": 300, "seed": 0, "refresh_on": "process"}
    first, again = (adapter.train("Pendulum-v1", 260, **settings) for _ in range(2))
    assert adapter.synthetic(first.buffer).num_refreshes == 2
    np.testing.assert_array_equal(first.parameters, again.parameters)


def test_12_saved_while_a_refresh_runs_it_goes_on_as_if_nothing_had_happened(adapter, tmp_path):
    whole, saved = elsewhere(adapter), elsewhere(adapter)
    for buffer in (whole, saved):
        fill(adapter, [buffer], 0, 130)
        adapter.sample(buffer, 32)
    again = adapter.restart(saved, tmp_path)
    batches = []
    for buffer in (whole, again):
        fill(adapter, [buffer], 130, 190)
        adapter.seed(4)
        batches.append(adapter.sample(buffer, 32))
    assert_same(*batches)
    assert equal(adapter.synthetic(whole).rows, adapter.synthetic(again).rows)


def test_14_rows_with_the_policys_actions_come_in_batches_and_follow_the_policy(adapter):
    buffer = make(adapter, upsampler=TINY, policy_share=1.0, redraw_every=20, num_synthetic=300)
    replay = adapter.synthetic(buffer)
    observation = spaces.Box(-1.0, 1.0, (2,), np.float32)
    rows = list(random_rows(observation, ACTION, 1, 160))

    def write(start, stop):
        for row in rows[start:stop]:
            adapter.add(buffer, row)

    def check(factor):
        batch = adapter.sample(buffer, 64)
        synthetic = replay.last_mask.numpy()
        assert synthetic.sum() == 32
        expected = factor * batch["observation"][synthetic][:, :1]
        np.testing.assert_array_equal(batch["action"][synthetic].reshape(expected.shape), expected)
        seen = {tuple(row["observation"][0].tolist()) for row in rows}
        assert {tuple(row.tolist()) for row in batch["observation"][synthetic]} <= seen

    replay.bind_policy(lambda observation: 0.5 * observation[:, :1])
    write(0, 120)
    check(0.5)
    replay.bind_policy(lambda observation: -0.25 * observation[:, :1])
    write(120, 139)
    check(0.5)
    write(139, 140)
    check(-0.25)


@pytest.mark.parametrize(
    "guidance",
    [Curiosity(steps=20), Novelty(), ReturnToGo(), TDError(), TDError(by="resampling")],
    ids=lambda guidance: f"{type(guidance).__name__}-{guidance.by}",
)
def test_15_each_guidance_trains(adapter, guidance, monkeypatch, log):
    monkeypatch.setattr(drawing, "_REGRESSION_STEPS", 20)
    options = {"upsampler": TINY, "retrain_every": 120, "num_synthetic": 200, "progress_bar": False}
    trained = adapter.train("Pendulum-v1", 250, guidance=guidance, **options)
    reports = adapter.synthetic(trained.buffer).reports
    assert [report.guidance for report in reports] == [type(guidance).__name__] * 2
    assert np.isfinite(trained.parameters).all()
    assert "does not work" not in log.text


def centred(rows):
    """A relevance that writes into the rows that it is given."""
    relevance = rows.reward
    relevance -= rows.observation[:, 0]
    rows.observation.zero_()
    return relevance


@pytest.mark.parametrize("guidance", [FunctionGuidance(function=centred, by="resampling"), TDError(by="resampling")])
def test_15_a_function_of_the_users_may_write_into_its_rows(adapter, guidance, monkeypatch, log):
    monkeypatch.setattr(drawing, "_REGRESSION_STEPS", 20)
    buffer = make(adapter, guidance=guidance)
    if isinstance(guidance, TDError):
        adapter.synthetic(buffer).bind_td_error(centred)
    fill(adapter, [buffer], 0, 130)
    before = {name: values.copy() for name, values in adapter.stored(buffer).items()}
    adapter.sample(buffer, 8)
    assert_same(dict(adapter.stored(buffer)), before)
    (report,) = adapter.synthetic(buffer).reports
    assert report.guidance == type(guidance).__name__
    assert "does not work" not in log.text


def test_5_a_failed_refresh_leaves_the_last_set_in_service(adapter, log):
    buffer = make(adapter, upsampler=fails_at(2, Marked, FloatingPointError))
    fill(adapter, [buffer], 0, 120)
    adapter.sample(buffer, 32)
    rows = adapter.synthetic(buffer).rows
    fill(adapter, [buffer], 120, 240)
    assert marked(adapter.sample(buffer, 32)) == 16
    assert adapter.synthetic(buffer).rows is rows
    assert "planted failure" in log.text
    assert log.text.count("failed; the last synthetic set stays in service") == 1
    fill(adapter, [buffer], 240, 360)
    adapter.sample(buffer, 32)
    assert adapter.synthetic(buffer).num_refreshes == 2


# -- invariant 6: randomness -------------------------------------------------------------------------------------------


def test_6_building_writing_and_refreshing_leave_the_process_as_it_was(adapter):
    before = global_state()
    buffer = make(adapter, upsampler=TINY)
    fill(adapter, [buffer], 0, 120)
    assert global_state() == before
    # The batch itself draws its real rows as the framework does; the refresh in it must not show.
    states = []
    for other in (buffer, adapter.make_plain(600, OBSERVATION, ACTION)):
        if other is not buffer:
            fill(adapter, [other], 0, 120)
        adapter.seed(5)
        adapter.sample(other, 64 if other is buffer else 32)
        states.append(global_state())
    assert adapter.synthetic(buffer).num_refreshes == 1
    assert states[0] == states[1]


@pytest.mark.parametrize("upsampler", [Marked, TINY])
def test_6_same_seed_same_batches(adapter, upsampler):
    batches = []
    for seed in (7, 7, 8):
        buffer = make(adapter, upsampler=upsampler, seed=seed)
        fill(adapter, [buffer], 0, 150)
        adapter.seed(1)
        batches.append(adapter.sample(buffer, 64))
    assert_same(batches[0], batches[1])
    synthetic = synthetic_places(64)
    assert not np.array_equal(batches[0]["observation"][synthetic], batches[2]["observation"][synthetic])


@pytest.mark.slow
def test_6_a_refresh_gives_the_same_bits_in_another_process(adapter):
    if adapter.variant:
        pytest.skip("the first buffer of the framework does it")
    buffer = make(adapter, upsampler=TINY, num_synthetic=2_500)
    fill(adapter, [buffer], 0, 150)
    replay = adapter.synthetic(buffer)
    adapter.sample(buffer, 8)
    fill(adapter, [buffer], 150, 280)
    holder = buffer if hasattr(buffer, "real_transitions") else buffer.storage
    job = replay.prepare_refresh(holder.real_transitions(), holder.row_order())
    here = run_refresh(job)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(run_refresh, pickle.loads(pickle.dumps(job))).result()
    assert here.report.fit.warm == there.report.fit.warm
    assert equal(here.rows, there.rows)
    assert replay.num_refreshes == 1  # a job changes nothing by itself
    replay.commit(there)
    assert replay.num_refreshes == 2
    assert equal(replay.rows, here.rows)


# -- invariant 7: copies, pickles, restarts ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "restart"])
@pytest.mark.parametrize("upsampler", [Marked, TINY])
def test_7_a_buffer_resumes_where_it_stopped(adapter, way, upsampler, tmp_path):
    if way not in adapter.copies_by:
        pytest.skip(f"{adapter.name}: the framework's own buffer cannot be copied by {way}")
    n_envs = adapter.num_envs
    buffer = make(adapter, n_envs=n_envs, upsampler=upsampler)
    fill(adapter, [buffer], 0, 50, n_envs)
    adapter.sample(buffer, 32)
    fill(adapter, [buffer], 50, 60, n_envs)
    again = {
        "deepcopy": copy.deepcopy,
        "pickle": lambda one: pickle.loads(pickle.dumps(one)),
        "restart": partial(adapter.restart, folder=tmp_path),
    }[way](buffer)
    assert_same(adapter.stored(again), adapter.stored(buffer))
    left, right = adapter.synthetic(buffer), adapter.synthetic(again)
    assert right.num_refreshes == left.num_refreshes == 1
    for name, tensor in left.rows.flat().items():
        assert torch.equal(tensor, right.rows.flat()[name]), name
    # Both go on alike, up to and beyond the next refresh.
    for start, stop in ((60, 70), (70, 80), (80, 110)):
        fill(adapter, [buffer, again], start, stop, n_envs)
        batches = []
        for one in (buffer, again):
            adapter.seed(2)
            batches.append(adapter.sample(one, 40))
        assert_same(*({name: value[20:] for name, value in batch.items()} for batch in batches))
        assert left.num_observed == right.num_observed
        assert left.num_refreshes == right.num_refreshes
    assert (right.num_observed, right.num_refreshes) == (110 * n_envs, 2)


# -- invariant 8: nothing per batch that could be done per refresh -----------------------------------------------------


def test_8_a_batch_only_draws(adapter, monkeypatch):
    buffer = make(adapter)
    fill(adapter, [buffer], 0, 120)
    adapter.sample(buffer, 32)
    synthetic = adapter.synthetic(buffer)
    rows, generated = synthetic.rows, synthetic.upsampler.num_samples
    # Reading all real rows, or laying out the whole synthetic set, would go through these.
    monkeypatch.setattr(type(rows), "from_flat", lambda *args: pytest.fail("rows are converted for a batch"))
    monkeypatch.setattr(type(rows), "flat", lambda *args: pytest.fail("rows are converted for a batch"))
    for _ in range(20):
        assert marked(adapter.sample(buffer, 32)) == 16
    assert synthetic.rows is rows
    assert synthetic.upsampler.num_samples == generated


# -- mixing and schedule -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "fraction", "num_synthetic"),
    [(32, 0.5, 16), (33, 0.5, 16), (1, 0.5, 0), (10, 0.3, 3), (33, 0.25, 8), (7, 1.0, 7)],
)
def test_every_batch_has_exactly_its_share(adapter, batch_size, fraction, num_synthetic):
    buffer = make(adapter, synthetic_fraction=fraction)
    fill(adapter, [buffer], 0, 120)
    for _ in range(5):
        batch = adapter.sample(buffer, batch_size)
        assert {len(value) for value in batch.values()} == {batch_size}
        assert marked(batch) == num_synthetic


def test_9_every_slice_of_32_rows_is_between_30_and_70_percent_synthetic(adapter):
    n_envs = adapter.num_envs
    buffer = make(adapter, n_envs=n_envs)
    fill(adapter, [buffer], 0, 60, n_envs)
    for _ in range(3):
        assert_every_slice_is_fair(adapter.sample(buffer, 32 * 20)["reward"] == MARK)


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_9_every_slice_of_a_batch_is_a_fair_mix(adapter, share):
    buffer = make(adapter, synthetic_fraction=share)
    fill(adapter, [buffer], 0, 120)
    for _ in range(3):
        is_synthetic = adapter.sample(buffer, 32 * 20)["reward"] == MARK
        counts = np.convolve(is_synthetic, np.ones(32, int), "valid")
        assert counts.min() >= 0.6 * 32 * share
        assert counts.max() <= 1.4 * 32 * share


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("fraction", [0.5, 0.3, 1.0])
def test_the_mask_tells_which_rows_of_the_last_batch_are_synthetic(adapter, fraction, n_envs, tmp_path):
    buffer = make(adapter, n_envs=n_envs, synthetic_fraction=fraction)
    synthetic = adapter.synthetic(buffer)
    assert synthetic.last_mask is None

    def check(batch):
        mask = adapter.synthetic(buffer).last_mask
        assert (mask.dtype, mask.device.type) == (torch.bool, "cpu")
        np.testing.assert_array_equal(mask.numpy(), batch["reward"] == MARK)

    fill(adapter, [buffer], 0, 60 // n_envs, n_envs)
    assert synthetic.last_mask is None
    for size in (1, 8):
        check(adapter.sample(buffer, size))
    fill(adapter, [buffer], 60 // n_envs, 120 // n_envs, n_envs)
    for size in (1, 2, 3, 32, 33, 301):
        batch = adapter.sample(buffer, size)
        adapter.size(buffer), adapter.stored(buffer)  # reading is not drawing
        check(batch)
    before = global_state()
    synthetic.last_mask.fill_(False)  # a copy, to be written into
    check(batch)
    assert global_state() == before
    for again in (copy.deepcopy(buffer), adapter.restart(buffer, tmp_path)):
        assert adapter.synthetic(again).last_mask is None
    adapter.reset(buffer)
    assert synthetic.last_mask is None


def test_at_fraction_0_the_mask_is_all_false(adapter):
    buffer = make(adapter, synthetic_fraction=0.0)
    fill(adapter, [buffer], 0, 120)
    for size in (1, 33):
        adapter.sample(buffer, size)
        assert adapter.synthetic(buffer).last_mask.tolist() == [False] * size


@pytest.mark.parametrize("n_envs", [1, 3])
def test_transitions_are_counted_not_writes(adapter, n_envs):
    buffer = make(adapter, n_envs=n_envs)
    steps = 120 // n_envs
    fill(adapter, [buffer], 0, steps - 1, n_envs)
    adapter.sample(buffer, 32)
    assert adapter.synthetic(buffer).num_observed == (steps - 1) * n_envs
    assert adapter.synthetic(buffer).num_refreshes == 0
    fill(adapter, [buffer], steps - 1, steps, n_envs)
    assert adapter.synthetic(buffer).num_refreshes == 0  # never in a write
    adapter.sample(buffer, 32)
    assert adapter.synthetic(buffer).num_refreshes == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_rows_may_be_written_and_drawn_in_any_grad_mode(adapter, mode):
    buffer = make(adapter, upsampler=TINY)
    with mode():
        fill(adapter, [buffer], 0, 120)
        adapter.sample(buffer, 32)
    assert adapter.synthetic(buffer).num_refreshes == 1
    batch = adapter.raw_sample(buffer, 32)
    assert not any(isinstance(value, torch.Tensor) and value.is_inference() for value in batch.values())


def test_emptying_the_buffer_forgets_the_synthetic_rows(adapter):
    buffer = make(adapter)
    fill(adapter, [buffer], 0, 120)
    adapter.sample(buffer, 32)
    adapter.reset(buffer)
    synthetic = adapter.synthetic(buffer)
    assert (adapter.size(buffer), synthetic.rows, synthetic.num_observed) == (0, None, 0)
    fill(adapter, [buffer], 0, 119)
    assert marked(adapter.sample(buffer, 32)) == 0
    fill(adapter, [buffer], 119, 120)
    assert marked(adapter.sample(buffer, 32)) == 16


def test_a_batch_is_the_algorithms_to_write_into(adapter):
    buffer = make(adapter)
    fill(adapter, [buffer], 0, 120)
    for value in adapter.raw_sample(buffer, 32).values():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value.fill_(0.125)
        elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
            value[:] = 0.125
    assert (adapter.stored(buffer)["reward"] == 1.0).all()
    assert (adapter.synthetic(buffer).rows.reward == MARK).all()
    assert not (adapter.sample(buffer, 64)["observation"] == 0.125).any()


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"synthetic_fraction": 1.5}, ValueError, "synthetic_fraction is 1.5; it must lie between 0"),
        ({"synthetic_fraction": "half"}, TypeError, "synthetic_fraction is 'half'"),
        ({"retrain_every": 0}, ValueError, "retrain_every is 0; it must be at least 1"),
        ({"retrain_every": 1e4}, TypeError, "retrain_every is 10000.0 (float); wanted a whole number"),
        ({"num_synthetic": 0}, ValueError, "num_synthetic is 0"),
        ({"start_after": -1}, ValueError, "start_after is -1"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"upsampler": "huge"}, ValueError, "unknown preset 'huge'; known presets: auto, cpu"),
        ({"upsampler": 3}, TypeError, "upsampler is 3; wanted the name of a preset"),
        ({"upsampler": {"train_step": 9}}, ValueError, "unknown train_step. Did you mean 'train_steps'?"),
        ({"upsampler": {"network": {"depht": 9}}}, ValueError, "unknown network.depht. Did you mean 'depth'?"),
        ({"retrain_evry": 9}, TypeError, "does not know the keyword 'retrain_evry'. Did you mean 'retrain_every'?"),
        ({"upsampler_device": "abacus"}, ValueError, "the device 'abacus' cannot be used here"),
        ({"progress_bar": 1}, TypeError, "progress_bar is 1; wanted True or False"),
        ({"refresh_log": 3}, TypeError, "refresh_log is 3; wanted the path of a file"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(adapter, kwargs, error, message):
    with pytest.raises(error) as raised:
        make(adapter, **kwargs)
    assert message in str(raised.value)


def test_a_mapping_says_what_differs_from_the_devices_preset(adapter, tmp_path):
    """What YAML and JSON can write; it comes back from a restart too."""
    changes = {"train_steps": 10, "terminal_steps": 10, "network": {"width": 16, "depth": 1}}
    buffer = make(adapter, upsampler=changes, upsampler_device="cpu", num_synthetic=50)
    fill(adapter, [buffer], 0, 120)
    adapter.sample(buffer, 32)
    preset = resolve_config("auto", torch.device("cpu"))
    network = replace(preset.network, width=16, depth=1)
    wanted = replace(preset, train_steps=10, terminal_steps=10, network=network)
    for each in (buffer, adapter.restart(buffer, tmp_path)):
        assert adapter.synthetic(each).num_refreshes == 1
        assert adapter.synthetic(each).upsampler.settings == wanted


def test_a_live_upsampler_is_refused(adapter):
    live = DiffusionUpsampler(SPEC, TINY, "cpu")
    with pytest.raises(TypeError, match="upsampler is a live DiffusionUpsampler; pass its configuration"):
        make(adapter, upsampler=live)


def test_a_store_smaller_than_a_refresh_is_refused_when_it_is_written(adapter):
    buffer = make(adapter, 200, retrain_every=201)  # whoever only acts with a loaded agent has a store of one row
    with pytest.raises(ValueError, match=rf"retrain_every=201 is more than {adapter.capacity}=200: .* Lower retrain"):
        fill(adapter, [buffer], 0, 1)
    assert adapter.size(buffer) == 0
    again = make(adapter, 200, retrain_every=201, synthetic_fraction=0.0)
    fill(adapter, [again], 0, 1)
    assert adapter.size(again) == 1


@pytest.mark.parametrize("way", ["deepcopy", "restart"])
def test_a_copy_of_a_store_that_is_too_small_says_so_too(adapter, way, tmp_path):
    if way == "restart" and adapter.name.startswith("torchrl"):
        pytest.skip("TorchRL saves no empty storage")
    buffer = make(adapter, 200, retrain_every=201)
    buffer = copy.deepcopy(buffer) if way == "deepcopy" else adapter.restart(buffer, tmp_path)
    with pytest.raises(ValueError, match="retrain_every=201 is more than"):
        fill(adapter, [buffer], 0, 1)


# -- the real thing ----------------------------------------------------------------------------------------------------


def test_training_mixes_every_batch_and_repeats_itself(adapter):
    runs = [
        adapter.train("Pendulum-v1", 260, upsampler=TINY, retrain_every=120, num_synthetic=300, seed=0)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(runs[0].parameters, runs[1].parameters)
    run = runs[0]
    assert np.isfinite(run.parameters).all()
    assert adapter.synthetic(run.buffer).num_refreshes == 2
    assert {len(batch["reward"]) for batch in run.batches} == {64}
    last = {row.tobytes() for row in adapter.synthetic(run.buffer).rows.observation.numpy()}
    final = run.batches[-1]["observation"]
    assert sum(row.tobytes() in last for row in final) == 32


@pytest.mark.parametrize(("utd", "told"), [(1, 1), (6, 0)])
def test_a_run_with_few_updates_is_told_what_to_set_once(adapter, log, utd, told):
    advice = {"sb3": "gradient_steps=10", "tianshou": "gradient_steps_per_sample=10.0", "torchrl": "a step ten times"}
    run = adapter.train("Pendulum-v1", 170, utd=utd, upsampler=Marked, retrain_every=60, num_synthetic=300, seed=0)
    assert adapter.synthetic(run.buffer).num_refreshes == 2
    said = [
        record.getMessage() for record in log.records if "gradient steps for each real transition" in record.message
    ]
    assert len(said) == told
    assert all(f"takes about {utd:.1f} " in message for message in said)
    assert all(advice[adapter.name.split("-")[0]] in message for message in said)


@pytest.mark.slow
def test_it_learns_pendulum_with_half_of_every_batch_synthetic(adapter):
    if adapter.variant:
        pytest.skip("one buffer of each framework is enough for a minute of training")
    config = replace(
        TINY,
        network=replace(TINY.network, width=128, depth=2),
        training=replace(TINY.training, batch_size=256),
        sampler=replace(TINY.sampler, solver=replace(TINY.sampler.solver, num_steps=12)),
        train_steps=800,
        warm_steps=300,
    )
    run = adapter.train(
        "Pendulum-v1", 3_500, utd=2, upsampler=config, retrain_every=1_000, num_synthetic=10_000, seed=0
    )
    synthetic = adapter.synthetic(run.buffer)
    assert synthetic.num_refreshes >= 2
    # Every batch after the first refresh: half of the rows are no rows of the environment.
    real = {row.tobytes() for row in adapter.stored(run.buffer)["observation"]}
    is_real = [[row.tobytes() in real for row in batch["observation"]] for batch in run.batches]
    first = next(number for number, rows in enumerate(is_real) if not all(rows))
    assert first <= 2 * 1_000
    assert {sum(rows) for rows in is_real[first:]} == {32}
    assert mean_return("Pendulum-v1", run.act) > -300


def mean_return(env_id, act, episodes=5):
    env, total = gym.make(env_id), 0.0
    for episode in range(episodes):
        observation, _ = env.reset(seed=100 + episode)
        over = False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(act(observation))
            total, over = total + float(reward), terminated or truncated
    return total / episodes
