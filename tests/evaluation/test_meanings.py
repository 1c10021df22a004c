"""Figures in words: every one is explained, a verdict follows the table, and what was not measured is said."""

import math
import re
import types
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import gymnasium
import numpy as np
import pytest
import torch

from synther_buffers import Transitions, TransitionSpec
from synther_buffers.evaluation.meanings import FAIR, FIGURES, GOOD, NOT_MEASURED, PARTS, POOR, explain
from synther_buffers.evaluation.metrics import Evaluation, evaluate

DOCS = Path(__file__).parents[2] / "docs"


def keys(cls, prefix=""):
    for field in fields(cls):
        hint = get_type_hints(cls)[field.name]
        (inner,) = [part for part in get_args(hint) if part is not types.NoneType] or [hint]
        if is_dataclass(inner):
            yield from keys(inner, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def result(**changes):
    """The best of everything; changes by key, with ``__`` for the dot."""
    told = {}
    for figure in FIGURES:
        part, _, name = figure.key.rpartition(".")
        (told.setdefault(part, {}) if part else told)[name] = 0.0 if figure.best is None else figure.best
    told.update(num_real=1_000, num_synthetic=1_000, num_train=1_000, seed=0)
    told["fidelity"]["worst_column"] = "reward"
    for key, value in changes.items():
        part, _, name = key.rpartition("__")
        (told[part] if part else told)[name] = value
    return told


def line(key, **changes):
    return {line.key: line for line in explain(result(**changes))}[key]


def hopper(seed, num_rows):
    env = gymnasium.make("Hopper-v5")
    env.action_space.seed(seed)
    observation, steps = env.reset(seed=seed)[0], []
    for _ in range(num_rows):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        steps.append((observation, action, np.float32(reward), following, terminated))
        observation = env.reset()[0] if terminated or truncated else following
    spec = TransitionSpec.from_spaces(env.observation_space, env.action_space)
    return spec, Transitions(*(torch.from_numpy(np.array(column)) for column in zip(*steps, strict=True)))


def test_every_figure_is_explained():
    assert sorted(figure.key for figure in FIGURES) == sorted(keys(Evaluation))
    assert [line.key for line in explain(result())] == [figure.key for figure in FIGURES]
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)
    for figure in FIGURES:
        assert figure.meaning
        assert (figure.best is None) == (figure.good is None) == (figure.fair is None)


def test_the_best_value_is_good():
    for figure in FIGURES:
        if figure.best is not None:
            assert line(figure.key).verdict == GOOD
            assert figure.fair[0] <= figure.good[0] <= figure.best <= figure.good[1] <= figure.fair[1]
        else:
            assert line(figure.key).verdict == ""


@pytest.mark.parametrize(
    ("key", "value", "verdict"),
    [
        ("auc", 0.65, GOOD), ("auc", 0.8, FAIR), ("auc", 0.95, POOR), ("auc", 0.05, POOR),
        ("fidelity__marginal", 0.95, GOOD), ("fidelity__marginal", 0.94, FAIR), ("fidelity__marginal", 0.5, POOR),
        ("closest__ratio", 0.6, FAIR), ("closest__ratio", 0.1, POOR), ("closest__ratio", 3.0, POOR),
        ("closest__share_closer", 0.0, GOOD), ("closest__share_closer", 0.2, FAIR),
        ("closest__share_closer", 0.3, POOR),
        ("neighborhoods__density", 1.9, FAIR), ("neighborhoods__density", 2.1, POOR),
        ("simulator__dynamics_mean", 0.04, GOOD), ("simulator__dynamics_mean", 0.9, POOR),
    ],
)  # fmt: skip
def test_verdicts(key, value, verdict):
    assert line(key.replace("__", "."), **{key: value}).verdict == verdict


@pytest.mark.parametrize(
    ("rows", "real", "synthetic", "verdict"),
    [
        (1_000, 0.0, 0.0, GOOD),
        # Two standard errors of the difference at a rate of 0.02 and 1,000 rows each are 0.0125.
        (1_000, 0.02, 0.01, GOOD),
        (1_000, 0.02, 0.0, FAIR),
        (1_000, 0.0, 0.05, POOR),
        # With many rows a tenth of the real rate counts.
        (10**8, 0.02, 0.0215, GOOD),
        (10**8, 0.02, 0.025, FAIR),
        (10**8, 0.02, 0.03, POOR),
    ],
)
def test_terminal_rates_are_judged_by_what_chance_does(rows, real, synthetic, verdict):
    changes = {
        "terminals__real_rate": real,
        "terminals__synthetic_rate": synthetic,
        "terminals__error": synthetic - real,
    }
    assert line("terminals.error", num_real=rows, num_synthetic=rows, **changes).verdict == verdict


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("fidelity.correlation", "fewer than two columns of numbers vary"),
        ("auc", "too few different rows to train and test a classifier"),
        ("closest.ratio", "at least half of the real rows are training rows"),
        ("simulator.terminal_precision", "no simulated row is flagged terminal"),
        ("simulator_real.terminal_recall", "no row is terminal in the simulator"),
        ("simulator.dynamics_mean", "no row could be simulated"),
    ],
)
def test_what_was_not_measured_is_said(key, reason, value):
    told = line(key, **{key.replace(".", "__"): value})
    assert (told.value, told.verdict, told.meaning) == (NOT_MEASURED, "", reason)


def test_a_part_that_was_not_asked_for_is_one_line():
    lines = explain(result(closest=None, simulator=None, simulator_real=None))
    absent = [line for line in lines if line.value == NOT_MEASURED]
    assert [line.key for line in absent] == list(PARTS)
    assert "--train" in absent[0].meaning
    assert "--env" in absent[1].meaning


@pytest.mark.slow
def test_real_rows_of_one_policy_are_good():
    """What docs/metrics.md says of 3,000 rows of a random policy against 3,000 others, and of 500."""
    pytest.importorskip("sklearn")
    pytest.importorskip("mujoco")
    (spec, real), (_, others), (_, train) = (hopper(seed, 3_000) for seed in range(3))
    told = explain(evaluate(real, others, spec, train=train).to_dict())
    assert {line.verdict for line in told} == {GOOD, ""}
    told = explain(evaluate(*(rows[:500] for rows in (real, others)), spec, train=train[:500]).to_dict())
    verdicts = [line.verdict for line in told if line.verdict]
    assert set(verdicts) == {GOOD, FAIR}
    assert 4 <= verdicts.count(FAIR) <= 7 < len(verdicts) == 11


def test_values_as_text():
    assert line("num_real").value == "1,000"
    assert line("fidelity.worst_column", fidelity__worst_column="action[0]").value == "action[0]"
    assert line("simulator.dynamics_median", simulator__dynamics_median=3e-7).value == "3.0e-07"
    assert line("terminals.error", terminals__error=-0.25).value == "-0.2500"
    assert line("auc", auc=0.5).value == "0.5000"


def test_the_page_of_metrics_has_the_thresholds():
    table = (DOCS / "metrics.md").read_text().split("## Verdicts")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+ \| [^|]+?) \|", table, re.MULTILINE))
    for figure in FIGURES:
        if figure.good is not None and figure.unit is None:
            texts = [f"{low:g} to {high:g}" for low, high in (figure.good, figure.fair)]
            assert rows[figure.name] == " | ".join(texts), figure.name
