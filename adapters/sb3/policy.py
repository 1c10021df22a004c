"""What an algorithm's policy does now, for rows with the policy's actions."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from ..replay.policy_rows import Policy
from .of_algorithm import OfAlgorithm

#: Random streams of sbx's policies, which are no global ones.
_KEYS = ("key", "noise_key")


def policy_of(model: BaseAlgorithm) -> Policy:
    """The stochastic policy of an algorithm of SB3, sb3-contrib or sbx, for `SyntheticReplay.bind_policy`.

    It takes observations and returns actions as the replay buffer stores them: observations are normalised by the
    algorithm's `VecNormalize`, if it has one, and actions stay scaled to [-1, 1]. It refers to the algorithm weakly,
    and leaves its random streams and modes as they are.
    """
    return AlgorithmPolicy(model)


class AlgorithmPolicy(OfAlgorithm):
    """See `policy_of`."""

    what = "policy"

    def __call__(self, observation: Tensor | dict[str, Tensor]) -> Any:
        """The actions for observations ``[n, *shape]``.

        Raises:
            RuntimeError: the algorithm is gone.
        """
        algorithm = self.algorithm
        policy: Any = algorithm.policy
        values: Any = (
            {name: value.numpy() for name, value in observation.items()}
            if isinstance(observation, dict)
            else observation.numpy()
        )
        normalizer = algorithm.get_vec_normalize_env()
        if normalizer is not None:
            values = normalizer.normalize_obs(values)
        if hasattr(policy, "prepare_obs"):  # of sbx, which inherits the methods for tensors and cannot use them
            keys = {name: getattr(policy, name) for name in _KEYS if hasattr(policy, name)}
            try:
                return policy._predict(policy.prepare_obs(values)[0], deterministic=False)
            finally:
                for name, key in keys.items():
                    setattr(policy, name, key)
        training = policy.training
        policy.set_training_mode(False)
        try:
            return policy._predict(policy.obs_to_tensor(values)[0], deterministic=False)
        finally:
            policy.set_training_mode(training)
