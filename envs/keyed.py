"""Tasks whose observations are a dictionary: manipulation suites, for imitation.

A simulator only moves its state, looks at it and draws it. Checks, seeding, time limit and errors are here, once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from difftop.types import TaskSpec
from envs.base import ACTION_TOLERANCE
from envs.errors import EnvError

Array = NDArray[Any]
Observation = dict[str, Array]


class TaskStep(NamedTuple):
    """Outcome of one action.

    Attributes:
        reward: the suite's own.
        success: whether the task is solved now.
        over: the simulator can't go on; the time limit is not its business.
        contact_force_n: largest contact force on the robot's hand during the step, N; NaN where the suite doesn't measure it.
    """

    reward: float
    success: bool
    over: bool = False
    contact_force_n: float = float("nan")


class KeyedSimulator(Protocol):
    """What a simulator offers. It may raise anything; `KeyedEnv` names the environment and the step."""

    spec: TaskSpec

    def reset(self, seed: int) -> Observation:
        """Begins the episode that `seed` determines, whatever came before; its first observation."""

    def step(self, action: Array) -> tuple[Observation, TaskStep]:
        """One action `[A]` in [-1, 1], float64. Observations as `spec.shapes` says: float, or uint8 images, channels first."""

    def render(self, height: int, width: int) -> Array:
        """Camera image for videos `[height, width, 3]`, uint8."""

    def close(self) -> None:
        """Frees memory and graphics contexts; closing twice is fine."""


class KeyedEnv(gymnasium.Env[Observation, Array]):
    """Gymnasium environment over a `KeyedSimulator`.

    `reset(seed=k)` makes the episode a function of k and of the actions alone. An episode ends by the time limit only
    (`truncated` after `episode_steps`), unless the simulator can't go on (`terminated`): success doesn't end it, since the
    evaluation also asks whether the task is still solved at the end. `info` has `success` (0 or 1) and, where the suite
    measures it, `contact_force_n`.

    Attributes:
        task_spec: see `TaskSpec`.
    """

    def __init__(self, simulator: KeyedSimulator, video_size: int = 256, render_mode: str | None = "rgb_array") -> None:
        if render_mode not in (None, "rgb_array"):
            raise EnvError(f"{simulator.spec.name}: render_mode={render_mode!r} is not offered; take 'rgb_array' or None.")
        spec = self.task_spec = simulator.spec
        self.render_mode = render_mode
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 1 / spec.control_dt_s}
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)
        largest = float(np.finfo(np.float32).max)
        self.observation_space: gymnasium.spaces.Dict = gymnasium.spaces.Dict(  # type: ignore[assignment]
            {
                key: gymnasium.spaces.Box(0, 255, shape, np.uint8)
                if is_image(shape)
                else gymnasium.spaces.Box(-largest, largest, shape, np.float32)
                for key, shape in spec.shapes.items()
            }
        )
        self._simulator: KeyedSimulator | None = simulator
        self._video_size, self._steps, self._seed, self._running = video_size, 0, -1, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Begins an episode; `options` are ignored."""
        super().reset(seed=seed)
        self._running, self._steps = False, 0
        self._seed = int(self.np_random.integers(2**31)) if seed is None else int(seed)
        with self._named_errors():
            obs = self._checked(self._open().reset(self._seed))
        self._running = True
        return obs, {}

    def step(self, action: Array) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One action `[A]` in [-1, 1]."""
        simulator, spec = self._open(), self.task_spec
        if not self._running:
            raise EnvError(f"{spec.name}: step() before reset(), or after the end of the episode; call reset() first.")
        control = np.asarray(action, np.float64)
        self._running, self._steps = False, self._steps + 1  # an error below ends the episode
        if control.shape != (spec.action_dim,) or not (np.abs(control) <= 1 + ACTION_TOLERANCE).all():
            raise EnvError(
                f"{self._where()}: the action {control.tolist()} is not in [-1, 1]^{spec.action_dim}; clip it where it is made."
            )
        with self._named_errors():
            seen, outcome = simulator.step(control.clip(-1, 1))
            obs = self._checked(seen)
        if not math.isfinite(outcome.reward):
            raise EnvError(f"{self._where()}: the reward is {outcome.reward}.")
        info: dict[str, Any] = {"success": float(outcome.success)}
        if not math.isnan(outcome.contact_force_n):
            info["contact_force_n"] = float(outcome.contact_force_n)
        truncated = self._steps >= spec.episode_steps
        self._running = not (outcome.over or truncated)
        return obs, float(outcome.reward), bool(outcome.over), truncated, info

    def render(self) -> Array | None:
        """The current camera image `[video_size, video_size, 3]`, uint8; None if made with `render_mode=None`."""
        if self.render_mode is None:
            return None
        with self._named_errors():
            return self._open().render(self._video_size, self._video_size)

    def close(self) -> None:
        """Frees the simulator; closing twice is fine."""
        if self._simulator is not None:
            self._simulator.close()
        self._simulator, self._running = None, False

    def _open(self) -> KeyedSimulator:
        if self._simulator is None:
            raise EnvError(f"{self.task_spec.name}: the environment is closed; make a new one.")
        return self._simulator

    def _checked(self, seen: Observation) -> Observation:
        """Observations as the spec promises them; raises where one is missing, misshapen or not finite."""
        obs = {}
        for key, shape in self.task_spec.shapes.items():
            value = np.asarray(seen[key])
            if value.shape != tuple(shape):
                raise EnvError(f"{self._where()}: observation {key} has shape {value.shape}; the task's is {tuple(shape)}.")
            if is_image(shape):
                obs[key] = value.astype(np.uint8, copy=False)
                continue
            obs[key] = value.astype(np.float32)
            if not np.isfinite(obs[key]).all():
                raise EnvError(f"{self._where()}: observation {key} is not finite.")
        return obs

    def _where(self) -> str:
        return f"{self.task_spec.name}, step {self._steps} in the episode of seed {self._seed}"

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except EnvError:
            raise
        except Exception as error:  # simulators raise what they like
            raise EnvError(f"{self._where()}: the simulator raised {type(error).__name__}: {error}") from error


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether an observation of this shape is an image, `(channels, height, width)`."""
    return len(shape) == 3
