"""Scores at a number of frames: per task, over tasks, and method against method."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from difftop.compare.notes import LEFT_OUT, Note, listed, plural
from difftop.curves import Curve, Series
from difftop.stats import (
    Aggregates,
    Array,
    Interval,
    aggregates,
    iqm,
    mean,
    percentile_interval,
    probability_of_improvement,
    resample_counts,
    resampled_iqm,
    resampled_mean,
)

DM_CONTROL_SCALE = 1000.0
# First words of dm_control's task names; 1000 is the most that an episode of any of them can return. Gym's have a version.
_DM_CONTROL = re.compile(
    "(acrobot|ball|cartpole|cheetah|cup|dog|finger|fish|hopper|humanoid|manipulator|pendulum|point-mass|quadruped|reacher"
    r"|stacker|swimmer|walker)-(?!v\d+$).+"
)


@dataclass(frozen=True, order=True)
class Method:
    """A method: runs of ours, or published curves; ours are first in every table."""

    reference: bool
    label: str

    @property
    def name(self) -> str:
        """As the report writes it."""
        return f"{self.label} (published)" if self.reference else self.label


@dataclass(frozen=True)
class Scale:
    """Return that counts as 1 on a task, and where it is from; None where there is none."""

    value: float | None
    source: str


@dataclass(frozen=True)
class TaskScore:
    """A method on a task at a number of frames, in returns.

    Attributes:
        values: one per seed, `[n]`.
        mean, iqm: over the seeds, with intervals; of no width for a single seed, which has none.
        interpolated: some seed has no evaluation at the very number of frames.
    """

    values: Array
    mean: Interval
    iqm: Interval
    interpolated: bool


@dataclass(frozen=True)
class Cut:
    """Everything at one number of frames.

    Attributes:
        frames: of the comparison.
        tasks: over which the aggregates are, the same ones for every method in them.
        scores: by method and task, for every task that has a score there.
        aggregates: of normalized scores, by method.
        improvement: of the first over the second method.
        notes: which methods and tasks are missing, and why.
    """

    frames: float
    tasks: list[str]
    scores: dict[tuple[Method, str], TaskScore]
    aggregates: dict[Method, Aggregates]
    improvement: dict[tuple[Method, Method], Interval]
    notes: list[Note]

    def seeds(self, method: Method) -> tuple[int, int]:
        """Fewest and most seeds of a method on the tasks of the aggregates; a single seed somewhere leaves no interval."""
        counts = [len(self.scores[method, task].values) for task in self.tasks]
        return min(counts), max(counts)


def method_of(curve: Curve) -> Method:
    """The method that a curve is of."""
    return Method(curve.reference, curve.label)


def scales(curves: Sequence[Curve], given: float = 0.0) -> dict[str, Scale]:
    """What counts as 1 on each task: `given` if positive, 1000 on dm_control, else the best mean return that was published, else
    the best of ours."""
    found: dict[str, Scale] = {}
    for task in dict.fromkeys(curve.task for curve in curves):
        mine = [curve for curve in curves if curve.task == task]
        if given > 0:
            found[task] = Scale(given, "given as scale=")
        elif _DM_CONTROL.fullmatch(task.removeprefix("dmc-")):
            found[task] = Scale(DM_CONTROL_SCALE, "the most that an episode of dm_control can return")
        else:
            chosen = [curve for curve in mine if curve.reference] or mine
            means = [x for curve in chosen if len(x := curve.common()[1].mean(axis=0))]
            # Seeds may have no frames in common, and so no mean.
            what = "mean return" if means else "return of a seed"
            best = max(float(x.max()) for x in means or _returns(chosen))
            kind = "published" if chosen[0].reference else "of ours, as none is published"
            found[task] = Scale(best, f"the best {what} {kind}") if best > 0 else Scale(None, f"{best:g} is the best return")
    return found


def _returns(curves: Sequence[Curve]) -> list[Array]:
    return [series.returns for curve in curves for series in curve.seeds.values()]


def common_frames(curves: Sequence[Curve]) -> float:
    """The most frames that every one of the curves, and every seed of it, reaches."""
    return min(float(series.steps[-1]) for curve in curves for series in curve.seeds.values())


def frames_for_all(curves: Sequence[Curve], max_gap: float = 0.25) -> float:
    """Frames to compare these curves at: no farther than any goes, and where most of them have a score; the most of such."""
    end = common_frames(curves)
    steps = np.unique(np.concatenate([series.steps for curve in curves for series in curve.seeds.values()]))
    candidates = steps[(steps > 0) & (steps <= end)][-200:]
    if not len(candidates):
        return end
    scored = [
        sum(all(score_at(s, f, max_gap) is not None for s in curve.seeds.values()) for curve in curves)
        for f in candidates.tolist()
    ]
    return float(candidates[len(scored) - 1 - int(np.argmax(scored[::-1]))])


def score_at(series: Series, frames: float, max_gap: float) -> tuple[float, bool] | None:
    """Return at a number of frames, and whether it is interpolated; None outside of the series or in a gap of it.

    Between two evaluations at a < frames < b the return is interpolated linearly if b - a <= max_gap * frames.
    """
    steps = series.steps
    if not steps[0] <= frames <= steps[-1]:
        return None
    right = int(np.searchsorted(steps, frames))
    if steps[right] == frames:
        return float(series.returns[right]), False
    if steps[right] - steps[right - 1] > max_gap * frames:
        return None
    return float(np.interp(frames, steps, series.returns)), True


def cut_at(
    curves: Sequence[Curve],
    scale: dict[str, Scale],
    frames: float,
    *,
    max_gap: float = 0.25,
    resamples: int = 2000,
    seed: int = 0,
) -> Cut:
    """Scores, aggregates and probabilities of improvement at `frames`.

    Aggregates are over tasks on which every method of ours has a score. A published method that has no score on one of them is
    left out of the aggregates, and a note says so; all numbers of one table are of the same tasks.
    """
    scores, notes = scores_at(curves, frames, max_gap=max_gap, resamples=resamples, seed=seed)
    tasks, methods = _comparable(curves, scores, scale, frames, notes)
    strata = {m: [scores[m, task].values / _value(scale[task]) for task in tasks] for m in methods}
    options = {"resamples": resamples, "seed": seed}
    improvement = {}
    for a, b in itertools.combinations(methods, 2):
        p = improvement[a, b] = probability_of_improvement(strata[a], strata[b], **options)
        improvement[b, a] = Interval(1 - p.point, 1 - p.high, 1 - p.low)
    return Cut(frames, tasks, scores, {m: aggregates(strata[m], **options) for m in methods}, improvement, notes)


def scores_at(
    curves: Sequence[Curve], frames: float, *, max_gap: float = 0.25, resamples: int = 2000, seed: int = 0
) -> tuple[dict[tuple[Method, str], TaskScore], list[Note]]:
    """Scores of every method on every task at `frames`, and notes on those that have none there."""
    scores: dict[tuple[Method, str], TaskScore] = {}
    notes: list[Note] = []
    nowhere: dict[Method, list[str]] = {}
    for curve in curves:
        found = {number: score_at(series, frames, max_gap) for number, series in curve.seeds.items()}
        values = [value for value in found.values() if value is not None]
        without = [str(number) for number, value in found.items() if value is None]
        if not values:
            nowhere.setdefault(method_of(curve), []).append(curve.task)
            continue
        if without:
            text = f"no score at {frames:,.0f} frames: no evaluation near enough"
            notes.append(Note(LEFT_OUT, f"{method_of(curve).name} on {curve.task}, seed {listed(without)}", text))
        interpolated = any(between for _, between in values)
        returns = np.array([value for value, _ in values])
        scores[method_of(curve), curve.task] = task_score(returns, interpolated, resamples=resamples, seed=seed)
    for method, missing in nowhere.items():
        where = f"{plural(len(missing), 'task')} ({listed(missing)})"
        text = f"no score at {frames:,.0f} frames on {where}: no evaluation near enough"
        notes.append(Note(LEFT_OUT, method.name, text))
    return scores, notes


def aggregate_curve(
    curves: Sequence[Curve],
    scale: dict[str, Scale],
    tasks: Sequence[str],
    *,
    resamples: int = 500,
    seed: int = 0,
    points: int = 100,
    end: float = np.inf,
    keep: Sequence[float] = (),
) -> tuple[Array, Array, Array, Array]:
    """IQM over tasks and seeds of one method against frames: steps, point, low and high, `[P]` each.

    Args:
        curves: of one method, one per task, among them all of `tasks`.
        scale, tasks: see `cut_at`.
        resamples, seed: of the stratified bootstrap.
        points, end, keep: of the steps, see `Curve.common`: evaluations within the range that every seed on every task covers.
    Returns:
        low and high are point where a task has a single seed.
    """
    chosen = {curve.task: curve for curve in curves if curve.task in tasks}
    series = [s for task in tasks for s in chosen[task].seeds.values()]
    units = np.array([_value(scale[task]) for task in tasks for _ in chosen[task].seeds])
    steps, values = Curve("all", "", dict(enumerate(series))).common(points, end=end, keep=keep)
    if not len(steps):
        return steps, steps, steps, steps
    normalized = values / units[:, None]
    if any(len(chosen[task].seeds) == 1 for task in tasks):
        return steps, iqm(normalized.T), iqm(normalized.T), iqm(normalized.T)
    counts = resample_counts([len(chosen[task].seeds) for task in tasks], resamples=resamples, seed=seed)
    low, high = percentile_interval(resampled_iqm(normalized, counts))
    return steps, iqm(normalized.T), low, high


def task_score(values: Array, interpolated: bool = False, *, resamples: int = 2000, seed: int = 0) -> TaskScore:
    """Mean and IQM of one score per seed, `[n]`."""
    counts = resample_counts([len(values)], resamples=resamples, seed=seed)
    intervals = []
    for point, drawn in (
        (mean(values), resampled_mean(values, counts)),
        (iqm(values), resampled_iqm(values[:, None], counts)[:, 0]),
    ):
        low, high = percentile_interval(drawn)
        intervals.append(Interval(float(point), float(low), float(high)))
    return TaskScore(values, intervals[0], intervals[1], interpolated)


def _comparable(
    curves: Sequence[Curve],
    scores: dict[tuple[Method, str], TaskScore],
    scale: dict[str, Scale],
    frames: float,
    notes: list[Note],
) -> tuple[list[str], list[Method]]:
    """Tasks and methods of the aggregates: every method has a score on every task. What doesn't fit becomes a note."""
    methods = sorted({method_of(curve) for curve in curves})
    ours = [m for m in methods if not m.reference] or methods
    at = f"at {frames:,.0f} frames"
    scored = [m for m in ours if any((m, task) in scores for task in scale)]
    tasks = []
    for task, unit in scale.items():
        missing = [m.name for m in scored if (m, task) not in scores]
        if unit.value is None:
            notes.append(Note(LEFT_OUT, task, f"not in the aggregates: nothing to normalize by ({unit.source})"))
        elif missing:
            notes.append(Note(LEFT_OUT, task, f"not in the aggregates {at}, for want of a score of {listed(missing)}"))
        else:
            tasks.append(task)
    complete = list(scored) if tasks else []
    for m in (m for m in methods if m not in ours and tasks):
        if all((m, task) in scores for task in tasks):
            complete.append(m)
        elif any((m, task) in scores for task in tasks):
            notes.append(Note(LEFT_OUT, m.name, f"not in the aggregates {at}: has no score on some of their tasks"))
    return tasks, complete


def _value(scale: Scale) -> float:
    assert scale.value is not None
    return scale.value
