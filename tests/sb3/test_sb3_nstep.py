"""N-step transitions: the whole buffer's n-step form, what a batch holds of it, and training on it."""
# ruff: noqa: NPY002  # SB3 draws from NumPy's global stream

from dataclasses import replace

import numpy as np
import pytest
import torch
from batches import real_places, synthetic_places
from sb3_helpers import (
    MARK,
    TINY,
    Bootstrap,
    CounterEnv,
    assert_same_rows,
    box,
    count_into,
    kwargs_for,
    make_buffer,
    num_marked,
    parameters,
    random_into,
    record_batches,
    vec,
)
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from synther_buffers.sb3 import SynthERBuffer, SynthERNStepBuffer


def nstep_buffer(size=400, *, n_steps=3, gamma=0.5, **kwargs):
    return make_buffer(SynthERNStepBuffer, size, n_steps=n_steps, gamma=gamma, **kwargs)


def plain_buffer(size, *, n_steps=3, gamma=0.5, n_envs=1, **kwargs):
    return NStepReplayBuffer(size, box(1), box(1), "cpu", n_envs, n_steps=n_steps, gamma=gamma, **kwargs)


# -- the n-step form of the stored rows ----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["ends", "timeouts"])
def test_rows_by_hand(ending):
    buffer = nstep_buffer()
    count_into(buffer, 0, 7, **{ending: [4]})
    rows = buffer.real_transitions()
    assert rows.observation.flatten().tolist() == [0, 1, 2, 3, 4, 5, 6]
    # Row 3 sums steps 3 and 4, which ends the episode; row 5 sums steps 5 and 6, the last that was written.
    assert rows.reward.tolist() == [1.75, 1.75, 1.75, 1.5, 1.0, 1.5, 1.0]
    assert rows.next_observation.flatten().tolist() == [3, 4, 5, 5, 5, 7, 7]
    assert rows.discount.tolist() == [0.125, 0.125, 0.125, 0.25, 0.5, 0.25, 0.5]
    terminated = [0, 0, 1, 1, 1, 0, 0] if ending == "ends" else [0] * 7
    assert rows.terminated.tolist() == terminated


def test_rows_by_hand_in_a_wrapped_ring():
    buffer = nstep_buffer(120)
    count_into(buffer, 0, 122)
    rows = buffer.real_transitions()
    # Slots 0 and 1 hold steps 120 and 121; slot 119 goes on in slot 0; the newest row, slot 1, stands alone.
    assert rows.observation[[0, 1, 2, 118, 119]].flatten().tolist() == [120, 121, 2, 118, 119]
    assert rows.next_observation[[0, 1, 2, 118, 119]].flatten().tolist() == [122, 122, 5, 121, 122]
    assert rows.discount[[0, 1, 2, 118, 119]].tolist() == [0.25, 0.5, 0.125, 0.125, 0.125]


@pytest.mark.parametrize("gamma", [0.99, 0.5, 1.0])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 7])
@pytest.mark.parametrize("num_steps", [1, 5, 90, 130, 131, 260, 300])
def test_every_row_equals_the_plain_buffers(num_steps, n_steps, gamma):
    plain, ours = (make(130, n_steps=n_steps, gamma=gamma) for make in (plain_buffer, nstep_buffer))
    random_into([plain, ours], num_steps, box(1), box(1))
    expected = plain._get_samples(np.arange(plain.size()))
    rows = ours.real_transitions()
    assert len(rows) == min(num_steps, 130)
    assert torch.equal(rows.observation, expected.observations)
    assert torch.equal(rows.action, expected.actions)
    assert torch.equal(rows.next_observation, expected.next_observations)
    assert torch.equal(rows.terminated.float(), expected.dones.flatten())
    assert torch.equal(rows.discount, expected.discounts.flatten())
    torch.testing.assert_close(rows.reward, expected.rewards.flatten(), rtol=0, atol=1e-6)


def test_every_row_equals_the_plain_buffers_without_timeout_handling():
    plain, ours = (make(130, handle_timeout_termination=False) for make in (plain_buffer, nstep_buffer))
    random_into([plain, ours], 200, box(1), box(1))
    expected = plain._get_samples(np.arange(130))
    assert torch.equal(ours.real_transitions().terminated.float(), expected.dones.flatten())
    assert torch.equal(ours.real_transitions().next_observation, expected.next_observations)


@pytest.mark.parametrize("num_steps", [40, 50, 77])
def test_rows_of_each_environment_equal_those_of_a_buffer_of_its_own(num_steps):
    ours = nstep_buffer(150, n_envs=3)
    random_into([ours], num_steps, box(1), box(1))
    rows, order = ours.real_transitions(), ours.row_order()
    for env in range(3):
        alone = plain_buffer(50)
        # The same writes, that is from the first slot on: random_into draws the same numbers again.
        both = nstep_buffer(150, n_envs=3)
        random_into([Split(both, alone, env)], num_steps, box(1), box(1))
        expected = alone._get_samples(np.arange(alone.size()))
        mine = rows[torch.from_numpy(order.stream == env)]
        assert torch.equal(mine.observation, expected.observations)
        assert torch.equal(mine.next_observation, expected.next_observations)
        assert torch.equal(mine.terminated.float(), expected.dones.flatten())
        assert torch.equal(mine.discount, expected.discounts.flatten())
        torch.testing.assert_close(mine.reward, expected.rewards.flatten(), rtol=0, atol=1e-6)


class Split:
    """Passes one environment's part of each write on to a buffer of its own."""

    def __init__(self, all_of_them, alone, env):
        self.all_of_them, self.alone, self.env = all_of_them, alone, env
        self.n_envs = all_of_them.n_envs

    def add(self, *columns):
        self.all_of_them.add(*columns)
        self.alone.add(*(column[self.env : self.env + 1] for column in columns))


def test_one_step_rows_are_those_of_the_flat_buffer():
    flat, ours = make_buffer(SynthERBuffer, 130), nstep_buffer(130, n_steps=1, gamma=0.9)
    for buffer in (flat, ours):
        count_into(buffer, 0, 200, ends=[99], timeouts=[150])
    rows = ours.real_transitions()
    assert set(rows.discount.tolist()) == {float(np.float32(0.9))}
    rows.discount = None
    assert_same_rows(rows, flat.real_transitions())


def test_reading_the_rows_changes_nothing():
    buffer = nstep_buffer()
    count_into(buffer, 0, 130, timeouts=[20])
    before = buffer.timeouts.copy()
    buffer.real_transitions()
    np.testing.assert_array_equal(buffer.timeouts, before)


# -- batches -------------------------------------------------------------------------------------------------------


def test_each_row_of_a_batch_has_the_discount_of_its_own_number_of_steps():
    buffer = nstep_buffer(upsampler=Bootstrap, num_synthetic=5_000)
    count_into(buffer, 0, 130, ends=range(9, 130, 10))
    batch = buffer.sample(2_000)
    assert buffer.synthetic.num_refreshes == 1
    steps = (batch.next_observations - batch.observations).flatten()
    assert set(steps[:1_000].tolist()) == set(steps[1_000:].tolist()) == {1.0, 2.0, 3.0}
    torch.testing.assert_close(batch.discounts.flatten(), 0.5**steps)
    # 1, 1.5 or 1.75: the sum of 1, 2 or 3 rewards of 1.
    torch.testing.assert_close(batch.rewards.flatten(), 2 - 2 * 0.5**steps)
    # Of 10 rows of an episode 8 look 3 steps ahead and the last two 2 and 1.
    for part in (steps[:1_000], steps[1_000:]):
        shares = [float((part == k).double().mean()) for k in (1, 2, 3)]
        assert shares == pytest.approx([0.1, 0.1, 0.8], abs=0.04)


def test_synthetic_discounts_of_the_diffusion_model():
    # Twice as long as the shares need with one seed: after 600 steps they still vary by 0.09 between seeds.
    upsampler = replace(TINY, train_steps=1_200, budget=None)
    buffer = nstep_buffer(2_000, gamma=0.99, upsampler=upsampler, retrain_every=1_000, num_synthetic=5_000)
    count_into(buffer, 0, 1_000, ends=range(4, 1_000, 5))
    batch = buffer.sample(64)
    allowed = torch.tensor([np.float32(0.99) ** np.float32(k) for k in (1, 2, 3)])
    assert torch.isin(batch.discounts, allowed).all()
    # Of 5 rows of an episode 3 look 3 steps ahead and the last two 2 and 1.
    synthetic = buffer.synthetic.rows.discount
    shares = [float((synthetic == value).double().mean()) for value in allowed]
    assert shares == pytest.approx([0.2, 0.2, 0.6], abs=0.08)


def test_gamma_1_has_one_discount():
    buffer = nstep_buffer(gamma=1.0, upsampler=TINY)
    count_into(buffer, 0, 130, ends=[50])
    batch = buffer.sample(64)
    assert buffer.synthetic.num_refreshes == 1
    assert (batch.discounts == 1).all()


def test_vec_normalize_divides_the_synthetic_sum_and_does_not_clip_it():
    env = VecNormalize(vec(CounterEnv), epsilon=0.0, clip_reward=0.4)
    env.obs_rms.mean[...], env.obs_rms.var[...] = 100.0, 400.0
    env.ret_rms.var = np.array(4.0)
    env.training = False
    ours, plain = nstep_buffer(), plain_buffer(400)
    for buffer in (ours, plain):
        count_into(buffer, 0, 130)
    ours.sample(2)
    np.random.seed(2)
    batch = ours.sample(40, env=env)
    np.random.seed(2)
    real = plain.sample(20, env=env)
    assert torch.equal(batch.rewards[real_places(40)], real.rewards)
    assert torch.equal(batch.observations[real_places(40)], real.observations)
    assert batch.rewards[synthetic_places(40)].flatten().tolist() == [MARK / 2] * 20
    raw = batch.observations[synthetic_places(40)] * 20 + 100
    torch.testing.assert_close(raw, raw.round(), atol=1e-4, rtol=0)
    env.norm_reward = False
    assert ours.sample(2, env=env).rewards[synthetic_places(2)[0]] == MARK


# -- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("algorithm", [SAC, TD3, DQN])
def test_an_algorithm_trains_on_n_step_batches(algorithm, n_envs):
    kwargs = kwargs_for(SynthERNStepBuffer, n_steps=3, gamma=0.9)
    env = "CartPole-v1" if algorithm is DQN else "Pendulum-v1"
    model = algorithm("MlpPolicy", make_vec_env(env, n_envs, seed=0), **kwargs)
    batches = record_batches(model)
    model.learn(300)
    assert model.replay_buffer.synthetic.num_refreshes == 2
    assert num_marked(batches[-1]) == 16
    allowed = torch.tensor([np.float32(0.9) ** np.float32(k) for k in (1, 2, 3)])
    assert torch.isin(batches[-1].discounts, allowed).all()
    assert torch.isfinite(parameters(model)).all()


def test_fraction_0_is_stable_baselines_own_n_step_training():
    own = kwargs_for(None) | {"replay_buffer_kwargs": {}, "n_steps": 3, "gamma": 0.9}
    ours = kwargs_for(SynthERNStepBuffer, n_steps=3, gamma=0.9, synthetic_fraction=0.0) | {"gamma": 0.9}
    trained = []
    for kwargs in (own, ours):
        model = SAC("MlpPolicy", "Pendulum-v1", **kwargs)
        model.learn(150)
        trained.append(model)
    assert type(trained[0].replay_buffer) is NStepReplayBuffer
    assert torch.equal(parameters(trained[0]), parameters(trained[1]))


# -- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [1.5, True, "3"])
def test_n_steps_must_be_a_whole_number(n_steps):
    with pytest.raises(TypeError, match=r"n_steps is .*; wanted a whole number, at least 1"):
        nstep_buffer(n_steps=n_steps)


@pytest.mark.parametrize("n_steps", [0, -1])
def test_n_steps_are_at_least_one(n_steps):
    with pytest.raises(ValueError, match=f"n_steps is {n_steps}; it must be at least 1"):
        nstep_buffer(n_steps=n_steps)


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.01])
def test_gamma_must_be_a_discount(gamma):
    with pytest.raises(ValueError, match=f"gamma is {gamma}; it must lie above 0 and be at most 1"):
        nstep_buffer(gamma=gamma)


def test_n_steps_may_come_from_numpy():
    assert nstep_buffer(n_steps=np.int64(2)).synthetic.spec.discounts == (0.5, 0.25)
