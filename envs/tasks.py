"""Manipulation tasks by name, for imitation: simulators with observations by key, and the experts that some of them have."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, cast

from difftop.options import ConfigError, option, suggest
from difftop.types import TaskSpec
from envs.keyed import Array, KeyedEnv, KeyedSimulator, Observation


@dataclass(frozen=True)
class TaskConfig:
    """Which task, and what a policy sees of it."""

    name: str = option(
        "metaworld/button-press-topdown", "task: metaworld/..., robosuite/..., robomimic/..., maniskill/... or toy/reach"
    )
    obs: str = option("low_dim", "vectors; vectors and camera images; point cloud", choices=("low_dim", "image", "pointcloud"))
    image_size: int = option(84, "height and width of camera images, pixels", low=16, high=480)
    cameras: list[str] = option([], "cameras by the suite's names; empty for the suite's usual ones")
    episode_steps: int = option(0, "actions until an episode is over; 0 takes the task's own", low=0)
    control: str = option("", "control mode by the suite's name; empty for that of the demonstrations, or the suite's usual one")
    render_quality: str = option(
        "fast", "published: the suite's own visuals; fast: smaller shadow map, no anti-aliasing", choices=("published", "fast")
    )
    video_size: int = option(256, "height and width of video frames, pixels", low=16, high=480)
    made_with: str = option("", "JSON of the arguments that a demonstration file's environment was made with; set from the file")


class Expert(Protocol):
    """Solves a task with a look at more than the observations.

    Attributes:
        noisy: how many numbers, the first ones of an action, a demonstration may add noise to.
    """

    noisy: int

    def reset(self) -> None:
        """Before each episode, after the simulator's reset."""

    def act(self, obs: Observation) -> Array:
        """The next action `[A]`, before it is clipped to [-1, 1]."""


@dataclass(frozen=True)
class Suite:
    """Where the tasks of one prefix live.

    Its module has `TASKS` (name to anything), `load`, `version`, `env_args` and, where there are experts, `expert`.

    Attributes:
        module: imported lazily; it imports its simulator lazily itself.
        extra: of setup.cfg, empty where nothing needs to be installed.
    """

    module: str
    extra: str

    def loaded(self) -> Any:
        """The module."""
        return import_module(self.module)


SUITES: Mapping[str, Suite] = {
    "metaworld": Suite("envs.metaworld", "metaworld"),
    "robosuite": Suite("envs.robosuite", "robosuite"),
    "robomimic": Suite("envs.robosuite", "robosuite"),
    "maniskill": Suite("envs.maniskill", "maniskill"),
    "toy": Suite("envs.reach", ""),
}


def list_tasks() -> list[str]:
    """All canonical names; imports no simulator."""
    names = []
    for prefix, suite in SUITES.items():
        module = suite.loaded()
        names += [f"{prefix}/{task}" for task in getattr(module, "ROBOMIMIC" if prefix == "robomimic" else "TASKS")]
    return names


def find_task(name: str) -> str | None:
    """The name in `list_tasks` that `name` means, None for none; case, `_` against `-`, and a suffix `-v3` don't matter."""
    wanted = {_plain(name), _plain(re.sub("-v[0-9]+$", "", name))}
    for candidate in list_tasks():
        if wanted & {_plain(candidate), _plain(re.sub("-v[0-9]+$", "", candidate))}:
            return candidate
    return None


def canonical_task(name: str) -> str:
    """As `find_task`; raises `ConfigError` where there is no such task."""
    found = find_task(name)
    if found is None:
        raise ConfigError(f"env={name}: unknown task.{suggest(name, list_tasks())} `python train.py --help` lists all.")
    return found


def make_simulator(config: TaskConfig) -> KeyedSimulator:
    """The bare simulator of a task.

    Raises:
        ConfigError: no such task, or an option that it doesn't offer.
        EnvError: its package, or a driver that it needs, is missing.
    """
    name = canonical_task(config.name)
    prefix, _, task = name.partition("/")
    if config.cameras and config.obs == "low_dim":
        raise ConfigError(f"env.cameras={config.cameras}: env.obs=low_dim has no images; set env.obs=image, or leave it out.")
    return cast(KeyedSimulator, SUITES[prefix].loaded().load(task, config))


def make_task(config: TaskConfig, render_mode: str | None = "rgb_array") -> KeyedEnv:
    """A Gymnasium environment; raises as `make_simulator`."""
    return KeyedEnv(make_simulator(config), config.video_size, render_mode)


def task_spec(config: TaskConfig) -> TaskSpec:
    """What a policy needs to know of the task; the simulator is loaded for it and freed."""
    simulator = make_simulator(config)
    try:
        return simulator.spec
    finally:
        simulator.close()


def recorded_as(config: TaskConfig) -> dict[str, Any]:
    """What a demonstration file recorded in this task says of its environment: name, arguments and the installed version."""
    prefix, _, task = canonical_task(config.name).partition("/")
    args: dict[str, Any] = SUITES[prefix].loaded().env_args(task, config)
    return args


def make_expert(config: TaskConfig, simulator: KeyedSimulator, rng: Any) -> Expert:
    """The task's scripted expert; `rng` is of what differs between its episodes.

    Raises:
        ConfigError: the task has none.
    """
    prefix, _, task = canonical_task(config.name).partition("/")
    maker: Callable[..., Expert] | None = getattr(SUITES[prefix].loaded(), "expert", None)
    if maker is None:
        raise ConfigError(f"env={config.name}: there is no scripted expert; give demonstrations with dataset=PATH.")
    return maker(task, simulator, rng)


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace("-", "")
