"""Collectors that write, in this process and in workers, and losses that train on the batches."""

import numpy as np
import pytest
import torch
from synther_buffers.torchrl import SynthERMemmapStorage, SynthERStorage, is_synthetic
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector, MultiAsyncCollector, MultiSyncCollector
from torchrl.envs import GymEnv, RewardSum, SerialEnv, StepCounter, TransformedEnv
from torchrl.modules import MLP, NormalParamExtractor, ProbabilisticActor, QValueActor, TanhNormal, ValueOperator
from torchrl.objectives import CQLLoss, DDPGLoss, DQNLoss, IQLLoss, SACLoss, SoftUpdate, TD3Loss
from torchrl_helpers import TINY, make_buffer, num_marked, synthetic_of


def pendulum():
    return TransformedEnv(GymEnv("Pendulum-v1"), StepCounter(max_steps=25))


def cartpole():
    return TransformedEnv(GymEnv("CartPole-v1"), RewardSum())


def gaussian_actor(env):
    net = nn.Sequential(MLP(3, 2, depth=1, num_cells=16), NormalParamExtractor())
    module = TensorDictModule(net, ["observation"], ["loc", "scale"])
    return ProbabilisticActor(
        module,
        ["loc", "scale"],
        spec=env.action_spec,
        distribution_class=TanhNormal,
        distribution_kwargs={"low": -2.0, "high": 2.0},
    )


def deterministic_actor():
    return TensorDictModule(nn.Sequential(MLP(3, 1, depth=1, num_cells=16), nn.Tanh()), ["observation"], ["action"])


def critic():
    return ValueOperator(MLP(4, 1, depth=1, num_cells=16), in_keys=["observation", "action"])


def value():
    return ValueOperator(MLP(3, 1, depth=1, num_cells=16), in_keys=["observation"])


def sac(env, actor):
    return SACLoss(actor, critic())


def cql(env, actor):
    return CQLLoss(actor, critic(), action_spec=env.action_spec)


def iql(env, actor):
    return IQLLoss(actor, critic(), value_network=value())


def td3(env, actor):
    return TD3Loss(deterministic_actor(), critic(), action_spec=env.action_spec)


def ddpg(env, actor):
    return DDPGLoss(deterministic_actor(), critic())


def trained(loss, batches):
    """Some steps of any loss; the parameters before and after."""
    loss.make_value_estimator(gamma=0.99)
    target = SoftUpdate(loss, eps=0.99)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in loss.parameters()])
    optimizer = torch.optim.Adam(loss.parameters(), 1e-3)
    for batch in batches:
        losses = loss(batch)
        sum(value for key, value in losses.items() if key.startswith("loss")).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        target.step()
    return before, torch.cat([parameter.detach().flatten() for parameter in loss.parameters()])


@pytest.mark.parametrize("make_loss", [sac, cql, iql, td3, ddpg])
def test_losses_of_continuous_actions_train(make_loss):
    env = pendulum()
    actor = gaussian_actor(env)
    loss = make_loss(env, actor)
    buffer = make_buffer(upsampler=TINY, num_synthetic=200)
    batches = []
    for data in Collector(env, actor, frames_per_batch=30, total_frames=180):
        buffer.extend(data.reshape(-1))
        batches += [buffer.sample(32) for _ in range(2)]
    assert [int(is_synthetic(batch["index"]).sum()) for batch in batches] == [0] * 6 + [16] * 6
    for key in ("loc", "scale", "step_count", ("collector", "traj_ids"), ("next", "step_count")):
        assert batches[-1][key].shape == batches[0][key].shape
    before, after = trained(loss, batches)
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


@pytest.mark.parametrize("categorical", [False, True])
def test_dqn_trains(categorical):
    env = TransformedEnv(GymEnv("CartPole-v1", categorical_action_encoding=categorical), RewardSum())
    actor = QValueActor(MLP(4, 2, depth=1, num_cells=16), in_keys=["observation"], spec=env.action_spec)
    buffer = make_buffer(upsampler=TINY, num_synthetic=200)
    batches = []
    for data in Collector(env, actor, frames_per_batch=30, total_frames=180):
        buffer.extend(data.reshape(-1))
        batches += [buffer.sample(32) for _ in range(2)]
    action = synthetic_of(batches[-1])["action"]
    assert action.dtype == torch.int64
    assert action.shape == ((16,) if categorical else (16, 2))
    if not categorical:
        assert (action.sum(1) == 1).all()
    before, after = trained(DQNLoss(actor, action_space=env.action_spec), batches)
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


def test_the_target_of_a_synthetic_row_bootstraps_unless_it_is_terminal():
    """SAC's and the others' targets: r, plus gamma V(s') where the row is not terminated."""
    torch.manual_seed(0)
    env = cartpole()
    env.set_seed(0)
    actor = QValueActor(MLP(4, 2, depth=1, num_cells=16), in_keys=["observation"], spec=env.action_spec)
    buffer = make_buffer()
    for data in Collector(env, None, frames_per_batch=150, total_frames=150):
        buffer.extend(data.reshape(-1))
    batch = synthetic_of(buffer.sample(400))
    terminated = batch["next", "terminated"]
    assert terminated.any()
    loss = DQNLoss(actor, action_space=env.action_spec, delay_value=False)
    loss.make_value_estimator(gamma=0.9)
    target = loss.value_estimator.value_estimate(batch, target_params=loss.target_value_network_params)
    with torch.no_grad():
        best = actor(batch["next"].select("observation"))["chosen_action_value"]
    assert torch.allclose(target, batch["next", "reward"] + 0.9 * best * ~terminated, atol=1e-5)


@pytest.mark.parametrize("extend_buffer", [True, False])
@pytest.mark.parametrize("cls", [SynthERStorage, SynthERMemmapStorage])
def test_a_collector_writes_into_the_buffer_itself(cls, extend_buffer):
    buffer = make_buffer(cls)
    collector = Collector(
        cartpole(), None, frames_per_batch=30, total_frames=180, replay_buffer=buffer, extend_buffer=extend_buffer
    )
    shares = []
    for _ in collector:
        shares.append(num_marked(buffer.sample(32)))
    assert shares == [0, 0, 0, 16, 16, 16]
    assert buffer.storage.synthetic.num_observed == len(buffer) == 180


def test_a_collector_of_several_environments_fills_a_storage_of_two_dimensions():
    env = SerialEnv(3, cartpole)
    buffer = make_buffer(ndim=2, max_size=390)
    for data in Collector(env, None, frames_per_batch=60, total_frames=480):
        buffer.extend(data)
        batch = buffer.sample(32)
    assert num_marked(batch) == 16
    assert buffer.storage.synthetic.num_observed == 480
    assert [report.num_observed for report in buffer.storage.synthetic.reports] == [120, 240, 360, 480]


def test_a_collector_of_several_environments_flattened():
    env = SerialEnv(3, cartpole)
    buffer = make_buffer()
    for data in Collector(env, None, frames_per_batch=60, total_frames=240):
        buffer.extend(data.reshape(-1))
    assert num_marked(buffer.sample(32)) == 16


def test_collectors_that_write_from_worker_processes():
    buffer = make_buffer(shared=True, shared_init=True)
    collector = MultiSyncCollector(
        [cartpole, cartpole], None, frames_per_batch=40, total_frames=160, replay_buffer=buffer, extend_buffer=True
    )
    shares = []
    try:
        for _ in collector:
            shares.append(num_marked(buffer.sample(32)))
    finally:
        collector.shutdown()
    assert shares == [0, 0, 16, 16]
    synthetic = buffer.storage.synthetic
    assert synthetic.num_observed == buffer.write_count == 160
    # The rows that the model learned are those that the workers wrote.
    learned = synthetic.upsampler.rows.observation
    stored = buffer[:]["observation"]
    assert np.isin(learned[:, 0].numpy(), stored[:, 0].numpy()).all()


@pytest.mark.parametrize("refresh_on", ["here", "process"])
@pytest.mark.parametrize("cls", [MultiSyncCollector, MultiAsyncCollector])
def test_batches_of_collectors_in_worker_processes(cls, refresh_on):
    """They come one after the other or whenever a worker has one; they are written and learned here."""
    buffer = make_buffer(refresh_on=refresh_on)
    collector = cls([cartpole, cartpole], None, frames_per_batch=40, total_frames=320)
    shares = []
    try:
        for data in collector:
            buffer.extend(data.reshape(-1))
            shares.append(num_marked(buffer.sample(32)))
    finally:
        collector.shutdown()
    synthetic = buffer.storage.synthetic
    assert synthetic.num_observed == len(buffer) >= 320
    assert shares[:2] == [0, 0]
    assert shares[-1] == 16
    assert synthetic.num_refreshes >= 1


def test_a_storage_learns_its_device_from_the_data():
    buffer = make_buffer(device="auto")
    for data in Collector(cartpole(), None, frames_per_batch=150, total_frames=150, device="cpu"):
        buffer.extend(data.reshape(-1))
    assert num_marked(buffer.sample(32)) == 16
    assert buffer.storage.synthetic.device == torch.device("cpu")
