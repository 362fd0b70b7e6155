"""Statistics over few runs: the interquartile mean, bootstrap intervals, and intervals of success rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Seed = int | tuple[int, int] | np.random.Generator


@dataclass(frozen=True)
class Interval:
    """An estimate `point` and its interval `[low, high]`."""

    point: float
    low: float
    high: float


def mean(scores: Array) -> Array:
    """Mean over the last axis."""
    return np.asarray(np.mean(scores, axis=-1), dtype=np.float64)


def iqm(scores: Array) -> Array:
    """Interquartile mean over the last axis: of n sorted scores, floor(n / 4) are cut off at either end.

    Source: Deep reinforcement learning at the edge of the statistical precipice, arXiv:2108.13264, section 4.3.
    """
    n = np.shape(scores)[-1]
    cut = n // 4
    return mean(np.sort(scores, axis=-1)[..., cut : n - cut])


def bootstrap(
    strata: Sequence[Sequence[float] | Array],
    statistic: Callable[[Array], Array] = iqm,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic of all scores, by resampling runs within each stratum (task).

    Args:
        strata: one list of scores per task, one score per run; their lengths may differ.
        statistic: of scores `[..., n]` over the last axis: `iqm` or `mean`.
        confidence: in (0, 1).
        resamples: number of bootstrap samples.
        seed: of the resampling.
    Returns:
        the statistic of the scores as they are, with its interval. One run per task gives an interval of no width.
    Raises:
        ValueError: a stratum is empty, or a score isn't finite.
    Source: stratified bootstrap of arXiv:2108.13264, section 4.2.
    """
    arrays = _strata(strata)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must be between 0 and 1.")
    random = np.random.default_rng(seed)
    drawn = [a[random.integers(len(a), size=(resamples, len(a)))] for a in arrays]
    values = statistic(np.concatenate(drawn, axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(statistic(np.concatenate(arrays))), float(low), float(high))


def wilson(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a success rate: all p with |p_hat - p| <= z sqrt(p (1 - p) / n).

    Args:
        successes: between 0 and `trials`.
        trials: n, at least 1.
        confidence: in (0, 1).
    Source: Wilson, Probable inference, JASA 22 (1927).
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials: needs at least 1 trial and 0 <= successes <= trials.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must be between 0 and 1.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate, scale = successes / trials, 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return Interval(rate, max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class Aggregates:
    """Scores of several runs on several tasks in four numbers, each with its stratified bootstrap interval.

    Attributes:
        iqm: interquartile mean of all runs of all tasks together.
        mean, median: over tasks, of the mean over each task's runs.
        optimality_gap: mean over tasks of how far the runs stay below 1, max(0, 1 - score); less is better.
    """

    iqm: Interval
    mean: Interval
    median: Interval
    optimality_gap: Interval


def resample_counts(sizes: Sequence[int], *, resamples: int = 2000, seed: Seed = 0) -> Array:
    """Stratified bootstrap samples as counts: how often each run is drawn.

    A resample of n runs is fully told by its counts, and statistics of all resamples become matrix products, so nothing is
    copied or sorted per resample.

    Args:
        sizes: runs in each stratum (task).
        resamples: R.
        seed: of the resampling, a number or several, or a generator that goes on.
    Returns:
        `[R, sum(sizes)]`; the columns of each stratum add up to its size. Read-only where a seed was given, as it is kept for
        the next time.
    """
    if not isinstance(seed, np.random.Generator):
        return _kept_counts(tuple(sizes), resamples, seed)
    return np.concatenate([seed.multinomial(n, np.full(n, 1 / n), size=resamples) for n in sizes], axis=1, dtype=np.float64)


@lru_cache(maxsize=64)
def _kept_counts(sizes: tuple[int, ...], resamples: int, seed: int | tuple[int, int]) -> Array:
    counts = resample_counts(sizes, resamples=resamples, seed=np.random.default_rng(seed))
    counts.flags.writeable = False
    return counts


def resampled_mean(scores: Array, counts: Array) -> Array:
    """Mean of each resample: scores `[n, ...]` and counts `[R, n]` to `[R, ...]`."""
    values = np.asarray(scores, dtype=np.float64)
    return np.asarray(np.tensordot(counts, values, axes=1) / counts.sum(axis=1).reshape(-1, *[1] * (values.ndim - 1)))


def resampled_iqm(scores: Array, counts: Array) -> Array:
    """Interquartile mean of each resample: scores `[n, P]` and counts `[R, n]` to `[R, P]`.

    The scores are sorted once. With C_k the number of draws among the k smallest, the k-th smallest score counts
    clip(C_k, c, n - c) - clip(C_{k-1}, c, n - c) times in the middle, c = floor(n / 4).
    """
    values = np.asarray(scores, dtype=np.float64)
    n = values.shape[0]
    cut = n // 4
    result = np.empty((counts.shape[0], values.shape[1]))
    for p, order in enumerate(np.argsort(values, axis=0).T):
        below = np.clip(np.cumsum(counts[:, order], axis=1), cut, n - cut)
        result[:, p] = np.diff(below, axis=1, prepend=cut) @ values[order, p] / (n - 2 * cut)
    return result


def percentile_interval(values: Array, *, confidence: float = 0.95) -> tuple[Array, Array]:
    """Low and high end over the first axis, that of the resamples."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must be between 0 and 1.")
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return low, high


def aggregates(
    strata: Sequence[Sequence[float] | Array], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Aggregates:
    """IQM, mean, median and optimality gap over tasks, with intervals from the same resamples.

    Args:
        strata: normalized scores (1 is the goal), one list per task, one score per run; their lengths may differ, and then the
            IQM, which pools all runs, weighs tasks by their runs, while the other three weigh tasks alike.
        confidence, resamples, seed: see `bootstrap`.
    Raises:
        ValueError: a stratum is empty, or a score isn't finite.
    Source: arXiv:2108.13264, sections 4.2 and 4.3; with as many runs on every task equal to its library, rliable.
    """
    arrays = _strata(strata)
    sizes = [len(a) for a in arrays]
    pooled = np.concatenate(arrays)
    counts = resample_counts(sizes, resamples=resamples, seed=seed)
    split = [slice(end - n, end) for n, end in zip(sizes, np.cumsum(sizes), strict=True)]

    def of(drawn: Array) -> dict[str, Array]:
        tasks = np.stack([resampled_mean(pooled[part], drawn[:, part]) for part in split])
        gaps = np.stack([resampled_mean(np.maximum(0.0, 1 - pooled[part]), drawn[:, part]) for part in split])
        iqms = resampled_iqm(pooled[:, None], drawn)[:, 0]
        return {"iqm": iqms, "mean": tasks.mean(0), "median": np.median(tasks, axis=0), "optimality_gap": gaps.mean(0)}

    points = of(np.ones((1, len(pooled))))
    intervals = {name: percentile_interval(values, confidence=confidence) for name, values in of(counts).items()}
    return Aggregates(**{name: Interval(float(points[name][0]), *map(float, ends)) for name, ends in intervals.items()})


def probability_of_improvement(
    ours: Sequence[Sequence[float] | Array],
    theirs: Sequence[Sequence[float] | Array],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Probability that a run of ours beats a run of theirs on a task drawn at random.

        P = avg_t 1 / (n m) sum_ij ([x_ti > y_tj] + 1/2 [x_ti = y_tj])

    which on each task is the Mann-Whitney statistic U / (n m).

    Args:
        ours, theirs: scores by task, the same tasks in the same order, in any unit; runs are resampled within each task.
        confidence, resamples, seed: see `bootstrap`.
    Source: arXiv:2108.13264, section 4.3.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"probability of improvement needs the same tasks, got {len(ours)} and {len(theirs)}.")
    xs, ys = _strata(ours), _strata(theirs)
    x_counts = resample_counts([len(x) for x in xs], resamples=resamples, seed=(seed, 0))
    y_counts = resample_counts([len(y) for y in ys], resamples=resamples, seed=(seed, 1))
    points, drawn, i, j = [], np.zeros(resamples), 0, 0
    for x, y in zip(xs, ys, strict=True):
        wins = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
        points.append(float(wins.mean()))
        drawn += ((x_counts[:, i : i + len(x)] @ wins) * y_counts[:, j : j + len(y)]).sum(axis=1) / wins.size
        i, j = i + len(x), j + len(y)
    low, high = percentile_interval(drawn / len(points), confidence=confidence)
    return Interval(float(np.mean(points)), float(low), float(high))


def _strata(strata: Sequence[Sequence[float] | Array]) -> list[Array]:
    arrays = [np.asarray(scores, dtype=np.float64) for scores in strata]
    if not arrays or any(a.ndim != 1 or len(a) == 0 for a in arrays):
        raise ValueError(f"bootstrap needs at least one score in each stratum, got shapes {[a.shape for a in arrays]}.")
    if not all(np.isfinite(a).all() for a in arrays):
        raise ValueError("bootstrap needs finite scores.")
    return arrays
