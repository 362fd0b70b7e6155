"""The sections of a report of learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from difftop.compare.config import CompareConfig
from difftop.compare.costs import Reached, cost, reached
from difftop.compare.curves import Reading, RunInfo
from difftop.compare.document import Block, Bullets, Section, Table, Text
from difftop.compare.notes import LEFT_OUT, UNEQUAL, Note, grouped, listed, plural
from difftop.compare.pictures import CurvePainter, aggregate_intervals, efficiency, positions
from difftop.compare.scores import Cut, Method, Scale, TaskScore, common_frames, method_of, scores_at
from difftop.curves import Curve
from difftop.stats import Interval

NONE = "—"


def notes_section(notes: Sequence[Note]) -> list[Section]:
    """What was left out and what is unequal; no section where there is nothing."""
    blocks: list[Block] = []
    for kind, title in ((LEFT_OUT, "Left out"), (UNEQUAL, "Unequal")):
        items = grouped(notes, kind)
        if items:
            blocks += [Text(f"{title}:"), Bullets(items)]
    return [Section("What was left out, and what is unequal", "unequal", blocks)] if blocks else []


def curve_sections(reading: Reading, scale: dict[str, Scale], cuts: Sequence[Cut], config: CompareConfig) -> list[Section]:
    """Everything about learning curves, in the order of the report."""
    curves = reading.curves
    methods = sorted({method_of(curve) for curve in curves})
    place = positions(methods)
    sections = [
        Section("Over all tasks", "aggregates", _aggregates(curves, scale, cuts, config, place)),
        Section("Probability of improvement", "improvement", _improvement(cuts)),
        Section("Learning curves", "curves", _pictures(curves, cuts, config, place)),
        Section("Scores by task", "scores", _scores(curves, cuts, config)),
        Section("Frames and wall-clock to reach a return", "reach", _reach(reading, scale, config)),
        Section("Cost", "cost", _costs(reading)),
    ]
    return [section for section in sections if section.blocks]


def methods_section(reading: Reading, scale: Mapping[str, Scale], config: CompareConfig) -> Section:
    """What was read, and how every number is computed."""
    curves = reading.curves
    ours = [curve for curve in curves if not curve.reference]
    items = [
        (
            "Read",
            f"{plural(reading.folders, 'run folder')} and {plural(len(reading.seen), 'file')}; {plural(len(ours), 'curve')} of "
            f"ours and {len(curves) - len(ours)} published, {plural(sum(len(c.seeds) for c in curves), 'seed')} in all"
            + (f"; {plural(reading.unused, 'published table')} of other tasks not used" if reading.unused else "")
            + (f"; {plural(len(reading.imitators), 'imitation run')}, under Imitation" if reading.imitators else ""),
        )
    ]
    sources: dict[str, list[str]] = {}
    for task, unit in scale.items():
        text = unit.source if unit.value is None else f"{unit.value:g} is 1: {unit.source}"
        sources.setdefault(text, []).append(task)
    items += [("Normalized return", f"{text} ({listed(tasks)})") for text, tasks in sources.items()]
    items += [
        ("Frames", "environment frames, agent steps times action repeat"),
        (
            "Between evaluations",
            "linear, within a seed's own first and last evaluation; curves are drawn, and averaged, only where every seed has "
            f"been; a score needs an evaluation there, or two no farther apart than {config.max_gap:g} of the frames around it",
        ),
        (
            "Intervals",
            f"95 %, percentiles of {config.resamples:,} bootstrap samples in which the seeds of each task are drawn anew "
            f"(stratified; seed {config.seed}); a single seed has none, nor has what is computed over a task with a single seed",
        ),
        ("IQM", "mean of the middle half of all seeds of all tasks; mean and median are over the tasks' means"),
        ("Optimality gap", "mean over tasks of what is missing to 1; what is above 1 doesn't make up for it"),
        (
            "Probability of improvement",
            "of a seed of the first over a seed of the second method on the same task, ties as one half, averaged over tasks",
        ),
        ("Source", "Agarwal et al., Deep reinforcement learning at the edge of the statistical precipice, arXiv:2108.13264"),
    ]
    return Section("What was read, and how it was computed", "methods", [Bullets(items)] if curves else [Bullets(items[:1])])


def number(value: float) -> str:
    """A return or the like with about three digits."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def interval(found: Interval, seeds: int, form: str = "") -> str:
    """`812 [790, 830]`; of a single seed only the value."""
    shown = [f"{x:{form}}" if form else number(x) for x in (found.point, found.low, found.high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]" if seeds > 1 else shown[0]


def _aggregates(
    curves: Sequence[Curve], scale: dict[str, Scale], cuts: Sequence[Cut], config: CompareConfig, place: Mapping[Method, int]
) -> list[Block]:
    blocks: list[Block] = []
    for cut in cuts:
        if not cut.aggregates:
            blocks.append(
                Text(
                    f"At {cut.frames:,.0f} frames there is no task on which every method of ours has a score. "
                    "frames=, tasks= and methods= choose what is compared."
                )
            )
            continue
        rows = []
        for method, found in cut.aggregates.items():
            fewest, most = cut.seeds(method)
            cells = [interval(getattr(found, key), fewest, ".3f") for key in ("iqm", "mean", "median", "optimality_gap")]
            rows.append((method.name, str(most) if most == fewest else f"{fewest} to {most}", *cells))
        caption = (
            f"Normalized returns at {cut.frames:,.0f} frames over {plural(len(cut.tasks), 'task')} "
            f"({listed(cut.tasks, most=30)}), with 95 % stratified bootstrap intervals; of the optimality gap less is better"
        )
        blocks.append(Table(caption, ("method", "seeds", "IQM", "mean", "median", "optimality gap"), rows))
        blocks.append(aggregate_intervals(cut, place))
    full = [cut for cut in cuts if cut.aggregates]
    if full:
        widest = max(full, key=lambda cut: len(cut.tasks))
        options = {"resamples": min(500, config.resamples), "seed": config.seed}
        drawn = efficiency(curves, scale, widest, place, **options)
        blocks += [drawn] if drawn else []
    return blocks


def _improvement(cuts: Sequence[Cut]) -> list[Block]:
    blocks: list[Block] = []
    for cut in cuts:
        methods = list(cut.aggregates)
        if len(methods) < 2:
            continue
        rows = []
        for a in methods:
            cells = []
            for b in methods:
                fewest = min(cut.seeds(a)[0], cut.seeds(b)[0])
                cells.append(NONE if a == b else interval(cut.improvement[a, b], fewest, ".2f"))
            rows.append((a.name, *cells))
        caption = f"Probability that a seed of the row's method beats one of the column's on a task, at {cut.frames:,.0f} frames"
        blocks.append(Table(caption, ("method", *(f"over {m.name}" for m in methods)), rows))
    return blocks


def _pictures(curves: Sequence[Curve], cuts: Sequence[Cut], config: CompareConfig, place: Mapping[Method, int]) -> list[Block]:
    text = "Solid: runs of ours. Dashed, with a marker at every evaluation: published curves. "
    blocks: list[Block] = [Text(text + "A dotted upright line is where scores are compared.")]
    frames, resamples = [cut.frames for cut in cuts], min(1000, config.resamples)
    painter = CurvePainter(place, frames=frames, resamples=resamples, seed=config.seed)
    for task in dict.fromkeys(curve.task for curve in curves):
        mine = [curve for curve in curves if curve.task == task]
        blocks.append(painter.picture(mine))
    return blocks


def _scores(curves: Sequence[Curve], cuts: Sequence[Cut], config: CompareConfig) -> list[Block]:
    """A table for each number of frames that was asked for; else one in which each task has its own, as far as ours go."""
    options = {"max_gap": config.max_gap, "resamples": config.resamples, "seed": config.seed}
    tasks = list(dict.fromkeys(curve.task for curve in curves))
    if config.frames:
        at = [(f"Returns at {cut.frames:,.0f} frames", dict.fromkeys(tasks, cut.frames), cut.scores) for cut in cuts]
    else:
        frames: dict[str, float] = {}
        scores: dict[tuple[Method, str], TaskScore] = {}
        for task in tasks:
            mine = [curve for curve in curves if curve.task == task]
            frames[task] = common_frames([c for c in mine if not c.reference] or mine)
            scores |= scores_at(mine, frames[task], **options)[0]  # type: ignore[arg-type]
        at = [("Returns at the most frames that every curve of ours on the task reaches", frames, scores)]
    header = ("task", "method", "seeds", "frames", "mean [95 %]", "IQM [95 %]", "last evaluation", "at frames")
    return [
        Table(f"{caption}; where a method has none there, the next one in brackets", header, _rows(curves, f, s), keys=2)
        for caption, f, s in at
    ]


def _rows(
    curves: Sequence[Curve], frames: Mapping[str, float], scores: Mapping[tuple[Method, str], TaskScore]
) -> list[tuple[str, ...]]:
    rows = []
    for curve in curves:
        score = scores.get((method_of(curve), curve.task))
        steps, values = curve.common()
        last = (number(float(values[:, -1].mean())), f"{steps[-1]:,.0f}") if len(steps) else (NONE, NONE)
        if score is not None:
            cells = [interval(found, len(score.values)) for found in (score.mean, score.iqm)]
        else:
            later = np.flatnonzero(steps >= frames[curve.task])[:1]
            cells = [*(f"{NONE} ({number(float(values[:, i].mean()))} at {steps[i]:,.0f})" for i in later), NONE, NONE][:2]
        at = f"{frames[curve.task]:,.0f}"
        scored = len(curve.seeds) if score is None else len(score.values)
        seeds = f"{scored} of {len(curve.seeds)}" if scored < len(curve.seeds) else str(scored)
        rows.append((curve.task, method_of(curve).name, seeds, at, *cells, *last))
    return rows


def _reach(reading: Reading, scale: Mapping[str, Scale], config: CompareConfig) -> list[Block]:
    rows = []
    for curve in reading.curves:
        unit = scale[curve.task].value
        if unit is None:
            continue
        runs = _runs_of(reading, curve)
        found = [reached(curve, runs, share * unit) for share in config.returns]
        walls = [NONE if r.wall_s is None else duration(r.wall_s) for r in found] if reading.runs else []
        rows.append((curve.task, method_of(curve).name, *map(_frames, found), *walls))
    units = {unit.value for unit in scale.values() if unit.value is not None}
    goals = [f"return {share * min(units):g}" if len(units) == 1 else f"{share:g} of the scale" for share in config.returns]
    header = ("task", "method", *(f"frames to {g}" for g in goals), *(f"wall-clock to {g}" for g in goals if reading.runs))
    text = (
        "The first evaluation at or above the return counts, so frames are as fine as the evaluations are. Upper medians over "
        "seeds, a seed that never came there as never; in brackets how many came there. Wall-clock is that of the whole run "
        "until then, evaluations and checkpoints too, on the machine it ran on; published tables tell none."
    )
    return [Text(text), Table("Frames and wall-clock to reach a return", header, rows, keys=2)] if rows else []


def _frames(found: Reached) -> str:
    came = f"({found.reached} of {found.seeds})"
    return f"{found.frames:,.0f} {came}" if found.frames is not None else f"not in {found.tried:,.0f} {came}"


def _costs(reading: Reading) -> list[Block]:
    rows = []
    for curve in reading.curves:
        found = [cost(run) for run in _runs_of(reading, curve).values()]
        columns = [[c.hours_per_100k for c in found], [c.update_ms for c in found], [c.act_ms for c in found]]
        known = [[value for value in column if value is not None] for column in columns]
        if any(known):
            cells = [number(float(np.median(column))) if column else NONE for column in known]
            rows.append((curve.task, method_of(curve).name, str(len(found)), *cells))
    text = (
        "From the wall-clock that runs write down, medians over seeds. A run logs no time of its parts: the time of a gradient "
        "step is worked out from evaluations that follow an episode's end, and what is left of an agent step is planning, the "
        "simulator and storing. Runs that shared a machine, or ran on different ones, are not comparable here; config.json holds "
        "device and threads, not the machine."
    )
    header = ("task", "method", "seeds", "hours for 100,000 frames", "ms per gradient step", "ms per agent step without it")
    return [Text(text), Table("Cost of our runs, wall-clock", header, rows, keys=2)] if rows else []


def _runs_of(reading: Reading, curve: Curve) -> dict[int, RunInfo]:
    keys = {seed: (curve.task, curve.label, seed) for seed in curve.seeds}
    return {seed: reading.runs[key] for seed, key in keys.items() if key in reading.runs and not curve.reference}


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
