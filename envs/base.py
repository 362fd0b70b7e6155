"""One Gymnasium environment over any simulator.

A simulator only moves its state, looks at it and draws it. Action repeat, frame stacking, time limit, checks, seeding and errors
are here, once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np

from difftop.poses import PoseRange
from difftop.types import EnvSpec, ObsSpec
from envs.config import EnvConfig
from envs.errors import EnvError
from envs.suites import Array, Observation, Outcome, Simulator, TaskInfo

ACTION_TOLERANCE = 1e-6  # float32 arithmetic may step this far out of [-1, 1]; such an action is clipped


class SimulatedEnv(gymnasium.Env[Observation, Array]):
    """Gymnasium environment over a `Simulator`.

    Observations are dictionaries, see `difftop.types.ObsSpec`. With `obs=pixels` the newest frame is the last one
    (`pixels[-3:]`), and an episode's first frame fills its whole first stack. Actions: float32 `[A]` in [-1, 1]. `reset(seed=k)`
    makes the episode a function of k and of the actions alone; `reset()` draws the next seed from the generator that the last
    seed set up.

    An action is held for `action_repeat` control steps, and rewards are summed. The time limit truncates; only the simulator
    terminates. Success ends nothing: `info` has `success` (0 or 1) where the task says it, and `contact_force_n` where it is
    measured.

    Attributes:
        difftop_spec: the `EnvSpec` that agents are built from.
    """

    def __init__(
        self, simulator: Simulator, config: EnvConfig, task: TaskInfo | None = None, render_mode: str | None = "rgb_array"
    ) -> None:
        """Takes over `simulator`, which was made with `config`; `config.name` is the canonical one."""
        if render_mode not in (None, "rgb_array"):
            raise EnvError(f"{config.name}: render_mode={render_mode!r} is not offered; take 'rgb_array' or None.")
        spec = self.difftop_spec = spec_of(simulator, config, task)
        self.render_mode = render_mode
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 1 / spec.control_dt_s}
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)
        self.observation_space: gymnasium.spaces.Dict = gymnasium.spaces.Dict(  # type: ignore[assignment]
            {key: _space(seen) for key, seen in spec.obs.items()}
        )
        self._simulator: Simulator | None = simulator
        self._expected = dict(simulator.obs)
        self._joined, self._stacked = config.obs == "state", config.obs == "pixels"
        self._limit = config.episode_steps * spec.action_repeat or simulator.episode_steps
        self._video_size = config.video_size
        self._frames = np.zeros(0, np.uint8)
        self._steps = self._control_steps = 0
        self._seed = -1
        self._running = False

    @property
    def simulator(self) -> Simulator:
        """What is simulated, for experts, who may look at more than observations.

        Raises:
            EnvError: the environment is closed.
        """
        if self._simulator is None:
            raise EnvError(f"{self.difftop_spec.name}: the environment is closed; make a new one.")
        return self._simulator

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Begins an episode; `options` are ignored."""
        super().reset(seed=seed)
        self._running, self._steps, self._control_steps = False, 0, 0
        self._seed = int(self.np_random.integers(2**31)) if seed is None else int(seed)
        with self._named_errors():
            self.simulator.reset(self._seed)
            obs = self._observe(first=True)
        self._running = True
        return obs, {}

    def step(self, action: Array) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Repeats `action` for `action_repeat` control steps, or until the episode ends; the reward is their sum."""
        simulator = self.simulator
        if not self._running:
            raise EnvError(
                f"{self.difftop_spec.name}: step() before reset(), or after the end of the episode; call reset() first."
            )
        control = self._check_action(action)
        self._running, self._steps = False, self._steps + 1  # an error below ends the episode
        outcomes: list[Outcome] = []
        reward = 0.0
        with self._named_errors():
            for _ in range(self.difftop_spec.action_repeat):
                outcome = simulator.step(control)
                outcomes.append(outcome)
                reward += float(outcome.reward)
                self._control_steps += 1
                terminated, over = bool(outcome.terminated), self._control_steps >= self._limit
                truncated = not terminated and (over or bool(outcome.truncated))
                if terminated or truncated:
                    break
            if not math.isfinite(reward):
                raise EnvError(f"{self._where()}: the reward is {reward}.")
            obs = self._observe(first=False)
        self._running = not (terminated or truncated)
        return obs, reward, terminated, truncated, _info(outcomes)

    def render(self) -> Array | None:
        """The current camera image `[video_size, video_size, 3]`, uint8; None if made with `render_mode=None`.

        Raises:
            RenderError: no OpenGL.
        """
        if self.render_mode is None:
            return None
        with self._named_errors():
            return self.simulator.render(self._video_size, self._video_size)

    def close(self) -> None:
        """Frees the simulator; closing twice is fine."""
        if self._simulator is not None:
            self._simulator.close()
        self._simulator, self._running = None, False

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

    def _observe(self, first: bool) -> Observation:
        """What the simulator shows, as the spec promises it."""
        seen = self.simulator.observe()
        for key, expected in self._expected.items():
            shape = np.shape(seen[key])
            if shape != expected.shape:
                raise EnvError(f"{self._where()}: observation {key} has shape {shape}; the task's is {expected.shape}.")
        if self._joined:
            return {"state": self._finite("state", np.concatenate([seen[key] for key in self._expected]))}
        obs = {key: self._copied(key, seen[key], expected.kind) for key, expected in self._expected.items()}
        if self._stacked:
            frame = obs["pixels"]
            older = [frame] * (self.difftop_spec.frame_stack - 1) if first else [self._frames[3:]]
            self._frames = np.concatenate([*older, frame])
            return {"pixels": self._frames.copy()}
        return obs

    def _copied(self, key: str, value: Any, kind: str) -> Array:
        """A copy of an observation; raises where it is of another type, or not finite."""
        seen = np.asarray(value)
        if kind != "image":
            return self._finite(key, seen)
        if seen.dtype != np.uint8:
            raise EnvError(f"{self._where()}: observation {key} is an image of {seen.dtype}; it must be uint8.")
        return np.array(seen, order="C")

    def _finite(self, key: str, value: Array) -> Array:
        """Numbers as float32, a copy."""
        with np.errstate(over="ignore"):  # overflow becomes inf, which is reported below
            seen = value.astype(np.float32)
        if not np.isfinite(seen).all():
            bad = np.flatnonzero(~np.isfinite(seen))
            which = f"{seen.flat[bad[0]]} at index {bad[0]}, {bad.size} of {seen.size} entries are not finite"
            raise EnvError(f"{self._where()}: observation {key} is {which}.")
        return seen

    def _where(self, step: int | None = None) -> str:
        return f"{self.difftop_spec.name}, step {self._steps if step is None else step} in the episode of seed {self._seed}"

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except EnvError:
            raise
        except Exception as error:  # simulators raise what they like
            raise EnvError(f"{self._where()}: the simulator raised {type(error).__name__}: {error}") from error


def spec_of(simulator: Simulator, config: EnvConfig, task: TaskInfo | None = None) -> EnvSpec:
    """What an agent needs to know of the environment over `simulator`."""
    info = task or TaskInfo(simulator.episode_steps)
    repeat = config.action_repeat or info.action_repeat
    poses = PoseRange.read(config.poses) if config.poses else None
    return EnvSpec(
        name=config.name,
        obs=_seen(simulator.obs, config),
        action_dim=simulator.action_dim,
        episode_steps=config.episode_steps or -(-simulator.episode_steps // repeat),
        control_dt_s=simulator.control_dt_s * repeat,
        action_repeat=repeat,
        frame_stack=config.frame_stack if config.obs == "pixels" else 1,
        gives=info.gives,
        action_low=poses.low if poses else (),
        action_high=poses.high if poses else (),
        poses=poses.arms if poses else 0,
    )


def _seen(obs: Mapping[str, ObsSpec], config: EnvConfig) -> dict[str, ObsSpec]:
    """The environment's observations, given the simulator's."""
    if config.obs == "state":
        return {"state": ObsSpec("vector", (sum(part.shape[0] for part in obs.values()),))}
    if config.obs == "pixels":
        channels, height, width = obs["pixels"].shape
        return {"pixels": ObsSpec("image", (channels * config.frame_stack, height, width))}
    return dict(obs)


def _space(seen: ObsSpec) -> gymnasium.spaces.Box:
    if seen.kind == "image":
        return gymnasium.spaces.Box(0, 255, seen.shape, np.uint8)
    largest = float(np.finfo(np.float32).max)  # every finite number; others raise
    return gymnasium.spaces.Box(0.0 if seen.kind == "depth" else -largest, largest, seen.shape, np.float32)


def _info(outcomes: list[Outcome]) -> dict[str, Any]:
    """Success in any of the control steps, and the largest force of all."""
    info: dict[str, Any] = {}
    for outcome in outcomes:
        if outcome.success is not None:
            info["success"] = max(float(outcome.success), info.get("success", 0.0))
        if not math.isnan(outcome.contact_force_n):
            info["contact_force_n"] = max(float(outcome.contact_force_n), info.get("contact_force_n", 0.0))
    return info
