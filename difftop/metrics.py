"""Quality of executed trajectories: accelerations, violated limits, contact forces. NumPy only.

Everywhere N episodes of at most T steps: `actions [N, T, A]` as executed, and `steps [N]`, how many steps of each episode count
(None: all T). With `steps_to_success` a policy that succeeds early and then stands still gains nothing by standing still.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from difftop.stats import wilson

if TYPE_CHECKING:  # torch takes two seconds to import, and only the type is needed
    from difftop.qp.trajectory import TrajectoryLimits

Array = np.ndarray[Any, np.dtype[Any]]

LIN_ROT: Mapping[str, Sequence[int]] = {"lin": (0, 1, 2), "rot": (3, 4, 5)}


@dataclass(frozen=True)
class Violations:
    """Steps at which a limit was exceeded.

    Attributes:
        steps: number of (episode, step) pairs with at least one value outside by more than the tolerance.
        worst: largest excess in any of them, in the unit of the values; 0 if no value is outside at all.
    """

    steps: int
    worst: float


def steps_to_success(success_step: Array, steps: Array) -> Array:
    """Number of steps up to and including the first success.

    Args:
        success_step: `[N]` int, index of the first step after which the task was solved, -1 where it never was.
        steps: `[N]` int, length of each episode.
    Returns:
        `[N]` int: success_step + 1, and the whole length where there was no success.
    Raises:
        ValueError: a success step outside of its episode.
    """
    success, length = np.asarray(success_step), np.asarray(steps)
    if success.shape != length.shape or bool(((success < -1) | (success >= length)).any()):
        raise ValueError(
            f"success_step={success.tolist()} with episodes of {length.tolist()} steps: each must be -1 (never) or a step."
        )
    return np.where(success >= 0, success + 1, length)


def accelerations(actions: Array, dt: float = 1.0) -> Array:
    """Differences of executed actions, the first one against the zero action.

        acc_t = (a_t - a_{t-1}) / dt,   a_{-1} = 0

    Args:
        actions: `[N, T, A]`, velocities.
        dt: time between actions, in s; 1 for accelerations per step.
    Returns:
        `[N, T, A]`, float64.
    Source: LeTO, arXiv:2401.17500, section IV ("the difference of the normalized velocity"); its code counts the first move.
    """
    values = np.asarray(actions, dtype=np.float64)
    if values.ndim != 3:
        raise ValueError(f"actions has shape {list(values.shape)}; it must be [N, T, A], episodes first.")
    return np.diff(values, axis=1, prepend=0.0) / dt


def acceleration_metrics(
    actions: Array, *, groups: Mapping[str, Sequence[int]] = LIN_ROT, dt: float = 1.0, steps: Array | None = None
) -> dict[str, float]:
    """Smoothness of trajectories as in LeTO's tables II to IV.

    With |acc| `[N, T, A]`, and the statistic over time taken first, for each episode and dimension:

        mean_g = avg_{n, i in g} mean_t |acc_nti|      std_g = avg_{n, i in g} std_t |acc_nti|  (ddof 0)
        max_g  = avg_{n, i in g} max_t |acc_nti|       peak_g = max_{n, i in g} max_t |acc_nti|

    Args:
        actions: `[N, T, A]`, executed, normalized as the policy gives them.
        groups: dimensions by group; the default is x, y, z and the three rotations. A dimension in no group, such as the
            gripper, doesn't count.
        dt: see `accelerations`; 1 as in the tables.
        steps: `[N]`, steps that count.
    Returns:
        `{"mean_lin": .., "std_lin": .., "max_lin": .., "peak_lin": .., "mean_rot": ..}`; the tables print 100 times this.
    Raises:
        ValueError: wrong shapes, an episode without steps, NaN, or a group that names no action.
    Source: LeTO, arXiv:2401.17500, section IV and table IV (acc-peak).
    Differs: the official code averages three initial states of the training set into it, and always counts the steps after
        success; here the caller says which episodes and steps count.
    """
    magnitude = np.abs(accelerations(actions, dt))
    for name, dims in groups.items():
        if len(dims) == 0 or not all(0 <= i < magnitude.shape[2] for i in dims):
            raise ValueError(f"groups[{name!r}]={list(dims)}: must name actions from 0 to {magnitude.shape[2] - 1}.")
    counted = _counted("actions", magnitude, steps)
    statistics: dict[str, Callable[..., Any]] = {"mean": np.mean, "std": np.std, "max": np.max}
    result: dict[str, float] = {}
    for group, dims in groups.items():
        for name, statistic in statistics.items():
            result[f"{name}_{group}"] = float(np.mean([statistic(episode[:, list(dims)], axis=0) for episode in counted]))
        result[f"peak_{group}"] = float(max(episode[:, list(dims)].max() for episode in counted))
    return result


def violations(
    values: Array, low: Sequence[float], high: Sequence[float], *, tolerance: float = 1e-6, steps: Array | None = None
) -> Violations:
    """Counts the steps at which low <= value <= high does not hold.

    Args:
        values: `[N, T, D]`.
        low, high: one bound per dimension; infinite for none.
        tolerance: excess that doesn't count, in the unit of `values`; the default covers the rounding of float32 actions.
        steps: `[N]`, steps that count.
    Raises:
        ValueError: wrong shapes, an episode without steps, or NaN.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 3 or len(low) != x.shape[2] or len(high) != x.shape[2]:
        raise ValueError(
            f"values has shape {list(x.shape)}, bounds have {len(low)} and {len(high)} entries; needs [N, T, D] and D."
        )
    excess = [
        np.maximum(np.asarray(low) - episode, episode - np.asarray(high)).max(axis=1, initial=0.0)
        for episode in _counted("values", x, steps)
    ]
    return Violations(sum(int((e > tolerance).sum()) for e in excess), float(max(e.max() for e in excess)))


def limit_violations(
    actions: Array,
    limits: TrajectoryLimits,
    *,
    positions: Array | None = None,
    tolerance: float = 1e-6,
    steps: Array | None = None,
) -> dict[str, Violations]:
    """Counts violations of velocity, acceleration and, where there are such limits, position.

    Args:
        actions: `[N, T, A]`, executed.
        limits: what they had to satisfy; the first acceleration is that from the zero action.
        positions: `[N, T, c]`, of the c constrained actions after each step, as measured; in the unit of the limits. Needed if
            there are position limits.
        tolerance: see `violations`; velocities and positions in their units, accelerations per step (tolerance / dt).
        steps: `[N]`, steps that count.
    Returns:
        by kind: `velocity`, `acceleration`, and `position` where limited.
    """
    chosen = list(limits.selected)
    values = {"velocity": np.asarray(actions)[..., chosen], "acceleration": accelerations(actions, limits.dt)[..., chosen]}
    if limits.position_matrix is not None:
        if positions is None:
            raise ValueError("positions is missing; these limits have position rows, so pass the measured positions [N, T, c].")
        values["position"] = np.asarray(positions, dtype=np.float64) @ np.asarray(limits.position_matrix, dtype=np.float64).T
    return {
        kind: violations(
            value,
            limits.vector(f"{kind}_min"),
            limits.vector(f"{kind}_max"),
            tolerance=tolerance / limits.dt if kind == "acceleration" else tolerance,
            steps=steps,
        )
        for kind, value in values.items()
    }


def contact_metrics(forces: Array, *, steps: Array | None = None) -> dict[str, float]:
    """Contact force as in LeTO's table V.

        avg_max = avg_n max_t force_nt      peak = max_n max_t force_nt

    Args:
        forces: `[N, T]`, magnitude of the contact force at each step, in N.
        steps: `[N]`, steps that count.
    Source: LeTO, arXiv:2401.17500, table V (avg-contact-max and contact-peak).
    """
    values = np.asarray(forces, dtype=np.float64)
    if values.ndim != 2 or bool((values < 0).any()):
        raise ValueError(f"forces has shape {list(values.shape)}; it must be [N, T], magnitudes of at least 0 N.")
    worst = [float(episode.max()) for episode in _counted("forces", values, steps)]
    return {"avg_max": float(np.mean(worst)), "peak": max(worst)}


def trajectory_metrics(
    actions: Array,
    success_step: Array,
    *,
    groups: Mapping[str, Sequence[int]] = LIN_ROT,
    limits: TrajectoryLimits | None = None,
    positions: Array | None = None,
    forces: Array | None = None,
    lengths: Array | None = None,
) -> dict[str, float]:
    """All of the above for one evaluation, over whole episodes and, as `..._to_success`, without the steps after success.

    Args:
        actions, groups, limits, positions, forces: see `acceleration_metrics`, `limit_violations`, `contact_metrics`.
        success_step: `[N]`, see `steps_to_success`.
        lengths: `[N]`, steps of each episode, None for T each.
    Returns:
        one number per tag: `success`, `success_low` and `success_high` (95 % Wilson interval), `acc_mean_lin` and the like,
        `violations_velocity`, `excess_velocity` and the like, `contact_avg_max` and `contact_peak`.
    """
    n, t = np.shape(actions)[:2]
    whole = np.full(n, t) if lengths is None else np.asarray(lengths)
    interval = wilson(int((np.asarray(success_step) >= 0).sum()), n)
    result = {"success": interval.point, "success_low": interval.low, "success_high": interval.high}
    for suffix, steps in (("", whole), ("_to_success", steps_to_success(success_step, whole))):
        acceleration = acceleration_metrics(actions, groups=groups, steps=steps)
        result |= {f"acc_{name}{suffix}": value for name, value in acceleration.items()}
        if limits is not None:
            for kind, found in limit_violations(actions, limits, positions=positions, steps=steps).items():
                result |= {f"violations_{kind}{suffix}": float(found.steps), f"excess_{kind}{suffix}": found.worst}
        if forces is not None:
            result |= {f"contact_{name}{suffix}": value for name, value in contact_metrics(forces, steps=steps).items()}
    return result


def combined(episodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of several episodes from those of each.

    Every statistic of `trajectory_metrics` is taken within an episode first, so single episodes' values combine exactly: peaks
    and excesses by their maximum, violations by their sum, all others by their mean.

    Args:
        episodes: what `trajectory_metrics` gives for each episode alone, with the same tags in each (NaN where there is none).
    Returns:
        one number per tag of the first episode, without `success` and its interval, which are counted, not combined.
    """
    result: dict[str, float] = {}
    for tag in episodes[0] if episodes else ():
        if not tag.startswith("success"):
            values = [episode[tag] for episode in episodes]
            worst = tag.startswith(("acc_peak_", "excess_", "contact_peak"))
            combine = np.max if worst else np.sum if tag.startswith("violations_") else np.mean
            result[tag] = float(combine(values))
    return result


def _counted(name: str, values: Array, steps: Array | None) -> list[Array]:
    """The rows of each episode that count: N arrays `[steps_n, ...]`, all finite."""
    n, t = values.shape[:2]
    count = np.full(n, t) if steps is None else np.asarray(steps)
    if n == 0 or count.shape != (n,) or bool(((count < 1) | (count > t)).any()):
        raise ValueError(
            f"{name}: {n} episodes of {t} steps with steps={count.tolist()}; each needs from 1 to {t} steps that count."
        )
    episodes = [values[i, : count[i]] for i in range(n)]
    for i, episode in enumerate(episodes):
        if not np.isfinite(episode).all():
            raise ValueError(f"{name} has NaN or infinity in episode {i}: look at the policy or the simulator that made it.")
    return episodes
