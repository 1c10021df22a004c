"""A cart that swings its pole up: continuous force, smooth reward, episodes of one length."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

GRAVITY, CART_MASS, POLE_MASS, HALF_LENGTH = 9.8, 1.0, 0.1, 0.5
FORCE, TIME_STEP, TRACK = 10.0, 0.02, 2.4
EPISODE_STEPS = 250


class CartPoleSwingUp(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """The pole hangs down at the start; the reward is how upright it is and how near the cart is to the middle.

    Equations of motion of Barto, Sutton and Anderson (1983) without friction, semi-implicit Euler steps of 0.02 s.
    Observation ``[5]``: position / m, cos and sin of the pole's angle (0 is upright), velocity / (m/s), angular
    velocity / (rad/s). Action ``[1]``: force, in units of 10 N. Reward: ``(1 + cos angle) / 2 * (1 - (position / 2.4)
    ** 2)``, between 0 and 1. The cart stops at the ends of the track; there are no terminal states.
    """

    def __init__(self) -> None:
        high = np.array([TRACK, 1.0, 1.0, np.inf, np.inf], np.float32)
        self.observation_space = spaces.Box(-high, high)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._position = self._angle = self._velocity = self._spin = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._position, angle, self._velocity, self._spin = self.np_random.uniform(-0.05, 0.05, 4)
        self._angle = np.pi + angle
        return self._observation(), {}

    def step(self, action: NDArray[np.float32]):
        force = FORCE * float(np.clip(np.asarray(action).reshape(-1)[0], -1.0, 1.0))
        cos, sin = np.cos(self._angle), np.sin(self._angle)
        mass = CART_MASS + POLE_MASS
        push = (force + POLE_MASS * HALF_LENGTH * self._spin**2 * sin) / mass
        turning = (GRAVITY * sin - cos * push) / (HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * cos**2 / mass))
        self._velocity += TIME_STEP * (push - POLE_MASS * HALF_LENGTH * turning * cos / mass)
        self._spin += TIME_STEP * turning
        self._position += TIME_STEP * self._velocity
        self._angle += TIME_STEP * self._spin
        if abs(self._position) > TRACK:
            self._position, self._velocity = float(np.clip(self._position, -TRACK, TRACK)), 0.0
        reward = 0.5 * (1.0 + np.cos(self._angle)) * (1.0 - (self._position / TRACK) ** 2)
        return self._observation(), float(reward), False, False, {}

    def set_observation(self, observation: NDArray[Any]) -> None:
        """Put the environment into the state that an observation ``[5]`` tells."""
        self._position, cos, sin, self._velocity, self._spin = (float(value) for value in observation)
        self._angle = float(np.arctan2(sin, cos))

    def _observation(self) -> NDArray[np.float32]:
        values = (self._position, np.cos(self._angle), np.sin(self._angle), self._velocity, self._spin)
        return np.array(values, np.float32)
