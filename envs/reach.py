"""`toy/reach`: a hand in the plane that has to touch a target and stay; no simulator, for tests and first steps in imitation.

    p' = p + 0.1 a,   episode_steps 40, p0 uniform in [-1, 1]^2, target uniform in [-0.8, 0.8]^2,   success: |p - target| < 0.1

Its expert walks straight at the target, with actions a = clip(5 (target - p)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from difftop.types import TaskSpec
from envs.errors import EnvError
from envs.keyed import Array, Observation, TaskStep

if TYPE_CHECKING:
    from envs.tasks import Expert, TaskConfig

TASKS: dict[str, int] = {"reach": 40}  # to actions of an episode
METRES_PER_ACTION = 0.1
_REACH, _GAIN, _VIEW, _RADIUS = 0.1, 5.0, 1.2, 0.08


class ReachSimulator:
    """The system of the module's docstring."""

    def __init__(self, config: TaskConfig) -> None:
        if config.obs != "low_dim":
            raise EnvError(f"toy/reach: env.obs={config.obs} is not offered; take low_dim.")
        if config.control:
            raise EnvError(f"toy/reach: env.control={config.control} is not offered; leave it out.")
        shapes = {"hand_pos": (2,), "target_pos": (2,)}
        self.spec = TaskSpec("toy/reach", shapes, 2, config.episode_steps or TASKS["reach"], METRES_PER_ACTION)
        self._hand, self._target = np.zeros(2), np.zeros(2)

    def reset(self, seed: int) -> Observation:
        """Draws p0 and the target."""
        rng = np.random.default_rng(seed)
        self._hand, self._target = rng.uniform(-1, 1, 2), rng.uniform(-0.8, 0.8, 2)
        return self._observe()

    def step(self, action: Array) -> tuple[Observation, TaskStep]:
        """Moves the hand."""
        self._hand = self._hand + METRES_PER_ACTION * action
        distance = float(np.linalg.norm(self._hand - self._target))
        return self._observe(), TaskStep(-distance, distance < _REACH)

    def render(self, height: int, width: int) -> Array:
        """The hand in white, the target in red."""
        x, y = np.linspace(-_VIEW, _VIEW, width), np.linspace(_VIEW, -_VIEW, height)[:, None]
        image = np.zeros((height, width, 3), np.uint8)
        image[(x - self._target[0]) ** 2 + (y - self._target[1]) ** 2 < _RADIUS**2, 0] = 255
        hand = self._hand.clip(-_VIEW, _VIEW)
        image[(x - hand[0]) ** 2 + (y - hand[1]) ** 2 < (_RADIUS / 2) ** 2] = 255
        return image

    def states(self) -> Array:
        """(p, target)."""
        return np.concatenate([self._hand, self._target])

    def close(self) -> None:
        """Nothing to free."""

    def _observe(self) -> Observation:
        return {"hand_pos": self._hand.copy(), "target_pos": self._target.copy()}


class ReachExpert:
    """See the module's docstring."""

    noisy = 2

    def reset(self) -> None:
        """Nothing to forget."""

    def act(self, obs: Observation) -> Array:
        """Towards the target."""
        return np.asarray(_GAIN * (obs["target_pos"] - obs["hand_pos"]))


def load(task: str, config: TaskConfig) -> ReachSimulator:
    """The simulator."""
    return ReachSimulator(config)


def expert(task: str, simulator: Any, rng: np.random.Generator) -> Expert:
    """The expert."""
    return ReachExpert()


def version() -> str:
    """Of these dynamics."""
    return "1.0"


def env_args(task: str, config: TaskConfig) -> dict[str, Any]:
    """What a demonstration file says of its environment."""
    return {"env_name": task, "type": 2, "env_version": version(), "env_kwargs": {"suite": "toy", "obs": config.obs}}
