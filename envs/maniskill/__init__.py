"""ManiSkill 3's tasks, one environment on the CPU: observations as its trajectory files have them.

    state, low_dim  state [O]: proprioception, object poses and goal, as ManiSkill flattens them
    image           <camera>_image, and agent/..., extra/...: what its rgb files hold, which tells nothing of the objects; with
                    env.depth also <camera>_depth, m
    pointcloud      pointcloud [1024, 3] in the world's frame, m, and agent/..., extra/... likewise
    pixels          one camera

Actions are `pd_ee_delta_pose` unless said otherwise: at 1, the hand moves by 0.1 m and turns by 0.1 rad in a step of 0.05 s
(20 Hz); the last entry opens (1) and closes (-1) the gripper. The dense reward is ManiSkill's normalized one, from 0 to 1; of
tasks that have none it is that of success alone.
Differs: success doesn't end an episode, nor does failure; episodes are as long as ManiSkill's imitation baselines make them, not
as its reinforcement learning does (PickCube 100 steps, not 50).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftop.options import ConfigError
from envs.config import EnvConfig, refuse
from envs.maniskill.arguments import arguments, recorded_arguments
from envs.maniskill.package import version
from envs.maniskill.tasks import OBS_MODES, TASKS
from envs.points import POINTS

if TYPE_CHECKING:
    from envs.maniskill.demos import DemonstrationReport
    from envs.maniskill.simulator import ManiSkillSimulator

__all__ = ["TASKS", "version"]

OBS = tuple(OBS_MODES)
DEPTH = True


def load(task: str, config: EnvConfig) -> ManiSkillSimulator:
    """The simulator of a task; raises as `ManiSkillSimulator` does, and `ConfigError` where clouds are wanted otherwise."""
    from envs.maniskill.simulator import ManiSkillSimulator

    if config.obs == "pointcloud":
        refuse(config, "cameras")
        if config.points != POINTS:
            raise ConfigError(f"{config.name}: env.points={config.points}: its clouds have {POINTS}; set env.points={POINTS}.")
    return ManiSkillSimulator(task, config)


def env_args(task: str, config: EnvConfig) -> dict[str, Any]:
    """What a demonstration file says of its environment."""
    kwargs = arguments(f"maniskill/{task}", config, recorded_arguments(f"maniskill/{task}", config.made_with))
    return {"env_name": task, "type": 2, "env_version": version(), "env_kwargs": kwargs}


def make_demonstrations(task: str, episodes: int, out: Path | str, seed: int, config: EnvConfig) -> DemonstrationReport:
    """Demonstrations by ManiSkill's motion planner; see `envs.maniskill.demos.make_demonstrations`."""
    from envs.maniskill import demos

    return demos.make_demonstrations(task, episodes, out, seed, config)
