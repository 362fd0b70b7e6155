"""Environments by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from gymnasium.envs import registration

from difftop.options import ConfigError, build, suggest
from difftop.types import EnvSpec
from envs import dm_control, toy
from envs.base import SimulatedEnv, Simulator, TaskInfo
from envs.config import EnvConfig
from envs.tasks import SUITES, find_task, list_tasks


@dataclass(frozen=True)
class Family:
    """The tasks of one simulator, under one prefix.

    Attributes:
        tasks: canonical name to what is known of it.
        aliases: further names to canonical ones.
        load: makes the simulator of a task; the only place where its package is imported.
    """

    tasks: Mapping[str, TaskInfo]
    aliases: Mapping[str, str]
    load: Callable[[str, EnvConfig], Simulator]


def _load_dm_control(task: str, config: EnvConfig) -> Simulator:
    return dm_control.DmControlSimulator(task, config.render_quality)


def _load_toy(task: str, config: EnvConfig) -> Simulator:
    return toy.PointMassSimulator()


FAMILIES: Mapping[str, Family] = {
    "dmc": Family(dm_control.TASKS, dm_control.ALIASES, _load_dm_control),
    "toy": Family(toy.TASKS, {}, _load_toy),
}


def list_envs() -> list[str]:
    """All canonical names, as in `dmc/walker-walk`; imports no simulator."""
    return [f"{prefix}/{task}" for prefix, family in FAMILIES.items() for task in family.tasks]


def canonical_name(name: str) -> str:
    """The name in `list_envs` that `name` means: underscores are hyphens, case is ignored, aliases are followed.

    Raises:
        ConfigError: no such environment.
    """
    prefix, _, task = name.lower().replace("_", "-").partition("/")
    if prefix in FAMILIES:
        family = FAMILIES[prefix]
        task = family.aliases.get(task, task)
        if task in family.tasks:
            return f"{prefix}/{task}"
    hint = suggest(f"{prefix}/{task}", [*list_envs(), *list_tasks()])
    tasks = ", ".join(f"{suite}/<task>" for suite in SUITES)
    raise ConfigError(
        f"env.name={name}: unknown environment.{hint} There are dmc/<domain>-<task>, for all tasks of the dm_control suite, "
        f"toy/point-mass, and for imitation {tasks}; `python train.py --help` lists all."
    )


def canonical_env(name: str) -> str:
    """The name that `name` means, in `list_envs` or among the manipulation tasks; raises `ConfigError` as `canonical_name`."""
    task = find_task(name)
    return task if task is not None else canonical_name(name)


def env_spec(config: EnvConfig) -> EnvSpec:
    """What an agent needs to know of the environment that `make_env(config)` makes; imports no simulator.

    Raises:
        ConfigError: no such environment.
    """
    name = canonical_name(config.name)
    prefix, _, task = name.partition("/")
    info = FAMILIES[prefix].tasks[task]
    repeat = config.action_repeat or info.action_repeat
    pixels = config.obs == "pixels"
    return EnvSpec(
        name=name,
        obs_kind=config.obs,
        obs_shape=(3 * config.frame_stack, config.image_size, config.image_size) if pixels else (info.obs_dim,),
        action_dim=info.action_dim,
        action_repeat=repeat,
        episode_steps=-(-info.control_steps // repeat),
        frame_stack=config.frame_stack if pixels else 1,
    )


def make_env(config: EnvConfig, render_mode: str | None = "rgb_array") -> SimulatedEnv:
    """Makes an environment.

    Raises:
        ConfigError: no such environment.
        EnvError: its simulator, or the OpenGL that it needs, is missing.
    """
    spec = env_spec(config)
    prefix, _, task = spec.name.partition("/")
    env = SimulatedEnv(FAMILIES[prefix].load(task, config), spec, config.video_size, render_mode)
    options = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "name"}
    env.spec = replace(gymnasium_spec(spec.name), kwargs={"name": spec.name, "render_mode": render_mode, **options})
    return env


def make_registered(name: str, render_mode: str | None = "rgb_array", **options: Any) -> SimulatedEnv:
    """Entry point of the registered ids: `gymnasium.make("dmc/walker-walk-v0", obs="pixels")`; options are EnvConfig's."""
    return make_env(build(EnvConfig, {"name": name, **options}, "env"), render_mode)


def gymnasium_spec(name: str) -> registration.EnvSpec:
    """Gymnasium's own description of `name`, whose id is `<name>-v0`."""
    return registration.EnvSpec(id=f"{name}-v0", entry_point="envs.registry:make_registered", kwargs={"name": name})


def register_all() -> None:
    """Registers `<name>-v0` with Gymnasium for every environment; calling it again changes nothing."""
    for name in list_envs():
        spec = gymnasium_spec(name)
        if spec.id not in registration.registry:
            registration.register(id=spec.id, entry_point=spec.entry_point, kwargs=spec.kwargs)
