"""Statistics over few runs: the interquartile mean, bootstrap intervals, and intervals of success rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


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
    arrays = [np.asarray(scores, dtype=np.float64) for scores in strata]
    if not arrays or any(a.ndim != 1 or len(a) == 0 for a in arrays):
        raise ValueError(f"bootstrap needs at least one score in each stratum, got shapes {[a.shape for a in arrays]}.")
    if not all(np.isfinite(a).all() for a in arrays):
        raise ValueError("bootstrap needs finite scores.")
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
