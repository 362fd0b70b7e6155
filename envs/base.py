"""One Gymnasium environment over any simulator.

A simulator only moves its state and draws it. Action repeat, frame stacking, checks, seeding and errors are here, once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from difftop.types import EnvSpec
from envs.errors import EnvError

Array = NDArray[Any]

ACTION_TOLERANCE = 1e-6  # float32 arithmetic may step this far out of [-1, 1]; such an action is clipped


@dataclass(frozen=True)
class TaskInfo:
    """What is known of a task without loading its simulator.

    Attributes:
        obs_dim: length of the state observation.
        action_dim: A.
        action_repeat: control steps per action, unless the configuration says otherwise.
        control_steps: control steps until the time limit.
    """

    obs_dim: int
    action_dim: int
    action_repeat: int
    control_steps: int


class ControlStep(NamedTuple):
    """Outcome of one control step; `truncated` is the time limit, `terminated` a state from which nothing follows."""

    reward: float
    terminated: bool
    truncated: bool


class Simulator(Protocol):
    """What a simulator offers. It may raise anything; `SimulatedEnv` names the environment and the step."""

    control_dt_s: float

    def reset(self, seed: int) -> None:
        """Begins the episode that `seed` determines, whatever came before."""

    def step(self, action: Array) -> ControlStep:
        """One control step under `action [A]` in [-1, 1], float64."""

    def state(self) -> Array:
        """The task's observations as one vector."""

    def render(self, height: int, width: int) -> Array:
        """Camera image `[height, width, 3]`, uint8."""

    def close(self) -> None:
        """Frees memory and graphics contexts."""


class SimulatedEnv(gymnasium.Env[Array, Array]):
    """Gymnasium environment over a `Simulator`.

    Observations: float32 `[O]`, or uint8 `[3 * frame_stack, size, size]` with the newest frame last (`obs[-3:]`); an episode's
    first frame fills its whole first stack. Actions: float32 `[A]` in [-1, 1]. `reset(seed=k)` makes the episode a function
    of k and of the actions alone; `reset()` draws the next seed from the generator that the last seed set up.

    Attributes:
        difftop_spec: the `EnvSpec` that agents are built from.
    """

    def __init__(self, simulator: Simulator, spec: EnvSpec, video_size: int = 256, render_mode: str | None = "rgb_array") -> None:
        """`render` gives frames `[video_size, video_size, 3]`, whatever the agent observes."""
        if render_mode not in (None, "rgb_array"):
            raise EnvError(f"{spec.name}: render_mode={render_mode!r} is not offered; take 'rgb_array' or None.")
        self.difftop_spec = spec
        self.render_mode = render_mode
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 1 / (simulator.control_dt_s * spec.action_repeat)}
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)
        if spec.obs_kind == "pixels":
            self.observation_space = gymnasium.spaces.Box(0, 255, spec.obs_shape, np.uint8)
        else:
            largest = float(np.finfo(np.float32).max)  # every finite number; others raise
            self.observation_space = gymnasium.spaces.Box(-largest, largest, spec.obs_shape, np.float32)
        self._simulator: Simulator | None = simulator
        self._video_size = video_size
        self._frames = np.zeros(0, np.uint8)
        self._steps = 0
        self._episode_seed: int | None = None
        self._running = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begins an episode; `options` are ignored."""
        super().reset(seed=seed)
        self._running, self._steps, self._episode_seed = False, 0, seed
        with self._named_errors():
            self._open_simulator().reset(int(self.np_random.integers(2**31)))
            obs = self._observe(first=True)
        self._running = True
        return obs, {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Repeats `action` for `action_repeat` control steps, or until the episode ends; the reward is their sum."""
        simulator = self._open_simulator()
        if not self._running:
            raise EnvError(
                f"{self.difftop_spec.name}: step() before reset(), or after the end of the episode; call reset() first."
            )
        control = self._check_action(action)
        self._running, self._steps = False, self._steps + 1  # an error below ends the episode
        total = 0.0
        with self._named_errors():
            for _ in range(self.difftop_spec.action_repeat):
                reward, terminated, truncated = simulator.step(control)
                total += float(reward)
                if terminated or truncated:
                    break
            if not math.isfinite(total):
                raise EnvError(f"{self._where()}: the reward is {total}.")
            obs = self._observe(first=False)
        self._running = not (terminated or truncated)
        return obs, total, bool(terminated), bool(truncated), {}

    def render(self) -> Array | None:
        """The current camera image `[video_size, video_size, 3]`, uint8; None if made with `render_mode=None`.

        Raises:
            RenderError: no OpenGL.
        """
        if self.render_mode is None:
            return None
        with self._named_errors():
            return self._open_simulator().render(self._video_size, self._video_size)

    def close(self) -> None:
        """Frees the simulator; closing twice is fine."""
        if self._simulator is not None:
            self._simulator.close()
        self._simulator, self._running = None, False

    def _open_simulator(self) -> Simulator:
        if self._simulator is None:
            raise EnvError(f"{self.difftop_spec.name}: the environment is closed; make a new one.")
        return self._simulator

    def _check_action(self, action: Array) -> Array:
        control = np.asarray(action, np.float64)
        if control.shape != self.action_space.shape:
            raise EnvError(
                f"{self._where(self._steps + 1)}: the action has shape {control.shape}; it must be {self.action_space.shape}."
            )
        if not (np.abs(control) <= 1 + ACTION_TOLERANCE).all():  # written so that nan fails too
            raise EnvError(
                f"{self._where(self._steps + 1)}: the action {control.tolist()} is not inside [-1, 1]; clip it where it is made."
            )
        return control.clip(-1, 1)

    def _observe(self, first: bool) -> Array:
        simulator = self._open_simulator()
        spec = self.difftop_spec
        if spec.obs_kind == "pixels":
            frame = simulator.render(*spec.obs_shape[1:]).transpose(2, 0, 1)
            older = [frame] * (spec.frame_stack - 1) if first else [self._frames[3:]]
            self._frames = np.concatenate([*older, frame])
            return self._frames.copy()
        with np.errstate(over="ignore"):  # overflow becomes inf, which is reported below
            obs = simulator.state().astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(obs))
        if bad.size:
            which = f"{obs[bad[0]]} at index {bad[0]}, {bad.size} of {obs.size} entries are not finite"
            raise EnvError(f"{self._where()}: the observation is {which}.")
        return obs

    def _where(self, step: int | None = None) -> str:
        seed = "unseeded episode" if self._episode_seed is None else f"episode of seed {self._episode_seed}"
        return f"{self.difftop_spec.name}, step {self._steps if step is None else step} in the {seed}"

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except EnvError:
            raise
        except Exception as error:  # simulators raise what they like
            raise EnvError(f"{self._where()}: the simulator raised {type(error).__name__}: {error}") from error
