"""robosuite's tasks by the names of RoboMimic's files, made as its files say; they reward nothing but success, and
demonstrations of them are people's.

See `envs.robosuite` for observations and actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from envs import robosuite
from envs.config import EnvConfig
from envs.robosuite import OBS, RobosuiteSimulator, version
from envs.robosuite.tasks import NAMES_IN_FILES, ROBOMIMIC, RobosuiteTask

__all__ = ["OBS", "TASKS", "version"]

POSES = DEPTH = True

TASKS: Mapping[str, RobosuiteTask] = {
    name: replace(robosuite.TASKS[task], gives=frozenset({"success", "states"})) for name, task in ROBOMIMIC.items()
}


def load(task: str, config: EnvConfig) -> RobosuiteSimulator:
    """The simulator of a task; raises as `envs.robosuite.load`."""
    return RobosuiteSimulator(f"robomimic/{task}", ROBOMIMIC[task], replace(config, reward="sparse"))


def canonical(task: str) -> str | None:
    """The name for robosuite's own, which is the one in RoboMimic's files (`NutAssemblySquare`: `square`)."""
    return {own.lower(): name for own, name in NAMES_IN_FILES.items()}.get(task.lower())


def env_args(task: str, config: EnvConfig) -> dict[str, Any]:
    """What a RoboMimic file says of its environment."""
    return robosuite.env_args(ROBOMIMIC[task], replace(config, reward="sparse"))


def recorded_name(task: str) -> str:
    """robosuite's."""
    return ROBOMIMIC[task]
