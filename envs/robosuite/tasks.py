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

NAMES_IN_FILES: Mapping[str, str] = {task: name for name, task in ROBOMIMIC.items()}  # robosuite's names to RoboMimic's

_SCRIPTED = frozenset({"reward", "success", "states", "expert"})
_TWO_ARMS = ("agentview", "robot0_eye_in_hand", "robot1_eye_in_hand")
_BOTH_ARMS = ("shouldercamera0", "shouldercamera1", "robot0_eye_in_hand", "robot1_eye_in_hand")


@dataclass(frozen=True)
class RobosuiteTask(TaskInfo):
    """What is known of a task; `episode_steps` is RoboMimic's horizon.

    Attributes:
        robots: number of arms, all of them Pandas.
        cameras: those of the published image policies.
        shaped: whether robosuite has a dense reward of it.
        made_as: the class of robosuite's, or of ours, that makes it; empty where it has the task's name.
        remembers: its reward depends on more than the state (on what was wiped), and is that of robosuite's own step.
        height_limit_m: below this height of the hand (`robot0_eef_pos[2]`) the fingers press on the table; None where it
            isn't part of the task.
    """

    episode_steps: int = 400
    gives: frozenset[str] = frozenset({"reward", "success", "states"})
    robots: int = 1
    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    shaped: bool = True
    made_as: str = ""
    remembers: bool = False
    height_limit_m: float | None = None


TASKS: Mapping[str, RobosuiteTask] = {
    "Lift": RobosuiteTask(gives=_SCRIPTED),
    "LiftPlate": RobosuiteTask(gives=_SCRIPTED, height_limit_m=0.812),
    "Stack": RobosuiteTask(),
    "PickPlaceCan": RobosuiteTask(gives=_SCRIPTED),
    "NutAssemblySquare": RobosuiteTask(gives=_SCRIPTED),
    "NutAssembly": RobosuiteTask(),
    "NutAssemblySingle": RobosuiteTask(made_as="NutAssemblyDrawn"),
    "NutAssemblyRound": RobosuiteTask(),
    "Door": RobosuiteTask(),
    "Wipe": RobosuiteTask(gives=frozenset({"reward", "success"}), remembers=True),
    "ToolHang": RobosuiteTask(episode_steps=700, cameras=("sideview", "robot0_eye_in_hand"), shaped=False),
    "TwoArmTransport": RobosuiteTask(episode_steps=700, robots=2, cameras=_BOTH_ARMS, shaped=False),
    "TwoArmLift": RobosuiteTask(robots=2, cameras=_TWO_ARMS),
    "TwoArmHandover": RobosuiteTask(episode_steps=700, robots=2, cameras=_TWO_ARMS),
    "TwoArmPegInHole": RobosuiteTask(robots=2, cameras=_TWO_ARMS),
}
