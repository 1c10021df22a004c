"""Two offline learners, made of TorchRL's losses, and how their policies are evaluated.

Rows are resident tensors and a batch is one `index_select`; there are no collectors and no replay buffer, which would
cost more than the nets do at this size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import IndependentNormal, ProbabilisticActor
from torchrl.objectives import IQLLoss, SoftUpdate, TD3BCLoss

from synther_buffers import Transitions

#: What both papers use on MuJoCo locomotion.
BATCH, DISCOUNT, TARGET_RATE, LEARNING_RATE, HIDDEN = 256, 0.99, 0.005, 3e-4, 256


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers with ReLU."""
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs)
    )


class QNetwork(nn.Module):
    """Value of an action ``[N, A]`` in a state ``[N, O]``: ``[N, 1]``."""

    def __init__(self, observations: int, actions: int) -> None:
        super().__init__()
        self.net = mlp(observations + actions, 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat([observation, action], -1))


class GaussianPolicy(nn.Module):
    """Mean within (-1, 1) and a standard deviation that does not depend on the state, ``[N, A]`` each."""

    def __init__(self, observations: int, actions: int) -> None:
        super().__init__()
        self.net = mlp(observations, actions)
        self.log_std = nn.Parameter(torch.zeros(actions))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.tanh(self.net(observation))
        return mean, self.log_std.clamp(-5.0, 2.0).exp().expand_as(mean)


class Learner:
    """An offline learner of rows with actions within [-1, 1].

    Args:
        rows: what it learns.
        num_steps: gradient steps it will do, for schedules.
        reward_scale: what rewards are multiplied by, where the learner's paper scales them.
    """

    def __init__(self, rows: Transitions, num_steps: int, reward_scale: float) -> None:
        observation, action = rows.observation, rows.action
        self.observations, self.actions = observation.shape[1], action.shape[1]
        self.mean, self.std = self.state_scale(observation.float())
        columns = [
            (observation.float() - self.mean) / self.std,
            action.float(),
            rows.reward[:, None] * self.reward_scale(reward_scale),
            (rows.next_observation.float() - self.mean) / self.std,
            rows.terminated[:, None].float(),
        ]
        self._sizes = [column.shape[1] for column in columns]
        self._rows = torch.cat(columns, 1)
        self.num_updates = 0

    def state_scale(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation by which states are normalised; here they are not."""
        return torch.zeros(self.observations), torch.ones(self.observations)

    def reward_scale(self, scale: float) -> float:
        """What rewards are multiplied by; here nothing."""
        return 1.0

    def batch(self, generator: torch.Generator) -> TensorDict:
        """Uniformly drawn rows, with replacement."""
        index = torch.randint(len(self._rows), (BATCH,), generator=generator)
        observation, action, reward, following, ended = self._rows.index_select(0, index).split(self._sizes, 1)
        terminated = ended > 0.5
        after = {"observation": following, "reward": reward, "terminated": terminated, "done": terminated}
        return TensorDict({"observation": observation, "action": action, "next": TensorDict(after, [BATCH])}, [BATCH])

    def update(self, batch: TensorDict) -> None:
        """One gradient step."""
        raise NotImplementedError

    def policy(self, observation: Tensor) -> Tensor:
        """The deterministic action in normalised states, ``[N, O]`` -> ``[N, A]``."""
        raise NotImplementedError

    @torch.inference_mode()
    def act(self, observation: np.ndarray) -> np.ndarray:
        """Deterministic actions in the environment's states, ``[N, O]`` -> ``[N, A]``."""
        return self.policy((torch.as_tensor(observation, dtype=torch.float32) - self.mean) / self.std).numpy()


class IQL(Learner):
    """Implicit Q-learning (Kostrikov et al. 2022) with its settings for MuJoCo locomotion.

    Expectile 0.7, inverse temperature 3, a Gaussian policy whose learning rate falls along a cosine, rewards divided by
    the range of the data's returns and multiplied by 1,000, states as they are. The three losses are those of one
    batch and of the same nets, with one step for all; the published code updates the value function first.
    """

    def __init__(self, rows: Transitions, num_steps: int, reward_scale: float) -> None:
        super().__init__(rows, num_steps, reward_scale)
        self.actor = GaussianPolicy(self.observations, self.actions)
        self.loss = IQLLoss(
            ProbabilisticActor(
                TensorDictModule(self.actor, ["observation"], ["loc", "scale"]),
                in_keys=["loc", "scale"],
                distribution_class=IndependentNormal,
            ),
            TensorDictModule(
                QNetwork(self.observations, self.actions), ["observation", "action"], ["state_action_value"]
            ),
            TensorDictModule(mlp(self.observations, 1), ["observation"], ["state_value"]),
            loss_function="l2",
            temperature=3.0,
            expectile=0.7,
            deactivate_vmap=True,  # two nets are faster one after the other
        )
        self.loss.make_value_estimator(gamma=DISCOUNT)
        critics = [*_parameters(self.loss.qvalue_network_params), *_parameters(self.loss.value_network_params)]
        self.optimizers = [
            torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
            for parameters in (_parameters(self.loss.actor_network_params), critics)
        ]
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizers[0], num_steps)
        self.targets = SoftUpdate(self.loss, tau=TARGET_RATE)

    def reward_scale(self, scale: float) -> float:
        """The data's."""
        return scale

    def update(self, batch: TensorDict) -> None:
        losses = self.loss(batch)
        (losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_value"]).backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.schedule.step()
        self.targets.step()
        self.num_updates += 1

    def policy(self, observation: Tensor) -> Tensor:
        return self.actor(observation)[0]


class TD3BC(Learner):
    """TD3+BC (Fujimoto and Gu 2021) with its settings.

    Alpha 2.5, normalised states, target noise 0.2 clipped at 0.5, policy and targets updated every second step.
    """

    def __init__(self, rows: Transitions, num_steps: int, reward_scale: float) -> None:
        super().__init__(rows, num_steps, reward_scale)
        self.actor = nn.Sequential(mlp(self.observations, self.actions), nn.Tanh())
        self.loss = TD3BCLoss(
            TensorDictModule(self.actor, ["observation"], ["action"]),
            TensorDictModule(
                QNetwork(self.observations, self.actions), ["observation", "action"], ["state_action_value"]
            ),
            bounds=(-torch.ones(self.actions), torch.ones(self.actions)),
            alpha=2.5,
            policy_noise=0.2,
            noise_clip=0.5,
            loss_function="l2",
            deactivate_vmap=True,
        )
        self.loss.make_value_estimator(gamma=DISCOUNT)
        self.optimizers = [
            torch.optim.Adam(_parameters(parameters), lr=LEARNING_RATE, fused=True)
            for parameters in (self.loss.actor_network_params, self.loss.qvalue_network_params)
        ]
        self.targets = SoftUpdate(self.loss, tau=TARGET_RATE)

    def state_scale(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the rows; the addend is the published code's."""
        return observation.mean(0), observation.std(0, correction=0) + 1e-3

    def update(self, batch: TensorDict) -> None:
        actor, critic = self.optimizers
        self.loss.qvalue_loss(batch)[0].backward()
        critic.step()
        critic.zero_grad()
        self.num_updates += 1
        if self.num_updates % 2 == 0:
            self.loss.actor_loss(batch)[0].backward()
            actor.step()
            actor.zero_grad()
            self.targets.step()

    def policy(self, observation: Tensor) -> Tensor:
        return self.actor(observation)


LEARNERS: dict[str, type[Learner]] = {"iql": IQL, "td3bc": TD3BC}


def _parameters(nets: TensorDict) -> list[nn.Parameter]:
    return list(nets.values(include_nested=True, leaves_only=True))


def evaluate(envs: list[gym.Env], act: Callable[[np.ndarray], np.ndarray], seed: int) -> list[float]:
    """Returns of one episode in each environment, with one batch of actions for those that are not over.

    Args:
        envs: with actions within [-1, 1].
        act: observations ``[N, O]`` -> actions ``[N, A]``.
        seed: of the first environment's episode; the others take the following ones.
    """
    observations = [env.reset(seed=seed + number)[0] for number, env in enumerate(envs)]
    returns, going = [0.0] * len(envs), list(range(len(envs)))
    while going:
        actions = act(np.stack([observations[number] for number in going])).clip(-1.0, 1.0)
        over = set()
        for number, action in zip(going, actions, strict=True):
            observations[number], reward, terminated, truncated, _ = envs[number].step(action)
            returns[number] += float(reward)
            if terminated or truncated:
                over.add(number)
        going = [number for number in going if number not in over]
    return returns


@dataclass(frozen=True)
class Evaluations:
    """What became of a run.

    Attributes:
        steps: gradient steps at which the policy was evaluated.
        returns: mean return of the episodes there.
        seconds: wall time of learning and evaluating.
    """

    steps: list[int]
    returns: list[float]
    seconds: float


def learn(
    name: str,
    rows: Transitions,
    envs: list[gym.Env],
    *,
    num_steps: int,
    eval_every: int,
    reward_scale: float = 1.0,
    seed: int = 0,
) -> Evaluations:
    """Learn from rows alone, and evaluate every `eval_every` gradient steps.

    Episodes start from the same states for every learner and every set of rows, and from others at each evaluation.

    Args:
        name: one of `LEARNERS`.
        rows: to learn from; actions within [-1, 1].
        envs: an episode is played in each at every evaluation.
        num_steps: gradient steps.
        eval_every: gradient steps between evaluations.
        reward_scale: see `Learner`.
        seed: of the nets, the batches and the noise.

    Raises:
        FloatingPointError: the learner diverged.
    """
    start = time.perf_counter()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    learner = LEARNERS[name](rows, num_steps, reward_scale)
    steps: list[int] = []
    returns: list[float] = []
    for step in range(1, num_steps + 1):
        learner.update(learner.batch(generator))
        if step % eval_every == 0:
            episodes = evaluate(envs, learner.act, seed=1_000 * len(steps))
            if not all(math.isfinite(value) for value in episodes):
                raise FloatingPointError(f"{name} diverged: the returns at step {step} are {episodes}.")
            steps.append(step)
            returns.append(float(np.mean(episodes)))
    return Evaluations(steps, returns, time.perf_counter() - start)
