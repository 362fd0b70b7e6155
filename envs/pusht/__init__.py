"""Push-T: a disc pushes a T into its place, as in Diffusion Policy and Implicit Behavioral Cloning; by the package gym-pusht.

    state      state [5]: disc's x and y, T's x and y (pixels), T's angle (rad, 0 to 2 pi)
    low_dim    agent_pos [2]; keypoint [18]: x and y of nine points of the T (pixels)
    image      agent_pos [2] and img_image, the board
    pixels     the board

Actions: where the disc goes, x and y, -1 and 1 being the edges of the board; 10 Hz. Reward of a step, from 0 to 1: the share of
the goal that the T covers, over 0.95; above that it is solved.
Source: gym-pusht, Diffusion Policy (arXiv:2303.04137).  Differs: success ends no episode, as in every suite here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from envs.config import EnvConfig, refuse
from envs.pusht.expert import PushTExpert
from envs.pusht.simulator import CONTROL_STEPS, PushTSimulator
from envs.suites import TaskInfo

__all__ = ["PushTExpert", "PushTSimulator"]

TASKS: Mapping[str, TaskInfo] = {"push-t": TaskInfo(CONTROL_STEPS, gives=frozenset({"reward", "success", "expert"}))}
OBS = ("state", "pixels", "low_dim", "image")
CONTROL = "position"  # as files call it, for agents that have to know that an action of 0 is no rest


def load(task: str, config: EnvConfig) -> PushTSimulator:
    """The simulator."""
    refuse(config, "cameras", "control")
    return PushTSimulator(config)


def expert(task: str, simulator: PushTSimulator, rng: np.random.Generator) -> PushTExpert:
    """Searches for pushes, in a simulator of its own."""
    return PushTExpert(simulator)


def version() -> str:
    """Of the installed gym-pusht; raises `EnvError` where it is missing."""
    from importlib.metadata import version as installed

    from envs.pusht.simulator import make_board

    make_board("state")
    return installed("gym-pusht")


def env_args(task: str, config: EnvConfig) -> dict[str, Any]:
    """What a demonstration file says of its environment; `type` 2 is RoboMimic's number for Gym."""
    kwargs: dict[str, Any] = {"suite": "pusht", "obs": config.obs, "control_mode": CONTROL}
    if config.obs in ("image", "pixels"):
        kwargs["image_size"] = config.image_size
    return {"env_name": task, "type": 2, "env_version": version(), "env_kwargs": kwargs}
