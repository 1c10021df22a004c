"""Structure across columns, in rows of a trained model: a small net, a few hundred steps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from synther_buffers import DiffusionUpsampler
from synther_buffers.transitions import Transitions, TransitionSpec
from synther_buffers.upsampling.presets import resolve_config

SPEC = TransitionSpec.from_spaces(spaces.Box(-np.inf, np.inf, (5,)), spaces.Box(-1.0, 1.0, (1,)))
CPU = torch.device("cpu")


def rows_of(state: np.ndarray, reward: np.ndarray) -> Transitions:
    """The state stays as it is; the action is random."""
    rows = SPEC.empty(len(state))
    rows.observation.copy_(torch.as_tensor(state))
    rows.next_observation.copy_(torch.as_tensor(state))
    rows.action.copy_(torch.as_tensor(np.random.default_rng(1).uniform(-1, 1, (len(state), 1))))
    rows.reward.copy_(torch.as_tensor(reward))
    rows.terminated.zero_()
    return rows


def fitted(rows: Transitions, num_steps: int) -> DiffusionUpsampler:
    """The default on a CPU, but narrower and trained for less long."""
    config = resolve_config("auto", CPU)
    config = replace(
        config,
        train_steps=num_steps,
        warm_steps=num_steps,
        model_terminals=False,
        network=replace(config.network, width=64, depth=3),
        training=replace(config.training, warmup_steps=50),
    )
    upsampler = DiffusionUpsampler(SPEC, config, device="cpu", seed=0)
    upsampler.fit(rows)
    return upsampler


def test_structure_is_saved_with_the_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    state = np.concatenate([np.eye(2)[rng.integers(0, 2, 500)], rng.normal(size=(500, 3))], axis=1)
    state[:, 2:] /= np.linalg.norm(state[:, 2:], axis=1, keepdims=True)
    rows = rows_of(state, np.where(rng.random(500) < 0.1, 999.0, rng.normal(size=500)))
    upsampler = fitted(rows, 5)
    upsampler.save(tmp_path / "model.safetensors")
    again = DiffusionUpsampler.load(tmp_path / "model.safetensors", device="cpu")
    left, right = upsampler.sample(200).flat(), again.sample(200).flat()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert (left["reward"] == 999.0).any()
    assert again.fit(rows).warm


@pytest.mark.slow
def test_a_sentinel_is_on_the_rows_where_another_column_says_so() -> None:
    rng = np.random.default_rng(0)
    state = rng.uniform(0.0, 1.0, (10_000, 5))
    state[:, 1] = np.where(state[:, 0] > 0.95, 999.0, state[:, 1])
    rows = fitted(rows_of(state, rng.normal(size=10_000)), 4_000).sample(4_096)
    for found in (rows.observation, rows.next_observation):
        sentinel, rule = found[:, 1] == 999.0, found[:, 0] > 0.95
        assert float(sentinel.float().mean()) == pytest.approx(0.05, abs=0.01)
        assert ((found[:, 1] <= 1.0) | sentinel).all()
        hits = float((sentinel & rule).sum())
        assert hits / float(sentinel.sum()) >= 0.9
        assert hits / float(rule.sum()) >= 0.9


@pytest.mark.slow
def test_quaternions_have_norm_1_and_one_hots_a_single_1() -> None:
    rng = np.random.default_rng(0)
    quaternion = rng.normal(size=(5_000, 4))
    quaternion /= np.linalg.norm(quaternion, axis=1, keepdims=True)
    states = rows_of(np.concatenate([quaternion, rng.normal(size=(5_000, 1))], axis=1), rng.normal(size=5_000))
    rows = fitted(states, 200).sample(4_096)
    for found in (rows.observation, rows.next_observation):
        assert float((found[:, :4].norm(dim=1) - 1.0).abs().median()) < 1e-5

    tasks = rows_of(np.eye(5)[rng.integers(0, 5, 5_000)], rng.normal(size=5_000))
    rows = fitted(tasks, 200).sample(4_096)
    for found in (rows.observation, rows.next_observation):
        assert found.unique().tolist() == [0.0, 1.0]
        assert (found.sum(1) == 1.0).all()
