"""Meta-World's 50 tasks with the goal in sight, and its scripted experts.

    state      state [39]: the suite's own: hand, gripper and objects, the same of the step before, and the goal
    low_dim    hand_pos [3], m; gripper [1], opening from 0 to 1; objects [14]: position and quaternion of two objects, zeros
               where there is one; goal_pos [3], m
    image      hand_pos and gripper, and <camera>_image: what tells nothing of objects and goal but by sight; with env.depth
               also <camera>_depth, m
    pointcloud hand_pos and gripper, and pointcloud [1024, 3], m: what the cameras see of what can move
    pixels     one camera

Actions: 3 displacements of the hand, 0.01 m at 1, and the gripper; 80 Hz. The dense reward is the suite's own, from 0 to 10.
"""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from difftop.types import ObsSpec
from envs.config import EnvConfig, refuse
from envs.errors import EnvError, RenderError
from envs.opengl import advice, choose_backend, ensure_drawing
from envs.points import farthest_points
from envs.suites import Array, Observation, Outcome, TaskInfo

if TYPE_CHECKING:
    from envs.scene_camera import SceneCamera

CLOUD = "pointcloud"
_NAMES = """
assembly basketball bin-picking box-close button-press-topdown button-press-topdown-wall button-press button-press-wall
coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock door-open door-unlock drawer-close drawer-open
faucet-close faucet-open hammer hand-insert handle-press-side handle-press handle-pull handle-pull-side peg-insert-side lever-pull
peg-unplug-side pick-out-of-hole pick-place pick-place-wall plate-slide-back-side plate-slide-back plate-slide-side plate-slide
reach reach-wall push-back push push-wall shelf-place soccer stick-pull stick-push sweep-into sweep window-close window-open
"""
_STEPS = 200  # DiffTORI's episodes; Meta-World's own are 500
_LONG = {"basketball": 400, "peg-insert-side": 400, "stick-pull": 300, "handle-pull-side": 300}  # where its experts take over 100
_GIVES = frozenset({"reward", "success", "expert"})
TASKS: Mapping[str, TaskInfo] = {name: TaskInfo(_LONG.get(name, _STEPS), gives=_GIVES) for name in _NAMES.split()}
OBS = ("state", "pixels", "low_dim", "image", CLOUD)

METRES_PER_ACTION = 0.01
_CONTROL_DT_S = 0.0125
_STATE_DIM = 39
_VECTORS = {"hand_pos": slice(0, 3), "gripper": slice(3, 4), "objects": slice(4, 18), "goal_pos": slice(36, 39)}
_SEEING = ("hand_pos", "gripper")  # who sees by cameras doesn't get objects and goal as numbers
DEPTH = True
_CAMERA = "corner2"  # of Meta-World's published images
_ENDLESS = 10**9  # control steps; the time limit is not the simulator's business


class MetaWorldSimulator:
    """One task; `last` is the suite's own observation, for its experts."""

    action_dim, control_dt_s = 4, _CONTROL_DT_S

    def __init__(self, task: str, config: EnvConfig) -> None:
        """Loads `task` of `TASKS`.

        Raises:
            EnvError: metaworld is missing, or a camera that isn't there.
        """
        package = _import_metaworld()
        self.episode_steps, self._sparse = TASKS[task].episode_steps, config.reward == "sparse"
        self._cameras = _shown(config)
        self._keys = {"image": _SEEING, CLOUD: _SEEING, "low_dim": tuple(_VECTORS)}.get(config.obs, ())
        self.obs = {key: ObsSpec("vector", (len(range(*_VECTORS[key].indices(_STATE_DIM))),)) for key in self._keys}
        self.obs |= {"state": ObsSpec("vector", (_STATE_DIM,))} if config.obs == "state" else {}
        self.obs |= {key: ObsSpec("image", (3, config.image_size, config.image_size)) for key in self._cameras}
        self._shown_depths = {f"{camera}_depth": camera for camera in self._cameras.values()} if config.depth else {}
        self.obs |= {key: ObsSpec("depth", (1, config.image_size, config.image_size)) for key in self._shown_depths}
        self._clouds = (config.cameras or [_CAMERA]) if config.obs == CLOUD else []
        self._size, self._points = config.image_size, config.points
        self.obs |= {CLOUD: ObsSpec("points", (config.points, 3))} if self._clouds else {}
        self._env = package.env_dict.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-v3-goal-observable"](seed=0)
        self._env._freeze_rand_vec, self._env.seeded_rand_vec = False, True
        self._env.max_path_length = _ENDLESS  # the suite raises beyond it
        if config.render_quality == "fast":
            quality = self._env.model.vis.quality
            quality.shadowsize, quality.offsamples = 0, 0
        cameras = [self._env.model.camera(i).name for i in range(self._env.model.ncam)]
        for name in (*self._cameras.values(), *self._clouds):
            if name not in cameras:
                raise EnvError(f"metaworld/{task}: env.cameras: there is no {name!r}; it has {', '.join(cameras)}.")
        self._fast = config.render_quality == "fast"
        self._renderers: dict[tuple[int, int], Any] = {}
        self._depths = cast("SceneCamera | None", None)
        self.last = np.zeros(_STATE_DIM)

    def reset(self, seed: int) -> None:
        """Draws objects and goal from `seed`."""
        self._env.seed(seed)
        self.last, _ = self._env.reset()

    def step(self, action: Array) -> Outcome:
        """One action of 0.0125 s."""
        self.last, reward, _, _, info = self._env.step(action)
        solved = bool(info["success"])
        return Outcome(float(solved) if self._sparse else float(reward), success=solved)

    def observe(self) -> Observation:
        """Of the suite's own observation, and of the cameras."""
        obs: Observation = {key: self.last[_VECTORS[key]] for key in self._keys}
        if "state" in self.obs:
            obs["state"] = self.last
        for key, camera in self._cameras.items():
            obs[key] = self._image(camera, *self.obs[key].shape[1:]).transpose(2, 0, 1)
        for key, camera in self._shown_depths.items():
            obs[key] = self._depth(camera)[None]
        if self._clouds:
            obs[CLOUD] = self._cloud()
        return obs

    def render(self, height: int, width: int) -> Array:
        """The camera of the suite's published images."""
        return self._image(_CAMERA, height, width)

    def states(self) -> Array:
        """Time, positions and velocities of the simulation, as RoboMimic files keep them."""
        data = self._env.data
        return np.concatenate([[data.time], data.qpos, data.qvel])

    def close(self) -> None:
        """Frees the graphics contexts; closing twice is fine, and they close at the latest when Python ends."""
        atexit.unregister(self.close)
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers = {}
        if self._depths is not None:
            self._depths.close()

    def _cloud(self) -> Array:
        """Points of all cameras of `obs=pointcloud`, together."""
        model, data, size = self._env.model, self._env.data, self._size
        seen = [self._measuring().points(model, data, camera, size, size) for camera in self._clouds]
        return farthest_points(np.concatenate(seen), self._points)

    def _depth(self, camera: str) -> Array:
        """Depths `[height, width]`, m, upright as the camera's images are."""
        depth = self._measuring().depth(self._env.model, self._env.data, camera, self._size, self._size)
        return depth[::-1, ::-1] if self._hangs(camera) else depth

    def _measuring(self) -> SceneCamera:
        """Sees what images show, without anti-aliasing."""
        from envs.scene_camera import SceneCamera

        if self._depths is None:
            self._depths = SceneCamera(fast=True, hidden=())
        return self._depths

    def _image(self, camera: str, height: int, width: int) -> Array:
        backend = ensure_drawing()
        try:
            import mujoco

            if (height, width) not in self._renderers:
                self._renderers[height, width] = made = mujoco.Renderer(self._env.model, height, width)
                if self._fast:  # a reflecting floor draws the robot twice: half of the time
                    made.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
                atexit.unregister(self.close)
                atexit.register(self.close)  # what is left over is freed before MuJoCo ends EGL, or it complains
            renderer = self._renderers[height, width]
            renderer.update_scene(self._env.data, camera=camera)
            image: Array = renderer.render()
        except Exception as error:  # OpenGL, EGL and MuJoCo each have their own
            raise RenderError(f"Meta-World can't render with MUJOCO_GL={backend} ({error}): {advice(backend)}.") from error
        return np.ascontiguousarray(image[::-1, ::-1]) if self._hangs(camera) else image

    def _hangs(self, camera: str) -> bool:
        """Whether a camera that stands still is mounted upside down, as all three of the corners are."""
        number = self._env.model.camera(camera).id
        upwards = self._env.data.cam_xmat[number].reshape(3, 3)[2, 1]  # how much of "up" in its image is up in the world
        return bool(self._env.model.cam_bodyid[number] == 0 and upwards < 0)


class ScriptedExpert:
    """Meta-World's own policy of the task."""

    noisy = 3  # the displacements

    def __init__(self, task: str, simulator: MetaWorldSimulator) -> None:
        self._make, self._simulator = _policy_class(task), simulator
        self.reset()

    def reset(self) -> None:
        """A new policy: some of them remember what they did."""
        self._policy = self._make()

    def act(self, obs: Observation) -> Array:
        """The policy's action."""
        return np.asarray(self._policy.get_action(self._simulator.last), np.float64)


def load(task: str, config: EnvConfig) -> MetaWorldSimulator:
    """The simulator of a task."""
    refuse(config, "control")
    return MetaWorldSimulator(task, config)


def expert(task: str, simulator: MetaWorldSimulator, rng: np.random.Generator) -> ScriptedExpert:
    """The suite's scripted expert."""
    return ScriptedExpert(task, simulator)


def version() -> str:
    """Of the installed metaworld."""
    from importlib.metadata import version as installed

    _import_metaworld()
    return installed("metaworld")


def env_args(task: str, config: EnvConfig) -> dict[str, Any]:
    """What a demonstration file says of its environment; `type` 2 is RoboMimic's number for Gym."""
    return {
        "env_name": recorded_name(task),
        "type": 2,
        "env_version": version(),
        "env_kwargs": {"suite": "metaworld", "obs": config.obs},
    }


def recorded_name(task: str) -> str:
    """Meta-World's, with its version."""
    return f"{task}-v3"


def _shown(config: EnvConfig) -> dict[str, str]:
    """Key of each image to its camera."""
    cameras = config.cameras or [_CAMERA]
    if config.obs == "pixels":
        return {"pixels": cameras[0]}
    return {f"{camera}_image": camera for camera in cameras} if config.obs == "image" else {}


def _policy_class(task: str) -> Any:
    _import_metaworld()
    from metaworld.policies import ENV_POLICY_MAP

    return ENV_POLICY_MAP[f"{task}-v3"]


def _import_metaworld() -> Any:
    choose_backend()
    try:
        import metaworld
        import metaworld.env_dict
    except ModuleNotFoundError as error:
        install = "run `make sims`, or `pip install -e .[metaworld] -c constraints.txt`"
        raise EnvError(f"metaworld tasks need the package metaworld ({error}): {install}.") from error
    return metaworld
