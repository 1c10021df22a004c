"""TorchRL in the words of the conformance suite."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from adapters import Adapter, Training
from synther_buffers.torchrl import SynthERMemmapStorage, SynthERStorage
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import GymWrapper
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

FIELDS = {
    "observation": ("observation",),
    "action": ("action",),
    "reward": ("next", "reward"),
    "next_observation": ("next", "observation"),
    "terminated": ("next", "terminated"),
}


class TorchRL(Adapter):
    name = "torchrl"
    capacity = "max_size"
    ours = SynthERStorage
    plain = LazyTensorStorage

    def make(self, size, observation_space, action_space, *, n_envs=1, **kwargs):
        buffer = TensorDictReplayBuffer(storage=self.ours(size, **kwargs))
        buffer.made_with = (size, kwargs)  # TorchRL's way to restart: the same script, then `loads`
        return buffer

    def make_plain(self, size, observation_space, action_space, *, n_envs=1):
        return TensorDictReplayBuffer(storage=self.plain(size))

    def add(self, buffer, rows):
        columns = {name: torch.from_numpy(np.asarray(value)) for name, value in rows.items()}
        done, size = columns["terminated"] | columns["truncated"], len(rows["reward"])
        flags = {"done": done, "terminated": columns["terminated"], "truncated": columns["truncated"]}
        following = {"observation": columns["next_observation"], "reward": columns["reward"], **flags}
        scalars = {"reward", *flags}
        buffer.extend(
            TensorDict(
                {
                    "observation": columns["observation"],
                    "action": columns["action"],
                    **{name: torch.zeros(size, 1, dtype=torch.bool) for name in flags},
                    "next": {name: value[:, None] if name in scalars else value for name, value in following.items()},
                },
                batch_size=[size],
            )
        )

    def sample(self, buffer, batch_size):
        return self._rows(buffer.sample(batch_size))

    def _rows(self, batch):
        rows = {name: batch[key].numpy() for name, key in FIELDS.items()}
        return rows | {name: rows[name][:, 0] for name in ("reward", "terminated")}

    def raw_sample(self, buffer, batch_size):
        batch = buffer.sample(batch_size)
        return {str(key): value for key, value in batch.items(include_nested=True, leaves_only=True)}

    def stored(self, buffer):
        return self._rows(buffer[:])

    def size(self, buffer):
        return len(buffer)

    def reset(self, buffer):
        buffer.empty()

    def restart(self, buffer, folder):
        buffer.dumps(folder / "buffer")
        size, kwargs = buffer.made_with
        again = self.make(size, None, None, **kwargs)
        again.loads(folder / "buffer")
        return again

    def seed(self, seed):
        torch.manual_seed(seed)

    def synthetic(self, buffer):
        return buffer.storage.synthetic

    def train(self, env_id, num_steps, *, plain=False, utd=1, **kwargs):
        torch.manual_seed(1)
        env = GymWrapper(gym.make(env_id))
        env.set_seed(1)
        actor, loss = _sac(env)
        target, optimizer = SoftUpdate(loss, tau=0.005), torch.optim.Adam(loss.parameters(), lr=1e-3)
        storage = self.plain(num_steps) if plain else self.ours(num_steps, **kwargs)
        buffer, batches = TensorDictReplayBuffer(storage=storage, batch_size=64), []
        for step, rows in enumerate(
            Collector(env, actor, frames_per_batch=1, total_frames=num_steps, init_random_frames=100), start=1
        ):
            buffer.extend(rows)
            for _ in range(utd if step > 100 else 0):
                batch = buffer.sample()
                batches.append(self._rows(batch))
                losses = loss(batch)
                if not plain:
                    storage.record_td_errors(batch["index"], batch["td_error"])
                optimizer.zero_grad()
                (losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]).backward()
                optimizer.step()
                target.step()

        def act(observation):
            with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
                return actor(TensorDict({"observation": torch.from_numpy(observation)}))["action"].numpy()

        parameters = torch.cat([tensor.double().flatten() for tensor in loss.state_dict().values()])
        return Training(parameters.numpy(), batches, buffer, act)


class TorchRLMemmap(TorchRL):
    name = "torchrl-memmap"
    variant = True
    ours = SynthERMemmapStorage
    plain = LazyMemmapStorage
    copies_by = ("deepcopy", "restart")


def _sac(env):
    """SAC with two hidden layers of 64."""
    obs_dim, space = env.observation_spec["observation"].shape[-1], env.action_spec.space
    net = nn.Sequential(
        MLP(obs_dim, 2, num_cells=[64, 64], activation_class=nn.ReLU),
        NormalParamExtractor(scale_mapping="biased_softplus_1.0", scale_lb=1e-4),
    )
    actor = ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=env.action_spec,
        distribution_class=TanhNormal,
        distribution_kwargs={"low": space.low[0].item(), "high": space.high[0].item()},
        default_interaction_type=ExplorationType.RANDOM,
    )
    critic = ValueOperator(
        MLP(obs_dim + 1, 1, num_cells=[64, 64], activation_class=nn.ReLU), in_keys=["action", "observation"]
    )
    loss = SACLoss(actor, critic, num_qvalue_nets=2, loss_function="l2", delay_actor=False, delay_qvalue=True)
    loss.make_value_estimator(gamma=0.99)
    return actor, loss
