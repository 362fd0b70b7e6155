"""Push-T, as the package gym-pusht has it: a disc pushes a T into its place on a board of 512 x 512 pixels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from difftop.types import ObsSpec
from envs.config import EnvConfig
from envs.errors import EnvError
from envs.opengl import choose_backend
from envs.suites import Array, Observation, Outcome

CONTROL_STEPS = 300
SIDE = 512.0  # of the board, pixels
SOLVED = 0.95  # of the goal must be covered
CORNERS = np.array([[-60, 0], [60, 0], [60, 30], [15, 30], [15, 120], [-15, 120], [-15, 30], [-60, 30]], np.float64)
CENTRE = np.array([0.0, 45.0])  # of gravity, of the T
KEYPOINTS = np.vstack([CORNERS, CENTRE])  # where no data set says which; as many as the published one's
_CONTROL_DT_S = 0.1


class PushTSimulator:
    """Keys are those of the published data set, see `difftop.data.pusht`.

    Attributes:
        env: gym-pusht's own.
        coverage: share of the goal that the T covers now.
    """

    action_dim, control_dt_s, episode_steps = 2, _CONTROL_DT_S, CONTROL_STEPS

    def __init__(self, config: EnvConfig) -> None:
        """Makes the board.

        Raises:
            EnvError: gym-pusht is missing, or the file's arguments can't be read.
        """
        told = _told(config)
        self.keypoints = np.asarray(told.get("keypoints", KEYPOINTS), np.float64)
        if self.keypoints.ndim != 2 or self.keypoints.shape[1] != 2:
            raise EnvError(f"{config.name}: env.made_with: keypoints have shape {list(self.keypoints.shape)}; must be [K, 2].")
        size = int(told.get("image_size", config.image_size))
        image, vectors = ObsSpec("image", (3, size, size)), {"agent_pos": ObsSpec("vector", (2,))}
        self.obs: Mapping[str, ObsSpec] = {
            "state": {"state": ObsSpec("vector", (5,))},
            "low_dim": vectors | {"keypoint": ObsSpec("vector", (self.keypoints.size,))},
            "image": vectors | {"img_image": image},
            "pixels": {"pixels": image},
        }[config.obs]
        kind = "pixels" if config.obs in ("image", "pixels") else "state"
        self.env: Any = make_board(kind, observation_width=size, observation_height=size)
        self._sparse, self.coverage = config.reward == "sparse", 0.0
        self._seen: Array = np.zeros(0)

    def reset(self, seed: int) -> None:
        """Draws disc and T, as gym-pusht does."""
        self._seen, _ = self.env.reset(seed=seed)
        self.coverage = 0.0

    def step(self, action: Array) -> Outcome:
        """Moves the disc towards a place on the board, -1 and 1 being its edges, for 0.1 s."""
        self._seen, reward, _, _, info = self.env.step((action + 1) * SIDE / 2)
        self.coverage = float(info["coverage"])
        solved = self.coverage > SOLVED
        return Outcome(float(solved) if self._sparse else float(reward), success=solved)

    def observe(self) -> Observation:
        """Positions in pixels, x to the right and y down; angles in rad."""
        state, found = self.states(), {}
        for key in self.obs:
            if key in ("img_image", "pixels"):
                found[key] = np.asarray(self._seen).transpose(2, 0, 1)
            elif key == "state":
                found[key] = np.append(state[[0, 1, 4, 5]], state[6] % (2 * np.pi))
            else:
                found[key] = state[:2] if key == "agent_pos" else placed(state[4:], self.keypoints).ravel()
        return found

    def states(self) -> Array:
        """Disc's position and velocity, T's position and angle `[7]`: all that the next step depends on but for contacts."""
        disc, block = self.env.agent, self.env.block
        return np.array([*disc.position, *disc.velocity, *block.position, block.angle])

    def render(self, height: int, width: int) -> Array:
        """The board, with a cross where the disc is sent to."""
        self.env.visualization_height, self.env.visualization_width = height, width
        return np.asarray(self.env.render(), np.uint8)

    def close(self) -> None:
        """Frees nothing that Python doesn't; closing twice is fine."""
        self.env.close()


def placed(pose: Array, points: Array) -> Array:
    """Points `[K, 2]` of the T's own frame on the board, the T being at `pose` (x, y, angle)."""
    c, s = np.cos(pose[2]), np.sin(pose[2])
    moved: Array = points @ np.array([[c, s], [-s, c]]) + pose[:2]
    return moved


def make_board(kind: str, **options: Any) -> Any:
    """gym-pusht's environment without wrappers; raises `EnvError` where the package is missing."""
    choose_backend()  # gym-pusht looks at it when it is imported
    try:
        from gym_pusht.envs.pusht import PushTEnv
    except ModuleNotFoundError as error:
        install = "run `make sims`, or see docs/install.md"
        raise EnvError(f"pusht tasks need the package gym-pusht ({error}): {install}.") from error
    return PushTEnv(obs_type=kind, render_mode="rgb_array", **options)


def _told(config: EnvConfig) -> Mapping[str, Any]:
    """The arguments that a file of demonstrations names."""
    try:
        told: Mapping[str, Any] = json.loads(config.made_with or "{}")
    except ValueError as error:
        raise EnvError(f"{config.name}: env.made_with={config.made_with!r} is not JSON ({error}).") from error
    return told
