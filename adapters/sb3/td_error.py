"""The temporal-difference error of an algorithm's critic on rows of its replay buffer, for the guidance `TDError`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from ..transitions import Transitions
from .of_algorithm import OfAlgorithm

#: Rows that the critic sees at a time.
_ROWS_AT_ONCE = 4_096


def td_error_of(model: BaseAlgorithm) -> Callable[[Transitions], Tensor]:
    """What `SyntheticReplay.bind_td_error` takes, for an algorithm of SB3, sb3-contrib or sbx.

    The error of a row is the mean over the critics of the absolute difference from the target of the algorithm's own
    update (for quantile critics, of their means; in TD3 without the noise on the target's action). It refers to the
    algorithm weakly.

    Raises:
        TypeError: an algorithm whose critic is not known; bind a function of your own.
    """
    return CriticError(model)


class CriticError(OfAlgorithm):
    """See `td_error_of`."""

    what = "TD error"

    def __init__(self, model: BaseAlgorithm) -> None:
        known = any(hasattr(model, name) for name in ("critic", "q_net", "quantile_net"))
        if not known and not _is_known_of_sbx(model):
            raise TypeError(
                f"the TD error of {type(model).__module__}.{type(model).__name__} is not known; pass a function from "
                "rows to errors to synthetic.bind_td_error."
            )
        super().__init__(model)

    def __call__(self, rows: Transitions) -> Tensor:
        """The errors ``[n]`` of rows as the replay buffer stores them.

        Raises:
            RuntimeError: the algorithm is gone.
        """
        algorithm = self.algorithm
        error = _error_of_sbx if hasattr(algorithm.policy, "qf_state") else _error
        training = algorithm.policy.training
        algorithm.policy.set_training_mode(False)
        try:
            with torch.no_grad():
                parts = [
                    error(algorithm, algorithm.replay_buffer.as_batch(rows[start : start + _ROWS_AT_ONCE], algorithm))
                    for start in range(0, len(rows), _ROWS_AT_ONCE)
                ]
        finally:
            algorithm.policy.set_training_mode(training)
        return torch.cat(parts)


def _error(algorithm: Any, batch: Any) -> Tensor:
    """For the algorithms of SB3 and sb3-contrib."""
    discounts = algorithm.gamma if getattr(batch, "discounts", None) is None else batch.discounts.reshape(-1, 1)
    follows = (1 - batch.dones) * discounts
    for network in ("q_net", "quantile_net"):
        if hasattr(algorithm, network):
            values = getattr(algorithm, network)(batch.observations)
            target = getattr(algorithm, f"{network}_target")(batch.next_observations)
            if network == "quantile_net":  # [n, quantiles, actions]
                values, target = values.mean(1), target.mean(1)
            wanted = batch.rewards + follows * target.max(1, keepdim=True).values
            return (values.gather(1, batch.actions.long()) - wanted).abs()[:, 0].cpu()
    entropy: Any = 0.0
    if hasattr(algorithm.actor, "action_log_prob"):
        action, log_prob = algorithm.actor.action_log_prob(batch.next_observations)
        entropy = _entropy_coefficient(algorithm) * log_prob.reshape(-1, 1)
    else:
        action = algorithm.actor_target(batch.next_observations)
    # CrossQ has no target network.
    critic = getattr(algorithm, "critic_target", algorithm.critic)
    target = critic(batch.next_observations, action)
    if isinstance(target, Tensor):  # TQC: of the quantiles of all critics, the largest are left out
        kept = target[0].numel() - algorithm.top_quantiles_to_drop_per_net * target.shape[1]
        target = target.flatten(1).sort().values[:, :kept].mean(1, keepdim=True)
    else:
        target = torch.cat(tuple(target), dim=1).min(1, keepdim=True).values
    wanted = batch.rewards + follows * (target - entropy)
    return (_values(algorithm.critic, batch.observations, batch.actions) - wanted).abs().mean(1).cpu()


def _values(critic: Any, observations: Any, actions: Tensor) -> Tensor:
    """The answer of each critic, ``[n, critics]``."""
    found = critic(observations, actions)
    if isinstance(found, Tensor):  # TQC: [n, critics, quantiles]
        return found.mean(2)
    return torch.cat(tuple(found), dim=1)


def _entropy_coefficient(algorithm: Any) -> Any:
    if getattr(algorithm, "log_ent_coef", None) is not None:
        return algorithm.log_ent_coef.detach().exp()
    return algorithm.ent_coef_tensor


def _is_known_of_sbx(algorithm: Any) -> bool:
    """SAC, TD3 and DDPG of sbx; its other algorithms have critics of other shapes."""
    policy = getattr(algorithm, "policy", None)
    state = getattr(policy, "qf_state", None)
    return hasattr(policy, "actor_state") and hasattr(state, "target_params") and not hasattr(state, "batch_stats")


def _flat(algorithm: Any, observations: Any) -> NDArray[Any]:
    """Observations as sbx's networks take them: those of a Dict space side by side."""
    if isinstance(observations, dict):
        return np.concatenate([observations[key].numpy() for key in algorithm.observation_space], axis=1)
    return observations.numpy()


def _error_of_sbx(algorithm: Any, batch: Any) -> Tensor:
    state, actor = algorithm.policy.qf_state, algorithm.policy.actor_state
    observations, next_observations = (_flat(algorithm, part) for part in (batch.observations, batch.next_observations))
    entropy: Any = 0.0
    if hasattr(algorithm, "ent_coef_state"):
        drawn = actor.apply_fn(actor.params, next_observations)
        # The key is read and not replaced, so the algorithm draws the same numbers afterwards.
        action = drawn.sample(seed=algorithm.key)
        log_prob = np.asarray(drawn.log_prob(action)).reshape(-1, 1)
        entropy = float(algorithm.ent_coef_state.apply_fn({"params": algorithm.ent_coef_state.params})) * log_prob
    else:
        action = actor.apply_fn(actor.target_params, next_observations)
    keys = {"dropout": algorithm.key}
    target = np.asarray(state.apply_fn(state.target_params, next_observations, action, rngs=keys))
    values = np.asarray(state.apply_fn(state.params, observations, np.asarray(batch.actions), rngs=keys))
    discounts = getattr(batch, "discounts", None)
    follows = (1 - batch.dones.numpy()) * (algorithm.gamma if discounts is None else discounts.numpy().reshape(-1, 1))
    wanted = batch.rewards.numpy() + follows * (target.min(0) - entropy)
    return torch.from_numpy(np.abs(values - wanted).mean(0)[:, 0].astype(np.float32))
