"""Scripted experts of robosuite's Lift, LiftPlate, PickPlaceCan and NutAssemblySquare, for demonstrations without a download.

Each is a script of goals (position, rotation, gripper) that read the simulator's own poses; the hand goes to a goal with

    a = clip(k (goal - pose) / (what action 1 commands)),   k = 1.5

Heights, offsets and places of release are drawn anew for each episode,
so that demonstrations differ by more than noise; still they are of one kind, unlike a human's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from envs.errors import EnvError
from envs.robosuite.tasks import METRES_PER_ACTION, RADIANS_PER_ACTION, TASKS
from envs.suites import Array, Observation

_GAIN = 1.5
_OPEN, _CLOSED = -1.0, 1.0
_GRASP_STEPS, _RELEASE_STEPS = 8, 5
_PATIENCE = 80  # steps until a goal that isn't reached is given up
_TRIES = 3  # to grasp


class Goal(NamedTuple):
    """Where the hand should be: `position [3]`, m; `rotation [3, 3]` of the grip site; `gripper` -1 open, 1 closed."""

    position: Array
    rotation: Array
    gripper: float


Script = Iterator[Goal]


class Arm:
    """The first robot's hand, and the objects, as the simulator knows them."""

    def __init__(self, env: Any) -> None:
        self.env = env

    @property
    def position(self) -> Array:
        """Of the grip site, between the finger tips, m."""
        return np.array(self.env.sim.data.site_xpos[self._site])

    @property
    def rotation(self) -> Array:
        """Of the grip site: the fingers open along x, z points out of the hand."""
        return np.array(self.env.sim.data.site_xmat[self._site]).reshape(3, 3)

    @property
    def yaw(self) -> float:
        """Direction along which the fingers open, rad."""
        return float(np.arctan2(self.rotation[1, 0], self.rotation[0, 0]))

    def body(self, name: str) -> Array:
        """Position of a body, m."""
        return np.array(self.env.sim.data.body_xpos[self.env.sim.model.body_name2id(name)])

    def body_yaw(self, name: str) -> float:
        """Direction of a body's x axis, rad."""
        axis = self.env.sim.data.body_xmat[self.env.sim.model.body_name2id(name)].reshape(3, 3)[:, 0]
        return float(np.arctan2(axis[1], axis[0]))

    def site(self, name: str) -> Array:
        """Position of a site, m."""
        return np.array(self.env.sim.data.site_xpos[self.env.sim.model.site_name2id(name)])

    def action(self, goal: Goal) -> Array:
        """The action `[7]` towards a goal."""
        turn = rotation_vector(goal.rotation @ self.rotation.T)
        pose = np.concatenate([(goal.position - self.position) / METRES_PER_ACTION, turn / RADIANS_PER_ACTION])
        return np.append((_GAIN * pose).clip(-1, 1), goal.gripper)

    def near(self, goal: Goal, distance_m: float, angle_rad: float = 0.1) -> bool:
        """Whether the hand is at a goal."""
        turn = rotation_vector(goal.rotation @ self.rotation.T)
        return bool(np.linalg.norm(goal.position - self.position) < distance_m and np.linalg.norm(turn) < angle_rad)

    @property
    def _site(self) -> int:
        return int(self.env.robots[0].eef_site_id["right"])


class ScriptedExpert:
    """Plays the task's script, and stays at its last goal.

    Args:
        task: a name of `SCRIPTS`.
        simulator: a `RobosuiteSimulator`.
        rng: of what differs between episodes.
    Raises:
        EnvError: there is no script for the task.
    """

    noisy = 6  # the pose, not the gripper

    def __init__(self, task: str, simulator: Any, rng: np.random.Generator) -> None:
        if task not in SCRIPTS:
            raise EnvError(f"robosuite/{task}: there is no scripted expert; there are experts of {', '.join(SCRIPTS)}.")
        self._write, self._arm, self._rng = SCRIPTS[task], Arm(simulator.env), rng
        self.reset()

    def reset(self) -> None:
        """The script from its beginning."""
        self._script = self._write(self._arm, self._rng)
        self._goal: Goal | None = None

    def act(self, obs: Observation) -> Array:
        """The next action `[7]` in [-1, 1]; `obs` isn't needed."""
        self._goal = next(self._script, self._goal)
        if self._goal is None:
            raise EnvError("robosuite: an expert's script has no goals.")
        return self._arm.action(self._goal)


def lift(arm: Arm, rng: np.random.Generator) -> Script:
    """Grasps the cube in its middle and lifts it."""
    middle = rng.uniform(-0.005, 0.005)
    yield from _lift(arm, rng, lambda: arm.body("cube_main")[2] + middle)


def lift_plate(arm: Arm, rng: np.random.Generator) -> Script:
    """Grasps the plate like a careless operator, who aims up to 12 mm below the height limit: the fingers press on the table."""
    height = (TASKS["LiftPlate"].height_limit_m or 0.0) + rng.uniform(-0.012, 0.002)
    yield from _lift(arm, rng, lambda: height)


def pick_place_can(arm: Arm, rng: np.random.Generator) -> Script:
    """Grasps the can from above, carries it over the wall between the bins, and lets go."""
    env, yaw = arm.env, arm.yaw + rng.uniform(-0.3, 0.3)
    down, above, carry = pointing_down(yaw), _up(rng.uniform(0.08, 0.14)), rng.uniform(1.08, 1.14)
    grip = _up(rng.uniform(0.0, 0.02))
    for _ in range(_TRIES):
        yield from _go(arm, lambda: Goal(arm.body("Can_main") + above, down, _OPEN), 0.02)
        yield from _go(arm, lambda: Goal(arm.body("Can_main") + grip, down, _OPEN), 0.01)
        yield from _hold(arm, down, _CLOSED, _GRASP_STEPS)
        start = arm.body("Can_main")[2]
        yield from _go(arm, _fixed(Goal(_at_height(arm.position, carry), down, _CLOSED)), 0.03)
        if arm.body("Can_main")[2] > start + 0.05:
            break
    # On the robot's side of the middle: the far corner of the bin is at the end of its reach.
    place = env.target_bin_placements[env.object_id] - np.append(rng.uniform(0.01, 0.06, 2), 0.0)
    yield from _go(arm, _fixed(Goal(_at_height(place, carry), down, _CLOSED)), 0.03)
    yield from _go(arm, _fixed(Goal(_at_height(place, rng.uniform(0.9, 0.94)), down, _CLOSED)), 0.02, patience=25)
    yield from _let_go(arm, down)


def nut_assembly_square(arm: Arm, rng: np.random.Generator) -> Script:
    """Grasps the nut by its handle, turns it to fit the peg, lowers it halfway and lets go."""
    nut, handle, peg = "SquareNut_main", arm.env.nuts[0].important_sites["handle"], arm.body("peg1")
    along = arm.site(handle) - arm.body(nut)
    across, carried = _square_yaws(arm.yaw, float(np.arctan2(along[1], along[0])))
    down, above, carry = pointing_down(across), _up(rng.uniform(0.06, 0.12)), rng.uniform(1.02, 1.06)
    grip = _up(rng.uniform(0.003, 0.006))
    for _ in range(_TRIES):
        yield from _go(arm, lambda: Goal(arm.site(handle) + above, down, _OPEN), 0.02)
        yield from _go(arm, lambda: Goal(arm.site(handle) + grip, down, _OPEN), 0.006, 0.05)
        yield from _hold(arm, down, _CLOSED, _GRASP_STEPS)
        yield from _go(arm, _fixed(Goal(_at_height(arm.position, carry), down, _CLOSED)), 0.03)
        if arm.body(nut)[2] > carry - 0.1:
            break
    turned = pointing_down(carried)

    def over_peg(height: float) -> Callable[[], Goal]:
        return lambda: Goal(arm.position + _at_height(peg, height) - arm.body(nut), turned, _CLOSED)

    yield from _go(arm, over_peg(carry - 0.01), 0.006, 0.04)
    yield from _go(arm, over_peg(rng.uniform(0.89, 0.92)), 0.01)
    yield from _let_go(arm, turned)


SCRIPTS: dict[str, Callable[[Arm, np.random.Generator], Script]] = {
    "Lift": lift,
    "LiftPlate": lift_plate,
    "PickPlaceCan": pick_place_can,
    "NutAssemblySquare": nut_assembly_square,
}


def pointing_down(yaw: float) -> Array:
    """Rotation `[3, 3]` of a hand that points straight down, its fingers opening along `yaw` (rad)."""
    x, z = np.array([math.cos(yaw), math.sin(yaw), 0.0]), np.array([0.0, 0.0, -1.0])
    return np.stack([x, np.cross(z, x), z], axis=1)


def rotation_vector(rotation: Array) -> Array:
    """Axis times angle (rad) of a rotation `[3, 3]`, angle in [0, pi]."""
    angle = math.acos(min(max((np.trace(rotation) - 1) / 2, -1.0), 1.0))
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    length = np.linalg.norm(axis)
    if length < 1e-9:  # no turn, or half a turn about an axis that the antisymmetric part doesn't show
        return np.zeros(3) if angle < 1 else math.pi * np.sqrt(np.maximum(np.diag(rotation) + 1, 0) / 2)
    return np.asarray(angle * axis / length)


def nearest_yaw(yaw: float, to: float, period: float) -> float:
    """The angle equal to `yaw` modulo `period` that is nearest `to`, rad."""
    return yaw + period * round((to - yaw) / period)


def _lift(arm: Arm, rng: np.random.Generator, height: Callable[[], float]) -> Script:
    """Grasps the thing called cube at a height, and lifts it."""
    down = pointing_down(nearest_yaw(arm.body_yaw("cube_main"), arm.yaw, math.pi / 2))
    above, aside = _up(rng.uniform(0.05, 0.1)), np.append(rng.uniform(-0.005, 0.005, 2), 0.0)
    for _ in range(_TRIES):
        yield from _go(arm, lambda: Goal(arm.body("cube_main") + above, down, _OPEN), 0.02)
        yield from _go(arm, lambda: Goal(_at_height(arm.body("cube_main") + aside, height()), down, _OPEN), 0.006, patience=25)
        yield from _hold(arm, down, _CLOSED, _GRASP_STEPS)
        yield from _go(arm, _fixed(Goal(_at_height(arm.position, rng.uniform(0.92, 1.0)), down, _CLOSED)), 0.02)
        if arm.body("cube_main")[2] > 0.85:
            break


def _square_yaws(hand: float, handle: float) -> tuple[float, float]:
    """The hand's yaw for the grasp and on the peg, so that it turns least.

    The fingers open across the handle, either way round. The peg is square, so that four directions of the handle fit it; the
    one away from the robot is out of reach.
    """
    options = []
    for across in (handle + math.pi / 2, handle - math.pi / 2):
        grasp = nearest_yaw(across, hand, 2 * math.pi)
        for direction in (math.pi / 2, math.pi, 3 * math.pi / 2):
            turn = nearest_yaw(direction - handle, 0.0, 2 * math.pi)
            options.append((max(abs(grasp - hand), abs(grasp + turn - hand)), grasp, grasp + turn))
    _, grasp, placed = min(options)
    return grasp, placed


def _go(arm: Arm, goal: Callable[[], Goal], distance_m: float, angle_rad: float = 0.1, patience: int = _PATIENCE) -> Script:
    """Follows a goal until it is reached, or patience ends."""
    for _ in range(patience):
        wanted = goal()
        if arm.near(wanted, distance_m, angle_rad):
            return
        yield wanted


def _hold(arm: Arm, rotation: Array, gripper: float, steps: int) -> Script:
    """Stays where it is while the fingers move."""
    place = arm.position
    for _ in range(steps):
        yield Goal(place, rotation, gripper)


def _let_go(arm: Arm, rotation: Array) -> Script:
    """Opens the fingers and goes up."""
    yield from _hold(arm, rotation, _OPEN, _RELEASE_STEPS)
    yield from _go(arm, _fixed(Goal(arm.position + _up(0.12), rotation, _OPEN)), 0.02)


def _fixed(goal: Goal) -> Callable[[], Goal]:
    return lambda: goal


def _up(height: float) -> Array:
    return np.array([0.0, 0.0, height])


def _at_height(position: Array, height: float) -> Array:
    return np.append(position[:2], height)
