"""Frozen dataclasses that cross the borders between rooms.

Sizes in every docstring: N environments, B batch, T data time, H plan horizon, A action, Z latent. Batch first everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing torch takes two seconds, and every environment worker imports this file
    from torch import Tensor

KINDS: Mapping[str, int] = {"vector": 1, "points": 2, "image": 3, "depth": 3}  # kind of an observation to the number of its axes
GIVES = ("reward", "success", "expert", "states")  # what an environment may offer beside observations


DEPTH = "_depth"  # how keys of depth images end, as robosuite's and RoboMimic's do


def is_depth(key: str, shape: Sequence[int]) -> bool:
    """Whether an observation, channels first, is a depth image: files and spaces tell it by nothing but its name and channel."""
    return key.endswith(DEPTH) and len(shape) == 3 and shape[0] == 1


@dataclass(frozen=True)
class ObsSpec:
    """One observation of an environment.

    Attributes:
        kind: `vector` (float32 `[O]`), `image` (uint8 `[C, height, width]`; C = 3 x frames, the newest last), `depth` (float32
            `[1, height, width]`, m along the camera's axis; its key ends in `_depth`) or `points` (float32 `[P, 3 or 6]`, m in
            the world's frame).
        shape: of one observation, without batch.
    """

    kind: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != KINDS.get(self.kind):
            raise ValueError(
                f"ObsSpec(kind={self.kind!r}, shape={self.shape}): must be one of {dict(KINDS)}, kind to number of axes."
            )

    @staticmethod
    def of(shape: tuple[int, ...], key: str = "") -> ObsSpec:
        """The observation `key` of this shape: its kind follows from the number of axes, and a depth image's from its name."""
        kinds = {1: "vector", 2: "points", 3: "depth" if is_depth(key, shape) else "image"}
        if len(shape) not in kinds:
            raise ValueError(f"an observation of shape {shape} is neither a vector, points nor an image.")
        return ObsSpec(kinds[len(shape)], tuple(shape))


@dataclass(frozen=True)
class EnvSpec:
    """What an agent needs to know of an environment in order to be built; the one contract of rewards and imitation.

    Attributes:
        name: registry name, for example `dmc/cartpole-swingup`.
        obs: observations by key, in the environment's order; `env.obs=state` and `pixels` have one, called so.
        action_dim: A; every action lies in [-1, 1]^A.
        episode_steps: actions until the time limit truncates an episode.
        control_dt_s: time between two actions, s.
        action_repeat: simulator steps per action; `env_frames = agent_steps * action_repeat`.
        frame_stack: frames in one image (1 where images aren't stacked).
        gives: of `GIVES`: rewards, success in `info`, a scripted expert, simulator states to play back.
        action_low, action_high: what -1 and 1 stand for in a data set's own units, A numbers each; empty for themselves.
        poses: arms whose 10 actions each are a learned pose of `difftop.poses`; 0 where actions are none.
    """

    name: str
    obs: Mapping[str, ObsSpec]
    action_dim: int
    episode_steps: int
    control_dt_s: float
    action_repeat: int = 1
    frame_stack: int = 1
    gives: frozenset[str] = frozenset()
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()
    poses: int = 0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one observation by key."""
        return {key: seen.shape for key, seen in self.obs.items()}

    @property
    def only_key(self) -> str:
        """The key of the one observation.

        Raises:
            ValueError: there are several.
        """
        if len(self.obs) != 1:
            raise ValueError(f"{self.name} has {len(self.obs)} observations ({', '.join(self.obs)}); one is wanted.")
        return next(iter(self.obs))

    def plain(self) -> dict[str, Any]:
        """As JSON types; `from_plain` reads it."""
        obs = {key: {"kind": seen.kind, "shape": list(seen.shape)} for key, seen in self.obs.items()}
        return {**vars(self), "obs": obs, "gives": sorted(self.gives)}

    @staticmethod
    def from_plain(values: Mapping[str, Any]) -> EnvSpec:
        """The spec that `plain` wrote."""
        obs = {key: ObsSpec(seen["kind"], tuple(seen["shape"])) for key, seen in values["obs"].items()}
        bounds = {key: tuple(values.get(key, ())) for key in ("action_low", "action_high")}
        return EnvSpec(**{**values, **bounds, "obs": obs, "gives": frozenset(values["gives"])})


@dataclass(frozen=True)
class Batch:
    """Slices of replayed episodes; a slice lies inside one episode.

    Attributes:
        obs: the one observation `[B, T+1, *shape]`, float32 vectors or uint8 images.
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
