"""SAC in one file of plain PyTorch: a training loop of one's own around the buffer, without an SB3 algorithm.

    python examples/own_loop.py --env Pendulum-v1 --steps 4000 --utd 5
    python examples/own_loop.py --env Pendulum-v1 --steps 4000 --utd 5 --no-synthetic

Single-file implementations in the manner of CleanRL use Stable-Baselines3's `ReplayBuffer` like this. Everything that
concerns synthetic rows is where the buffer is made; the loop does not know of them.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import torch
from synther_buffers.sb3 import SynthERBuffer
from torch import Tensor, nn
from torch.nn import functional


class Actor(nn.Module):
    """A Gaussian squashed by tanh into the environment's range of actions."""

    def __init__(self, space: gym.spaces.Box, obs_dim: int, width: int) -> None:
        super().__init__()
        self.net = perceptron(obs_dim, 2 * space.shape[0], width)
        low, high = torch.from_numpy(space.low), torch.from_numpy(space.high)
        self.register_buffer("middle", (high + low) / 2)
        self.register_buffer("reach", (high - low) / 2)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Actions ``[N, A]`` in the environment's units, log-probabilities ``[N]``, and the deterministic actions."""
        mean, log_std = self.net(obs).chunk(2, dim=-1)
        gaussian = torch.distributions.Normal(mean, log_std.clamp(-5.0, 2.0).exp())
        drawn = gaussian.rsample()
        # The logarithm of tanh's derivative, in a form that does not underflow far from 0.
        slope = 2.0 * (math.log(2.0) - drawn - functional.softplus(-2.0 * drawn))
        log_prob = (gaussian.log_prob(drawn) - slope - self.reach.log()).sum(-1)
        return self.scaled(drawn), log_prob, self.scaled(mean)

    def scaled(self, raw: Tensor) -> Tensor:
        return self.middle + self.reach * torch.tanh(raw)


class Critics(nn.Module):
    """Two action values, ``[2, N]``."""

    def __init__(self, obs_dim: int, action_dim: int, width: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(perceptron(obs_dim + action_dim, 1, width) for _ in range(2))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        pair = torch.cat((obs, action), dim=-1)
        return torch.stack([net(pair).squeeze(-1) for net in self.nets])


def perceptron(size_in: int, size_out: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(size_in, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, size_out)
    )


class SAC:
    """Soft actor-critic (Haarnoja et al., 2018) with a temperature that follows a target entropy."""

    def __init__(
        self, obs_dim: int, space: gym.spaces.Box, width: int, gamma: float = 0.99, tau: float = 0.005
    ) -> None:
        self.gamma, self.tau, self.target_entropy = gamma, tau, -float(space.shape[0])
        self.actor, self.critics = Actor(space, obs_dim, width), Critics(obs_dim, space.shape[0], width)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = torch.zeros((), requires_grad=True)
        self.optimizers = [
            torch.optim.Adam(parameters, lr=1e-3)
            for parameters in (self.critics.parameters(), self.actor.parameters(), [self.log_alpha])
        ]

    def update(self, batch) -> None:
        """One gradient step of everything on a batch of the buffer."""
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            action, log_prob, _ = self.actor(batch.next_observations)
            value = self.targets(batch.next_observations, action).min(0).values - alpha * log_prob
            goal = batch.rewards.squeeze(1) + self.gamma * (1.0 - batch.dones.squeeze(1)) * value
        critic_loss = (self.critics(batch.observations, batch.actions) - goal).square().mean()
        action, log_prob, _ = self.actor(batch.observations)
        actor_loss = (alpha * log_prob - self.critics(batch.observations, action).min(0).values).mean()
        alpha_loss = -self.log_alpha * (log_prob.detach().mean() + self.target_entropy)
        for optimizer, loss in zip(self.optimizers, (critic_loss, actor_loss, alpha_loss), strict=True):
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            for target, parameter in zip(self.targets.parameters(), self.critics.parameters(), strict=True):
                target.lerp_(parameter, self.tau)


def run(args: argparse.Namespace) -> tuple[SAC, SynthERBuffer]:
    """Train; the agent and its buffer."""
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002  # the stream that SB3's buffers draw real rows from
    upsampler = "auto"
    if args.train_steps:  # what differs from the device's preset
        upsampler = {
            "train_steps": args.train_steps,
            "warm_steps": max(2 * args.train_steps // 3, 1),
            "terminal_steps": args.train_steps,
            "outcome_steps": args.train_steps,
            "budget": None,
        }
    env = gym.make(args.env)
    env.action_space.seed(args.seed)
    buffer = SynthERBuffer(
        args.steps,
        env.observation_space,
        env.action_space,
        "cpu",
        retrain_every=args.retrain_every,
        synthetic_fraction=0.0 if args.no_synthetic else 0.5,
        num_synthetic=args.num_synthetic,
        upsampler=upsampler,
        seed=args.seed,
    )
    agent = SAC(env.observation_space.shape[0], env.action_space, args.width)
    total, returns = 0.0, []
    observation, _ = env.reset(seed=args.seed)
    for step in range(1, args.steps + 1):
        if step <= args.learning_starts:
            action = env.action_space.sample()
        else:
            with torch.no_grad():
                action = agent.actor(torch.as_tensor(observation, dtype=torch.float32)[None])[0][0].numpy()
        following, reward, terminated, truncated, _ = env.step(action)
        # As SB3 writes it: one row of each environment, `done` at every end; the infos say which are time limits.
        # The action is stored in the environment's units; the synthetic ones come back in the same.
        infos = [{"TimeLimit.truncated": truncated and not terminated}]
        done = np.array([terminated or truncated])
        buffer.add(observation[None], following[None], action[None], np.array([reward]), done, infos)
        observation, total = following, total + float(reward)
        if done[0]:
            returns, total = [*returns, total], 0.0
            observation, _ = env.reset()
        if step > args.learning_starts:
            for _ in range(args.utd):
                agent.update(buffer.sample(args.batch_size))
        if step % max(args.steps // 10, 1) == 0:
            print(f"step {step:,}: mean return of the last five episodes {np.mean(returns[-5:] or [np.nan]):.0f}")
    return agent, buffer


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="Pendulum-v1", help="with Box observations and actions")
    parser.add_argument("--steps", type=int, default=4_000, help="environment steps")
    parser.add_argument("--utd", type=int, default=5, help="gradient steps per environment step")
    parser.add_argument("--no-synthetic", action="store_true", help="plain replay at the same UTD")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--retrain-every", type=int, default=1_000, help="environment steps between refreshes")
    parser.add_argument("--num-synthetic", type=int, help="default: by the number of rows")
    parser.add_argument(
        "--train-steps", type=int, help="of each part of the upsampler (default: by the number of rows)"
    )
    parser.add_argument("--learning-starts", type=int, default=500, help="random steps at the start")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--width", type=int, default=64, help="of the agent's nets")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run(parse())
