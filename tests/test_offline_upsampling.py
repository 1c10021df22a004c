"""The offline comparison: its learners learn, its sets are of the same rows, its figures are right, and it goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from synther_buffers import Transitions

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import offline_learners  # noqa: E402
import offline_report  # noqa: E402
import offline_upsampling  # noqa: E402
from toys import TINY  # noqa: E402


class Countdown(gym.Env):
    """Pays the action's first element at each of `length` steps, and must not be stepped after the last one."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gym.spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, length: int) -> None:
        self.length, self.left, self.seeds = length, 0, []

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        self.left = self.length
        return np.array([float(seed)]), {}

    def step(self, action):
        assert self.left > 0, "stepped after its end"
        self.left -= 1
        return np.array([0.0]), float(action[0]), self.left == 0 and self.length % 2 == 0, self.left == 0, {}


def test_evaluation_plays_every_episode_to_its_end_and_no_further():
    envs = [Countdown(3), Countdown(1), Countdown(4)]
    batches = []

    def act(observation):
        batches.append(observation[:, 0].tolist())
        return np.tile([0.5, 7.0], (len(observation), 1))

    assert offline_learners.evaluate(envs, act, seed=20) == [1.5, 0.5, 2.0]
    assert batches == [[20.0, 21.0, 22.0], [0.0, 0.0], [0.0, 0.0], [0.0]]


def test_actions_beyond_the_space_are_clipped():
    assert offline_learners.evaluate([Countdown(2)], lambda _: np.array([[9.0, 0.0]]), seed=0) == [2.0]


@pytest.mark.parametrize("name", ["iql", "td3bc"])
def test_a_learner_prefers_the_better_actions_of_uniform_data(name):
    """In one-step episodes that pay the action; cloning would act 0 on average."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2_000, 3, generator=generator)
    actions = 2.0 * torch.rand(2_000, 1, generator=generator) - 1.0
    rows = Transitions(states, actions, actions[:, 0], states, torch.ones(2_000, dtype=torch.bool))
    torch.manual_seed(0)
    learner = offline_learners.LEARNERS[name](rows, num_steps=150, reward_scale=1.0)
    for _ in range(150):
        learner.update(learner.batch(generator))
    acted = learner.act(states[:100].numpy())
    assert acted.shape == (100, 1)
    assert acted.mean() > 0.2


def test_only_iql_scales_rewards_and_only_td3bc_normalises_states():
    states = torch.tensor([[1.0], [5.0]]).repeat(200, 1)
    rows = Transitions(states, torch.zeros(400, 1), torch.ones(400), states + 2.0, torch.arange(400) % 4 == 1)
    generator = torch.Generator().manual_seed(0)
    batches = {name: kind(rows, 10, 3.0).batch(generator) for name, kind in offline_learners.LEARNERS.items()}
    assert set(batches["iql"]["next", "reward"].unique().tolist()) == {3.0}
    assert set(batches["td3bc"]["next", "reward"].unique().tolist()) == {1.0}
    assert set(batches["iql"]["observation"].unique().tolist()) == {1.0, 5.0}
    # Mean 3 and standard deviation 2, plus 0.001.
    normalised = batches["td3bc"]["observation"].unique().tolist()
    assert normalised == pytest.approx([-2 / 2.001, 2 / 2.001])
    assert batches["td3bc"]["next", "observation"].unique().tolist() == pytest.approx([0.0, 4 / 2.001], abs=1e-6)
    terminated = batches["td3bc"]["next", "terminated"]
    assert terminated.dtype == torch.bool
    assert (batches["td3bc"]["observation"][terminated] > 0).all(), "rows 1, 5, 9, ... are the states of 5"


def test_td3bc_moves_its_policy_every_second_step():
    states = torch.randn(64, 3)
    rows = Transitions(states, torch.rand(64, 2), torch.randn(64), states, torch.zeros(64, dtype=torch.bool))
    learner = offline_learners.TD3BC(rows, 4, 1.0)
    before = learner.act(states.numpy())
    learner.update(learner.batch(torch.Generator()))
    assert (learner.act(states.numpy()) == before).all()
    learner.update(learner.batch(torch.Generator()))
    assert (learner.act(states.numpy()) != before).any()


def write(path: Path, **changed: object) -> Path:
    """Six rows: an episode that terminates with a return of 3, one cut off with 12, and an incomplete one."""
    columns = {
        "observations": np.arange(12.0).reshape(6, 2),
        "actions": np.linspace(-1, 1, 6, dtype=np.float32)[:, None],
        "rewards": np.array([1, 2, 3, 4, 5, 100], np.float32),
        "next_observations": np.arange(12.0).reshape(6, 2) + 1,
        "terminals": np.array([0, 1, 0, 0, 0, 0], bool),
        "timeouts": np.array([0, 0, 0, 0, 1, 0], bool),
        "about": json.dumps({"env": "Hopper-v5"}),
    }
    np.savez(path, **{name: value for name, value in {**columns, **changed}.items() if value is not None})
    return path


def test_the_returns_of_the_data_are_those_of_its_complete_episodes(tmp_path):
    data = offline_upsampling.read(write(tmp_path / "data.npz"))
    assert data.env == "Hopper-v5"
    assert data.returns.tolist() == [3.0, 12.0]
    assert data.reward_scale == pytest.approx(1_000 / 9)


def test_data_without_two_different_returns_leave_rewards_as_they_are(tmp_path):
    data = offline_upsampling.read(write(tmp_path / "data.npz", timeouts=np.zeros(6, bool)))
    assert data.returns.tolist() == [3.0]
    assert data.reward_scale == 1.0


def test_another_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data\.npz has no 'about' and 'timeouts'; wanted a file that examples/coll"):
        offline_upsampling.read(write(tmp_path / "data.npz", about=None))


def test_an_environment_with_other_bounds_is_refused():
    with pytest.raises(ValueError, match=r"Pendulum-v1 has the action space .*; wanted actions from -1 to 1"):
        offline_upsampling.make_envs("Pendulum-v1", 1)


def test_all_arms_of_a_seed_start_from_one_subset_and_see_none_of_its_rows_but_upsampled(tmp_path):
    data = offline_upsampling.read(offline_upsampling.toy_data(tmp_path / "data.npz"))
    folder = tmp_path / "sets"
    sets = offline_upsampling.Sets(data, folder, num_subset=200, num_samples=500, upsampler=TINY)
    subset, seconds = sets.rows("subset", 1)
    assert (len(subset), seconds) == (200, 0.0)
    assert len(sets.rows("full", 1)[0]) == 1_000
    drawn, seconds = sets.rows("bootstrap", 1)
    assert len(drawn) == 500
    assert seconds > 0
    assert set(drawn.reward.tolist()) <= set(subset.reward.tolist())
    noisy, _ = sets.rows("gaussian", 1)
    assert set(noisy.reward.tolist()) <= set(subset.reward.tolist())
    assert set(noisy.observation[:, 0].tolist()).isdisjoint(subset.observation[:, 0].tolist())
    synthetic, _ = sets.rows("synther", 1)
    assert len(synthetic) == 500
    kept = np.isin(synthetic.observation[:, 0], subset.observation[:, 0])
    assert kept.mean() < 0.2, "values are of its own, but for those clipped to the ends of the data"
    mixed, seconds = sets.rows("mixed", 1)
    assert (len(mixed), seconds) == (1_000, sets.rows("synther", 1)[1])
    assert (mixed.observation[:500] == subset.observation.tile(3, 1)[:500]).all(), "real rows again and again"
    assert (mixed.observation[500:] == synthetic.observation).all()
    other, _ = sets.rows("subset", 2)
    assert set(other.reward.tolist()) != set(subset.reward.tolist())
    before = (folder / "synther-s1.npz").stat().st_mtime_ns
    again, _ = sets.rows("synther", 1)
    assert (again.observation == synthetic.observation).all()
    assert (folder / "synther-s1.npz").stat().st_mtime_ns == before, "made once"


def test_the_interquartile_mean_drops_a_quarter_at_each_end():
    scores = np.array([1000.0, 1, 2, 3, 4, 5, 6, -70])[:, None]
    assert offline_report.estimate(scores)[0] == pytest.approx((2 + 3 + 4 + 5) / 4)


def test_the_interval_of_three_seeds_reaches_from_the_worst_to_the_best():
    """A resample is three times the same with probability 1/27, more than the 2.5 % at each end."""
    assert offline_report.estimate(np.array([[0.0], [3.0], [9.0]])) == (4.0, 0.0, 9.0)


@pytest.fixture
def few_resamples(monkeypatch):
    """The figures of these tests are the same in every resample, or are not looked at."""
    monkeypatch.setattr(offline_report, "RESAMPLES", 50)


def line(learner: str, arm: str, seed: int, score: float) -> dict:
    settings = {
        "env": "Hopper-v5", "num_subset": 15, "num_rows": 100, "num_samples": 100, "gradient_steps": 4,
        "behaviour_return": 7.0,
    }  # fmt: skip
    rows = 15 if arm == "subset" else 100
    returns = [score - 1, score, score + 1]
    return {
        "learner": learner, "arm": arm, "seed": seed, "num_rows": rows, "score": score, "steps": [1, 2, 3],
        "returns": returns, "settings": settings, "learn_seconds": 90.0,
        "upsample_seconds": 0.0 if arm in ("full", "subset") else 120.0,
    }  # fmt: skip


LINES = [
    *(line("iql", "full", seed, 10.0) for seed in (0, 1)),
    *(line("iql", "subset", seed, 5.0) for seed in (0, 1)),
    *(line("td3bc", "full", seed, 200.0) for seed in (0, 1)),
    line("td3bc", "subset", 0, 50.0),
]


def test_the_table_has_scores_and_shares_and_both_learners_together(few_resamples):
    assert offline_report.table(LINES).splitlines()[2:] == [
        "| IQL | full | 100 | 2 | 10 (10 to 10) | 100% (100% to 100%) |",
        "| IQL | subset | 15 | 2 | 5 (5 to 5) | 50% (50% to 50%) |",
        "| TD3+BC | full | 100 | 2 | 200 (200 to 200) | 100% (100% to 100%) |",
        "| TD3+BC | subset | 15 | 1 | 50 (50 to 50) | 25% (25% to 25%) |",
        "| both | full | 100 | 2 |  | 100% (100% to 100%) |",
        # One seed has both learners: the mean of 50 % and 25 %, which no resample within a learner changes.
        "| both | subset | 15 | 1 |  | 38% (38% to 38%) |",
    ]


def test_a_share_of_full_data_that_were_not_learned_or_scored_below_zero_is_left_out(few_resamples):
    for lines in (LINES[2:4], [line("iql", "full", 0, -5.0), *LINES[2:4]]):
        assert "| IQL | subset | 15 | 2 | 5 (5 to 5) |  |" in offline_report.table(lines).splitlines()


def test_rows_were_upsampled_once_for_all_learners():
    lines = [*LINES, line("iql", "synther", 0, 1.0), line("td3bc", "synther", 0, 2.0), line("iql", "synther", 1, 3.0)]
    wanted = "15 minutes of learning and evaluating, 4 of upsampling, on one core."
    assert offline_report.wall_time(lines) == wanted


def test_the_report_is_written(few_resamples, tmp_path):
    offline_report.write_report(LINES, tmp_path)
    text = (tmp_path / "results/offline_table.md").read_text()
    assert text.startswith("Hopper-v5: a subset of 15 of 100 rows, upsampled to 100; 4 gradient steps.")
    assert "The episodes of the data have a mean return of 7. 10 minutes of learning" in text
    assert (tmp_path / "images/offline_upsampling.png").stat().st_size > 10_000


def run(*flags: str) -> str:
    command = [sys.executable, EXAMPLES / "offline_upsampling.py", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MUJOCO_GL": "disable", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3_000:]
    return result.stdout


@pytest.mark.slow
def test_it_runs_goes_on_where_it_stopped_and_reports(few_resamples, tmp_path, monkeypatch, capsys):
    out = tmp_path / "results.jsonl"
    flags = ["--toy", "--seeds", "1", "--out", str(out), "--cache", str(tmp_path / "cache")]
    assert "16 of 16 runs to do" in run(*flags)
    text = out.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    wanted = [(arm, name) for arm in offline_upsampling.ARMS for name in ("iql", "td3bc")]
    assert [(line["arm"], line["learner"]) for line in lines] == wanted
    for line in lines:
        assert line["steps"] == [4, 8, 12]
        assert line["score"] == pytest.approx(np.mean(line["returns"]))
        assert (line["upsample_seconds"] > 0) == (line["arm"] not in ("full", "subset"))
        assert line["num_rows"] == {"subset": 150, "mixed": 2_000}.get(line["arm"], 1_000)

    # Without its last two lines it does those two again, and they are the same.
    out.write_text("".join(text.splitlines(keepends=True)[:-2]))
    monkeypatch.setattr(sys, "argv", ["offline_upsampling.py", *flags])
    offline_upsampling.main()
    assert "2 of 16 runs to do" in capsys.readouterr().out
    again = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["returns"] for line in again] == [line["returns"] for line in lines]

    monkeypatch.setattr(sys, "argv", ["offline_upsampling.py", "--out", str(out), "--report", str(tmp_path / "docs")])
    offline_upsampling.main()
    table = (tmp_path / "docs/results/offline_table.md").read_text()
    assert table.count("\n| ") == 1 + 3 * 8
    assert (tmp_path / "docs/images/offline_upsampling.png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere.npz"], "--data is nowhere.npz; wanted a file that examples/collect.py wrote."),
        (["--toy", "--fraction", "1.5"], "--fraction is 1.5; wanted a share of the rows, between 0 and 1."),
        (["--toy", "--seeds", "0"], "--seeds is 0"),
        (["--report", "--out", "nowhere.jsonl"], "--out is nowhere.jsonl, which does not exist"),
        (["--data", __file__, "--gradient-steps", "100"], "wanted three times --eval-every or more steps"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["offline_upsampling.py", "--cache", str(tmp_path), *flags])
    with pytest.raises(SystemExit):
        offline_upsampling.parse_args()
    assert message in capsys.readouterr().err


def test_results_of_other_settings_are_refused(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({"settings": {"gradient_steps": 10, "env": "Hopper-v5"}}) + "\n")
    settings = {"gradient_steps": 20, "env": "Hopper-v5"}
    with pytest.raises(ValueError, match=r"results\.jsonl holds results with another gradient_steps; choose another"):
        offline_upsampling.read_results(path, settings)
