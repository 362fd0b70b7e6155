"""What is known of robosuite's tasks without loading robosuite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from envs.suites import TaskInfo

METRES_PER_ACTION, RADIANS_PER_ACTION = 0.05, 0.5
ROBOMIMIC: Mapping[str, str] = {  # RoboMimic's names
    "lift": "Lift",
    "can": "PickPlaceCan",
    "square": "NutAssemblySquare",
    "tool_hang": "ToolHang",
    "transport": "TwoArmTransport",
}

_SCRIPTED = frozenset({"reward", "success", "states", "expert"})
_FACING = ("agentview", "robot0_eye_in_hand", "robot1_eye_in_hand")
_BOTH_ARMS = ("shouldercamera0", "shouldercamera1", "robot0_eye_in_hand", "robot1_eye_in_hand")


@dataclass(frozen=True)
class RobosuiteTask(TaskInfo):
    """What is known of a task; `episode_steps` is RoboMimic's horizon.

    Attributes:
        robots: number of arms, all of them Pandas.
        cameras: those of the published image policies.
        shaped: whether robosuite has a dense reward of it.
        height_limit_m: below this height of the hand (`robot0_eef_pos[2]`) the fingers press on the table; None where it
            isn't part of the task.
    """

    episode_steps: int = 400
    gives: frozenset[str] = frozenset({"reward", "success", "states"})
    robots: int = 1
    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    shaped: bool = True
    height_limit_m: float | None = None


TASKS: Mapping[str, RobosuiteTask] = {
    "Lift": RobosuiteTask(gives=_SCRIPTED),
    "LiftPlate": RobosuiteTask(gives=_SCRIPTED, height_limit_m=0.812),
    "Stack": RobosuiteTask(),
    "PickPlaceCan": RobosuiteTask(gives=_SCRIPTED),
    "NutAssemblySquare": RobosuiteTask(gives=_SCRIPTED),
    "ToolHang": RobosuiteTask(episode_steps=700, cameras=("sideview", "robot0_eye_in_hand"), shaped=False),
    "TwoArmHandover": RobosuiteTask(episode_steps=700, robots=2, cameras=_FACING, shaped=True),
    "TwoArmTransport": RobosuiteTask(episode_steps=700, robots=2, cameras=_BOTH_ARMS, shaped=False),
}
