"""The TD error that SynthERCallback binds: its value, and that asking for it changes nothing."""

import gc

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, SAC, TD3
from synther_buffers.sb3 import SynthERBuffer, SynthERCallback, SynthERNStepBuffer, td_error_of
from toys import TINY, global_state

from synther_buffers import TDError, Transitions

OPTIONS = {"upsampler": TINY, "retrain_every": 200, "num_synthetic": 200, "progress_bar": False}


def trained(algorithm, env="Pendulum-v1", buffer=SynthERBuffer, steps=260, callback=None, **options):
    policy = {"net_arch": [16, 16]}
    model = algorithm(
        "MlpPolicy",
        env,
        buffer_size=1_000,
        learning_starts=100,
        batch_size=32,
        policy_kwargs=policy,
        replay_buffer_class=buffer,
        replay_buffer_kwargs=OPTIONS | options,
        seed=0,
        device="cpu",
    )
    return model.learn(steps, callback=callback)


def errors(model):
    return td_error_of(model)(model.replay_buffer.real_transitions())


def test_of_dqn_it_is_the_distance_from_the_target():
    model = trained(DQN, "CartPole-v1")
    rows = model.replay_buffer.real_transitions()
    with torch.no_grad():
        value = model.q_net(rows.observation)[torch.arange(len(rows)), rows.action.reshape(-1)]
        best = model.q_net_target(rows.next_observation).max(1).values
    wanted = (value - rows.reward - 0.99 * best * ~rows.terminated).abs()
    torch.testing.assert_close(errors(model), wanted)


@pytest.mark.parametrize("n_steps", [None, 3])
def test_of_td3_it_is_the_mean_over_the_critics_with_the_discount_of_the_row(n_steps):
    model = trained(TD3) if n_steps is None else trained(TD3, buffer=SynthERNStepBuffer, n_steps=n_steps)
    rows = model.replay_buffer.real_transitions()
    discount = torch.full((len(rows),), 0.99) if n_steps is None else rows.discount
    with torch.no_grad():
        action = model.actor_target(rows.next_observation)
        target = torch.min(*model.critic_target(rows.next_observation, action))
        values = torch.cat(model.critic(rows.observation, rows.action), 1)
    # Pendulum never terminates.
    wanted = (values - rows.reward[:, None] - discount[:, None] * target).abs().mean(1)
    torch.testing.assert_close(errors(model), wanted)


def test_of_sac_it_has_the_entropy_term():
    model = trained(SAC)
    rows = model.replay_buffer.real_transitions()
    torch.manual_seed(5)
    found = errors(model)
    torch.manual_seed(5)
    with torch.no_grad():
        action, log_prob = model.actor.action_log_prob(rows.next_observation)
        target = torch.min(*model.critic_target(rows.next_observation, action))
        target = target - model.log_ent_coef.exp() * log_prob[:, None]
        values = torch.cat(model.critic(rows.observation, rows.action), 1)
    torch.testing.assert_close(found, (values - rows.reward[:, None] - 0.99 * target).abs().mean(1))


def test_of_tqc_the_largest_quantiles_of_the_target_are_left_out():
    model = trained(pytest.importorskip("sb3_contrib").TQC)
    rows = model.replay_buffer.real_transitions()
    torch.manual_seed(5)
    found = errors(model)
    torch.manual_seed(5)
    with torch.no_grad():
        action, log_prob = model.actor.action_log_prob(rows.next_observation)
        pooled = model.critic_target(rows.next_observation, action).flatten(1).sort().values
        # Two critics of 25 quantiles; two are left out for each.
        target = pooled[:, : 50 - 2 * 2].mean(1) - model.log_ent_coef.exp() * log_prob
        values = model.critic(rows.observation, rows.action).mean(2)
    wanted = (values - (rows.reward + 0.99 * target)[:, None]).abs().mean(1)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["QRDQN", "CrossQ"])
def test_the_algorithms_of_sb3_contrib_have_one(name):
    algorithm = getattr(pytest.importorskip("sb3_contrib"), name)
    model = trained(algorithm, "CartPole-v1" if name == "QRDQN" else "Pendulum-v1")
    found = errors(model)
    assert found.shape == (260,)
    assert bool(torch.isfinite(found).all())
    assert float(found.std()) > 0


@pytest.mark.parametrize("name", ["SAC", "TD3"])
def test_sbx_has_one_too_and_learning_goes_on_the_same(name):
    algorithm = getattr(pytest.importorskip("sbx"), name)
    plain = trained(algorithm, share_schedule=nothing)
    guided = trained(algorithm, share_schedule=nothing, guidance="td-error", callback=SynthERCallback())
    assert guided.replay_buffer.synthetic.reports[0].guidance == "TDError"
    observation = np.zeros((4, 3), np.float32)
    np.testing.assert_array_equal(*(model.predict(observation, deterministic=True)[0] for model in (plain, guided)))


def test_sbx_with_n_step_rows_has_their_discount():
    sbx = pytest.importorskip("sbx")
    model = trained(sbx.TD3, buffer=SynthERNStepBuffer, n_steps=3)
    rows = model.replay_buffer.real_transitions()
    one_step = Transitions.from_flat({**rows.flat(), "discount": torch.full((len(rows),), 0.99)})
    ratio = td_error_of(model)(rows) - td_error_of(model)(one_step)
    assert float(ratio.abs().max()) > 0


def test_other_algorithms_of_sbx_say_that_they_have_none(caplog):
    sbx = pytest.importorskip("sbx")
    model = trained(sbx.CrossQ, guidance="td-error", callback=SynthERCallback())
    assert "TD error of sbx.crossq.crossq.CrossQ is not known" in caplog.text
    assert model.replay_buffer.synthetic.reports[0].guidance == ""


def nothing(num_observed):
    return 0.0


def test_asking_for_it_changes_nothing_in_the_agent():
    plain = trained(SAC, share_schedule=nothing)
    guided = trained(SAC, share_schedule=nothing, guidance="td-error", callback=SynthERCallback())
    assert guided.replay_buffer.synthetic.reports[0].guidance == "TDError"
    for left, right in zip(plain.policy.parameters(), guided.policy.parameters(), strict=True):
        assert torch.equal(left, right)
    before = global_state()
    guided.replay_buffer.synthetic.refresh(guided.replay_buffer.real_transitions)
    assert global_state() == before


def test_another_algorithm_binds_its_own_and_a_users_stays():
    model = trained(SAC, guidance="td-error", callback=SynthERCallback())
    replay = model.replay_buffer.synthetic
    first = replay.td_error
    assert first.is_of(model)
    other = trained(SAC)
    other.replay_buffer = model.replay_buffer
    other.learn(10, callback=SynthERCallback())
    assert replay.td_error.is_of(other)
    own = lambda rows: rows.reward  # noqa: E731
    replay.bind_td_error(own)
    other.learn(10, callback=SynthERCallback())
    assert replay.td_error is own


def test_it_refers_to_the_algorithm_weakly():
    model = trained(SAC, guidance=TDError(), steps=120)
    function, rows = td_error_of(model), model.replay_buffer.real_transitions()
    del model
    gc.collect()
    with pytest.raises(RuntimeError, match="is gone"):
        function(rows)
