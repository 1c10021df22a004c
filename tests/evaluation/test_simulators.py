import math

import gymnasium
import numpy as np
import pytest
import torch
from toys import global_state

from synther_buffers import Transitions, TransitionSpec
from synther_buffers.evaluation.metrics import simulator_error
from synther_buffers.evaluation.simulators import MujocoSimulator, Simulator

pytest.importorskip("mujoco")


def collect(env_id: str, num_rows: int, size: float = 1.0) -> tuple[np.ndarray, ...]:
    """Rows of random actions, a share `size` of their range: observation, action, reward, next, terminated."""
    env = gymnasium.make(env_id)
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    rows = []
    for _ in range(num_rows):
        action = (size * rng.uniform(env.action_space.low, env.action_space.high)).astype(np.float32)
        following, reward, terminated, truncated, _ = env.step(action)
        rows.append((observation, action, reward, following, terminated))
        observation = env.reset()[0] if terminated or truncated else following
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def to_transitions(columns: tuple[np.ndarray, ...]) -> Transitions:
    observation, action, reward, following, terminated = map(torch.as_tensor, columns)
    return Transitions(observation, action, reward.float(), following, terminated)


def standardised(error: np.ndarray, values: np.ndarray) -> float:
    std = values.std(0)
    return float((np.abs(error) / np.where(std > 0, std, 1.0)).max())


class TestRealRowsComeBack:
    @pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v5", "InvertedPendulum-v5", "Swimmer-v5"])
    def test_to_rounding(self, env_id: str) -> None:
        observation, action, reward, following, terminated = collect(env_id, 300)
        answer = MujocoSimulator(env_id).step(observation, action)
        assert standardised(answer[0] - following, following) < 1e-9
        assert standardised(answer[1] - reward, reward) < 1e-9
        assert np.array_equal(answer[2], terminated)
        assert terminated.any() == (env_id in ("Hopper-v5", "InvertedPendulum-v5"))

    def test_all_but_those_with_a_velocity_that_is_clipped_or_close_to_it(self) -> None:
        observation, action, reward, following, terminated = collect("Walker2d-v5", 400)
        clipped = (np.abs(observation[:, 8:]) >= 9.5).any(1)
        assert 0.1 < clipped.mean() < 0.9
        answer = MujocoSimulator("Walker2d-v5").step(observation, action)
        assert np.array_equal(np.isnan(answer[0]).all(1), clipped)
        assert np.array_equal(np.isnan(answer[1]), clipped)
        assert not answer[2][clipped].any()
        assert standardised((answer[0] - following)[~clipped], following) < 1e-9
        assert standardised((answer[1] - reward)[~clipped], reward) < 1e-9
        assert np.array_equal(answer[2][~clipped], terminated[~clipped])

    def test_observations_with_contact_forces_behind_the_state(self) -> None:
        observation, action, reward, following, _ = collect("Ant-v5", 200)
        answer = MujocoSimulator("Ant-v5").step(observation, action)
        assert standardised(answer[0] - following, following) < 1e-6
        # MuJoCo's positions lag behind the state by a part of a step, and the reward is made of them.
        error = np.abs(answer[1] - reward) / reward.std()
        assert np.median(error) < 0.01
        assert error.max() < 0.3

    def test_in_float32(self) -> None:
        observation, action, _, following, _ = collect("HalfCheetah-v5", 300)
        answer, *_ = MujocoSimulator("HalfCheetah-v5").step(observation.astype(np.float32), action)
        assert 1e-12 < standardised(answer - following, following) < 1e-4

    def test_whatever_came_before(self) -> None:
        observation, action, *_ = collect("Hopper-v5", 100)
        simulator = MujocoSimulator(gymnasium.make("Hopper-v5"))
        forth, back = simulator.step(observation, action), simulator.step(observation[::-1], action[::-1])
        for one, other in zip(forth, back, strict=True):
            assert np.array_equal(one, other[::-1])


class TestActions:
    def test_scaled_ones_stand_for_the_environment_s_range(self) -> None:
        observation, action, _, following, _ = collect("InvertedPendulum-v5", 100)
        assert np.abs(action).max() > 2.0  # its range is [-3, 3]
        answer, *_ = MujocoSimulator("InvertedPendulum-v5", scaled_actions=True).step(observation, action / 3.0)
        assert standardised(answer - following, following) < 1e-5
        wrong, *_ = MujocoSimulator("InvertedPendulum-v5").step(observation, action / 3.0)
        assert standardised(wrong - following, following) > 0.1

    def test_other_actions_lead_elsewhere(self) -> None:
        columns = collect("HalfCheetah-v5", 500)
        real, shuffled = to_transitions(columns), to_transitions(columns)
        shuffled.action = shuffled.action[torch.randperm(500, generator=torch.Generator().manual_seed(0))]
        spec = TransitionSpec.infer(real)
        simulator = MujocoSimulator("HalfCheetah-v5")
        right, wrong = (simulator_error(real, rows, spec, simulator) for rows in (real, shuffled))
        assert right.dynamics_mean < 1e-18
        assert right.reward_mean < 1e-10  # stored as float32
        assert right.terminal_agreement == 1.0
        assert math.isnan(right.terminal_recall)
        assert wrong.dynamics_mean > 0.1
        assert wrong.reward_mean > 0.1
        assert (wrong.num_rows, wrong.share_simulated) == (500, 1.0)


class TestBadStates:
    def test_an_unstable_one_is_not_simulated_and_leaves_no_log_file(self, tmp_path, monkeypatch, capfd) -> None:
        simulator = MujocoSimulator("HalfCheetah-v5")
        capfd.readouterr()  # what MuJoCo has to say about the model's file
        monkeypatch.chdir(tmp_path)
        observation = np.zeros((3, 17))
        observation[1, 8:] = 1e9
        following, reward, terminated = simulator.step(observation, np.zeros((3, 6)))
        assert np.isnan(reward).tolist() == [False, True, False]
        assert np.isnan(following).all(1).tolist() == [False, True, False]
        assert not terminated.any()
        assert np.array_equal(following[0], following[2])
        assert list(tmp_path.iterdir()) == []
        assert capfd.readouterr().err == ""

    def test_neither_is_one_that_is_not_finite(self) -> None:
        observation = np.zeros((2, 17))
        observation[0, 3] = np.nan
        _, reward, _ = MujocoSimulator("HalfCheetah-v5").step(observation, np.zeros((2, 6)))
        assert np.isnan(reward).tolist() == [True, False]


class TestErrors:
    @pytest.mark.parametrize("env_id", ["InvertedDoublePendulum-v5", "Reacher-v5", "Pusher-v5"])
    def test_observations_that_do_not_tell_the_state(self, env_id: str) -> None:
        with pytest.raises(ValueError, match=f"env is '{env_id}'.*write a Simulator"):
            MujocoSimulator(env_id)

    def test_observations_that_are_something_else_than_they_say(self) -> None:
        class Shifted(type(gymnasium.make("HalfCheetah-v5").unwrapped)):
            def _get_obs(self):
                return super()._get_obs() + 1.0

        with pytest.raises(ValueError, match="no state can be told"):
            MujocoSimulator(Shifted())

    def test_no_mujoco_environment(self) -> None:
        with pytest.raises(TypeError, match=r"env is 'CartPole-v1'.*no set_state"):
            MujocoSimulator("CartPole-v1")

    def test_rows_of_another_environment(self) -> None:
        simulator = MujocoSimulator("Hopper-v5")
        with pytest.raises(ValueError, match=r"observation has shape \(2, 17\); the environment wants \(2, 11\)"):
            simulator.step(np.zeros((2, 17)), np.zeros((2, 3)))
        with pytest.raises(ValueError, match=r"action has shape \(2, 6\); the environment wants \(2, 3\)"):
            simulator.step(np.zeros((2, 11)), np.zeros((2, 6)))


def test_leaves_the_global_streams_alone() -> None:
    before = global_state()
    MujocoSimulator("Hopper-v5").step(np.zeros((5, 11)), np.zeros((5, 3)))
    assert global_state() == before


def test_is_a_simulator() -> None:
    assert isinstance(MujocoSimulator("Hopper-v5"), Simulator)
