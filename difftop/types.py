"""Frozen dataclasses that cross the borders between rooms.

Sizes in every docstring: N environments, B batch, T data time, H plan horizon, A action, Z latent. Batch first everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing torch takes two seconds, and every environment worker imports this file
    from torch import Tensor


@dataclass(frozen=True)
class EnvSpec:
    """What an agent needs to know of an environment in order to be built.

    Attributes:
        name: registry name, for example `dmc/cartpole-swingup`.
        obs_kind: `state` (a float32 vector) or `pixels` (uint8 frames, channels first).
        obs_shape: shape of one observation, frames stacked: `(O,)` or `(3 * frame_stack, height, width)`.
        action_dim: A; every action lies in [-1, 1]^A.
        action_repeat: simulator steps per agent step; `env_frames = agent_steps * action_repeat`.
        episode_steps: agent steps until the time limit truncates an episode.
        frame_stack: frames in one observation (1 for states).
    """

    name: str
    obs_kind: str
    obs_shape: tuple[int, ...]
    action_dim: int
    action_repeat: int
    episode_steps: int
    frame_stack: int = 1


@dataclass(frozen=True)
class TaskSpec:
    """What an imitation agent needs to know of a task in order to be built; observations are by key.

    Attributes:
        name: registry name, for example `metaworld/button-press-topdown`.
        shapes: shape of one observation by key: `(O,)` float32, `(3, height, width)` uint8 images, `(P, 3 or 6)` float32 points.
        action_dim: A; every action lies in [-1, 1]^A.
        episode_steps: actions until an episode is over.
        control_dt_s: time between two actions, s.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    action_dim: int
    episode_steps: int
    control_dt_s: float


@dataclass(frozen=True)
class Batch:
    """Slices of replayed episodes; a slice lies inside one episode.

    Attributes:
        obs: observations `[B, T+1, *obs_shape]`, float32 (states) or uint8 (pixels).
        action: actions `[B, T, A]` in [-1, 1]; action t leads from obs t to obs t+1.
        reward: `[B, T]`, summed over the action repeat.
        terminated: `[B, T]` bool; True where the episode ended in a terminal state, so that nothing is bootstrapped from it.
        weight: importance weights `[B]`, 1 under uniform sampling.
        index: replay rows `[B]` that the slices start at, to hand priorities back.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    weight: Tensor
    index: Tensor


class SolveStatus(IntEnum):
    """Outcome of one sample's optimization. A failure is counted and logged; it is never an exception and never silent."""

    SOLVED = 0  # finite, and the solver's own certificate holds (planner: the iteration budget was spent or it converged)
    RELAXED = 1  # solved after a documented relaxation (QP head: position limits)
    INFEASIBLE = 2  # proven to have no solution (QP head)
    FAILED = 3  # numerical trouble; a planner returns the best finite iterate, the QP head NaN: never an uncertified action


@dataclass(frozen=True)
class PlanResult:
    """Plans of a batch of independent problems.

    Attributes:
        actions: `[B, H, A]`, inside [-1, 1].
        value: the model's return of each plan `[B]` (IL: minus the cost); detached.
        status: `SolveStatus` per sample `[B]`, int64.
        iterations: iterations spent per sample `[B]`, int64.
    """

    actions: Tensor
    value: Tensor
    status: Tensor
    iterations: Tensor
