"""Two small tasks without a simulator: `toy/point-mass`, whose optimum is known, and `toy/reach`, which has an expert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from envs.config import EnvConfig, refuse
from envs.suites import Expert, Simulator, TaskInfo
from envs.toy import point_mass, reach
from envs.toy.point_mass import PointMassSimulator, optimal_return
from envs.toy.reach import ReachExpert, ReachSimulator

__all__ = ["PointMassSimulator", "ReachExpert", "ReachSimulator", "optimal_return"]

TASKS: Mapping[str, TaskInfo] = {
    "point-mass": TaskInfo(point_mass.CONTROL_STEPS),
    "reach": TaskInfo(reach.CONTROL_STEPS, gives=frozenset({"reward", "success", "expert"})),
}
OBS = ("state", "pixels", "low_dim")


def load(task: str, config: EnvConfig) -> Simulator:
    """The simulator of `task`."""
    refuse(config, "cameras", "control")
    return PointMassSimulator(config) if task == "point-mass" else ReachSimulator(config)


def expert(task: str, simulator: Any, rng: np.random.Generator) -> Expert:
    """The one of reach."""
    return ReachExpert(simulator)


def version() -> str:
    """Of these dynamics."""
    return "1.0"


def env_args(task: str, config: EnvConfig) -> dict[str, Any]:
    """What a demonstration file says of its environment."""
    return {"env_name": task, "type": 2, "env_version": version(), "env_kwargs": {"suite": "toy", "obs": config.obs}}
