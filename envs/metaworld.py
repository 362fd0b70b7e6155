"""Meta-World's 50 tasks with the goal in sight, and its scripted experts.

Observations: `hand_pos` (3, m), `gripper` (1, opening from 0 to 1), `objects` (14: position and quaternion of two objects, zeros
where there is one) and `goal_pos` (3, m). Actions: 3 displacements of the hand, 0.01 m at 1, and the gripper; 80 Hz.

Differs: from the suite's 39 numbers, which repeat those of the step before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from difftop.types import TaskSpec
from envs.errors import EnvError, RenderError
from envs.keyed import Array, Observation, TaskStep
from envs.opengl import advice, choose_backend

if TYPE_CHECKING:
    from envs.tasks import Expert, TaskConfig

_NAMES = """
assembly basketball bin-picking box-close button-press-topdown button-press-topdown-wall button-press button-press-wall
coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock door-open door-unlock drawer-close drawer-open
faucet-close faucet-open hammer hand-insert handle-press-side handle-press handle-pull handle-pull-side peg-insert-side lever-pull
peg-unplug-side pick-out-of-hole pick-place pick-place-wall plate-slide-back-side plate-slide-back plate-slide-side plate-slide
reach reach-wall push-back push push-wall shelf-place soccer stick-pull stick-push sweep-into sweep window-close window-open
"""
_STEPS = 200  # DiffTORI's episodes; Meta-World's own are 500
_LONG = {"basketball": 400, "peg-insert-side": 400, "stick-pull": 300, "handle-pull-side": 300}  # where its experts take over 100
TASKS: dict[str, int] = {name: _LONG.get(name, _STEPS) for name in _NAMES.split()}  # to actions of an episode

METRES_PER_ACTION = 0.01
_CONTROL_DT_S = 0.0125
_LOW_DIM = {"hand_pos": (3,), "gripper": (1,), "objects": (14,), "goal_pos": (3,)}
_CAMERAS = ("corner2",)  # the camera of Meta-World's published images
_UPSIDE_DOWN = ("corner2",)  # the suite mounts it that way
_IMAGE_KEYS = ("hand_pos", "gripper")  # an image policy doesn't see objects and goal as numbers


class MetaWorldSimulator:
    """One task; `last` is the suite's own observation, for its experts."""

    def __init__(self, task: str, config: TaskConfig) -> None:
        """Loads `task` of `TASKS`.

        Raises:
            EnvError: metaworld is missing, or observations that it doesn't offer.
        """
        package = _import_metaworld()
        if config.obs == "pointcloud":
            raise EnvError(f"metaworld/{task}: env.obs=pointcloud is not offered; take low_dim or image.")
        if config.control:
            raise EnvError(
                f"metaworld/{task}: env.control={config.control} is not offered, there is one control mode; leave it out."
            )
        self._cameras = tuple(config.cameras or _CAMERAS) if config.obs == "image" else ()
        size = config.image_size
        keys = _IMAGE_KEYS if self._cameras else tuple(_LOW_DIM)
        shapes = {key: _LOW_DIM[key] for key in keys} | {f"{name}_image": (3, size, size) for name in self._cameras}
        self.spec = TaskSpec(f"metaworld/{task}", shapes, 4, config.episode_steps or TASKS[task], _CONTROL_DT_S)
        self._env = package.env_dict.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-v3-goal-observable"](seed=0)
        self._env._freeze_rand_vec, self._env.seeded_rand_vec = False, True
        self._env.max_path_length = self.spec.episode_steps + 1  # the suite raises beyond it; the time limit is not its business
        if config.render_quality == "fast":
            quality = self._env.model.vis.quality
            quality.shadowsize, quality.offsamples = 0, 0
        cameras = [self._env.model.camera(i).name for i in range(self._env.model.ncam)]
        for name in self._cameras:
            if name not in cameras:
                raise EnvError(f"metaworld/{task}: env.cameras: there is no {name!r}; it has {', '.join(cameras)}.")
        self._renderers: dict[tuple[int, int], Any] = {}
        self.last = np.zeros(39)

    def reset(self, seed: int) -> Observation:
        """Draws objects and goal from `seed`."""
        self._env.seed(seed)
        self.last, _ = self._env.reset()
        return self._observe()

    def step(self, action: Array) -> tuple[Observation, TaskStep]:
        """One action of 0.0125 s."""
        self.last, reward, _, _, info = self._env.step(action)
        return self._observe(), TaskStep(float(reward), bool(info["success"]))

    def render(self, height: int, width: int) -> Array:
        """The camera of the suite's published images."""
        return self._image(_CAMERAS[0], height, width)

    def states(self) -> Array:
        """Time, positions and velocities of the simulation, as RoboMimic files keep them."""
        data = self._env.data
        return np.concatenate([[data.time], data.qpos, data.qvel])

    def close(self) -> None:
        """Frees the graphics contexts."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers = {}

    def _observe(self) -> Observation:
        hand, gripper, objects, goal = self.last[:3], self.last[3:4], self.last[4:18], self.last[36:39]
        values = {"hand_pos": hand, "gripper": gripper, "objects": objects, "goal_pos": goal}
        obs: Observation = {key: values[key] for key in self.spec.shapes if key in values}
        for name in self._cameras:
            size = self.spec.shapes[f"{name}_image"][1]
            obs[f"{name}_image"] = self._image(name, size, size).transpose(2, 0, 1)
        return obs

    def _image(self, camera: str, height: int, width: int) -> Array:
        backend = choose_backend()
        try:
            import mujoco

            if (height, width) not in self._renderers:
                self._renderers[height, width] = mujoco.Renderer(self._env.model, height, width)
            renderer = self._renderers[height, width]
            renderer.update_scene(self._env.data, camera=camera)
            image: Array = renderer.render()
            if camera in _UPSIDE_DOWN:
                image = np.ascontiguousarray(image[::-1, ::-1])
        except Exception as error:  # OpenGL, EGL and MuJoCo each have their own
            raise RenderError(f"Meta-World can't render with MUJOCO_GL={backend} ({error}): {advice(backend)}.") from error
        return image


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


def load(task: str, config: TaskConfig) -> MetaWorldSimulator:
    """The simulator of a task."""
    return MetaWorldSimulator(task, config)


def expert(task: str, simulator: MetaWorldSimulator, rng: np.random.Generator) -> Expert:
    """The suite's scripted expert."""
    return ScriptedExpert(task, simulator)


def version() -> str:
    """Of the installed metaworld."""
    from importlib.metadata import version as installed

    _import_metaworld()
    return installed("metaworld")


def env_args(task: str, config: TaskConfig) -> dict[str, Any]:
    """What a demonstration file says of its environment; `type` 2 is RoboMimic's number for Gym."""
    return {
        "env_name": f"{task}-v3",
        "type": 2,
        "env_version": version(),
        "env_kwargs": {"suite": "metaworld", "obs": config.obs},
    }


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
