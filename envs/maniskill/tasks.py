"""What is known of ManiSkill's tasks without its package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from envs.config import EnvConfig
from envs.suites import TaskInfo

CONTROL = "pd_ee_delta_pose"  # unless said otherwise
OBS_MODES: Mapping[str, str] = {  # env.obs to ManiSkill's
    "state": "state",
    "pixels": "rgb",
    "low_dim": "state",
    "image": "rgb",
    "pointcloud": "pointcloud",
}


def obs_mode(config: EnvConfig) -> str:
    """ManiSkill's of `config`."""
    return OBS_MODES[config.obs] + ("+depth" if config.depth else "")


@dataclass(frozen=True)
class ManiSkillTask(TaskInfo):
    """What is known of a task without its package.

    It gives `expert` where ManiSkill has a motion planner's solution that solves episodes (DrawTriangle's solved none of four).

    Attributes:
        assets: what has to be downloaded first, as `python -m mani_skill.utils.download_asset` calls it.
    """

    gives: frozenset[str] = frozenset({"reward", "success"})
    assets: str = ""


def _tasks() -> dict[str, ManiSkillTask]:
    """Tasks that report success, by their ids without `-v1`.

    Source: episode lengths of `examples/baselines/diffusion_policy/baselines.sh` for PushCube, PickCube, StackCube,
    PegInsertionSide and PushT; about twice the planner's mean for its other tasks; the registered ones else.
    """
    planned = {
        "PickCube": 100,
        "PushCube": 100,
        "StackCube": 200,
        "PegInsertionSide": 300,
        "PullCube": 100,
        "PullCubeTool": 300,
        "LiftPegUpright": 200,
        "PlaceSphere": 200,
        "PlugCharger": 400,
        "StackPyramid": 400,
    }
    others = {
        "PokeCube": 50,
        "RollBall": 80,
        "PushT": 150,
        "FMBAssembly1Easy": 500,
        "DrawTriangle": 300,
        "PickCubeSO100": 50,
        "SO100GraspCube": 64,
    }
    others |= {"TwoRobotPickCube": 100, "TwoRobotStackCube": 100}
    others |= {"UnitreeG1PlaceAppleInBowl": 100, "UnitreeG1TransportBox": 100}
    others |= {"RotateSingleObjectInHandLevel0": 300, "RotateSingleObjectInHandLevel1": 300}
    others |= {f"RotateValveLevel{level}": steps for level, steps in enumerate((80, 150, 150, 150, 300))}
    others |= {f"TriFingerRotateCubeLevel{level}": 250 for level in range(5)}
    downloads = {
        "OpenCabinetDrawer": (100, "partnet_mobility_cabinet"),
        "OpenCabinetDoor": (100, "partnet_mobility_cabinet"),
        "TurnFaucet": (200, "partnet_mobility_faucet"),
        "AssemblingKits": (200, "assembling_kits"),
        "PickSingleYCB": (50, "ycb"),
        "PickClutterYCB": (100, "ycb"),
        "InsertFlower": (300, "oakink-v2"),
    }
    found = {name: ManiSkillTask(steps, gives=frozenset({"reward", "success", "expert"})) for name, steps in planned.items()}
    found |= {name: ManiSkillTask(steps) for name, steps in others.items()}
    found |= {name: ManiSkillTask(steps, assets=assets) for name, (steps, assets) in downloads.items()}
    return {f"{name}-v1": info for name, info in found.items()}


TASKS: Mapping[str, ManiSkillTask] = _tasks()
