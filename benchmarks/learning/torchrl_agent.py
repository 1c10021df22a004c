"""SAC in TorchRL's own parts: its collector, replay buffer, actor and losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from synther_buffers.torchrl import SynthERStorage
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import TensorDictReplayBuffer
from torchrl.envs import GymWrapper, TransformedEnv
from torchrl.envs.transforms import DoubleToFloat
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

from synther_buffers.replay.synthetic_replay import SyntheticReplay

from .arms import Arm, buffer_kwargs
from .tasks import Task


class TorchRLAgent:
    """SAC with two hidden layers of 256, batches of 256 and a learning rate of 3e-4, as the other agents have."""

    gamma = 0.99

    def __init__(self, task: Task, arm: Arm, seed: int) -> None:
        if arm.policy_delay != 1:
            raise ValueError(f"policy_delay is {arm.policy_delay}; this agent has none. Use agent='sbx'.")
        assert arm.utd is not None  # completed by `Arm.for_task`
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # whatever else draws from it
        self._task, self._utd = task, arm.utd
        self._env = TransformedEnv(GymWrapper(task.make()), DoubleToFloat())
        self._env.set_seed(seed)
        self._actor, self._loss = _sac(self._env, width=16 if task.toy else 256, gamma=self.gamma)
        self._buffer = TensorDictReplayBuffer(
            storage=SynthERStorage(task.steps, device="cpu", **buffer_kwargs(arm, task, seed)),
            batch_size=32 if task.toy else 256,
        )

    @property
    def synthetic(self) -> SyntheticReplay:
        return self._buffer.storage.synthetic

    def train(self, steps: int, on_step: Callable[[int], None]) -> None:
        target = SoftUpdate(self._loss, tau=0.005)
        optimizer = torch.optim.Adam(self._loss.parameters(), lr=3e-4)
        starts = self._task.learning_starts
        collector = Collector(self._env, self._actor, frames_per_batch=1, total_frames=steps, init_random_frames=starts)
        for step, rows in enumerate(collector, start=1):
            self._buffer.extend(rows)
            for _ in range(self._utd if step > starts else 0):
                losses = self._loss(self._buffer.sample())
                optimizer.zero_grad(set_to_none=True)
                sum(losses[name] for name in ("loss_actor", "loss_qvalue", "loss_alpha")).backward()
                optimizer.step()
                target.step()
            on_step(step)
        collector.shutdown()

    @torch.no_grad()
    def act(self, observation: NDArray[Any]) -> NDArray[Any]:
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            return self._actor(_observed(observation))["action"].numpy()

    def stored(self, action: NDArray[Any]) -> NDArray[Any]:
        return action

    @torch.no_grad()
    def explore(self, observation: NDArray[Any], seed: int) -> NDArray[Any]:
        # The actor draws from the global stream, which belongs to the agent: put it back.
        with torch.random.fork_rng(devices=[]), set_exploration_type(ExplorationType.RANDOM):
            torch.manual_seed(seed)
            return self._actor(_observed(observation))["action"].numpy()

    @torch.no_grad()
    def values(self, observation: NDArray[Any], action: NDArray[Any]) -> NDArray[Any]:
        asked = _observed(observation).set("action", torch.as_tensor(action, dtype=torch.float32))
        critics = self._loss.qvalue_network_params
        found = []
        for index in range(2):
            with critics[index].to_module(self._loss.qvalue_network):
                found.append(self._loss.qvalue_network(asked.clone())["state_action_value"][:, 0])
        return torch.stack(found).min(0).values.numpy()


def _observed(observation: NDArray[Any]) -> TensorDict:
    return TensorDict({"observation": torch.as_tensor(observation, dtype=torch.float32)}, [len(observation)])


def _sac(env: TransformedEnv, width: int, gamma: float) -> tuple[ProbabilisticActor, SACLoss]:
    obs_dim, action_dim = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    cells = {"num_cells": [width, width], "activation_class": nn.ReLU}
    net = nn.Sequential(
        MLP(obs_dim, 2 * action_dim, **cells), NormalParamExtractor(scale_mapping="biased_softplus_1.0", scale_lb=1e-4)
    )
    actor = ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=env.action_spec_unbatched,
        distribution_class=TanhNormal,
        distribution_kwargs={"low": env.action_spec.space.low[0].item(), "high": env.action_spec.space.high[0].item()},
        default_interaction_type=ExplorationType.RANDOM,
    )
    critic = ValueOperator(MLP(obs_dim + action_dim, 1, **cells), in_keys=["action", "observation"])
    loss = SACLoss(actor, critic, num_qvalue_nets=2, loss_function="l2", delay_actor=False, delay_qvalue=True)
    loss.make_value_estimator(gamma=gamma)
    return actor, loss
