"""robosuite's tabletop tasks; RoboMimic's files have them as `robomimic/...`, see `envs.robomimic`.

    state      object, robot0_proprio-state (and of robot1): poses of the objects, and all that robosuite tells of the robot
    low_dim    object, and of each arm robot0_eef_pos [3], m, robot0_eef_quat [4], xyzw, and robot0_gripper_qpos [2], m
    image      the arms' keys, and <camera>_image; with env.depth also <camera>_depth, m
    pointcloud the arms' keys, and pointcloud [1024, 3], m: of what can move, seen by all cameras
    pixels     one camera

`object` has the poses of the task's objects (m and quaternions), also seen from the hand. Actions of each arm: a displacement of
the hand (0.05 m at 1), a rotation (axis-angle, 0.5 rad at 1), and the gripper (its sign: 1 closes); 20 Hz. With `env.poses` they
are where the hand shall be, a learned pose of `difftop.poses` that is scaled by the range of the data set. The dense reward is
robosuite's shaped one, from 0 to 1 (Wipe's has penalties); ToolHang and TwoArmTransport have none and stay sparse. Wipe and
TwoArmPegInHole have hands without joints: 6 actions an arm, and no gripper_qpos.

Differs: robosuite's `step` returns observations, rewards and success of one simulator step (2 ms) before its end. Here all are of
the state at its end, as in RoboMimic's files, which are made from recorded states; but for the reward of Wipe, which remembers
what was wiped (its scale is that of an endless episode, since robosuite divides by a number that depends on the time limit).
NutAssemblySingle draws its nut from the episode's seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.config import EnvConfig
from envs.robosuite.arguments import env_kwargs
from envs.robosuite.simulator import RobosuiteSimulator, import_robosuite
from envs.robosuite.tasks import TASKS
from envs.suites import Expert

__all__ = ["TASKS", "RobosuiteSimulator", "env_kwargs"]

OBS = ("state", "pixels", "low_dim", "image", "pointcloud")
POSES = DEPTH = True


def load(task: str, config: EnvConfig) -> RobosuiteSimulator:
    """The simulator of a task.

    Raises:
        EnvError: robosuite is missing, or it can't make the task.
    """
    return RobosuiteSimulator(f"robosuite/{task}", task, config)


def expert(task: str, simulator: Any, rng: np.random.Generator) -> Expert:
    """The scripted expert of `envs.robosuite.experts`.

    Raises:
        EnvError: the task has none.
    """
    from envs.robosuite.experts import ScriptedExpert

    return ScriptedExpert(task, simulator, rng)


def version() -> str:
    """Of the installed robosuite."""
    return str(import_robosuite().__version__)


def env_args(task: str, config: EnvConfig) -> dict[str, Any]:
    """What a RoboMimic file says of its environment."""
    return {"env_name": task, "type": 1, "env_version": version(), "env_kwargs": env_kwargs(task, config)}
