"""What it costs: frames and wall-clock to reach a return, and time per gradient step and per action."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from difftop.compare.curves import RunInfo
from difftop.curves import Curve
from difftop.stats import Array


@dataclass(frozen=True)
class Reached:
    """When the seeds of a method first had an evaluation at or above a return.

    Attributes:
        reached, seeds: how many did, of how many.
        frames: upper median over all seeds, those that never did counting as never; None where that is half of them or more.
        wall_s: likewise, in seconds since the run began; None also where no wall-clock is known.
        tried: frames that every seed which never did has run for at least; those of the longest where all did.
    """

    reached: int
    seeds: int
    frames: float | None
    wall_s: float | None
    tried: float


@dataclass(frozen=True)
class Cost:
    """Wall-clock of a run, worked out from the `wall_s` of its tables; None what they don't tell.

    Attributes:
        hours_per_100k: of everything, evaluations and checkpoints too, for 100,000 environment frames.
        update_ms: one gradient step.
        act_ms: one agent step without its gradient steps: planning, the simulator, storing.
    """

    hours_per_100k: float | None
    update_ms: float | None
    act_ms: float | None


def reached(curve: Curve, runs: dict[int, RunInfo], goal: float) -> Reached:
    """Frames and wall-clock of the first evaluation with a return of at least `goal`.

    Args:
        curve: of a method on a task.
        runs: its seeds that have a folder; published curves have none.
        goal: a return.
    """
    frames, walls = [], []
    for seed, series in curve.seeds.items():
        hits = np.flatnonzero(series.returns >= goal)
        at = float(series.steps[hits[0]]) if len(hits) else np.inf
        frames.append(at)
        known = runs[seed].evaluations if seed in runs else np.empty((0, 3))
        same = known[known[:, 0] == at]
        walls.append(float(same[-1, 2]) if len(same) else np.inf if at == np.inf else np.nan)
    ends = [float(series.steps[-1]) for series in curve.seeds.values()]
    tried = min((end for end, at in zip(ends, frames, strict=True) if np.isinf(at)), default=max(ends))
    return Reached(int(np.isfinite(frames).sum()), len(frames), _median(frames), _median(walls), tried)


def _median(values: Sequence[float]) -> float | None:
    """Upper median, so that it is never where half of the seeds never came; None if it isn't finite."""
    middle = float(np.sort(values)[len(values) // 2]) if not np.isnan(values).any() else np.nan
    return middle if np.isfinite(middle) else None


def cost(run: RunInfo) -> Cost:
    """Time per gradient step and per agent step of a run.

    The tables hold the wall-clock at the end of each training episode, t_k after n_k agent steps, and at the beginning of each
    evaluation, w_j. An evaluation that follows the end of an episode follows its gradient steps, so, with g gradient steps
    owed for the agent steps since the last were paid,

        w_j - t_k = g update + act            t_{k+1} - t_k = (n_{k+1} - n_k) act + g_k update,

    the second where nothing was evaluated in between. Medians over all such intervals are solved for `update` and `act`.
    This needs one training environment, every episode logged, and an evaluation at an episode's end after the first updates.
    """
    total = run.evaluations[-1] if len(run.evaluations) else np.zeros(3)
    hours = float(total[2] / 3600 * 1e5 / total[0]) if total[0] > 0 and total[2] > 0 else None
    settings = [run.option(f"run.{key}") for key in ("seed_steps", "updates_per_step", "num_envs")]
    every_episode = run.option("run.log_every") in (None, 1)  # an option of runs made before
    if not every_episode or not all(isinstance(value, int | float) for value in settings) or settings[2] != 1:
        return Cost(hours, None, None)
    first, per_step = float(settings[0]), float(settings[1])
    bursts, intervals = _bursts(run, first), _intervals(run, first)
    if per_step <= 0 or not len(bursts) or not len(intervals):
        return Cost(hours, None, None)
    act = 0.0
    for _ in range(20):  # converges fast: a burst has one action and many gradient steps
        update = float(np.median((bursts[:, 1] - act) / (per_step * bursts[:, 0])))
        act = float(np.median(intervals[:, 1] / intervals[:, 0])) - per_step * update
    return Cost(hours, 1e3 * update, 1e3 * act) if update > 0 and act > 0 else Cost(hours, None, None)


def _bursts(run: RunInfo, first: float) -> Array:
    """`[m, 2]`: agent steps whose gradient steps were paid between an episode's end and an evaluation there, and seconds."""
    ends, walls = run.training[:, 0], run.training[:, 1]
    found = []
    for _, steps, wall in run.evaluations:
        k = int(np.searchsorted(ends, steps))
        if k < len(ends) and ends[k] == steps and steps >= first:
            before = ends[k - 1] if k and ends[k - 1] >= first else 0.0
            found.append((steps - before, wall - walls[k]))
    return np.array([pair for pair in found if pair[0] > 0]).reshape(-1, 2)


def _intervals(run: RunInfo, first: float) -> Array:
    """`[m, 2]`: agent steps and seconds between ends of episodes, after the first updates, with no evaluation in between."""
    ends, walls = run.training[:, 0], run.training[:, 1]
    evaluated = run.evaluations[:, 1]
    found = [
        (b - a, walls[k + 1] - walls[k])
        for k, (a, b) in enumerate(itertools.pairwise(ends))
        if k and ends[k - 1] >= first and b > a and not ((evaluated >= a) & (evaluated < b)).any()
    ]
    return np.array(found).reshape(-1, 2)
