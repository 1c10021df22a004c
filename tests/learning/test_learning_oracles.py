"""Oracle rows are of the present policy and of the simulator; the cart-pole is the one of the textbooks."""

from __future__ import annotations

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from benchmarks.learning import upsamplers
from benchmarks.learning.agents import AGENTS
from benchmarks.learning.arms import ARMS
from benchmarks.learning.cartpole import CartPoleSwingUp
from benchmarks.learning.tasks import TASKS
from benchmarks.learning.upsamplers import Oracle, OracleDynamics, bind_policy
from gymnasium.utils.env_checker import check_env

from synther_buffers import PRESETS, Transitions, TransitionSpec

TOY = TASKS["toy"]


def agent(name: str, seed: int):
    return AGENTS[name](TOY, ARMS["oracle"].for_task(TOY), seed)


def oracle(spec: TransitionSpec, seed: int = 5) -> Oracle:
    return Oracle(spec, device="cpu", seed=seed, progress_bar=False, task=TOY)


def test_an_oracle_of_indices():
    """Cart-pole's cart gains 0.195 m/s to the right where it is pushed to the right, to within the pole's reaction."""
    env = gymnasium.make("CartPole-v1")
    spec = TransitionSpec.from_spaces(env.observation_space, env.action_space)
    made = Oracle(spec, device="cpu", seed=5, progress_bar=False, task=TASKS["toy-discrete"])
    draws = np.random.default_rng(0)
    bind_policy(lambda observation, seed: draws.integers(2, size=(len(observation), 1)))
    rows = made.sample(200)
    pushed = rows.next_observation[:, 1] - rows.observation[:, 1]
    assert set(rows.action.flatten().tolist()) == {0, 1}
    assert torch.equal(pushed > 0, rows.action.flatten() == 1)
    assert 0 < int(rows.terminated.sum()) < 40


def real_rows(spec: TransitionSpec, count: int) -> Transitions:
    """Rows of random actions, as the buffer would give them to `fit`."""
    made = oracle(spec)
    draws = np.random.default_rng(0)
    bind_policy(lambda observation, seed: draws.uniform(-1.0, 1.0, (len(observation), 1)).astype(np.float32))
    return made.sample(count)


@pytest.fixture
def spec():
    env = gymnasium.make(TOY.env)
    action = gymnasium.spaces.Box(-1.0, 1.0, env.action_space.shape, np.float32)
    return TransitionSpec.from_spaces(env.observation_space, action)


def step_again(rows: Transitions) -> tuple[np.ndarray, np.ndarray]:
    """Pendulum-v1's equation of motion (Gymnasium's documentation: g 10, m 1, l 1, steps of 0.05 s, torque 2 a)."""
    observation, action = rows.observation.double().numpy(), rows.action.double().numpy()[:, 0]
    angle, spin, torque = np.arctan2(observation[:, 1], observation[:, 0]), observation[:, 2], 2.0 * action
    reward = -(angle**2 + 0.1 * spin**2 + 0.001 * torque**2)
    spin = np.clip(spin + (15.0 * np.sin(angle) + 3.0 * torque) * 0.05, -8.0, 8.0)
    angle = angle + spin * 0.05
    return np.stack([np.cos(angle), np.sin(angle), spin], 1), reward


def flat_reward(rows: Transitions) -> np.ndarray:
    return rows.reward.double().numpy().reshape(-1)


@pytest.mark.parametrize("name", ["sbx", "sb3"])
def test_oracle_rows_are_what_the_present_policy_meets(name, spec):
    learner, made = agent(name, 0), oracle(spec)
    bind_policy(learner.explore)
    made.fit(spec.empty(0))
    before = made.sample(30)
    learner.model.learn(130)  # 30 of them with updates
    made.fit(spec.empty(0))
    rows = made.sample(30)

    following, reward = step_again(rows)
    np.testing.assert_allclose(rows.next_observation.numpy(), following, atol=1e-5)
    np.testing.assert_allclose(flat_reward(rows), reward, atol=1e-5)
    assert not rows.terminated.any()
    # One episode of 200 steps, so each row starts where the last one ended.
    torch.testing.assert_close(rows.observation[1:], rows.next_observation[:-1])

    # The policy asked again for the same observations gives the same actions; the untrained one gave others.
    draws = np.random.default_rng([5, 2, 0])
    draws.integers(2**31)  # the reset's
    observations = rows.observation.numpy()
    seeds = [int(draws.integers(2**31)) for _ in observations]
    again = [learner.explore(row[None], seed)[0] for row, seed in zip(observations, seeds, strict=True)]
    np.testing.assert_allclose(rows.action.numpy(), again, atol=1e-6)
    untrained = agent(name, 0)
    first = [untrained.explore(row[None], seed)[0] for row, seed in zip(observations, seeds, strict=True)]
    assert np.abs(rows.action.numpy() - first).max() > 1e-3
    assert not torch.equal(before.observation, rows.observation)


def test_exploring_leaves_the_agents_random_stream_alone():
    learner = agent("sb3", 0)
    state = torch.get_rng_state()
    learner.explore(np.zeros((2, 3), np.float32), 7)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_new_oracle_with_the_state_of_the_last_counts_on(spec):
    bind_policy(lambda observation, seed: np.full((len(observation), 1), 0.1, np.float32))
    first, second = oracle(spec), oracle(spec)
    first.fit(spec.empty(0))
    rows = first.sample(5)
    second.load_state_dict(first.state_dict())
    first.fit(spec.empty(0))
    second.fit(spec.empty(0))
    assert torch.equal(first.sample(5).observation, second.sample(5).observation)
    assert not torch.equal(first.sample(5).observation, rows.observation)


def test_an_oracle_without_a_policy_says_so(spec, monkeypatch):
    monkeypatch.setattr(upsamplers, "_live", [])
    with pytest.raises(RuntimeError, match="bind_policy"):
        oracle(spec).sample(1)


def test_oracle_dynamics_keeps_the_models_states_and_takes_the_simulators_outcome(spec):
    tiny = replace(
        PRESETS["cpu"], network=replace(PRESETS["cpu"].network, width=8, depth=1), train_steps=5, terminal_steps=2
    )
    made = OracleDynamics(spec, device="cpu", seed=0, progress_bar=False, task=TOY, config=tiny)
    made.fit(real_rows(spec, 150))
    state = made.state_dict()
    rows = made.sample(20)
    following, reward = step_again(rows)
    np.testing.assert_allclose(rows.next_observation.numpy(), following, atol=2e-5)
    np.testing.assert_allclose(flat_reward(rows), reward, atol=1e-4)
    # The model's own draw has the same observations and actions, and another outcome.
    other = OracleDynamics(spec, device="cpu", seed=0, progress_bar=False, task=TOY, config=tiny)
    other.load_state_dict(state)
    model = super(OracleDynamics, other).sample(20)
    assert torch.equal(model.observation, rows.observation)
    assert torch.equal(model.action, rows.action)
    assert not torch.allclose(model.next_observation, rows.next_observation, atol=1e-2)
    assert made.shares_simulated == [1.0]


def test_the_cart_pole_moves_like_gymnasiums():
    env, reference = CartPoleSwingUp(), gymnasium.make("CartPole-v1").unwrapped
    reference.kinematics_integrator = "semi-implicit euler"
    env.reset(seed=0)
    reference.reset(seed=0)
    draws = np.random.default_rng(0)
    for _ in range(50):
        position, velocity, angle, spin = draws.uniform(-1.0, 1.0, 4)
        push = int(draws.integers(2))
        env.set_observation(np.array([position, np.cos(angle), np.sin(angle), velocity, spin]))
        reference.state = (position, velocity, angle, spin)
        reference.steps_beyond_terminated = None
        observation, reward, terminated, truncated, _ = env.step(np.array([2 * push - 1], np.float32))
        position, velocity, angle, spin = reference.step(push)[0]
        np.testing.assert_allclose(observation, [position, np.cos(angle), np.sin(angle), velocity, spin], atol=1e-5)
        assert reward == pytest.approx((1 + np.cos(angle)) / 2 * (1 - (position / 2.4) ** 2), abs=1e-5)
        assert not terminated
        assert not truncated


def test_the_cart_stops_at_the_end_of_its_track():
    env = CartPoleSwingUp()
    env.reset(seed=0)
    env.set_observation(np.array([2.39, -1.0, 0.0, 5.0, 0.0]))
    observation, reward, *_ = env.step(np.array([1.0], np.float32))
    np.testing.assert_allclose(observation[[0, 3]], [2.4, 0.0], rtol=1e-6)
    assert reward == 0.0


@pytest.mark.filterwarnings("ignore:.*A Box observation space m")  # velocities have no bounds
def test_the_cart_pole_is_a_gymnasium_environment():
    check_env(CartPoleSwingUp(), skip_render_check=True)


@pytest.mark.parametrize("name", ["cartpole-swingup", "pendulum", "halfcheetah"])
def test_a_tasks_simulator_repeats_its_environment(name):
    env, simulator = TASKS[name].make(), TASKS[name].simulator()
    draws = np.random.default_rng(0)
    observation, _ = env.reset(seed=3)
    low, high = env.action_space.low, env.action_space.high
    for _ in range(20):
        action = draws.uniform(-1.0, 1.0, low.shape).astype(np.float32)
        result = env.step(low + (action + 1.0) * 0.5 * (high - low))
        following, reward, terminated = simulator.step(observation[None], action[None])
        np.testing.assert_allclose(following[0], result[0], atol=1e-3)
        assert reward[0] == pytest.approx(result[1], abs=1e-3)
        assert not terminated[0]
        observation = result[0]
