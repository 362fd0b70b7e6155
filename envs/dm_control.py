"""The DeepMind Control Suite (dm_control.suite), all of its tasks.

Names join domain and task with hyphens, as TD-MPC2's do: `cartpole-swingup-sparse`, `humanoid-cmu-run`; ball_in_cup is `cup`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from difftop.types import ObsSpec
from envs.config import EnvConfig, refuse
from envs.errors import EnvError, RenderError
from envs.opengl import advice, choose_backend, ensure_drawing
from envs.suites import Array, Observation, Outcome, TaskInfo

OBS = ("state", "pixels", "low_dim")

_CONTROL_STEPS = 1000
_ALIASES = {"ball-in-cup-catch": "cup-catch"}
_UNLIMITED = 1e10  # dm_control's bound for actuators that have none (the lqr domain)


def _tasks() -> dict[str, tuple[str, str, TaskInfo]]:
    """Name -> dm_control's domain, its task, and what is known of it.

    Source: action repeats of TD-MPC (arXiv:2203.04955), one per domain: 8 cartpole, 2 walker, finger, humanoid and dog, else 4.
    """
    table = {  # domain: action repeat, tasks
        "acrobot": (4, "swingup swingup_sparse"),
        "ball_in_cup": (4, "catch"),
        "cartpole": (8, "balance balance_sparse swingup swingup_sparse two_poles three_poles"),
        "cheetah": (4, "run"),
        "dog": (2, "stand walk trot run fetch"),
        "finger": (2, "spin turn_easy turn_hard"),
        "fish": (4, "upright swim"),
        "hopper": (4, "stand hop"),
        "humanoid": (2, "stand walk run run_pure_state"),
        "humanoid_CMU": (2, "stand walk run"),
        "lqr": (4, "lqr_2_1 lqr_6_2"),
        "manipulator": (4, "bring_ball bring_peg insert_ball insert_peg"),
        "pendulum": (4, "swingup"),
        "point_mass": (4, "easy hard"),
        "quadruped": (4, "walk run escape fetch"),
        "reacher": (4, "easy hard"),
        "stacker": (4, "stack_2 stack_4"),
        "swimmer": (4, "swimmer6 swimmer15"),
        "walker": (2, "stand walk run"),
    }
    found = {}
    for domain, (repeat, tasks) in table.items():
        for task in tasks.split():
            name = f"{domain}-{task}".lower().replace("_", "-")
            found[_ALIASES.get(name, name)] = (domain, task, TaskInfo(_CONTROL_STEPS, repeat))
    return found


SUITE_TASKS = _tasks()
TASKS: Mapping[str, TaskInfo] = {name: info for name, (_, _, info) in SUITE_TASKS.items()}


class DmControlSimulator:
    """One task of the suite.

    Differs from the suite's own loading: the time limit is `SimulatedEnv`'s, 1000 control steps as in the suite, for `lqr` too,
    which has none; actions of `lqr` are limited to [-1, 1], and its random stiffness is drawn once, with seed 0, so that all
    instances are the same system.
    """

    episode_steps = _CONTROL_STEPS

    def __init__(self, name: str, config: EnvConfig) -> None:
        """Loads `name` of `TASKS`.

        Raises:
            EnvError: dm_control is missing, its OpenGL backend can't be loaded, or there is no such camera.
            RenderError: `quadruped-escape` without OpenGL (dm_control makes a graphics context when that task resets).
        """
        domain, task, _ = SUITE_TASKS[name]
        suite = _import_suite()
        if task == "escape" and choose_backend() == "disabled":
            raise RenderError(f"dmc/{name} needs OpenGL even from states: {advice('disabled')}.")
        self._env = suite.load(domain, task, task_kwargs={"random": 0, "time_limit": float("inf")})
        self.control_dt_s = float(self._env.control_timestep())
        self._camera: int | str = config.cameras[0] if config.cameras else 2 if domain == "quadruped" else 0  # as is published
        model = self._env.physics.model
        cameras = [model.id2name(i, "camera") for i in range(model.ncam)]
        if config.cameras and self._camera not in cameras:
            raise EnvError(f"dmc/{name}: env.cameras={self._camera} is not there; it has {', '.join(cameras)}.")
        if config.render_quality == "fast":
            model.vis.quality.shadowsize, model.vis.quality.offsamples = 512, 0
        spec = self._env.action_spec()
        low, high = (np.where(np.abs(bound) < _UNLIMITED, bound, np.sign(bound)) for bound in (spec.minimum, spec.maximum))
        self._low, self._high = low, high
        self._plain = bool((low == -1).all() and (high == 1).all())  # as in all domains but quadruped
        self._middle, self._half_range = (low + high) / 2, (high - low) / 2
        self._observation: Mapping[str, Any] = {}
        self.action_dim = int(spec.shape[0])
        size = config.image_size
        vectors = {key: ObsSpec("vector", (int(np.prod(part.shape)),)) for key, part in self._env.observation_spec().items()}
        self.obs: Mapping[str, ObsSpec] = {"pixels": ObsSpec("image", (3, size, size))} if config.obs == "pixels" else vectors

    def reset(self, seed: int) -> None:
        """Reseeds the task's own generator, then resets physics and task."""
        self._env.task.random.seed(seed)
        self._observation = self._env.reset().observation

    def step(self, action: Array) -> Outcome:
        """One control step; terminated only where the task's discount is 0."""
        control = action if self._plain else (self._middle + self._half_range * action).clip(self._low, self._high)
        time_step = self._env.step(control)
        self._observation = time_step.observation
        last, ended = time_step.last(), time_step.discount == 0
        return Outcome(time_step.reward, terminated=last and ended, truncated=last and not ended)

    def observe(self) -> Observation:
        """The task's observations by its own names, as vectors; or a picture."""
        if "pixels" in self.obs:
            return {"pixels": self.render(*self.obs["pixels"].shape[1:]).transpose(2, 0, 1)}
        return {key: np.ravel(value) for key, value in self._observation.items()}

    def render(self, height: int, width: int) -> Array:
        """The task's camera."""
        backend = ensure_drawing()
        try:
            image: Array = self._env.physics.render(height, width, camera_id=self._camera)
        except Exception as error:  # OpenGL, EGL and MuJoCo each have their own
            raise RenderError(f"dm_control can't render with MUJOCO_GL={backend} ({error}): {advice(backend)}.") from error
        return image

    def close(self) -> None:
        """Frees the model and its graphics context."""
        self._env.physics.free()


def load(task: str, config: EnvConfig) -> DmControlSimulator:
    """The simulator of a task."""
    refuse(config, "control")
    return DmControlSimulator(task, config)


def canonical(task: str) -> str | None:
    """Follows aliases."""
    return _ALIASES.get(task.lower().replace("_", "-"))


def _import_suite() -> Any:
    backend = choose_backend()
    try:
        from dm_control import suite
    except ModuleNotFoundError as error:
        install = "run `make setup`, or `pip install -e .[dmc] -c constraints.txt`"
        raise EnvError(f"dmc environments need dm_control ({error}): {install}.") from error
    except Exception as error:  # AttributeError from PyOpenGL where a library is missing, else ImportError or RuntimeError
        reason = f"dm_control can't be imported with MUJOCO_GL={backend} ({error})"
        raise EnvError(f"{reason}: {advice(backend)}; with MUJOCO_GL=disabled, states work without OpenGL.") from error
    return suite
