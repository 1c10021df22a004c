"""SAC with TorchRL on a MuJoCo task, with or without synthetic transitions.

    python examples/torchrl_sac.py --env HalfCheetah-v5 --steps 5000 --utd 10
    python examples/torchrl_sac.py --env HalfCheetah-v5 --steps 5000 --utd 10 --no-synthetic

Real and synthetic rows, nets and batches live on the GPU if there is one: no batch crosses the bus. TensorBoard curves,
the refresh log, the evaluations and a picture end up in --logdir.
"""

from __future__ import annotations

import logging

import gymnasium as gym
import numpy as np
import torch
from experiment import Record, parse_args, synther_arguments
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
from torchrl.record.loggers.tensorboard import TensorboardLogger


def make_sac(env: TransformedEnv, device: torch.device) -> tuple[ProbabilisticActor, SACLoss]:
    """SAC with two hidden layers of 256."""
    obs_dim, action_dim = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    net = nn.Sequential(
        MLP(obs_dim, 2 * action_dim, num_cells=[256, 256], activation_class=nn.ReLU, device=device),
        NormalParamExtractor(scale_mapping="biased_softplus_1.0", scale_lb=1e-4),
    )
    actor = ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=env.action_spec_unbatched.to(device),
        distribution_class=TanhNormal,
        distribution_kwargs={"low": env.action_spec.space.low[0].item(), "high": env.action_spec.space.high[0].item()},
        default_interaction_type=ExplorationType.RANDOM,
    )
    critic = ValueOperator(
        MLP(obs_dim + action_dim, 1, num_cells=[256, 256], activation_class=nn.ReLU, device=device),
        in_keys=["action", "observation"],
    )
    loss = SACLoss(actor, critic, num_qvalue_nets=2, loss_function="l2", delay_actor=False, delay_qvalue=True)
    loss.make_value_estimator(gamma=0.99)
    return actor, loss.to(device)


def main() -> None:
    args = parse_args(__doc__.splitlines()[0], "runs/torchrl_sac")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002  # whatever else draws from it
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    env = TransformedEnv(GymWrapper(gym.make(args.env)), DoubleToFloat())
    env.set_seed(args.seed)
    actor, loss = make_sac(env, device)
    target = SoftUpdate(loss, tau=0.005)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-4)

    buffer = TensorDictReplayBuffer(
        storage=SynthERStorage(args.steps, device=device, **synther_arguments(args)),  # the one change
        batch_size=256,
    )
    collector = Collector(
        env,
        actor,
        frames_per_batch=1,
        total_frames=args.steps,
        init_random_frames=args.learning_starts,
        policy_device=device,
        storing_device=device,
    )
    logger = TensorboardLogger("", log_dir=str(args.logdir))

    def act(observation: np.ndarray) -> np.ndarray:
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            td = TensorDict({"observation": torch.as_tensor(observation, dtype=torch.float32, device=device)})
            return actor(td)["action"].cpu().numpy()

    def log(figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            logger.log_scalar(name, value, step=step)

    record = Record(args, act, log)
    for step, rows in enumerate(collector, start=1):
        buffer.extend(rows)
        if step > args.learning_starts:
            for _ in range(args.utd):
                losses = loss(buffer.sample())
                total = sum(losses[name] for name in ("loss_actor", "loss_qvalue", "loss_alpha"))
                optimizer.zero_grad(set_to_none=True)
                total.backward()
                optimizer.step()
                target.step()
            if step % 100 == 0:
                log({f"train/{name}": losses[name].item() for name in ("loss_actor", "loss_qvalue", "alpha")}, step)
        record.step(step, buffer.storage.synthetic)
    collector.shutdown()

    rows = buffer[:].cpu()
    real = {
        "observation": rows["observation"].numpy(),
        "action": rows["action"].numpy(),
        "reward": rows["next", "reward"].numpy(),
        "next_observation": rows["next", "observation"].numpy(),
    }
    record.finish(buffer.storage.synthetic, real)


if __name__ == "__main__":
    main()
