"""Notes on what is not alike between the curves of a comparison: seeds, frames, evaluations, action repeats, settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from difftop.compare.curves import Reading, RunInfo
from difftop.compare.notes import UNEQUAL, Note, listed
from difftop.compare.scores import Cut, Method, Scale, method_of
from difftop.curves import Curve

FEW_SEEDS = 5
# Settings that change what is compared, though not the method; differences between methods on one task are said.
_SETTINGS = (
    "env.obs",
    "env.frame_stack",
    "env.image_size",
    "run.eval_episodes",
    "run.seed_steps",
    "run.updates_per_step",
    "run.batch_size",
    "run.prioritized",
    "top.device",
    "top.precision",
    "top.threads",
)
# Settings in which seeds of one curve may differ.
_OWN = {
    "top.seed", "top.root", "top.name", "top.mode", "top.checkpoint", "top.capture",
    "run.frames", "run.video", "run.checkpoint_every", "run.replay_device",
}  # fmt: skip


def unequal(reading: Reading, scales: Mapping[str, Scale], cuts: Sequence[Cut]) -> list[Note]:
    """Everything that isn't alike, as notes."""
    curves = reading.curves
    return [
        *_seeds(curves),
        *_lengths(curves),
        *_grids(curves),
        *_repeats(reading),
        *_settings(reading),
        *_scores(scales, cuts),
    ]


def _seeds(curves: Sequence[Curve]) -> Iterable[Note]:
    counts: dict[Method, set[int]] = {}
    numbers: dict[Method, set[int]] = {}
    for curve in curves:
        counts.setdefault(method_of(curve), set()).add(len(curve.seeds))
        numbers.setdefault(method_of(curve), set()).update(curve.seeds)
    if len({n for found in counts.values() for n in found}) > 1:
        yield Note(UNEQUAL, "Seeds", "; ".join(f"{m.name}: {_range(found)}" for m, found in sorted(counts.items())))
    for curve in curves:
        missing = sorted(numbers[method_of(curve)] - set(curve.seeds))
        if missing:
            text = f"has no seed {listed([str(s) for s in missing])}, which it has on other tasks"
            yield Note(UNEQUAL, f"{method_of(curve).name} on {curve.task}", text)
        if len(curve.seeds) == 1:
            yield Note(UNEQUAL, f"{method_of(curve).name} on {curve.task}", "a single seed, so no interval")
    singles = {method_of(curve).name for curve in curves if len(curve.seeds) == 1}
    partly = sorted(m.name for m, found in counts.items() if m.name in singles and max(found) > 1)
    if partly:
        text = f"{listed(partly)} has one seed on some tasks, so no interval over tasks either"
        yield Note(UNEQUAL, "Aggregates", text)
    few = [curve for curve in curves if 1 < len(curve.seeds) < FEW_SEEDS]
    if few:
        share = f"{len(few)} of {len(curves)} curves have 2 to {FEW_SEEDS - 1} seeds"
        yield Note(UNEQUAL, "Intervals", f"{share}, and theirs are too narrow: a bootstrap never leaves the seeds there are")


def _lengths(curves: Sequence[Curve]) -> Iterable[Note]:
    for curve in curves:
        ends = {float(series.steps[-1]) for series in curve.seeds.values()}
        if not len(curve.common()[0]):
            text = "its seeds have no range of frames in common, so there is no curve of them"
            yield Note(UNEQUAL, f"{method_of(curve).name} on {curve.task}", text)
        elif len(ends) > 1:
            text = f"its seeds end between {min(ends):,.0f} and {max(ends):,.0f} frames; the curve goes to the first end"
            yield Note(UNEQUAL, f"{method_of(curve).name} on {curve.task}", text)
    by_task: dict[str, dict[Method, float]] = {}
    for curve in curves:
        if not curve.reference:
            ends_of = by_task.setdefault(curve.task, {})
            ends_of[method_of(curve)] = min(float(series.steps[-1]) for series in curve.seeds.values())
    for task, methods in by_task.items():
        if len(set(methods.values())) > 1:
            text = "; ".join(f"{m.name} to {end:,.0f}" for m, end in sorted(methods.items()))
            yield Note(UNEQUAL, f"Frames on {task}", text)


def _grids(curves: Sequence[Curve]) -> Iterable[Note]:
    spacing: dict[Method, list[float]] = {}
    for curve in curves:
        gaps = [float(np.median(np.diff(s.steps))) for s in curve.seeds.values() if len(s.steps) > 1]
        if gaps:
            spacing.setdefault(method_of(curve), []).append(float(np.median(gaps)))
    medians = {m: float(np.median(gaps)) for m, gaps in spacing.items()}
    if medians and max(medians.values()) > 1.5 * min(medians.values()):
        text = "; ".join(f"{m.name} every {gap:,.0f} frames" for m, gap in sorted(medians.items()))
        yield Note(UNEQUAL, "Evaluations", f"{text} (medians); lines between evaluations are interpolated linearly")


def _repeats(reading: Reading) -> Iterable[Note]:
    found: dict[str, dict[str, set[int]]] = {}
    for (task, label, _), run in reading.runs.items():
        if run.action_repeat:
            found.setdefault(task, {}).setdefault(label, set()).add(run.action_repeat)
    for task, labels in found.items():
        if len(set().union(*labels.values())) > 1:
            text = "; ".join(f"{label} {_range(repeats)}" for label, repeats in sorted(labels.items()))
            yield Note(UNEQUAL, f"Action repeat on {task}", f"{text}; all frames are environment frames")
    tables = {
        method_of(c).name
        for c in reading.curves
        if c.reference or any((c.task, c.label, seed) not in reading.runs for seed in c.seeds)
    }
    if tables:
        text = "tables don't tell action repeat, evaluation episodes or settings; steps are taken as environment frames"
        for name in sorted(tables):
            yield Note(UNEQUAL, name, text)


def _settings(reading: Reading) -> Iterable[Note]:
    between: dict[tuple[str, str], dict[str, set[str]]] = {}
    for (task, label, _), run in reading.runs.items():
        flat = _flat(run.config)
        for key in _SETTINGS:
            if (value := flat.get(key)) is not None:
                between.setdefault((task, key), {}).setdefault(label, set()).add(str(value))
    for (task, key), labels in between.items():
        if len(set().union(*labels.values())) > 1:
            text = "; ".join(f"{label}: {', '.join(sorted(values))}" for label, values in sorted(labels.items()))
            yield Note(UNEQUAL, f"{key} on {task}", text)
    within: dict[tuple[str, str], list[RunInfo]] = {}
    for (task, label, _), run in reading.runs.items():
        within.setdefault((task, label), []).append(run)
    for (task, label), runs in within.items():
        configs = [_flat(run.config) for run in runs if run.config]
        keys = sorted({key for config in configs for key in config} - _OWN)
        differ = [key for key in keys if len({str(config.get(key)) for config in configs}) > 1]
        if differ:
            yield Note(UNEQUAL, f"{label} on {task}", f"its seeds ran with different settings: {listed(differ)}")


def _scores(scales: Mapping[str, Scale], cuts: Sequence[Cut]) -> Iterable[Note]:
    for task, scale in scales.items():
        if scale.value is not None and "of ours" in scale.source:
            yield Note(UNEQUAL, task, f"normalized by {scale.source}: its scores say how methods compare, not how good they are")
    for cut in cuts:
        for (method, task), score in cut.scores.items():
            if score.interpolated:
                text = f"score at {cut.frames:,.0f} frames interpolated linearly between two evaluations"
                yield Note(UNEQUAL, f"{method.name} on {task}", text)


def _range(values: Iterable[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key, each as what it comes to: from state `precision=auto` is fp32."""
    flat = dict(_leaves(config))
    if flat.get("env.obs") == "state" and flat.get("top.precision") == "auto":
        flat["top.precision"] = "fp32"
    return flat


def _leaves(config: Mapping[str, Any], where: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value
