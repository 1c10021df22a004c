"""`synther-buffers evaluate`: figures for programs and for people."""

import numpy as np
import pytest
import torch
from commands_helpers import run, run_json
from toys import gaussian

from synther_buffers.datasets import write_dataset


def test_evaluate():
    pytest.importorskip("sklearn")
    for name, first in (("train", 0), ("real", 1), ("good", 2)):
        write_dataset(f"{name}.npz", gaussian(300, seed=first))
    bad = gaussian(300, seed=3)
    bad.observation += 5
    write_dataset("bad.hdf5", bad)
    good = run_json("evaluate", "real.npz", "good.npz", "--train", "train.npz")
    worse = run_json("evaluate", "real.npz", "bad.hdf5", "--rows", 200)
    assert good["auc"] < 0.65 < 0.95 < worse["auc"]
    assert (good["num_train"], good["closest"] is None, worse["closest"]) == (300, False, None)
    assert worse["num_real"] == 200


def test_people_read_what_a_figure_means_and_a_verdict():
    pytest.importorskip("sklearn")
    for name, first in (("train", 0), ("real", 1), ("good", 2)):
        write_dataset(f"{name}.npz", gaussian(300, seed=first))
    constant = gaussian(300, seed=3)
    constant.observation[:], constant.next_observation[:], constant.reward[:] = 9.0, 9.0, 9.0
    write_dataset("constant.npz", constant)
    arguments = ("evaluate", "real.npz", "good.npz", "--train", "train.npz")
    figures, text = run_json(*arguments), run(*arguments).stdout
    head, *lines = text.splitlines()
    value, verdict, meaning = (head.index(word) for word in ("value", "verdict", "meaning"))
    told = {line[:value].strip(): line for line in lines}
    auc = next(line for name, line in told.items() if name.startswith("two-sample AUC"))
    assert auc[verdict:meaning].strip() == "good"
    assert auc[meaning:] == "0.5: cannot be told from real rows; 1: is told at once"
    assert f"{figures['auc']:.4f}" in auc[:verdict]
    assert "not measured" in text
    assert "no simulator was given (--env)" in text
    assert not set(text.lower().replace(":", " ").split()) & {"nan", "none", "inf"}
    text = run("evaluate", "real.npz", "constant.npz").stdout
    assert "fewer than two columns of numbers vary" in text
    assert "no training rows were given (--train)" in text
    assert any(line.startswith("two-sample AUC") and " poor " in line for line in text.splitlines())


def test_copies_of_training_rows_are_found_whatever_the_number_of_rows():
    """`--rows` is about REAL and SYNTHETIC: of the training rows, the copied ones are found among all."""
    pytest.importorskip("sklearn")
    train = gaussian(6_000)
    write_dataset("train.hdf5", train)
    write_dataset("real.npz", gaussian(300, seed=1))
    write_dataset("copies.npz", train[torch.arange(0, 6_000, 20)])
    found = run_json("evaluate", "real.npz", "copies.npz", "--train", "train.hdf5", "--rows", 100)
    assert (found["num_real"], found["num_synthetic"], found["num_train"]) == (100, 100, 6_000)
    assert (found["closest"]["ratio"], found["closest"]["share_closer"]) == (0.0, 1.0)


def test_a_collapsed_set_is_judged():
    pytest.importorskip("sklearn")
    write_dataset("real.npz", gaussian(200))
    write_dataset("collapsed.npz", gaussian(200, seed=1)[torch.zeros(200, dtype=torch.int64)])
    lines = run("evaluate", "real.npz", "collapsed.npz").stdout.splitlines()
    assert any(line.startswith("coverage ") and " poor " in line for line in lines)
    (auc,) = (line for line in lines if line.startswith("two-sample AUC"))
    assert auc.endswith("too few different rows to train and test a classifier")
    assert "not measured" in auc


@pytest.mark.parametrize("place", ["synthetic", "train"])
def test_values_that_the_dtype_of_the_real_rows_does_not_hold_are_told(place):
    def rows(action):
        found = gaussian(100)
        found.action = action
        return found

    write_dataset("whole.npz", rows(torch.arange(100) % 3))
    write_dataset("parts.npz", rows(torch.arange(100) % 3 / 10))
    arguments = ("parts.npz",) if place == "synthetic" else ("whole.npz", "--train", "parts.npz")
    message = run("evaluate", "whole.npz", *arguments, code=1).stderr
    assert "parts.npz: action has dtype float32 with values that int64, its dtype in whole.npz" in message


def test_the_same_values_of_another_dtype_are_alike():
    pytest.importorskip("sklearn")
    for name, dtype in (("whole", torch.int64), ("floats", torch.float32)):
        rows = gaussian(200)
        rows.action = (torch.arange(200) % 3).to(dtype)
        write_dataset(f"{name}.npz", rows)
    assert run_json("evaluate", "whole.npz", "floats.npz")["fidelity"]["marginal"] == 1.0


def test_the_format_is_that_of_the_real_rows(real):
    pytest.importorskip("sklearn")
    write_dataset("synthetic.npz", gaussian(200, seed=1))
    assert run_json("evaluate", real, "synthetic.npz", "--input-format", "hdf5", "--train", real)["num_train"] == 400


def test_evaluate_against_a_simulator():
    pytest.importorskip("sklearn")
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("mujoco")
    from synther_buffers import Transitions

    env = gymnasium.make("InvertedPendulum-v5")
    env.action_space.seed(0)
    steps = []
    observation, _ = env.reset(seed=0)
    for _ in range(150):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        steps.append((observation, action, reward, following, terminated))
        observation = env.reset()[0] if terminated or truncated else following
    observations, actions, rewards, followings, ends = (np.array(column) for column in zip(*steps, strict=True))
    rows = Transitions(
        torch.from_numpy(observations), torch.from_numpy(actions), torch.from_numpy(rewards).float(),
        torch.from_numpy(followings), torch.from_numpy(ends),
    )  # fmt: skip
    write_dataset("pendulum.npz", rows)
    told = run_json("evaluate", "pendulum.npz", "pendulum.npz", "--env", "InvertedPendulum-v5")
    assert told["simulator"]["share_simulated"] == 1.0
    assert "nothing-v0" in run("evaluate", "pendulum.npz", "pendulum.npz", "--env", "nothing-v0", code=2).stderr


def test_other_fields_are_told(real):
    other = gaussian(100)
    other.observation = other.next_observation = torch.zeros(100, 3, dtype=torch.float64)
    write_dataset("other.npz", other)
    message = run("evaluate", real, "other.npz", code=1).stderr
    assert "other.npz has other fields than real.hdf5: next_observation has rows of shape (3,), there (2,)" in message
