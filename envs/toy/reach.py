"""`toy/reach`: a hand in the plane that has to touch a target and stay; no simulator, for tests and first steps in
imitation.

    p' = p + 0.1 a,   r = -|p - target|,   40 control steps, p0 uniform in [-1, 1]^2, target uniform in [-0.8, 0.8]^2
    success: |p - target| < 0.1

Its expert walks straight at the target, with actions a = clip(5 (target - p)).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from difftop.types import ObsSpec
from envs.config import EnvConfig
from envs.suites import Array, Observation, Outcome

CONTROL_STEPS = 40
METRES_PER_ACTION = 0.1
_REACH, _GAIN, _VIEW, _RADIUS = 0.1, 5.0, 1.2, 0.08


class ReachSimulator:
    """The system of the module's docstring; vectors `hand_pos` and `target_pos`, or its picture."""

    action_dim, control_dt_s, episode_steps = 2, METRES_PER_ACTION, CONTROL_STEPS

    def __init__(self, config: EnvConfig) -> None:
        size = config.image_size
        vectors = {"hand_pos": ObsSpec("vector", (2,)), "target_pos": ObsSpec("vector", (2,))}
        self.obs: Mapping[str, ObsSpec] = {"pixels": ObsSpec("image", (3, size, size))} if config.obs == "pixels" else vectors
        self._sparse = config.reward == "sparse"
        self.hand, self.target = np.zeros(2), np.zeros(2)

    def reset(self, seed: int) -> None:
        """Draws p0 and the target."""
        rng = np.random.default_rng(seed)
        self.hand, self.target = rng.uniform(-1, 1, 2), rng.uniform(-0.8, 0.8, 2)

    def step(self, action: Array) -> Outcome:
        """Moves the hand."""
        self.hand = self.hand + METRES_PER_ACTION * action
        distance = float(np.linalg.norm(self.hand - self.target))
        solved = distance < _REACH
        return Outcome(float(solved) if self._sparse else -distance, success=solved)

    def observe(self) -> Observation:
        """Hand and target, or a picture."""
        if "pixels" in self.obs:
            return {"pixels": self.render(*self.obs["pixels"].shape[1:]).transpose(2, 0, 1)}
        return {"hand_pos": self.hand, "target_pos": self.target}

    def render(self, height: int, width: int) -> Array:
        """The hand in white, the target in red."""
        x, y = np.linspace(-_VIEW, _VIEW, width), np.linspace(_VIEW, -_VIEW, height)[:, None]
        image = np.zeros((height, width, 3), np.uint8)
        image[(x - self.target[0]) ** 2 + (y - self.target[1]) ** 2 < _RADIUS**2, 0] = 255
        hand = self.hand.clip(-_VIEW, _VIEW)
        image[(x - hand[0]) ** 2 + (y - hand[1]) ** 2 < (_RADIUS / 2) ** 2] = 255
        return image

    def states(self) -> Array:
        """(p, target)."""
        return np.concatenate([self.hand, self.target])

    def close(self) -> None:
        """Nothing to free."""


class ReachExpert:
    """See the module's docstring."""

    noisy = 2

    def __init__(self, simulator: ReachSimulator) -> None:
        self._simulator = simulator

    def reset(self) -> None:
        """Nothing to forget."""

    def act(self, obs: Observation) -> Array:
        """Towards the target."""
        return np.asarray(_GAIN * (self._simulator.target - self._simulator.hand))
