"""Environments by name: the suites of `envs.suites`, and those that other packages add."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from gymnasium.envs import registration

from difftop.options import ConfigError, build, suggest
from difftop.types import EnvSpec
from envs.base import SimulatedEnv, spec_of
from envs.config import EnvConfig
from envs.suites import SUITES, Expert, Simulator, Suite, TaskInfo

log = logging.getLogger(__name__)

GROUP = "difftop.envs"  # of entry points
NAMESPACE = "difftop"  # of our ids in Gymnasium's registry


class Task(NamedTuple):
    """A task that was found by name."""

    suite: str
    task: str
    module: Any
    info: TaskInfo

    @property
    def name(self) -> str:
        """The canonical one."""
        return f"{self.suite}/{self.task}"


@dataclass(frozen=True)
class Row:
    """A suite, for `mode=envs`.

    Attributes:
        suite: prefix of its names.
        summary: one line.
        extra: of pyproject.toml, empty where nothing has to be installed.
        installed: whether its package is here.
        obs: values of env.obs that it offers.
        tasks: what each gives, by name without prefix.
        others: which tasks there are beside them, empty for none.
    """

    suite: str
    summary: str
    extra: str
    installed: bool
    obs: tuple[str, ...]
    tasks: Mapping[str, frozenset[str]]
    others: str


@cache
def suites() -> Mapping[str, Suite]:
    """All suites by prefix; no name of ours can be taken by another package."""
    added = {}
    for entry in entry_points(group=GROUP):
        if entry.name in SUITES or entry.name != _plain(entry.name) or "/" in entry.name:
            log.warning("The environments of entry point %s=%s are left out: take another name.", entry.name, entry.value)
        else:
            added[entry.name] = Suite(entry.value, f"from {entry.value}")
    return {**SUITES, **added}


def list_envs() -> list[str]:
    """All canonical names that are known without a simulator, as in `dmc/walker-walk`."""
    return [f"{prefix}/{task}" for prefix, _, module in _modules() for task in module.TASKS]


def canonical_name(name: str) -> str:
    """The name that `name` means: case, `_` against `-` and Meta-World's `-v3` don't matter, aliases are followed.

    Raises:
        ConfigError: no such environment.
    """
    return find_task(name).name


def find_task(name: str) -> Task:
    """As `canonical_name`, with what is known of the task."""
    prefix, _, given = name.partition("/")
    prefix = prefix.lower()
    if given and prefix in suites():
        module = _module(prefix)
        task = (module.canonical(given) if hasattr(module, "canonical") else None) or _spelled(given, module.TASKS)
        if task is not None:
            return Task(prefix, task, module, module.TASKS[task] if task in module.TASKS else module.info(task))
    hint = suggest(f"{prefix}/{given}".lower(), [listed.lower() for listed in list_envs()])
    for listed in list_envs():  # as it is spelled
        hint = hint.replace(f"'{listed.lower()}'", f"'{listed}'")
    raise ConfigError(f"env={name}: unknown environment.{hint} `python train.py mode=envs` lists all.")


def gives(name: str) -> frozenset[str]:
    """What the environment offers beside observations, see `difftop.types.EnvSpec`; imports no simulator."""
    return find_task(name).info.gives


def table() -> list[Row]:
    """All suites with their tasks; imports no simulator."""
    return [
        Row(
            suite=prefix,
            summary=suite.summary,
            extra=suite.extra,
            installed=not suite.package or find_spec(suite.package) is not None,
            obs=tuple(module.OBS),
            tasks={task: info.gives for task, info in module.TASKS.items()},
            others=getattr(module, "OTHERS", ""),
        )
        for prefix, suite, module in _modules()
    ]


def env_spec(config: EnvConfig) -> EnvSpec:
    """What an agent needs to know of the environment that `make_env(config)` makes; its simulator is loaded for it and freed.

    Raises: as `make_env`.
    """
    task, config = _resolved(config)
    simulator = task.module.load(task.task, config)
    try:
        return spec_of(simulator, config, task.info)
    finally:
        simulator.close()


def make_simulator(config: EnvConfig) -> Simulator:
    """The bare simulator; raises as `make_env`."""
    task, config = _resolved(config)
    simulator: Simulator = task.module.load(task.task, config)
    return simulator


def make_env(config: EnvConfig, render_mode: str | None = "rgb_array") -> SimulatedEnv:
    """Makes an environment.

    Raises:
        ConfigError: no such environment, or an option that it doesn't offer.
        EnvError: its package, or a driver that it needs, is missing.
    """
    task, config = _resolved(config)
    env = SimulatedEnv(task.module.load(task.task, config), config, task.info, render_mode)
    options = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "name"}
    env.spec = replace(gymnasium_spec(task.name), kwargs={"name": task.name, "render_mode": render_mode, **options})
    return env


def make_expert(config: EnvConfig, simulator: Simulator, rng: np.random.Generator) -> Expert:
    """The task's scripted expert; `rng` is of what differs between its episodes.

    Raises:
        ConfigError: the task has none that acts step by step.
    """
    task = find_task(config.name)
    if "expert" not in task.info.gives or not hasattr(task.module, "expert"):
        raise ConfigError(f"env={config.name}: there is no scripted expert; give demonstrations with dataset=PATH.")
    expert: Expert = task.module.expert(task.task, simulator, rng)
    return expert


def recorded_as(config: EnvConfig) -> dict[str, Any]:
    """What a demonstration file recorded here says of its environment: name, arguments, the installed version, image quality.

    Its rewards are of success alone, as in RoboMimic's files.
    """
    task = find_task(config.name)
    if hasattr(task.module, "env_args"):
        args: dict[str, Any] = task.module.env_args(task.task, replace(config, name=task.name, reward="sparse"))
    else:
        package = suites()[task.suite].package
        installed = version(package) if package and find_spec(package) else ""
        args = {
            "env_name": task.task,
            "type": 2,
            "env_version": installed,
            "env_kwargs": {"suite": task.suite, "obs": config.obs},
        }
    return args | {"render_quality": config.render_quality}  # beside env_kwargs, which go to the simulator as they are


def make_registered(name: str, render_mode: str | None = "rgb_array", **options: Any) -> SimulatedEnv:
    """Entry point of the registered ids: `gymnasium.make("difftop/dmc-walker-walk-v0", obs="pixels")`, options of EnvConfig."""
    return make_env(build(EnvConfig, {"name": name, **options}, "env"), render_mode)


def gymnasium_spec(name: str) -> registration.EnvSpec:
    """Gymnasium's own description of `name`; `dmc/walker-walk` has the id `difftop/dmc-walker-walk-v0`."""
    return registration.EnvSpec(
        id=f"{NAMESPACE}/{re.sub('[/:]', '-', name)}-v0", entry_point="envs.registry:make_registered", kwargs={"name": name}
    )


def register_all() -> None:
    """Registers every name of `list_envs` with Gymnasium; calling it again changes nothing."""
    for name in list_envs():
        spec = gymnasium_spec(name)
        if spec.id not in registration.registry:
            registration.register(id=spec.id, entry_point=spec.entry_point, kwargs=spec.kwargs)


def _resolved(config: EnvConfig) -> tuple[Task, EnvConfig]:
    """The task, and the options with its canonical name; raises where it doesn't offer one of them."""
    task = find_task(config.name)
    if config.obs not in task.module.OBS:
        raise ConfigError(f"{task.name}: env.obs={config.obs} is not offered; take {' or '.join(task.module.OBS)}.")
    if config.poses and not getattr(task.module, "POSES", False):
        raise ConfigError(
            f"{task.name}: absolute poses as actions are not offered there; train on displacements (dataset.poses=false), or "
            "without evaluation (run.select_episodes=0 run.eval_episodes=0)."
        )
    if config.reward == "sparse" and "success" not in task.info.gives:
        raise ConfigError(f"{task.name}: env.reward=sparse is not offered, the task says nothing of success; leave it out.")
    if config.cameras and config.obs not in ("pixels", "image", "pointcloud"):
        raise ConfigError(
            f"{task.name}: env.cameras={config.cameras}: env.obs={config.obs} has no images; set env.obs=image, or leave it out."
        )
    if config.depth and not getattr(task.module, "DEPTH", False):
        there = [prefix for prefix, _, module in _modules() if getattr(module, "DEPTH", False)]
        raise ConfigError(f"{task.name}: env.depth=true is not offered there, but in {', '.join(there)}; leave it out.")
    if config.depth and config.obs != "image":
        raise ConfigError(f"{task.name}: env.depth=true: env.obs={config.obs} has no depth images; set env.obs=image.")
    if config.obs == "pixels" and len(config.cameras) > 1:
        raise ConfigError(
            f"{task.name}: env.cameras={config.cameras}: env.obs=pixels has one camera; name one, or set env.obs=image."
        )
    return task, replace(config, name=task.name)


def _modules() -> Iterator[tuple[str, Suite, Any]]:
    """All suites that can be loaded; one of another package that can't is named in the log, and left out."""
    for prefix, suite in suites().items():
        try:
            yield prefix, suite, _module(prefix)
        except ConfigError as error:
            log.warning("%s", error)


def _module(prefix: str) -> Any:
    suite = suites()[prefix]
    try:
        module = suite.loaded()
        missing = [name for name in ("TASKS", "OBS", "load") if not hasattr(module, name)]
    except Exception as error:  # another package raises what it likes
        if prefix in SUITES:
            raise
        raise ConfigError(f"{prefix}: its module {suite.module} can't be imported ({type(error).__name__}: {error}).") from error
    if missing:
        raise ConfigError(f"{prefix}: its module {suite.module} lacks {', '.join(missing)}; see envs/suites.py.")
    return module


def _spelled(given: str, tasks: Mapping[str, TaskInfo]) -> str | None:
    """The one of `tasks` that is spelled as `given` but for case, hyphens and a version that only one of them says."""
    stem, version = _stem(given)
    for task in tasks:
        own_stem, own_version = _stem(task)
        if stem == own_stem and (version == own_version or not (version and own_version)):
            return task
    return None


def _stem(name: str) -> tuple[str, str]:
    """The name without its version, and the version."""
    found = re.fullmatch(r"(.*?)(?:-v(\d+))?", name.lower().replace("_", "-"))
    stem, version = found.groups() if found else (name, None)
    return str(stem).replace("-", ""), version or ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
