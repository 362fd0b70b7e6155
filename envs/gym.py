"""`gym/<id>`: every installed Gymnasium environment with a Box action, by its id (`gym/module:Id` imports the module first).

    state      state: all numbers of the observation, flattened as Gymnasium does it (Discrete parts one-hot)
    low_dim    the same by key where the observation is a Dict or Tuple (nested ones a/b), else state
    pixels     what the environment renders, or its observation where that is an image, resized by area

Actions in [-1, 1] are rescaled to the Box. Terminations are the environment's; its time limit, or 1000 steps where it has none,
truncates. Success is `success` or `is_success` of its info, where it says so.
"""

from __future__ import annotations

import atexit
import re
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs import registration

from difftop.options import ConfigError
from difftop.types import ObsSpec
from envs.config import EnvConfig, refuse
from envs.errors import EnvError, RenderError
from envs.opengl import advice, choose_backend, ensure_drawing
from envs.suites import Array, Observation, Outcome, TaskInfo

OBS = ("state", "pixels", "low_dim")
OTHERS = "any other installed id with a Box action"
_STEPS = 1000  # where an environment has no time limit
_CONTROL_DT_S = 1 / 30  # where it doesn't say

_MUJOCO = (
    "Ant HalfCheetah Hopper Humanoid HumanoidStandup InvertedDoublePendulum InvertedPendulum Pusher Reacher Swimmer Walker2d"
)
_LIMITS = {"Reacher": 50, "Pusher": 100}
TASKS: Mapping[str, TaskInfo] = {  # of Gymnasium itself; LunarLanderContinuous and the two walkers need its extra box2d
    "Pendulum-v1": TaskInfo(200),
    "MountainCarContinuous-v0": TaskInfo(999),
    **{f"{name}-v5": TaskInfo(_LIMITS.get(name, _STEPS)) for name in _MUJOCO.split()},
    "BipedalWalker-v3": TaskInfo(1600),
    "BipedalWalkerHardcore-v3": TaskInfo(2000),
    "LunarLanderContinuous-v3": TaskInfo(1000),
}


class GymSimulator:
    """One environment; `env` is Gymnasium's own, without its time limit."""

    def __init__(self, task: str, config: EnvConfig) -> None:
        """Makes the id `task`.

        Raises:
            ConfigError: its actions are not a bounded Box, or it has no such observations.
            EnvError: it can't be made.
        """
        self._name, self._pixels = f"gym/{task}", config.obs == "pixels"
        self.env: Any = _make(self._name, task)
        try:
            self._low, self._high, self._action = _action_space(self._name, self.env.action_space)
            self._shows = self.env.observation_space
            self.obs = self._seen(config)
        except ConfigError:
            self.env.close()
            raise
        self.action_dim = int(self._low.size)
        dt = getattr(self.env.unwrapped, "dt", None)
        fps = self.env.metadata.get("render_fps")
        self.control_dt_s = float(dt) if isinstance(dt, int | float | np.floating) else 1 / fps if fps else _CONTROL_DT_S
        self.episode_steps = info(task).episode_steps
        self._last: Any = None
        self._drew = self._closed = False
        if config.render_quality == "fast" and hasattr(getattr(self.env.unwrapped, "model", None), "vis"):  # MuJoCo's
            quality = self.env.unwrapped.model.vis.quality
            quality.shadowsize, quality.offsamples = 0, 0

    def reset(self, seed: int) -> None:
        """Passes the seed on."""
        self._last, _ = self.env.reset(seed=seed)

    def step(self, action: Array) -> Outcome:
        """One step under the rescaled action."""
        scaled = (self._low + (self._high - self._low) * (action + 1) / 2).clip(self._low, self._high)
        command = scaled.astype(self._action.dtype).reshape(self._action.shape)
        self._last, reward, terminated, truncated, info = self.env.step(command)
        success = info.get("success", info.get("is_success"))
        return Outcome(float(reward), bool(terminated), bool(truncated), None if success is None else bool(success))

    def observe(self) -> Observation:
        """The last observation, or the picture."""
        if self._pixels:
            _, height, width = self.obs["pixels"].shape
            image = self._last if _is_image(self._shows) else self._drawn()
            return {"pixels": resized(image, height, width).transpose(2, 0, 1)}
        parts = dict(_vectors(self._shows, self._last))
        return parts if list(self.obs) != ["state"] else {"state": np.concatenate(list(parts.values()))}

    def render(self, height: int, width: int) -> Array:
        """The environment's own picture, resized."""
        return resized(self._drawn(), height, width)

    def close(self) -> None:
        """Closes the environment; closing twice is fine, and one that drew closes at the latest when Python ends."""
        atexit.unregister(self.close)
        if not self._closed:
            self._closed = True
            self.env.close()

    def _drawn(self) -> Array:
        if self.env.render_mode is None:
            raise RenderError(
                f"{self._name} draws no pictures; it offers {', '.join(self.env.metadata.get('render_modes', []))}."
            )
        backend = ensure_drawing() if hasattr(self.env.unwrapped, "mujoco_renderer") else choose_backend()
        try:
            image = np.asarray(self.env.render(), np.uint8)
        except gymnasium.error.DependencyNotInstalled as error:
            raise RenderError(f"{self._name}, to draw, {_wanted(error)}") from error
        except Exception as error:  # OpenGL, EGL and pygame each have their own
            raise RenderError(f"{self._name} can't render with MUJOCO_GL={backend} ({error}): {advice(backend)}.") from error
        if not self._drew:
            self._drew = True
            atexit.register(self.close)  # a context that is left over is freed before MuJoCo ends EGL, or it complains
        return image

    def _seen(self, config: EnvConfig) -> dict[str, ObsSpec]:
        if self._pixels:
            if self.env.render_mode is None and not _is_image(self._shows):
                raise ConfigError(f"{self._name}: env.obs=pixels is not offered, it draws no pictures; take state.")
            return {"pixels": ObsSpec("image", (3, config.image_size, config.image_size))}
        try:
            sizes = {key: gymnasium.spaces.flatdim(space) for key, space in _parts(self._shows)}
        except (NotImplementedError, ValueError) as error:
            raise ConfigError(
                f"{self._name}: its observations ({self._shows}) have no fixed size; they are not offered."
            ) from error
        if not sizes:
            raise ConfigError(f"{self._name}: env.obs={config.obs} is not offered, its observation is an image; take pixels.")
        if config.obs == "state":
            return {"state": ObsSpec("vector", (sum(sizes.values()),))}
        return {key: ObsSpec("vector", (size,)) for key, size in sizes.items()}


def load(task: str, config: EnvConfig) -> GymSimulator:
    """The simulator of the id `task`."""
    refuse(config, "cameras", "control")
    return GymSimulator(task, config)


def canonical(task: str) -> str | None:
    """The id as Gymnasium spells it; without a version, the newest. None for ids that aren't installed, and for our own."""
    module, colon, name = task.rpartition(":")
    if colon:
        try:
            __import__(module)
        except ImportError as error:
            raise ConfigError(f"env.name=gym/{task}: module {module} can't be imported ({error}); install it first.") from error
    known = {spec.id.lower(): spec for spec in registration.registry.values() if not spec.id.startswith("difftop/")}
    plain = name.lower()
    versions = [spec for key, spec in known.items() if key.rpartition("-v")[0] == plain and spec.version is not None]
    found = known.get(plain) or max(versions, key=lambda spec: spec.version or 0, default=None)
    return None if found is None else f"{module}{colon}{found.id}"


def info(task: str) -> TaskInfo:
    """Of an id that `canonical` found."""
    return TaskInfo(int(registration.registry[task.rpartition(":")[2]].max_episode_steps or _STEPS))


def resized(image: Array, height: int, width: int) -> Array:
    """An image `[H, W, 3]`, uint8, at another size: each pixel is the mean of the area that it covers."""
    if image.shape[:2] == (height, width):
        return image
    rows, columns = _overlap(image.shape[0], height), _overlap(image.shape[1], width)
    mean = np.einsum("ih,hwc->iwc", rows, image.astype(np.float32), optimize=True)
    new: Array = np.einsum("jw,iwc->ijc", columns, mean, optimize=True).round().clip(0, 255).astype(np.uint8)
    return new


def _overlap(old: int, new: int) -> Array:
    """Which part of each of `new` intervals each of `old` ones covers `[new, old]`; rows sum to 1."""
    ends = np.arange(new + 1) * old / new
    starts = np.arange(old)
    shared = np.minimum(ends[1:, None], starts + 1) - np.maximum(ends[:-1, None], starts)
    return np.asarray(shared.clip(0) * new / old, np.float32)


def _make(name: str, task: str) -> Any:
    choose_backend()
    spec = registration.registry[task.rpartition(":")[2]]
    try:
        creator = registration.load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
        mode = "rgb_array" if "rgb_array" in getattr(creator, "metadata", {}).get("render_modes", []) else None
        return gymnasium.make(task, render_mode=mode, max_episode_steps=-1, disable_env_checker=True)
    except gymnasium.error.DependencyNotInstalled as error:
        raise EnvError(f"{name} {_wanted(error)}") from error
    except ModuleNotFoundError as error:
        raise EnvError(f"{name} needs a package that is not installed ({error}); see its documentation.") from error
    except Exception as error:  # environments raise what they like
        raise EnvError(f"{name}: Gymnasium can't make it ({type(error).__name__}: {_plain(error)}).") from error


def _action_space(name: str, space: Any) -> tuple[Array, Array, Any]:
    """Lower and upper limits `[A]`, and the space."""
    if not isinstance(space, gymnasium.spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise ConfigError(f"{name}: its actions are {space}; only a Box of real numbers is offered.")
    low, high = (np.ravel(bound).astype(np.float64) for bound in (space.low, space.high))
    if not (np.isfinite(low) & np.isfinite(high)).all():
        number = int(np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)))[0])
        raise ConfigError(
            f"{name}: action {number} has limits [{low[number]:g}, {high[number]:g}]; only bounded ones can be rescaled "
            "from [-1, 1]; register it with a bounded Box."
        )
    return low, high, space


def _parts(space: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Key and space of all parts of an observation but images; a plain observation is called `state`."""
    if isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        named = space.spaces.items() if isinstance(space, gymnasium.spaces.Dict) else enumerate(space.spaces)
        for key, part in named:
            yield from _parts(part, f"{path}/{key}" if path else str(key))
    elif not _is_image(space):
        yield path or "state", space


def _vectors(space: Any, value: Any, path: str = "") -> Iterator[tuple[str, Array]]:
    """As `_parts`, with the flattened values."""
    if isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        keys: Any = space.spaces if isinstance(space, gymnasium.spaces.Dict) else range(len(space.spaces))
        parts = [(key, space.spaces[key], value[key]) for key in keys]
        for key, part, inside in parts:
            yield from _vectors(part, inside, f"{path}/{key}" if path else str(key))
    elif not _is_image(space):
        yield path or "state", np.asarray(gymnasium.spaces.flatten(space, value), np.float64)


def _is_image(space: Any) -> bool:
    return isinstance(space, gymnasium.spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[2] == 3


def _wanted(error: Exception) -> str:
    """What to install, as the end of a sentence."""
    extra = re.search(r"gymnasium\[([\w-]+)\]", str(error))
    if extra is None:
        return f"needs a package that is not installed: {_plain(error)}."
    name = extra.group(1).replace("_", "-")
    return f"needs packages of Gymnasium's extra {name}: run `pip install 'gymnasium[{name}]'`."


def _plain(error: Exception) -> str:
    """An error's message on one line, without a full stop."""
    return " ".join(str(error).split()).rstrip(".")
