"""`toy/point-mass`: a point in the plane that a bounded force must bring to the origin.

Small, fast and without a simulator, with an optimum that is known: for testing agents and planners.

    v' = 0.8 v + 0.4 a,   p' = p + 0.25 v',   r = 1 - |p'|^2 - 0.1 |a|^2,   25 control steps, p0 uniform in [-1, 1]^2, v0 = 0
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from difftop.types import ObsSpec
from envs.config import EnvConfig
from envs.suites import Array, Observation, Outcome

CONTROL_STEPS = 25

_KEEP, _PUSH, _MOVE, _ACTION_COST = 0.8, 0.4, 0.25, 0.1
_VIEW = 1.5  # half the side of the square that is drawn
_RADIUS = 0.15


class PointMassSimulator:
    """The system of the module's docstring; vectors `position` and `velocity`, or its picture."""

    action_dim, control_dt_s, episode_steps = 2, _MOVE, CONTROL_STEPS

    def __init__(self, config: EnvConfig) -> None:
        size = config.image_size
        vectors = {"position": ObsSpec("vector", (2,)), "velocity": ObsSpec("vector", (2,))}
        self.obs: Mapping[str, ObsSpec] = {"pixels": ObsSpec("image", (3, size, size))} if config.obs == "pixels" else vectors
        self._position, self._velocity = np.zeros(2), np.zeros(2)

    def reset(self, seed: int) -> None:
        """Draws p0."""
        self._position = np.random.default_rng(seed).uniform(-1, 1, 2)
        self._velocity = np.zeros(2)

    def step(self, action: Array) -> Outcome:
        """Moves the point; nothing ends an episode."""
        self._velocity = _KEEP * self._velocity + _PUSH * action
        self._position = self._position + _MOVE * self._velocity
        reward = 1 - self._position @ self._position - _ACTION_COST * action @ action
        return Outcome(float(reward))

    def observe(self) -> Observation:
        """(p, v), or a picture."""
        if "pixels" in self.obs:
            return {"pixels": self.render(*self.obs["pixels"].shape[1:]).transpose(2, 0, 1)}
        return {"position": self._position, "velocity": self._velocity}

    def render(self, height: int, width: int) -> Array:
        """A white disc at p (held at the edge where p is outside), the origin's axes in red."""
        x, y = np.linspace(-_VIEW, _VIEW, width), np.linspace(_VIEW, -_VIEW, height)[:, None]
        position = self._position.clip(-_VIEW, _VIEW)
        image = np.zeros((height, width, 3), np.uint8)
        image[(np.abs(x) < _VIEW / width) | (np.abs(y) < _VIEW / height), 0] = 255
        image[(x - position[0]) ** 2 + (y - position[1]) ** 2 < _RADIUS**2] = 255
        return image

    def close(self) -> None:
        """Nothing to free."""


def optimal_return(state: Array, action_repeat: int = 1, control_steps: int = CONTROL_STEPS) -> tuple[float, Array]:
    """Largest return that is possible from `state`, and the actions that reach it.

    Positions are affine in the actions, so that the problem is a convex quadratic program in a box, the same for both axes:

        min over u in [-1, 1]^n   |p_free + G M u|^2 + 0.1 |M u|^2,   M repeats each of the n actions

    Exact coordinate descent solves it: each action in turn goes to its minimum, clipped, until none moves.

    Args:
        state: (p, v) `[4]`.
        action_repeat: control steps per action.
        control_steps: control steps that are left.
    Returns:
        The return, and actions `[ceil(control_steps / action_repeat), 2]`.
    """
    steps = np.arange(control_steps)
    gains = _MOVE * np.cumsum(_KEEP**steps)  # of a velocity on the positions that follow it
    lag = steps[:, None] - steps
    response = np.where(lag >= 0, _PUSH * gains[np.maximum(lag, 0)], 0.0)
    hold = np.equal(steps[:, None] // action_repeat, np.arange(-(-control_steps // action_repeat))).astype(float)
    free = state[:2] + np.outer(_KEEP * gains, state[2:])  # [T, 2], positions without actions
    quadratic = hold.T @ (response.T @ response + _ACTION_COST * np.eye(control_steps)) @ hold
    linear = hold.T @ response.T @ free
    actions = np.zeros_like(linear)
    moved = 1.0
    while moved > 1e-11:
        moved = 0.0
        for i, row in enumerate(quadratic):
            best = (actions[i] - (row @ actions + linear[i]) / row[i]).clip(-1, 1)
            moved = max(moved, float(np.abs(best - actions[i]).max()))
            actions[i] = best
    held = hold @ actions
    cost = np.square(free + response @ held).sum() + _ACTION_COST * np.square(held).sum()
    return float(control_steps - cost), actions
