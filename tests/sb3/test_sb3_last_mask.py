"""The mask of a batch's synthetic rows in the buffers that the conformance suite does not run."""

import pytest
import torch
from sb3_helpers import DICT, MARK, box, count_into, make_buffer, random_into
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from synther_buffers.sb3 import SynthERBuffer, SynthERDictBuffer, SynthERNStepBuffer


def check(buffer, mark=MARK, env=None):
    for size in (1, 2, 32, 33):
        batch = buffer.sample(size, env)
        assert torch.equal(buffer.synthetic.last_mask, batch.rewards.flatten() == mark)
    assert buffer.synthetic.last_mask.sum() == (16 if buffer.synthetic.num_refreshes else 0)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_dict_observations(n_envs):
    buffer = make_buffer(SynthERDictBuffer, 400, DICT, box(2), n_envs=n_envs)
    random_into([buffer], 50, DICT, box(2))
    check(buffer)
    random_into([buffer], 100, DICT, box(2))
    check(buffer)
    assert buffer.synthetic.num_refreshes == 1


@pytest.mark.parametrize("n_envs", [1, 2])
def test_n_step_rows(n_envs):
    buffer = make_buffer(SynthERNStepBuffer, n_steps=3, gamma=0.5, n_envs=n_envs)
    count_into(buffer, 0, 50, ends=[4])
    check(buffer)
    count_into(buffer, 50, 150)
    check(buffer)
    assert buffer.synthetic.num_refreshes == 1


def test_normalised_rewards():
    env = VecNormalize(make_vec_env("Pendulum-v1"))
    env.ret_rms.var[...] = 4.0
    buffer = make_buffer(SynthERBuffer, 400, env.observation_space, env.action_space)
    random_into([buffer], 150, env.observation_space, env.action_space)
    scaled = torch.tensor(env.normalize_reward(torch.tensor([MARK]).numpy()))
    check(buffer, scaled, env)
