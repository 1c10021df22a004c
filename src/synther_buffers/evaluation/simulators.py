"""Simulators: compute the true outcome of an observation and an action, to evaluate synthetic rows."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np

#: A velocity above every velocity limit in an observation.
_FAST = 1e3
#: Share of a velocity limit up to which a velocity is used.
_BELIEVED = 0.95


@runtime_checkable
class Simulator(Protocol):
    """One step from any observation: an environment or an exact model of it, any object with this method."""

    def step(self, observation: Any, action: Any) -> tuple[Any, Any, Any]:
        """Take one step from each row.

        Args:
            observation: ``[N, *shape]`` array in the stored units; a (nested) dict of them for a Dict space.
            action: ``[N, *shape]`` array as it is stored.

        Returns:
            ``(next_observation, reward, terminated)``: like `observation`, ``[N]`` float and ``[N]`` bool. NaN as the
            reward marks a row that cannot be simulated; it is left out.
        """
        ...


class MujocoSimulator:
    """Steps a Gymnasium MuJoCo environment from the states given by its observations.

    An environment fits if its observation begins with its positions and velocities (according to
    ``observation_structure``): HalfCheetah, Hopper, Walker2d, Swimmer, InvertedPendulum, Ant, Humanoid and
    HumanoidStandup, version 5. The positions that are missing from the observation (x, and y in space) are set to the
    initial ones, because neither dynamics nor rewards depend on them.

    Rows with a velocity at the limit to which observations are clipped (10 in Hopper and Walker2d) cannot be simulated,
    because the velocity itself is not known. Rows within 5 % of the limit are not simulated either, because a noisy
    synthetic velocity there may stand for the limit. In the replay of a learning agent that can be every second row
    (Walker2d). States from which MuJoCo becomes unstable cannot be simulated either. The result of all these is NaN.

    Other real rows are reproduced to about 1e-12 of a column's standard deviation if stored as float64, and 1e-5 as
    float32 (1e-5 and 2e-4 at worst in Ant, Humanoid and HumanoidStandup). In Ant and Humanoid the reward is an
    approximation, to less than 1 % of its standard deviation in most rows, because the real one uses positions that
    MuJoCo computed before the end of the step.

    Args:
        env: the environment's id, or an environment. It is used without its wrappers, so rows must hold its own
            observations; do not use it elsewhere at the same time.
        scaled_actions: actions lie in [-1, 1] and are scaled to the range of the action space, as Stable-Baselines3
            stores them. No difference if that range is [-1, 1].

    Raises:
        TypeError: not a Gymnasium MuJoCo environment.
        ValueError: its observation does not determine the state.
    """

    def __init__(self, env: str | gymnasium.Env, *, scaled_actions: bool = False) -> None:
        raw: Any = (gymnasium.make(env) if isinstance(env, str) else env).unwrapped
        if not all(hasattr(raw, name) for name in ("set_state", "model", "data", "init_qpos")):
            raise TypeError(
                f"env is {env!r}, which is no MuJoCo environment of Gymnasium (it has no set_state); "
                "write a Simulator for it: an object with step(observation, action)."
            )
        self._env = raw
        self._scaled_actions = scaled_actions
        structure = getattr(raw, "observation_structure", {})
        self._skipped = structure.get("skipped_qpos", 0)
        self._num_positions = structure.get("qpos", -1)
        self._num_velocities = raw.model.nv
        self._limits = self._velocity_limits(env)

    def step(self, observation: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take one step from each row; about 0.1 to 0.7 ms each.

        Args:
            observation: ``[N, size]``.
            action: ``[N, size]``.

        Returns:
            Next observations ``[N, size]`` float64, rewards ``[N]`` float64 and terminal flags ``[N]`` bool; NaN and
            False for rows that cannot be simulated.

        Raises:
            ValueError: a shape different from the environment's.
        """
        import mujoco

        observation, action = np.asarray(observation, np.float64), np.asarray(action)
        for name, given, space in (
            ("observation", observation, self._env.observation_space),
            ("action", action, self._env.action_space),
        ):
            if given.shape != (len(observation), *space.shape):
                raise ValueError(
                    f"{name} has shape {given.shape}; the environment wants {(len(observation), *space.shape)}."
                )
        if self._scaled_actions:
            low, high = self._env.action_space.low, self._env.action_space.high
            action = low + (action + 1.0) * 0.5 * (high - low)
        following = np.full(observation.shape, np.nan)
        reward = np.full(len(observation), np.nan)
        terminated = np.zeros(len(observation), np.bool_)
        velocity = observation[:, self._num_positions :][:, : self._num_velocities]
        known = np.isfinite(observation).all(1) & (np.abs(velocity) < self._limits).all(1)
        unstable = [
            int(kind)
            for kind in (
                mujoco.mjtWarning.mjWARN_BADQPOS,
                mujoco.mjtWarning.mjWARN_BADQVEL,
                mujoco.mjtWarning.mjWARN_BADQACC,
            )
        ]
        # Otherwise MuJoCo writes each unstable row to a log file in the working directory.
        told = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(lambda message: None)
        try:
            for row in np.flatnonzero(known):
                self._set_state(observation[row])
                result = self._env.step(action[row])
                if not any(self._env.data.warning[kind].number for kind in unstable):
                    following[row], reward[row], terminated[row] = result[:3]
        finally:
            mujoco.set_mju_user_warning(told)
        return following, reward, terminated

    def _set_state(self, observation: np.ndarray) -> None:
        import mujoco

        # Otherwise the solver starts from the last row's forces, and a row's result depends on that row.
        mujoco.mj_resetData(self._env.model, self._env.data)
        position = self._env.init_qpos.copy()
        position[self._skipped :] = observation[: self._num_positions]
        self._env.set_state(position, observation[self._num_positions :][: self._num_velocities])

    def _velocity_limits(self, env: str | gymnasium.Env) -> np.ndarray:
        """Largest usable magnitude of each velocity, ``[nv]``: the clipping limit, detected with a large velocity."""
        raw = self._env
        fast = np.full(raw.observation_space.shape, 0.0)
        end = self._num_positions + self._num_velocities
        if self._num_positions + self._skipped == raw.model.nq and fast.ndim == 1 and len(fast) >= end:
            fast[: self._num_positions] = raw.init_qpos[self._skipped :]
            fast[self._num_positions : end] = _FAST
            self._set_state(fast)
            seen = np.asarray(raw._get_obs(), np.float64)
            if seen.shape == fast.shape and np.array_equal(seen[: self._num_positions], fast[: self._num_positions]):
                limits = seen[self._num_positions : end]
                return np.where(limits < _FAST, _BELIEVED * limits, np.inf)
        raise ValueError(
            f"env is {env!r}, whose observation does not begin with its positions and velocities, so that no state "
            "can be told from it; write a Simulator for it: an object with step(observation, action)."
        )
