"""The contract of a suite, and the registry: a suite is one module or package, and one entry here.

A suite's module has

    TASKS: Mapping[str, TaskInfo]                  what is known without its package
    OBS: tuple[str, ...]                           values of env.obs that it offers
    load(task, config) -> Simulator                imports its package lazily, raises EnvError where it is missing

and, where it can,

    env_args(task, config) -> dict                 what a demonstration file says of its environment, if more than its name
    expert(task, simulator, rng) -> Expert         where some tasks give `expert`
    make_demonstrations(task, episodes, ...)       instead of `expert`, where the suite has its own planner and format
    canonical(task) -> str | None                  the name that `task` means, where more names are accepted than TASKS has
    info(task) -> TaskInfo                         where there are tasks beyond TASKS
    recorded_name(task) -> str                     where demonstration files call a task otherwise
    POSES = True                                   where actions may be absolute poses, `config.poses`
    DEPTH = True                                   where cameras may show depths, `config.depth`

Packages of others add suites by entry points of the group `difftop.envs`, whose name is the suite's and whose value its module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from difftop.types import ObsSpec

Array = NDArray[Any]
Observation = dict[str, Array]


@dataclass(frozen=True)
class TaskInfo:
    """What is known of a task without loading its simulator.

    Attributes:
        episode_steps: control steps until the time limit.
        action_repeat: control steps per action, unless the configuration says otherwise.
        gives: see `difftop.types.EnvSpec`.
    """

    episode_steps: int
    action_repeat: int = 1
    gives: frozenset[str] = frozenset({"reward"})


class Outcome(NamedTuple):
    """Of one control step.

    Attributes:
        reward: the task's, of this step.
        terminated: a state from which nothing follows; the time limit is not the simulator's business.
        truncated: the simulator can't or won't go on, though something would follow.
        success: whether the task is solved now; None where the task doesn't say.
        contact_force_n: largest contact force on the robot's hand during the step, N; NaN where it isn't measured.
    """

    reward: float
    terminated: bool = False
    truncated: bool = False
    success: bool | None = None
    contact_force_n: float = float("nan")


class Simulator(Protocol):
    """What a simulator offers. It may raise anything; `SimulatedEnv` names the environment and the step.

    Attributes:
        obs: what `observe` returns, by key. With `env.obs=state` this may be several vectors, which are then joined in this
            order; with `pixels` it is one image of one frame, called `pixels`, which is then stacked.
        action_dim: A.
        control_dt_s: of one control step, s.
        episode_steps: control steps until the time limit.
    """

    obs: Mapping[str, ObsSpec]
    action_dim: int
    control_dt_s: float
    episode_steps: int

    def reset(self, seed: int) -> None:
        """Begins the episode that `seed` determines, whatever came before."""

    def step(self, action: Array) -> Outcome:
        """One control step under `action [A]` in [-1, 1], float64."""

    def observe(self) -> Observation:
        """What is seen now: float vectors, points and depths, uint8 images; channels first."""

    def render(self, height: int, width: int) -> Array:
        """Camera image for videos `[height, width, 3]`, uint8."""

    def close(self) -> None:
        """Frees memory and graphics contexts; closing twice is fine."""


class Expert(Protocol):
    """Solves a task with a look at more than the observations.

    Attributes:
        noisy: how many numbers, the first ones of an action, a demonstration may add noise to.
    """

    noisy: int

    def reset(self) -> None:
        """Before each episode, after the simulator's reset."""

    def act(self, obs: Observation) -> Array:
        """The next action `[A]`, before it is clipped to [-1, 1]."""


@dataclass(frozen=True)
class Suite:
    """One entry of the registry.

    Attributes:
        module: see this file's docstring; imported lazily.
        summary: one line for `mode=envs`.
        extra: of pyproject.toml, empty where nothing needs to be installed.
        package: that it imports.
    """

    module: str
    summary: str
    extra: str = ""
    package: str = ""

    def loaded(self) -> Any:
        """The module."""
        return import_module(self.module)


SUITES: Mapping[str, Suite] = {
    "dmc": Suite("envs.dm_control", "the DeepMind Control suite, from state or pixels", "dmc", "dm_control"),
    "gym": Suite("envs.gym", "every installed Gymnasium environment with a Box action, by its id", package="gymnasium"),
    "metaworld": Suite("envs.metaworld", "Meta-World's 50 tasks, with scripted experts", "metaworld", "metaworld"),
    "robosuite": Suite("envs.robosuite", "robosuite's tabletop tasks, with scripted experts", "robosuite", "robosuite"),
    "robomimic": Suite("envs.robomimic", "the same tasks as RoboMimic's files name them", "robosuite", "robosuite"),
    "maniskill": Suite("envs.maniskill", "ManiSkill 3's tasks, with motion planners for some", "maniskill", "mani_skill"),
    "pusht": Suite("envs.pusht", "Push-T, with an expert that tries pushes out", "pusht", "gym_pusht"),
    "toy": Suite("envs.toy", "point-mass and reach: no simulator, for tests and first steps"),
    "data": Suite("envs.data", "tasks known from a data set only: to train on, without a simulator to evaluate in"),
}
