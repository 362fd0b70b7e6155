"""Limits that actions have to keep, and the heads that keep them; any policy can wear one.

none: actions are clamped to [-1, 1]. clip: each action is clipped to what velocity and acceleration limits allow. qp: the chunk
is projected on the limits, with a look ahead.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from difftop.data.demonstrations import Demonstrations
from difftop.options import ConfigError, option
from difftop.qp import TrajectoryLimits
from difftop.qp.trajectory import TrajectoryRows
from difftop.types import EnvSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LimitsConfig:
    """What actions have to satisfy.

    With `units=action` a velocity is an action, in [-1, 1], and an acceleration its change from one step to the next: LeTO's
    numbers. With `units=physical` both are in m/s and m/s^2 (rad/s and rad/s^2 for turning actions). They are converted by how
    far action 1 moves in one step, and by the task's time dt between two actions:

        velocity [action] = velocity [m/s] dt / metres_per_action
        acceleration [action/step] = acceleration [m/s^2] dt^2 / metres_per_action
    """

    units: str = option(
        "action",
        "of velocity and acceleration: normalized action and its change per step, or m/s and m/s^2",
        choices=("action", "physical"),
    )
    free: list[int] = option([-1], "actions without limits and smoothing (a gripper); negative ones count from the end")
    velocity: float = option(1.0, "largest |action| (units=action, at most 1), or speed in m/s (units=physical)", above=0)
    acceleration: float = option(
        0.1,
        "largest change of an action in one step (units=action; robosuite: 0.1 is 2 m/s^2), or m/s^2 (units=physical)",
        above=0,
    )
    turning: list[int] = option([], "units=physical: actions that turn, in rad; they have the next two limits")
    turning_velocity: float = option(math.inf, "units=physical: largest turning speed, rad/s", above=0)
    turning_acceleration: float = option(math.inf, "units=physical: largest turning acceleration, rad/s^2", above=0)
    metres_per_action: float = option(
        0.05, "how far action 1 moves in one step, m (robosuite 0.05, ManiSkill 0.1, MetaWorld 0.01)", above=0
    )
    radians_per_action: float = option(0.5, "how far action 1 turns in one step, rad (robosuite 0.5, ManiSkill 0.1)", above=0)
    position_key: str = option("", "observation that holds the position, m; empty for no position limits")
    position_axes: list[int] = option([], "actions whose position is limited; also the entries of position_key", low=0)
    position_min: list[float] = option([], "lowest position, m, one per axis; -.inf for none")
    position_max: list[float] = option([], "highest position, m, one per axis; .inf for none")

    def make(self, spec: EnvSpec, horizon: int) -> TrajectoryLimits:
        """The limits of trajectories `[horizon, A]`, per step: dt is 1, velocities are actions, positions are sums of actions.

        Raises:
            ConfigError: the options contradict each other or the task.
        """
        constrained = self._constrained(spec.action_dim)
        self._check_positions(spec, constrained)
        velocity, acceleration = self._per_step(spec, constrained)
        axes, low, high = self.position_axes, self.position_min, self.position_max
        return TrajectoryLimits(
            spec.action_dim,
            horizon,
            constrained,
            velocity_min=[-x for x in velocity],
            velocity_max=velocity,
            acceleration_min=[-x for x in acceleration],
            acceleration_max=acceleration,
            position_matrix=[[float(i == axis) for i in constrained] for axis in axes] or None,
            position_min=[x / self.metres_per_action for x in low] if axes else -math.inf,
            position_max=[x / self.metres_per_action for x in high] if axes else math.inf,
        )

    def positions(self, obs: Mapping[str, Tensor], limits: TrajectoryLimits) -> Tensor | None:
        """Positions of the limited actions `[N, c]` in the unit of `make`, zero where there is no limit; None without limits.

        Args:
            obs: by key `[N, O]`, as measured (not normalized).
            limits: from `make`.
        """
        if not self.position_key:
            return None
        measured = obs[self.position_key]
        positions = measured.new_zeros(len(measured), len(limits.selected))
        for axis in self.position_axes:
            positions[:, limits.selected.index(axis)] = measured[:, axis] / self.metres_per_action
        return positions

    def check_demonstrations(self, demonstrations: Demonstrations, limits: TrajectoryLimits) -> None:
        """Says how many positions of the demonstrations are outside of the limits: nothing is learned from what begins there.

        Raises:
            ConfigError: more than half of them are, as with a wrong axis, sign or frame.
        """
        if not self.position_key:
            return
        positions = self.positions({self.position_key: demonstrations.rows(self.position_key)}, limits)
        assert positions is not None
        try:
            limits.check_positions(positions, f"positions ({self.position_key})")
        except ValueError as error:
            if float(limits.outside(positions).double().mean()) > 0.5:
                raise ConfigError(f"limits.position_min, position_max: {error}") from error
            log.warning("%s", error)

    def _constrained(self, action_dim: int) -> list[int]:
        indices = {i + action_dim if i < 0 else i for i in self.free}, {i + action_dim if i < 0 else i for i in self.turning}
        for name, given, found in (("free", self.free, indices[0]), ("turning", self.turning, indices[1])):
            if not found <= set(range(action_dim)):
                raise ConfigError(
                    f"limits.{name}={list(given)}: there are {action_dim} actions, numbered from 0, or from -1 backwards."
                )
        return [i for i in range(action_dim) if i not in indices[0]]

    def _check_positions(self, spec: EnvSpec, constrained: list[int]) -> None:
        key, axes, low, high = self.position_key, self.position_axes, self.position_min, self.position_max
        if not len(axes) == len(low) == len(high) or bool(axes) != bool(key) or not set(axes) <= set(constrained):
            raise ConfigError(
                f"limits: position_key={key!r}, position_axes={list(axes)}, position_min={list(low)}, position_max={list(high)}: "
                f"give all or none, one minimum and one maximum per axis, and axes among the limited actions {constrained}."
            )
        if key and (key not in spec.shapes or len(spec.shapes[key]) != 1 or max(axes) >= spec.shapes[key][0]):
            raise ConfigError(
                f"limits.position_key={key}, position_axes={list(axes)}: no such observations; there are {dict(spec.shapes)}."
            )

    def _per_step(self, spec: EnvSpec, constrained: list[int]) -> tuple[list[float], list[float]]:
        """Largest velocity and acceleration of each constrained action, in action units per step."""
        if self.units == "action":
            if self.velocity > 1:
                raise ConfigError(
                    f"limits.velocity={self.velocity:g}: in action units at most 1; for m/s set limits.units=physical."
                )
            return [self.velocity] * len(constrained), [self.acceleration] * len(constrained)
        turning = {i + spec.action_dim if i < 0 else i for i in self.turning}
        dt, velocity, acceleration = spec.control_dt_s, [], []
        for i in constrained:
            turns = i in turning
            speed, gain = (self.turning_velocity, self.turning_acceleration) if turns else (self.velocity, self.acceleration)
            unit = self.radians_per_action if turns else self.metres_per_action
            velocity.append(min(speed * dt / unit, 1.0))
            acceleration.append(gain * dt**2 / unit)
        return velocity, acceleration


def brake(rows: TrajectoryRows, previous: Tensor) -> Tensor:
    """The last actions `[N, A]`, the limited ones moved towards zero by what their acceleration limits allow."""
    last = previous[:, rows.chosen].double()
    slowed = torch.zeros_like(last).clamp(last + rows.jump_min, last + rows.jump_max)
    return previous.index_copy(1, rows.chosen, slowed.to(previous))
