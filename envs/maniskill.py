"""ManiSkill 3's tasks, one environment on the CPU: observations as its trajectory files have them.

    low_dim      state [O]: proprioception, object poses and goal, as ManiSkill flattens them
    image        <camera>_image, and agent/..., extra/...: what its rgb files hold, which tells nothing of the objects
    pointcloud   pointcloud [1024, 3] in the world's frame, m, and agent/..., extra/... likewise

Actions are `pd_ee_delta_pose` unless said otherwise: at 1, the hand moves by 0.1 m and turns by 0.1 rad in a step of 0.05 s
(20 Hz); the last entry opens (1) and closes (-1) the gripper.
Differs: success doesn't end an episode, nor does failure; episodes are as long as ManiSkill's imitation baselines make them, not
as its reinforcement learning does (PickCube 100 steps, not 50).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from difftop.types import TaskSpec
from envs.errors import EnvError
from envs.keyed import Array, Observation, TaskStep
from envs.points import farthest_points

if TYPE_CHECKING:
    from pathlib import Path

    from envs.maniskill_demos import DemonstrationReport
    from envs.tasks import TaskConfig

CONTROL = "pd_ee_delta_pose"
POINTS = 1024
INSTALL_LINE = "pip install -e '.[maniskill]' -c constraints.txt"
VULKAN_LINE = "sh tools/vulkan.sh"

OBS_MODES = {"low_dim": "state", "image": "rgb", "pointcloud": "pointcloud"}
_FLOOR_M = 0.005  # points below are table or ground
_REACH_M = 1.0  # points farther from the world's origin to any side are background
_OWN_ARGUMENTS = (  # of a file's environment; the others are passed on
    "obs_mode",
    "reward_mode",
    "render_mode",
    "control_mode",
    "sim_backend",
    "render_backend",
    "num_envs",
    "shader_dir",
    "sensor_configs",
    "human_render_camera_configs",
    "viewer_camera_configs",
)


@dataclass(frozen=True)
class ManiSkillTask:
    """What is known of a task without its package.

    Attributes:
        episode_steps: actions of an episode.
        planner: whether ManiSkill has a motion planner's solution, and it solves episodes (DrawTriangle's solved none of four).
        assets: what has to be downloaded first, as `python -m mani_skill.utils.download_asset` calls it.
    """

    episode_steps: int
    planner: bool = False
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
    found = {name: ManiSkillTask(steps, planner=True) for name, steps in planned.items()}
    found |= {name: ManiSkillTask(steps) for name, steps in others.items()}
    found |= {name: ManiSkillTask(steps, assets=assets) for name, (steps, assets) in downloads.items()}
    return {f"{name}-v1": info for name, info in found.items()}


TASKS: Mapping[str, ManiSkillTask] = _tasks()


class ManiSkillSimulator:
    """One task.

    Attributes:
        base: ManiSkill's own environment, for those who need more than observations.
    """

    def __init__(self, task: str, config: TaskConfig) -> None:
        """Makes a task of `TASKS`, or any other that the package registers.

        Raises:
            EnvError: package, Vulkan device or assets are missing; the file's environment or the control mode can't be had; or
                the task reports no success.
        """
        self._name = f"maniskill/{task}"
        made_with = _made_with(self._name, config.made_with)
        registered = _registered(self._name, task)
        kwargs = _arguments(self._name, config, made_with)
        self.base = _make(self._name, registered, kwargs, asked=bool(config.control or "control_mode" in made_with))
        self._cameras = self._chosen_cameras(config) if config.obs == "image" else ()
        self._obs = config.obs
        self._hand: set[str] = set()
        seen = self.reset(0)
        info = self.base.get_info()
        if "success" not in info:
            raise EnvError(f"{self._name} reports no success, so that there is nothing to evaluate; take another task.")
        steps = config.episode_steps or (TASKS[task].episode_steps if task in TASKS else registered.max_episode_steps)
        self.spec = TaskSpec(
            name=self._name,
            shapes={key: value.shape for key, value in seen.items()},
            action_dim=int(self._space().shape[0]),
            episode_steps=int(steps),
            control_dt_s=1.0 / self.base.control_freq,
        )
        self._largest_force = 0.0
        after_step = self.base._after_simulation_step

        def measured() -> None:  # ManiSkill's own recorder hooks in here too
            after_step()
            self._largest_force = max(self._largest_force, self._hand_force())

        self.base._after_simulation_step = measured

    def reset(self, seed: int) -> Observation:
        """Builds the scene anew where the task has random parts (pegs), and places everything."""
        obs, _ = self.base.reset(seed=seed)
        for unused in set(self.base.scene.sensors) - set(self._cameras) if self._cameras else ():
            del self.base.scene.sensors[unused]  # a camera is half of a step's time
        robot = getattr(self.base.agent, "robot", None)
        names = [] if robot is None else [link.name for link in robot.links]
        self._hand = {name for name in names if "hand" in name or "finger" in name}
        return self._observation(obs)

    def step(self, action: Array) -> tuple[Observation, TaskStep]:
        """One action.

        The contact force is the net one of hand and fingers: both sides of a grasped object cancel, pushing on a table doesn't.
        Friction is not in it: PhysX doesn't report it.
        """
        self._largest_force = 0.0
        obs, reward, _, _, info = self.base.step(self._packed(action))
        force = self._largest_force if self._hand else float("nan")
        return self._observation(obs), TaskStep(float(reward[0]), bool(info["success"][0]), contact_force_n=force)

    def render(self, height: int, width: int) -> Array:
        """The task's camera for people."""
        image: Array = self.base.render_rgb_array()[0].numpy()
        if image.shape[:2] != (height, width):  # made for config.video_size; others get the nearest pixels
            rows, columns = (np.arange(n) * m // n for n, m in zip((height, width), image.shape[:2], strict=True))
            image = image[rows[:, None], columns]
        return image

    def states(self) -> Array:
        """ManiSkill's flat state of the simulation; the controllers' targets are not in it."""
        state: Array = self.base.get_state()[0].numpy().astype(np.float64)
        return state

    def close(self) -> None:
        """Frees the scene."""
        if self.base is not None:
            self.base.close()
        self.base = None

    def _chosen_cameras(self, config: TaskConfig) -> tuple[str, ...]:
        offered = list(self.base.scene.sensors)
        unknown = [name for name in config.cameras if name not in offered]
        if unknown:
            raise EnvError(f"{self._name}: env.cameras={unknown[0]} is not there; it has {', '.join(offered)}.")
        return tuple(config.cameras or offered)

    def _space(self) -> Any:
        space = self.base.single_action_space
        return space if not hasattr(space, "spaces") else _joined(space)

    def _packed(self, action: Array) -> Any:
        """The action as ManiSkill wants it: a dictionary where there are several robots."""
        space, flat = self.base.single_action_space, action.astype(np.float32)
        if not hasattr(space, "spaces"):
            return flat
        ends = np.cumsum([part.shape[0] for part in space.spaces.values()])
        return dict(zip(space.spaces, np.split(flat, ends[:-1]), strict=True))

    def _observation(self, obs: Any) -> Observation:
        if self._obs == "low_dim":
            return {"state": obs[0].numpy()}
        found = {key: np.atleast_1d(value[0].numpy()).astype(np.float32) for key, value in vectors(obs)}
        for name in self._cameras:
            found[f"{name}_image"] = obs["sensor_data"][name]["rgb"][0].numpy().transpose(2, 0, 1)
        if self._obs == "pointcloud":
            found["pointcloud"] = chosen_points(obs["pointcloud"]["xyzw"][0].numpy())
        return found

    def _hand_force(self) -> float:
        """Norm of the sum of the contact forces on hand and fingers in the last simulation step, N."""
        if not self._hand:
            return 0.0
        total = np.zeros(3)
        for contact in self.base.scene.get_contacts():
            first, second = (body.entity.name in self._hand for body in contact.bodies)
            if first != second:
                total += (1 if first else -1) * sum((point.impulse for point in contact.points), np.zeros(3))
        return float(np.linalg.norm(total) / self.base.sim_timestep)


def load(task: str, config: TaskConfig) -> ManiSkillSimulator:
    """The simulator of a task; raises as `ManiSkillSimulator` does."""
    return ManiSkillSimulator(task, config)


def version() -> str:
    """Of the installed package.

    Raises:
        EnvError: there is none.
    """
    return str(_import_maniskill("maniskill").__version__)


def env_args(task: str, config: TaskConfig) -> dict[str, Any]:
    """What a demonstration file says of its environment."""
    kwargs = _arguments(f"maniskill/{task}", config, _made_with(f"maniskill/{task}", config.made_with))
    return {"env_name": task, "type": 2, "env_version": version(), "env_kwargs": kwargs}


def make_demonstrations(task: str, episodes: int, out: Path | str, seed: int, config: TaskConfig) -> DemonstrationReport:
    """Demonstrations by ManiSkill's motion planner; see `envs.maniskill_demos.make_demonstrations`."""
    from envs import maniskill_demos

    return maniskill_demos.make_demonstrations(task, episodes, out, seed, config)


def vectors(obs: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Keys joined by '/' and values of all that is neither camera nor point cloud, in the order of the file's keys."""
    for key in sorted(obs):
        if path or key not in ("sensor_data", "sensor_param", "pointcloud"):
            if isinstance(obs[key], Mapping):
                yield from vectors(obs[key], f"{path}{key}/")
            else:
                yield path + key, obs[key]


def chosen_points(xyzw: Array) -> Array:
    """`POINTS` points of robot and objects `[P, 3]` out of all pixels `[N, 4]`, whose w is 0 where the camera sees nothing."""
    inside = (xyzw[:, 3] > 0) & (xyzw[:, 2] > _FLOOR_M) & (np.abs(xyzw[:, :3]) < _REACH_M).all(1)
    return farthest_points(xyzw[inside, :3], POINTS)


def _joined(space: Any) -> Any:
    import gymnasium

    parts = list(space.spaces.values())
    return gymnasium.spaces.Box(np.concatenate([p.low for p in parts]), np.concatenate([p.high for p in parts]))


def _made_with(name: str, text: str) -> dict[str, Any]:
    """Arguments of a file's environment."""
    try:
        found: dict[str, Any] = json.loads(text or "{}")
        found = found.get("env_kwargs", found)
        backend = str(found.get("sim_backend", "physx_cpu"))
    except (ValueError, AttributeError) as error:
        raise EnvError(f"{name}: env.made_with is not the JSON of an environment's arguments ({error}).") from error
    if backend not in ("physx_cpu", "cpu", "auto"):
        raise EnvError(
            f"{name}: the demonstrations come from sim_backend={backend}, whose contacts differ from physx_cpu's, the only one "
            "here; play them again with `python -m mani_skill.trajectory.replay_trajectory --traj-path FILE -b physx_cpu "
            "--use-first-env-state --save-traj`."
        )
    return found


def _arguments(name: str, config: TaskConfig, made_with: Mapping[str, Any]) -> dict[str, Any]:
    """What ManiSkill's environment is made with; sizes and shaders of cameras are the file's, where there is a file."""
    recorded = made_with.get("control_mode")
    if config.control and recorded and config.control != recorded:
        raise EnvError(
            f"{name}: env.control={config.control}, but the demonstrations were recorded with {recorded}; leave it empty."
        )
    kwargs = {
        key: tuple(value) if isinstance(value, list) else value for key, value in made_with.items() if key not in _OWN_ARGUMENTS
    }
    size, video = config.image_size, config.video_size
    sensors = made_with.get("sensor_configs", {}) if made_with else {"width": size, "height": size}
    return kwargs | {
        "obs_mode": OBS_MODES[config.obs],
        "control_mode": config.control or recorded or CONTROL,
        "render_mode": "rgb_array",
        "sim_backend": "physx_cpu",
        "render_backend": "cpu",
        "num_envs": 1,
        "sensor_configs": sensors,
        "human_render_camera_configs": {"width": video, "height": video},
    }


def _import_maniskill(name: str) -> Any:
    try:
        import mani_skill.envs
    except ModuleNotFoundError as error:
        raise EnvError(f"{name}: package mani_skill is not installed ({error}); {INSTALL_LINE}") from error
    return mani_skill


def _registered(name: str, task: str) -> Any:
    """ManiSkill's entry of a task; raises where it is unknown, or where ManiSkill would ask whether to download something."""
    _import_maniskill(name)
    from mani_skill.utils import assets
    from mani_skill.utils.registration import REGISTERED_ENVS

    if task not in REGISTERED_ENVS:
        raise EnvError(f"{name}: ManiSkill registers no {task}; it has {', '.join(sorted(TASKS))} and others.")
    entry = REGISTERED_ENVS[task]
    for asset in entry.asset_download_ids or []:
        group = asset in assets.DATA_GROUPS
        sources = assets.expand_data_group_into_individual_data_source_ids(asset) if group else [asset]
        if not all(assets.is_data_source_downloaded(source) for source in sources):
            raise EnvError(f"{name}: its assets are missing; run `python -m mani_skill.utils.download_asset {asset}`.")
    return entry


def _make(name: str, registered: Any, kwargs: dict[str, Any], *, asked: bool) -> Any:
    """ManiSkill's environment, actions in [-1, 1]; a robot without the control mode gets its own, unless it was `asked` for."""
    try:
        base = registered.make(**kwargs)
    except AssertionError as error:
        if "not in supported modes" not in str(error):
            raise EnvError(f"{name} can't be made (AssertionError: {error}).") from error
        if asked:
            raise EnvError(f"{name}: control mode {error}; take one of them, or leave env.control empty.") from error
        return _make(name, registered, kwargs | {"control_mode": None}, asked=True)
    except Exception as error:  # SAPIEN, tasks and asset loaders each have their own
        text = str(error)
        if isinstance(error, RuntimeError) and ("vk::" in text or "rendering device" in text or "find device" in text):
            raise EnvError(f"{name}: ManiSkill needs a Vulkan device even for states ({text}); run `{VULKAN_LINE}`.") from error
        raise EnvError(f"{name} can't be made ({type(error).__name__}: {text}).") from error
    space = base.single_action_space
    parts = list(space.spaces.values()) if hasattr(space, "spaces") else [space]
    if not all((part.low == -1).all() and (part.high == 1).all() for part in parts):
        base.close()
        raise EnvError(
            f"{name}: actions of control mode {kwargs['control_mode']} are not normalized to [-1, 1]; take {CONTROL}; to convert "
            f"a file: `python -m mani_skill.trajectory.replay_trajectory --traj-path FILE -o state -c {CONTROL} --save-traj`."
        )
    return base
