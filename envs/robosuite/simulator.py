"""One robosuite environment: stepped, looked at, put into states and drawn."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from difftop.poses import EXECUTED, LEARNED, PoseRange
from difftop.types import ObsSpec
from envs.config import EnvConfig
from envs.errors import EnvError
from envs.opengl import choose_backend
from envs.points import farthest_points
from envs.robosuite.arguments import OURS, UNUSED, env_kwargs, image_sizes
from envs.robosuite.tasks import TASKS
from envs.suites import Array, Observation, Outcome

if TYPE_CHECKING:
    from envs.scene_camera import SceneCamera

CLOUD = "pointcloud"
_ARM_KEYS = ("eef_pos", "eef_quat", "gripper_qpos")


class RobosuiteSimulator:
    """One task.

    Attributes:
        name: of the environment, for messages.
        env: robosuite's own environment; experts look at it, nothing else should.
    """

    def __init__(self, name: str, task: str, config: EnvConfig) -> None:
        """Makes `task` of `TASKS`, to be known as `name`.

        Raises:
            EnvError: robosuite is missing, or it refuses the arguments that a file names.
        """
        self.name, suite, known = name, import_robosuite(), TASKS[task]
        arguments = env_kwargs(task, config)
        try:
            self.env = suite.make(
                known.made_as or task, **{k: v for k, v in arguments.items() if k not in UNUSED}, **OURS, seed=0
            )
        except Exception as error:  # robosuite raises what it likes
            raise EnvError(f"{name}: robosuite can't make {task} with {arguments} ({type(error).__name__}: {error}).") from error
        low, high = self.env.action_spec
        if not ((low == -1).all() and (high == 1).all()):
            raise EnvError(f"{name}: its actions are in [{low.min()}, {high.max()}]; only delta actions in [-1, 1] are offered.")
        shown = image_sizes(known, config, arguments) if config.obs in ("image", "pixels", CLOUD) else {}
        self._depths = shown if config.obs == CLOUD else {}  # size by camera
        keys = ["pixels"] if config.obs == "pixels" else [f"{camera}_image" for camera in shown]
        self._images = {} if self._depths else dict(zip(keys, shown.items(), strict=True))  # key to camera and size
        self._fast = config.render_quality == "fast" or bool(self._depths)  # depths are of one surface, not of a mean
        self._points = config.points
        self._camera, self._measure = cast("list[SceneCamera | None]", [None, None])
        self._refresh, self.env._update_observables = self.env._update_observables, self._watch
        self._hands: list[Array] = []
        self._force, self._xml = 0.0, ""
        self._remembers = known.remembers
        self.env.reset()
        self._seen = self._look()
        self.obs = {key: ObsSpec("vector", np.shape(self._seen[key])) for key in self._vectors(config.obs)}
        self.obs |= {key: ObsSpec("image", (3, *size)) for key, (_, size) in self._images.items()}
        self._shown_depths = {f"{camera}_depth": (camera, size) for camera, size in shown.items()} if config.depth else {}
        self.obs |= {key: ObsSpec("depth", (1, *size)) for key, (_, size) in self._shown_depths.items()}
        self.obs |= {CLOUD: ObsSpec("points", (config.points, 3))} if self._depths else {}
        self.action_dim = self._action_dim(config)
        self.control_dt_s = 1 / float(self.env.control_freq)
        self.episode_steps = int(arguments.get("horizon") or known.episode_steps)

    def reset(self, seed: int) -> None:
        """Draws the robot's posture, and the sizes and poses of the objects, from `seed`."""
        # In place: the samplers of poses keep the generator that they were made with.
        self.env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self.env.reset()
        self._begin()
        self._look()  # robosuite computes poses seen from the hand with the objects' poses of the look before
        self._seen = self._look()

    def step(self, action: Array) -> Outcome:
        """One action of 0.05 s; the force is the largest of its 25 simulator steps."""
        self._force = 0.0
        _, own, _, _ = self.env.step(action if self._poses is None else self._poses.executed(action))
        self._seen = self._look()
        if self._remembers:  # to ask again would count anew
            return Outcome(float(own), success=bool(self.env._check_success()), contact_force_n=self._force)
        reward, success = self.judge()
        return Outcome(reward, success=success, contact_force_n=self._force)

    def observe(self) -> Observation:
        """Of the state at the end of the step."""
        rendered = (*self._images, *self._shown_depths, CLOUD)
        obs: Observation = {key: np.asarray(self._seen[key], np.float64) for key in self.obs if key not in rendered}
        for key, (camera, (height, width)) in self._images.items():
            obs[key] = self._image(camera, height, width).transpose(2, 0, 1)
        for key, (camera, size) in self._shown_depths.items():
            obs[key] = self._measuring().depth(self.env.sim.model._model, self.env.sim.data._data, camera, *size)[None]
        if self._depths:
            obs[CLOUD] = self._cloud()
        return obs

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
        from envs.robosuite.shapes import reshape

        model = self.env.sim.model
        for name, shape in shapes.items():
            reshape(model._model, model.geom_name2id(name), *shape)
        self._begin()

    def set_state(self, state: Array) -> None:
        """Puts the simulation into a state of `states`, and looks at it."""
        self.env.sim.set_state_from_flattened(state)
        self._seen = self._look()

    def judge(self) -> tuple[float, bool]:
        """The task's reward and success in the state that was looked at last."""
        return float(self.env.reward(None)), bool(self.env._check_success())

    def render(self, height: int, width: int) -> Array:
        """The frontal camera of RoboMimic's videos."""
        return self._image("agentview" if "agentview" in self.env.sim.model.camera_names else "frontview", height, width)

    def close(self) -> None:
        """Frees the simulation and its graphics context."""
        for camera in (self._camera, self._measure):
            if camera is not None:
                camera.close()
        self._camera = self._measure = None
        if getattr(self.env, "sim", None) is not None:
            self.env.close()

    def _action_dim(self, config: EnvConfig) -> int:
        """Numbers in an action: the controllers', or those of learned poses."""
        self._poses, own = PoseRange.read(config.poses) if config.poses else None, int(self.env.action_dim)
        if self._poses is None:
            return own
        if own != EXECUTED * self._poses.arms or len(self.env.robots) != self._poses.arms:
            raise EnvError(
                f"{self.name}: its {len(self.env.robots)} arm(s) have {own} actions; absolute poses have {EXECUTED} an arm, "
                f"those of the data set are of {self._poses.arms}."
            )
        return LEARNED * self._poses.arms

    def _vectors(self, obs: str) -> list[str]:
        """Keys of the vectors that are seen; a policy on images doesn't see the objects as numbers. Some hands have no joints."""
        robots = range(len(self.env.robots))
        if obs == "state":
            return ["object", *(f"robot{i}_proprio-state" for i in robots)]
        arms = [f"robot{i}_{key}" for i in robots for key in _ARM_KEYS]
        arms = [key for key in arms if np.size(self._seen.get(key, ()))]
        return {"low_dim": ["object", *arms], "image": arms, CLOUD: arms}.get(obs, [])

    def _look(self) -> dict[str, Any]:
        """robosuite's observables of the state as it is; what they are computed from is brought up to date first."""
        import mujoco

        mujoco.mj_fwdPosition(self.env.sim.model._model, self.env.sim.data._data)
        mujoco.mj_fwdVelocity(self.env.sim.model._model, self.env.sim.data._data)
        seen: dict[str, Any] = self.env._get_observations(force_update=True)
        return {"object": seen.get("object-state"), **seen}

    def _image(self, camera: str, height: int, width: int) -> Array:
        image: Array = self._cameras().image(self.env.sim.model._model, self.env.sim.data._data, camera, height, width)
        return image

    def _cloud(self) -> Array:
        """Points of the arms and of objects, of all cameras together."""
        model, data = self.env.sim.model._model, self.env.sim.data._data
        seen = [self._cameras().points(model, data, camera, *size) for camera, size in self._depths.items()]
        return farthest_points(np.concatenate(seen), self._points)

    def _cameras(self) -> SceneCamera:
        from envs.scene_camera import SceneCamera

        if self._camera is None:
            self._camera = SceneCamera(self._fast)
        return self._camera

    def _measuring(self) -> SceneCamera:
        """Sees what images show, without anti-aliasing."""
        from envs.scene_camera import SceneCamera

        if self._fast:
            return self._cameras()
        if self._measure is None:
            self._measure = SceneCamera(fast=True)
        return self._measure

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


def import_robosuite() -> Any:
    """The package, with our own tasks added to it.

    Raises:
        EnvError: it is missing.
    """
    backend = choose_backend()  # robosuite takes EGL whatever is said, also where it doesn't work
    device = os.environ.pop("MUJOCO_EGL_DEVICE_ID", None)  # it looks for it in CUDA_VISIBLE_DEVICES, which may hold UUIDs
    logging.getLogger("robosuite_logs").addFilter(_errors_only)  # it tells each of its settings, at its import
    try:
        import robosuite

        import envs.robosuite.nuts
        import envs.robosuite.plate  # noqa: F401 - both add our own tasks to robosuite's
    except ModuleNotFoundError as error:
        install = "run `make sims`, or `pip install -e .[robosuite] -c constraints.txt`"
        raise EnvError(f"robosuite tasks need the package robosuite ({error}): {install}.") from error
    finally:
        os.environ["MUJOCO_GL"] = backend
        if device is not None:
            os.environ["MUJOCO_EGL_DEVICE_ID"] = device
    return robosuite


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
