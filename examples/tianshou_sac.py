"""SAC with Tianshou on a MuJoCo task, with or without synthetic transitions.

    python examples/tianshou_sac.py --env HalfCheetah-v5 --steps 5000 --utd 10
    python examples/tianshou_sac.py --env HalfCheetah-v5 --steps 5000 --utd 10 --no-synthetic

TensorBoard curves, the refresh log, the evaluations and a picture end up in --logdir.
"""

from __future__ import annotations

import logging

import gymnasium as gym
import numpy as np
import torch
from experiment import FIELDS, Record, parse_args, synther_arguments
from synther_buffers.tianshou import SynthERReplayBuffer
from tianshou.algorithm import SAC
from tianshou.algorithm.algorithm_base import policy_within_training_step
from tianshou.algorithm.modelfree.sac import AutoAlpha, SACPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils import TensorboardLogger
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
from torch.utils.tensorboard import SummaryWriter


def make_sac(env: gym.Env, device: torch.device) -> SAC:
    """SAC with two hidden layers of 256, everywhere the same learning rate."""
    shape, hidden = env.observation_space.shape, [256, 256]
    actor = ContinuousActorProbabilistic(
        preprocess_net=Net(state_shape=shape, hidden_sizes=hidden),
        action_shape=env.action_space.shape,
        unbounded=True,
        conditioned_sigma=True,
    ).to(device)
    critics = [
        ContinuousCritic(
            preprocess_net=Net(state_shape=shape, action_shape=env.action_space.shape, hidden_sizes=hidden, concat=True)
        ).to(device)
        for _ in range(2)
    ]
    adam = AdamOptimizerFactory(lr=3e-4)
    return SAC(
        policy=SACPolicy(actor=actor, action_space=env.action_space),
        policy_optim=adam,
        critic=critics[0],
        critic_optim=adam,
        critic2=critics[1],
        critic2_optim=adam,
        alpha=AutoAlpha(-float(np.prod(env.action_space.shape)), 0.0, adam).to(device),
    )


def main() -> None:
    args = parse_args(__doc__.splitlines()[0], "runs/tianshou_sac")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    np.random.seed(args.seed)  # noqa: NPY002  # Tianshou draws from NumPy's global stream
    torch.manual_seed(args.seed)
    env = gym.make(args.env)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    algorithm = make_sac(env, device)

    buffer = SynthERReplayBuffer(args.steps, **synther_arguments(args))  # the one change
    collector = Collector(algorithm, env, buffer, exploration_noise=True)
    collector.reset(gym_reset_kwargs={"seed": args.seed})
    collector.collect(n_step=args.learning_starts, random=True)

    logger = TensorboardLogger(SummaryWriter(str(args.logdir)), training_interval=1, update_interval=100)

    def act(observation: np.ndarray) -> np.ndarray:
        # The trainer calls this within a training step, where the policy would explore.
        with torch.no_grad(), policy_within_training_step(algorithm.policy, enabled=False):
            action = algorithm.policy(Batch(obs=observation[None], info=Batch())).act[0]
        return algorithm.policy.map_action(action.cpu().numpy())

    def log(figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            scope, figure = name.split("/")
            logger.write(f"{scope}/env_step", step, {figure: value})

    record = Record(args, act, log)
    algorithm.run_training(
        OffPolicyTrainerParams(
            training_collector=collector,
            test_collector=None,  # `record` evaluates, the same way in every example
            max_epochs=1,
            epoch_num_steps=args.steps - args.learning_starts,
            collection_step_num_env_steps=1,
            update_step_num_gradient_steps_per_sample=float(args.utd),
            batch_size=256,
            training_fn=lambda epoch, env_step: record.step(args.learning_starts + env_step, buffer.synthetic),
            logger=logger,
            show_progress=False,
        )
    )
    record.step(args.steps, buffer.synthetic)

    rows = buffer[:]
    real = dict(zip(FIELDS, (rows.obs, rows.act, rows.rew, rows.obs_next), strict=True))
    record.finish(buffer.synthetic, real)


if __name__ == "__main__":
    main()
