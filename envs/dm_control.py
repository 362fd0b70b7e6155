"""The DeepMind Control Suite (dm_control.suite), all of its tasks.

Names join domain and task with hyphens, as TD-MPC2's do: `cartpole-swingup-sparse`, `humanoid-cmu-run`; ball_in_cup is `cup`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.base import Array, ControlStep, TaskInfo
from envs.errors import EnvError, RenderError
from envs.opengl import advice, choose_backend

ALIASES = {"ball-in-cup-catch": "cup-catch"}

_CONTROL_STEPS = 1000
_LQR_DT_S = 0.03
_UNLIMITED = 1e10  # dm_control's bound for actuators that have none (the lqr domain)


def _tasks() -> dict[str, tuple[str, str, TaskInfo]]:
    """Name -> dm_control's domain, its task, and what is known of it.

    Source: action repeats of TD-MPC (arXiv:2203.04955), one per domain: 8 cartpole, 2 walker, finger, humanoid and dog, else 4.
    """
    # domain: (action repeat, action_dim, {obs_dim: tasks}), or action_dim = 0 where it follows the task
    table: dict[str, tuple[int, int, dict[int, str]]] = {
        "acrobot": (4, 1, {6: "swingup swingup_sparse"}),
        "ball_in_cup": (4, 2, {8: "catch"}),
        "cartpole": (8, 1, {5: "balance balance_sparse swingup swingup_sparse", 8: "two_poles", 11: "three_poles"}),
        "cheetah": (4, 6, {17: "run"}),
        "dog": (2, 38, {223: "stand walk trot run", 232: "fetch"}),
        "finger": (2, 2, {9: "spin", 12: "turn_easy turn_hard"}),
        "fish": (4, 5, {21: "upright", 24: "swim"}),
        "hopper": (4, 4, {15: "stand hop"}),
        "humanoid": (2, 21, {67: "stand walk run", 55: "run_pure_state"}),
        "humanoid_CMU": (2, 56, {137: "stand walk run"}),
        "lqr": (4, 0, {4: "lqr_2_1", 12: "lqr_6_2"}),
        "manipulator": (4, 5, {44: "bring_ball bring_peg insert_ball insert_peg"}),
        "pendulum": (4, 1, {3: "swingup"}),
        "point_mass": (4, 2, {4: "easy hard"}),
        "quadruped": (4, 12, {78: "walk run", 101: "escape", 90: "fetch"}),
        "reacher": (4, 2, {6: "easy hard"}),
        "stacker": (4, 5, {49: "stack_2", 63: "stack_4"}),
        "swimmer": (4, 0, {25: "swimmer6", 61: "swimmer15"}),
        "walker": (2, 6, {24: "stand walk run"}),
    }
    action_dims = {"lqr_2_1": 1, "lqr_6_2": 2, "swimmer6": 5, "swimmer15": 14}
    found = {}
    for domain, (repeat, action_dim, by_obs_dim) in table.items():
        for obs_dim, tasks in by_obs_dim.items():
            for task in tasks.split():
                name = f"{domain}-{task}".lower().replace("_", "-")
                info = TaskInfo(obs_dim, action_dim or action_dims[task], repeat, _CONTROL_STEPS)
                found[ALIASES.get(name, name)] = (domain, task, info)
    return found


SUITE_TASKS = _tasks()
TASKS = {name: info for name, (_, _, info) in SUITE_TASKS.items()}


class DmControlSimulator:
    """One task of the suite.

    Differs from the suite's own loading: `lqr`, which has neither, gets the other tasks' limit of 1000 control steps and
    actions in [-1, 1]; its random stiffness is drawn once, with seed 0, so that all instances are the same system.
    """

    def __init__(self, name: str, render_quality: str) -> None:
        """Loads `name` of `TASKS`; `render_quality` is `published` or `fast`.

        Raises:
            EnvError: dm_control is missing, or its OpenGL backend can't be loaded.
            RenderError: `quadruped-escape` without OpenGL (dm_control makes a graphics context when that task resets).
        """
        domain, task, _ = SUITE_TASKS[name]
        suite = _import_suite()
        if task == "escape" and choose_backend() == "disabled":
            raise RenderError(f"dmc/{name} needs OpenGL even from states: {advice('disabled')}.")
        limit = {"time_limit": _CONTROL_STEPS * _LQR_DT_S} if domain == "lqr" else {}
        self._env = suite.load(domain, task, task_kwargs={"random": 0, **limit})
        self.control_dt_s = float(self._env.control_timestep())
        self._camera = 2 if domain == "quadruped" else 0  # as in published pixel results
        if render_quality == "fast":
            quality = self._env.physics.model.vis.quality
            quality.shadowsize, quality.offsamples = 512, 0
        spec = self._env.action_spec()
        low, high = (np.where(np.abs(bound) < _UNLIMITED, bound, np.sign(bound)) for bound in (spec.minimum, spec.maximum))
        self._low, self._high = low, high
        self._plain = bool((low == -1).all() and (high == 1).all())  # as in all domains but quadruped
        self._middle, self._half_range = (low + high) / 2, (high - low) / 2
        self._observation: dict[str, Any] = {}

    def reset(self, seed: int) -> None:
        """Reseeds the task's own generator, then resets physics and task."""
        self._env.task.random.seed(seed)
        self._observation = self._env.reset().observation

    def step(self, action: Array) -> ControlStep:
        """One control step; terminated only where the task's discount is 0."""
        control = action if self._plain else (self._middle + self._half_range * action).clip(self._low, self._high)
        time_step = self._env.step(control)
        self._observation = time_step.observation
        last = time_step.last()
        terminated = last and time_step.discount == 0
        return ControlStep(time_step.reward, terminated, last and not terminated)

    def state(self) -> Array:
        """All observations in the task's order, float64."""
        return np.concatenate([np.ravel(value) for value in self._observation.values()])

    def render(self, height: int, width: int) -> Array:
        """The task's camera."""
        try:
            image: Array = self._env.physics.render(height, width, camera_id=self._camera)
        except Exception as error:  # OpenGL, EGL and MuJoCo each have their own
            backend = choose_backend()
            raise RenderError(f"dm_control can't render with MUJOCO_GL={backend} ({error}): {advice(backend)}.") from error
        return image

    def close(self) -> None:
        """Frees the model and its graphics context."""
        self._env.physics.free()


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
