"""robosuite's tabletop tasks, also as RoboMimic's files name them: `robosuite/PickPlaceCan` is `robomimic/can`.

Observations: `object` (poses of the task's objects, also seen from the hand, m and quaternions), `robot0_eef_pos` (3, m),
`robot0_eef_quat` (4, xyzw), `robot0_gripper_qpos` (2, m), and the same of `robot1` where there are two arms. Actions of each arm:
a displacement of the hand (0.05 m at 1), a rotation (axis-angle, 0.5 rad at 1), and the gripper (its sign: 1 closes); 20 Hz.

Differs: robosuite's `step` returns observations, rewards and success of one simulator step (2 ms) before its end. Here all are of
the state at its end, as in RoboMimic's files, which are made from recorded states.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from difftop.options import suggest
from difftop.types import TaskSpec
from envs.errors import EnvError
from envs.keyed import Array, Observation, TaskStep
from envs.opengl import choose_backend

if TYPE_CHECKING:
    from envs.robosuite_camera import SceneCamera
    from envs.tasks import Expert, TaskConfig


@dataclass(frozen=True)
class RobosuiteTask:
    """What is known of a task without loading robosuite.

    Attributes:
        robots: number of arms, all of them Pandas.
        episode_steps: RoboMimic's horizon.
        cameras: those of the published image policies.
        height_limit_m: below this height of the hand (`robot0_eef_pos[2]`) the fingers press on the table; None where it
            isn't part of the task.
    """

    robots: int = 1
    episode_steps: int = 400
    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    height_limit_m: float | None = None


_BOTH_ARMS = ("shouldercamera0", "shouldercamera1", "robot0_eye_in_hand", "robot1_eye_in_hand")
TASKS: Mapping[str, RobosuiteTask] = {
    "Lift": RobosuiteTask(),
    "LiftPlate": RobosuiteTask(height_limit_m=0.812),
    "Stack": RobosuiteTask(),
    "PickPlaceCan": RobosuiteTask(),
    "NutAssemblySquare": RobosuiteTask(),
    "ToolHang": RobosuiteTask(episode_steps=700, cameras=("sideview", "robot0_eye_in_hand")),
    "TwoArmTransport": RobosuiteTask(robots=2, episode_steps=700, cameras=_BOTH_ARMS),
}
ROBOMIMIC: Mapping[str, str] = {  # RoboMimic's names
    "lift": "Lift",
    "can": "PickPlaceCan",
    "square": "NutAssemblySquare",
    "tool_hang": "ToolHang",
    "transport": "TwoArmTransport",
}

METRES_PER_ACTION, RADIANS_PER_ACTION = 0.05, 0.5
_ARM_KEYS = ("eef_pos", "eef_quat", "gripper_qpos")
_ENDLESS = 10**9  # control steps; the time limit is not the simulator's business
_OSC = {  # RoboMimic's controller of one arm
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [METRES_PER_ACTION] * 3 + [RADIANS_PER_ACTION] * 3,
    "output_min": [-METRES_PER_ACTION] * 3 + [-RADIANS_PER_ACTION] * 3,
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "input_type": "delta",
    "interpolation": None,
    "ramp_ratio": 0.2,
}
_OURS = {  # arguments that are not a file's to choose
    "has_renderer": False,
    "has_offscreen_renderer": False,
    "use_camera_obs": False,
    "use_object_obs": True,
    "ignore_done": True,
    "hard_reset": True,
    "horizon": _ENDLESS,
}
_CAMERA_ARGUMENTS = ("camera_names", "camera_heights", "camera_widths", "camera_depths", "camera_segmentations")
_UNUSED = (*_OURS, *_CAMERA_ARGUMENTS, "render_gpu_device_id", "renderer", "renderer_config", "render_camera", "seed")


class RobosuiteSimulator:
    """One task.

    Attributes:
        env: robosuite's own environment; experts look at it, nothing else should.
    """

    def __init__(self, name: str, task: str, config: TaskConfig) -> None:
        """Makes `task` of `TASKS`, to be known as `name`.

        Raises:
            EnvError: robosuite is missing, or it refuses the arguments that a file names.
        """
        if config.obs == "pointcloud":
            raise EnvError(f"{name}: env.obs=pointcloud is not offered; take low_dim or image.")
        suite, known = _import_robosuite(), TASKS[task]
        arguments = env_kwargs(task, config)
        try:
            self.env = suite.make(task, **{k: v for k, v in arguments.items() if k not in _UNUSED}, **_OURS, seed=0)
        except Exception as error:  # robosuite raises what it likes
            raise EnvError(f"{name}: robosuite can't make {task} with {arguments} ({type(error).__name__}: {error}).") from error
        low, high = self.env.action_spec
        if not ((low == -1).all() and (high == 1).all()):
            raise EnvError(f"{name}: its actions are in [{low.min()}, {high.max()}]; only delta actions in [-1, 1] are offered.")
        self._images = _image_sizes(known, config, arguments) if config.obs == "image" else {}
        self._fast, self._camera = config.render_quality == "fast", cast("SceneCamera | None", None)
        self._refresh, self.env._update_observables = self.env._update_observables, self._watch
        self._hands: list[Array] = []
        self._force, self._xml = 0.0, ""
        self.env.reset()
        seen = self._look()
        shapes = {key: np.shape(seen[key]) for key in self._low_dim_keys(config)}
        shapes |= {f"{camera}_image": (3, *size) for camera, size in self._images.items()}
        steps = config.episode_steps or arguments.get("horizon") or known.episode_steps
        self.spec = TaskSpec(name, shapes, self.env.action_dim, steps, 1 / self.env.control_freq)

    def reset(self, seed: int) -> Observation:
        """Draws the robot's posture, and the sizes and poses of the objects, from `seed`."""
        # In place: the samplers of poses keep the generator that they were made with.
        self.env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self.env.reset()
        self._begin()
        self._look()  # robosuite computes poses seen from the hand with the objects' poses of the look before
        return self._observe()

    def step(self, action: Array) -> tuple[Observation, TaskStep]:
        """One action of 0.05 s; the force is the largest of its 25 simulator steps."""
        self._force = 0.0
        self.env.step(action)
        obs = self._observe()
        reward, success = self.judge()
        return obs, TaskStep(reward, success, contact_force_n=self._force)

    def states(self) -> Array:
        """Time, positions and velocities of the simulation, as RoboMimic's files keep them."""
        flat: Array = self.env.sim.get_state().flatten()
        return flat

    def model_xml(self) -> str:
        """The scene, with the sizes that this episode drew."""
        return self._xml

    def load_scene(self, xml: str) -> None:
        """Takes a scene of `model_xml` in place of one that is drawn; its files are looked for in the installed robosuite."""
        self.env.reset_from_xml_string(xml)
        self._begin()

    def resize(self, shapes: Mapping[str, tuple[Array, Array, Array]]) -> None:
        """Gives geoms, by name, another size `[3]`, position `[3]` and quaternion `[4]` in their bodies."""
        model = self.env.sim.model
        for name, (size, position, quaternion) in shapes.items():
            geom = model.geom_name2id(name)
            model.geom_size[geom], model.geom_pos[geom], model.geom_quat[geom] = size, position, quaternion
            model.geom_rbound[geom] = np.linalg.norm(size)
        self._begin()

    def set_state(self, state: Array) -> Observation:
        """Puts the simulation into a state of `states`, and looks at it."""
        self.env.sim.set_state_from_flattened(state)
        return self._observe()

    def judge(self) -> tuple[float, bool]:
        """The task's reward and success in the state that was looked at last."""
        return float(self.env.reward(None)), bool(self.env._check_success())

    def render(self, height: int, width: int) -> Array:
        """The frontal camera of RoboMimic's videos."""
        return self._image("agentview" if "agentview" in self.env.sim.model.camera_names else "frontview", height, width)

    def close(self) -> None:
        """Frees the simulation and its graphics context."""
        if self._camera is not None:
            self._camera.close()
        self._camera = None
        if getattr(self.env, "sim", None) is not None:
            self.env.close()

    def _low_dim_keys(self, config: TaskConfig) -> list[str]:
        """A policy on images doesn't see the objects as numbers."""
        arms = [f"robot{i}_{key}" for i in range(len(self.env.robots)) for key in _ARM_KEYS]
        return arms if config.obs == "image" else ["object", *arms]

    def _observe(self) -> Observation:
        seen = self._look()
        obs: Observation = {key: np.asarray(seen[key], np.float64) for key, shape in self.spec.shapes.items() if len(shape) == 1}
        for camera, (height, width) in self._images.items():
            obs[f"{camera}_image"] = np.ascontiguousarray(self._image(camera, height, width).transpose(2, 0, 1))
        return obs

    def _look(self) -> dict[str, Any]:
        """robosuite's observables of the state as it is; what they are computed from is brought up to date first."""
        import mujoco

        mujoco.mj_fwdPosition(self.env.sim.model._model, self.env.sim.data._data)
        mujoco.mj_fwdVelocity(self.env.sim.model._model, self.env.sim.data._data)
        seen: dict[str, Any] = self.env._get_observations(force_update=True)
        return {"object": seen.get("object-state"), **seen}

    def _image(self, camera: str, height: int, width: int) -> Array:
        from envs.robosuite_camera import SceneCamera

        if self._camera is None:
            self._camera = SceneCamera(self._fast)
        image: Array = self._camera.image(self.env.sim.model._model, self.env.sim.data._data, camera, height, width)
        return image

    def _watch(self, force: bool = False) -> None:
        """Stands in for robosuite's refresh of the observables after each simulator step: nobody looks at them in between."""
        if force:
            self._refresh(force=True)
        else:
            self._force = max(self._force, self.hand_force_n())

    def hand_force_n(self) -> float:
        """Magnitude of the sum of all contact forces on a hand (the largest of two hands'), N.

        As a sensor at the wrist feels it, but for the hand's own weight: the squeeze of the two fingers cancels.
        """
        import mujoco

        data = self.env.sim.data._data
        mujoco.mj_rnePostConstraint(self.env.sim.model._model, data)
        return max((float(np.linalg.norm(data.cfrc_ext[bodies, 3:].sum(0))) for bodies in self._hands), default=0.0)

    def _begin(self) -> None:
        """Keeps what belongs to the scene. MuJoCo writes the XML of the model that it compiled last, so it is asked now."""
        import mujoco

        with TemporaryDirectory() as folder:  # robosuite's own get_xml leaves the file open
            path = Path(folder) / "scene.xml"
            mujoco.mj_saveLastXML(str(path), self.env.sim.model._model)
            self._xml = path.read_text()
        names = self.env.sim.model.body_names
        self._hands = [
            np.array([i for i, n in enumerate(names) if n.startswith(gripper.naming_prefix) or n == f"robot{k}_{arm}_hand"])
            for k, robot in enumerate(self.env.robots)
            for arm, gripper in robot.gripper.items()
        ]


def load(task: str, config: TaskConfig) -> RobosuiteSimulator:
    """The simulator of `task`, a name of `TASKS` or of `ROBOMIMIC`.

    Raises:
        EnvError: no such task, robosuite is missing, or it can't make the task.
    """
    prefix = "robomimic" if task in ROBOMIMIC else "robosuite"
    return RobosuiteSimulator(f"{prefix}/{task}", _robosuite_name(task), config)


def expert(task: str, simulator: Any, rng: np.random.Generator) -> Expert:
    """The scripted expert of `envs.robosuite_experts`.

    Raises:
        EnvError: the task has none.
    """
    from envs.robosuite_experts import ScriptedExpert

    return ScriptedExpert(_robosuite_name(task), simulator, rng)


def version() -> str:
    """Of the installed robosuite."""
    installed: str = _import_robosuite().__version__
    return installed


def env_args(task: str, config: TaskConfig) -> dict[str, Any]:
    """What a RoboMimic file says of its environment."""
    name = _robosuite_name(task)
    return {"env_name": name, "type": 1, "env_version": version(), "env_kwargs": env_kwargs(name, config)}


def env_kwargs(task: str, config: TaskConfig) -> dict[str, Any]:
    """What robosuite makes `task` with: what the demonstration file says (`config.made_with`), or RoboMimic's settings.

    Raises:
        EnvError: the file's arguments are no JSON object, or want absolute actions.
    """
    if config.control not in ("", "OSC_POSE"):
        raise EnvError(f"robosuite/{task}: env.control={config.control} is not offered; leave it empty, for OSC_POSE.")
    known = TASKS[task]
    named = f"robosuite/{task}: the environment's arguments in the demonstration file"
    try:
        made_with = json.loads(config.made_with or "{}")
    except ValueError as error:
        raise EnvError(f"{named} are no JSON ({error}).") from error
    if not isinstance(made_with, dict):
        raise EnvError(f"{named} are {made_with!r}; they must be an object of names and values.")
    arguments: dict[str, Any] = {
        "robots": ["Panda"] * known.robots,
        "control_freq": 20,
        "reward_shaping": False,
        "lite_physics": not made_with,
    }
    arguments |= made_with
    robots = arguments["robots"]
    count = 1 if isinstance(robots, str) else len(robots)
    controllers = arguments.get("controller_configs") or _OSC
    each = controllers if isinstance(controllers, list) else [controllers] * count
    arguments["controller_configs"] = [composite_controller(c, named) for c in each]
    if config.obs == "image":
        sizes = _image_sizes(known, config, arguments)
        arguments |= {
            "camera_names": list(sizes),
            "camera_heights": [size[0] for size in sizes.values()],
            "camera_widths": [size[1] for size in sizes.values()],
        }
    return arguments


def composite_controller(controller: Mapping[str, Any], named: str) -> dict[str, Any]:
    """A controller as robosuite 1.5 wants it, by parts of the body; files of 1.4 and older describe the one arm's only.

    Their displacements are along the axes of the world, which has to be said since 1.5.

    Args:
        controller: of either form.
        named: what to call it in a message.
    Raises:
        EnvError: the actions are absolute poses.
    """
    made: dict[str, Any] = json.loads(json.dumps(controller))  # a copy that shares nothing
    if "body_parts" not in made:
        arm = made
        absolute = not arm.pop("control_delta", True)
        for old, new in (("damping", "damping_ratio"), ("damping_limits", "damping_ratio_limits")):
            if old in arm:
                arm[new] = arm.pop(old)
        arm = {**_OSC, "input_type": "absolute" if absolute else "delta", "input_ref_frame": "world", **arm}
        arm["gripper"] = {"type": "GRIP"}
        made = {"type": "BASIC", "body_parts": {"right": arm}}
    parts = made["body_parts"].get("arms", made["body_parts"])
    if any(part.get("input_type", "delta") != "delta" for part in parts.values()):
        raise EnvError(f"{named} want absolute poses as actions; only displacements (delta) are offered.")
    return made


def _image_sizes(known: RobosuiteTask, config: TaskConfig, arguments: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Height and width of the images by camera: `config.cameras`, else the demonstration file's, else the task's."""
    named = arguments.get("camera_names") or list(known.cameras)
    named = [named] if isinstance(named, str) else named
    heights, widths = (arguments.get(key, config.image_size) for key in ("camera_heights", "camera_widths"))
    sizes = {
        camera: tuple(int(side[i]) if isinstance(side, list) else int(side) for side in (heights, widths))
        for i, camera in enumerate(named)
    }
    plain = (config.image_size, config.image_size)
    return {camera: sizes.get(camera, plain) for camera in (config.cameras or named)}  # type: ignore[misc]


def _robosuite_name(task: str) -> str:
    name = ROBOMIMIC.get(task, task)
    if name not in TASKS:
        known = [*TASKS, *ROBOMIMIC]
        raise EnvError(f"robosuite/{task}: no such task.{suggest(task, known)} There are {', '.join(known)}.")
    return name


def _import_robosuite() -> Any:
    choose_backend()  # robosuite takes EGL where nothing is said, also where it doesn't work
    logging.getLogger("robosuite_logs").addFilter(_errors_only)  # it tells each of its settings, at its import
    try:
        import robosuite

        import envs.robosuite_plate  # noqa: F401 - adds our own task to robosuite's
    except ModuleNotFoundError as error:
        install = "run `make sims`, or `pip install -e .[robosuite] -c constraints.txt`"
        raise EnvError(f"robosuite tasks need the package robosuite ({error}): {install}.") from error
    return robosuite


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
