"""Push-T's expert: straight pushes, one after the other, found by trying them out in a simulator of its own.

    choose      contact points all around the T, three directions at each; the 16 whose pushes move its corners most towards the
                goal's, were it moved as it is pushed
    try         walk there around the T, push on; of the 4 best, several lengths
    execute     the one whose corners end closest, on average; then choose again

It knows positions and physics, not only what is observed. It isn't clever: it looks one push ahead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from envs.pusht.simulator import CENTRE, CORNERS, SIDE, SOLVED, PushTSimulator, make_board, placed
from envs.suites import Array, Observation

_RADIUS = 15.0  # of the disc; all lengths are in pixels
_GAP = 8.0  # between disc and T before a push
_MARGIN = 3.0  # that a walk keeps to the T
_AROUND = 104.0  # radius of the circle about the T's centre that a walk follows: its farthest corner, the disc and a little
_LOW, _HIGH = 22.0, 489.0  # where walls let the disc be
_WALK, _PUSH = 30.0, 6.0  # of a control step
_LONGEST = 14  # control steps of a push
_SETTLE = 3  # control steps until the disc is where it was sent to
_APART = 15.0  # contact points
_TURNS = (-0.5, 0.0, 0.5)  # of the direction of a push against the normal, rad
_GYRATION = 45.0  # radius by which a push off the centre turns the T
_TRIED, _REFINED = 16, 4
_PER_STEP = 0.03  # what a control step costs, in pixels of distance to the goal


class Push(NamedTuple):
    """A straight push from `start [2]` in `direction [2]`, after `walk`."""

    walk: list[Array]
    start: Array
    direction: Array

    def targets(self, length: float) -> list[Array]:
        """Where the disc is sent, one place per control step, for a push of `length`."""
        steps = max(math.ceil(length / _PUSH), 1)
        along = [self.start + self.direction * length * i / steps for i in range(steps + 1)]
        return [*self.walk, *along, *[along[-1]] * _SETTLE]


class PushTExpert:
    """See the module's docstring. Its actions get no noise: a place 25 pixels off (0.1) would be another push."""

    noisy = 0

    def __init__(self, simulator: PushTSimulator) -> None:
        self._simulator, self._model = simulator, _Model()
        self._targets: list[Array] = []

    def reset(self) -> None:
        """Nothing is planned."""
        self._targets = []

    def act(self, obs: Observation) -> Array:
        """The next place of the push that is executed; where the T is in its place, the disc stays."""
        state = self._simulator.states()
        if self._simulator.coverage > SOLVED:
            self._targets = [state[:2]]
        self._targets = self._targets or self._model.plan(state)
        return np.asarray(self._targets.pop(0)) * 2 / SIDE - 1


class _Model:
    """Tries pushes out; all methods take a state as `PushTSimulator.states` gives it."""

    def __init__(self) -> None:
        self._env = make_board("state")
        self._env.reset(seed=0)
        self._goal = placed(self._env.goal_pose, CORNERS)
        self._contacts = _contacts()

    def plan(self, state: Array) -> list[Array]:
        """Targets of the best push; to the middle of the board where none can be begun."""
        rough = []
        for push in self._candidates(state)[:_TRIED]:
            errors = self._errors(state, push.targets(_PUSH * _LONGEST))[len(push.walk) + 1 :]
            best = int(np.argmin(errors[:_LONGEST]))
            rough.append((errors[best] + _PER_STEP * len(push.walk), _PUSH * (best + 1), push))
        rough.sort(key=lambda found: found[0])
        fine = []
        for _, length, push in rough[:_REFINED]:
            for shorter in np.linspace(max(length - 16, 3), length + 2, 7):
                targets = push.targets(float(shorter))
                fine.append((self._errors(state, targets)[-1] + _PER_STEP * len(targets), targets))
        return min(fine, key=lambda found: found[0])[1] if fine else [np.full(2, SIDE / 2)]

    def _candidates(self, state: Array) -> list[Push]:
        """Pushes that can be begun, those that should help most first: by how a push moves the corners, in direction."""
        pose = state[4:]
        corners, centre = placed(pose, CORNERS), placed(pose, CENTRE[None])[0]
        missing, arms = self._goal - corners, corners - centre
        found = []
        for contact, normal in self._contacts:
            for turn in _TURNS:
                direction = _turned(-normal, float(pose[2]) + turn)
                touched = placed(pose, contact[None])[0]
                start = touched - direction * (_RADIUS + _GAP)
                if start.min() < _LOW or start.max() > _HIGH or _distances(start[None], pose)[0] < _RADIUS + 2:
                    continue
                arm = touched - centre
                turning = (arm[0] * direction[1] - arm[1] * direction[0]) / _GYRATION**2
                moves = direction + turning * np.stack([-arms[:, 1], arms[:, 0]], 1)
                gain = float((moves * missing).sum() / np.sqrt((moves**2).sum()))
                found.append((gain, start, direction))
        found.sort(key=lambda push: -push[0])
        return [Push(_walk(state[:2], start, pose), start, direction) for _, start, direction in found[:_TRIED]]

    def _errors(self, state: Array, targets: Sequence[Array]) -> list[float]:
        """Mean distance of the T's corners to the goal's after each control step towards `targets`."""
        env = self._env
        env.agent.position, env.agent.velocity = tuple(state[:2]), tuple(state[2:4])
        env.block.angle = state[6]
        env.block.position, env.block.velocity, env.block.angular_velocity = tuple(state[4:6]), (0, 0), 0
        env.space.reindex_shapes_for_body(env.block)
        env.space.reindex_shapes_for_body(env.agent)
        errors = []
        for target in targets:
            self._push_on(float(target[0]), float(target[1]))
            pose = np.array([*env.block.position, env.block.angle])
            errors.append(float(np.linalg.norm(placed(pose, CORNERS) - self._goal, axis=1).mean()))
        return errors

    def _push_on(self, x: float, y: float) -> None:
        """A control step; the environment's own also measures the coverage, which takes most of its time."""
        env = self._env
        disc, dt = env.agent, env.dt
        for _ in range(round(1 / (dt * env.control_hz))):
            (px, py), (vx, vy) = disc.position, disc.velocity
            ax, ay = env.k_p * (x - px) - env.k_v * vx, env.k_p * (y - py) - env.k_v * vy
            disc.velocity = vx + ax * dt, vy + ay * dt
            env.space.step(dt)


def _contacts() -> list[tuple[Array, Array]]:
    """Points on the T's edges and the normals there, outwards, in its own frame."""
    found = []
    for first, second in zip(CORNERS, np.roll(CORNERS, -1, axis=0), strict=True):
        length = float(np.linalg.norm(second - first))
        along = (second - first) / length
        count = max(int(length // _APART), 1)
        found += [(first + along * length * (i + 0.5) / count, np.array([along[1], -along[0]])) for i in range(count)]
    return found


def _turned(vector: Array, angle: float) -> Array:
    turned: Array = placed(np.array([0.0, 0.0, angle]), vector[None])[0]
    return turned


def _distances(points: Array, pose: Array) -> Array:
    """Of points `[N, 2]` on the board to the T, 0 inside."""
    local = placed(np.array([0.0, 0.0, -pose[2]]), points - pose[:2])
    parts = [
        np.hypot((np.abs(local[:, 0]) - half).clip(0), np.maximum(low - local[:, 1], local[:, 1] - high).clip(0))
        for half, low, high in ((60, 0, 30), (15, 30, 120))
    ]
    return np.minimum(*parts)


def _free(start: Array, end: Array, pose: Array) -> bool:
    """Whether the disc can go straight without touching the T."""
    line = start + (end - start) * np.linspace(0, 1, 12)[:, None]
    return bool(_distances(line, pose).min() > _RADIUS + _MARGIN)


def _walk(start: Array, end: Array, pose: Array) -> list[Array]:
    """Places on the way from `start` to `end` around the T, one per control step."""
    way, now = [], start
    if _distances(start[None], pose)[0] < _RADIUS + 2 * _MARGIN:  # first away from where it pushed
        angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        ways = (start + 22 * np.stack([np.cos(angles), np.sin(angles)], 1)).clip(_LOW, _HIGH)
        now = ways[_distances(ways, pose).argmax()]
        way.append(now)
    if not _free(now, end, pose):
        way += _arc(now, end, pose)
    places, last = [], start
    for place in [*way, end]:
        steps = max(math.ceil(float(np.linalg.norm(place - last)) / _WALK), 1)
        places += [last + (place - last) * i / steps for i in range(1, steps + 1)]
        last = place
    return places


def _arc(start: Array, end: Array, pose: Array) -> list[Array]:
    """The part of the circle about the T that is needed between two places."""
    centre = placed(pose, CENTRE[None])[0]
    first, last = (math.atan2(place[1] - centre[1], place[0] - centre[0]) for place in (start, end))
    turn = (last - first + math.pi) % (2 * math.pi) - math.pi
    count = max(int(abs(turn) / 0.35), 1)
    angles = first + turn * np.arange(count + 1) / count
    places = (centre + _AROUND * np.stack([np.cos(angles), np.sin(angles)], 1)).clip(_LOW, _HIGH)
    begins = max((i for i in range(count + 1) if _free(start, places[i], pose)), default=0)
    ends = min((i for i in range(begins, count + 1) if _free(places[i], end, pose)), default=count)
    return list(places[begins : ends + 1])
