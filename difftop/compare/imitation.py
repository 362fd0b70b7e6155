"""Evaluated episodes of imitation: success with Wilson intervals, and the tables of trajectory quality of the LeTO paper."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from difftop.compare.curves import run_identity
from difftop.compare.document import Block, Table, Text
from difftop.compare.names import task_names
from difftop.compare.notes import LEFT_OUT, UNEQUAL, Note, listed, plural
from difftop.curves import CurveError, read_lines
from difftop.metrics import combined
from difftop.stats import wilson

_METRICS = ("acc_", "violations_", "excess_", "contact_")
_TABLE_II = tuple(f"{statistic}_{group}" for group in ("lin", "rot") for statistic in ("mean", "max", "std"))
_TRUTH = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Episode:
    """A row of episodes.csv.

    Attributes:
        env_seed: of the initial state; -1 where unknown.
        success: solved at some step.
        success_end: solved at the last step; None where unknown.
        steps: of the policy; 0 where unknown.
        metrics: the columns `acc_*`, `violations_*`, `excess_*` and `contact_*`, as `metrics.trajectory_metrics` names them.
    """

    env_seed: int
    success: bool
    success_end: bool | None
    steps: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Episodes of one training seed of a method on a task.

    Attributes:
        task, label, seed: of the run.
        protocol: how it was evaluated, empty where unknown.
        episodes: in the order of the file.
        metrics: of all episodes, as `metrics.trajectory_metrics` names them.
    """

    task: str
    label: str
    seed: int
    protocol: str
    episodes: Sequence[Episode]
    metrics: Mapping[str, float]


def read_evaluations(paths: Iterable[Path], runs: Iterable[Path] = ()) -> tuple[list[Evaluation], list[Note]]:
    """Evaluations from `episodes.csv` files, and notes on what couldn't be used.

    A file belongs to the run folder it is in, else to the method and task that the two folders above it are named after. Of a
    run's evaluations the reported one (`<run>/evaluation/`) counts, else that of the last checkpoint
    (`<run>/eval/<checkpoint>-seed<k>/`); evaluations that act otherwise (`...-seed1-head-clip`) are a method of their own.
    Metrics of trajectories are those of summary.json beside the file, else put together from its columns. Files without any
    known success, such as those of dm_control, are passed over.

    Args:
        paths: of episodes.csv.
        runs: folders of imitation runs; one without evaluated episodes is a note.
    """
    notes: list[Note] = []
    read = [(_owner(path), path, episodes) for path in paths if (episodes := _read(path, notes))]
    names = task_names({owner[0] for owner, _, _ in read})
    found: dict[tuple[str, str, str, int], dict[str, tuple[Path, list[Episode]]]] = {}
    for (task, agent, name, seed), path, episodes in read:
        otherwise = re.search(r"-seed\d+-(.+)$", path.parent.name)
        key = (names[task], f"{agent}, {otherwise[1].replace('-', ' ')}" if otherwise else agent, name, seed)
        other = found.setdefault(key, {}).setdefault(path.parent.name, (path, episodes))[0]
        if other != path:
            notes.append(Note(LEFT_OUT, str(path), f"the same method, task, seed and evaluation are in {other}"))
    notes += [
        Note(LEFT_OUT, str(run), "has no evaluated episodes yet")
        for run in runs
        if not any(run.resolve() in path.resolve().parents for _, path, _ in read)
    ]
    evaluations = []
    for (task, agent, name, seed), versions in sorted(found.items()):
        several = len({other for _, same, other, _ in found if same == agent}) > 1
        label = f"{agent} {name}".strip() if several else agent
        chosen = "evaluation" if "evaluation" in versions else max(versions)
        where = f"{label} on {task}, seed {seed}"
        if len(versions) > 1:
            others = listed(sorted(set(versions) - {chosen}))
            notes.append(Note(LEFT_OUT, where, f"was evaluated more than once; {chosen} counts, and not {others}"))
        if chosen.startswith("step_"):
            notes.append(Note(UNEQUAL, where, f"reported nothing itself; the evaluation {chosen} of a checkpoint counts"))
        path, episodes = versions[chosen]
        protocol, metrics = _summary(path, notes)
        episodes = _distinct(episodes, where, notes)
        columns = [dict(episode.metrics) for episode in episodes]
        evaluations.append(Evaluation(task, label, seed, protocol, episodes, metrics or combined(columns)))
    return evaluations, notes + _unequal(evaluations)


def imitation_blocks(evaluations: Sequence[Evaluation]) -> list[Block]:
    """Success of all, then for each task the trajectory tables for which there are columns."""
    blocks: list[Block] = [
        Text(
            "An episode counts as solved if it was at any step; in brackets the 95 % Wilson interval of all episodes of all "
            "training seeds together, which takes them as independent. The spread over training seeds stands beside it."
        ),
        _success_table(evaluations),
    ]
    for task in dict.fromkeys(e.task for e in evaluations):
        mine = [e for e in evaluations if e.task == task]
        for suffix, which in (("", "whole episodes"), ("_to_success", "without the steps after success")):
            blocks += _smoothness(mine, task, suffix, which)
        blocks += _limits(mine, task)
        blocks += _contacts(mine, task)
    return blocks


def _read(path: Path, notes: list[Note]) -> list[Episode]:
    try:
        header, cells = read_lines(path)
    except CurveError as error:
        notes.append(Note(LEFT_OUT, str(path), str(error).removeprefix(str(path)).strip(" .")))
        return []
    if "success" not in header:
        notes.append(Note(LEFT_OUT, str(path), "has no column success"))
        return []
    lines = [(number, dict(zip(header, row, strict=True))) for number, row in cells]
    if all(row["success"].strip().lower() in ("", "nan") for _, row in lines):
        if not lines:
            notes.append(Note(LEFT_OUT, str(path), "holds no episode"))
        return []
    episodes, bad = [], []
    for number, row in lines:
        success = _number(row["success"])
        if not 0 <= success <= 1:
            bad.append(f"line {number}: success is '{row['success']}'")
            continue
        end, steps = (
            _number(row.get(key) or row.get(other, "")) for key, other in (("success_end", ""), ("steps", "agent_steps"))
        )
        env_seed = _number(row.get("env_seed", ""))
        metrics = {key: _number(row[key]) for key in header if key and key.startswith(_METRICS)}
        known = env_seed if math.isfinite(env_seed) else -1
        solved_at_end = None if math.isnan(end) else end >= 0.5
        episodes.append(Episode(int(known), success >= 0.5, solved_at_end, int(np.nan_to_num(steps)), metrics))
    if bad:
        notes.append(Note(LEFT_OUT, str(path), f"{plural(len(bad), 'row')} left out; the first: {bad[0]}"))
    return episodes


def _summary(path: Path, notes: list[Note]) -> tuple[str, dict[str, float]]:
    """Protocol and metrics of the summary.json beside the episodes; nothing where there is none."""
    file = path.with_name("summary.json")
    try:
        summary = json.loads(file.read_text())
        metrics = {key: float(value) for key, value in summary["metrics"].items() if key.startswith(_METRICS)}
        return str(summary.get("protocol", "")), metrics
    except FileNotFoundError:
        return "", {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        notes.append(Note(LEFT_OUT, str(file), f"is no summary of an evaluation ({type(error).__name__}: {error})"))
        return "", {}


def _number(cell: str) -> float:
    try:
        return _TRUTH.get(cell.strip().lower(), math.nan) if cell.strip().isalpha() else float(cell)
    except ValueError:
        return math.nan


def _owner(path: Path) -> tuple[str, str, str, int]:
    for folder in path.resolve().parents:
        if re.fullmatch(r"seed\d+", folder.name) or (folder / "config.json").is_file():
            return run_identity(folder)
    folder = path.resolve().parent
    return folder.name, folder.parent.name, "", 0


def _distinct(episodes: Sequence[Episode], where: str, notes: list[Note]) -> list[Episode]:
    """Episodes without those whose initial state is there already."""
    first: dict[int, Episode] = {}
    kept = []
    for episode in episodes:
        if episode.env_seed < 0 or first.setdefault(episode.env_seed, episode) is episode:
            kept.append(episode)
    if len(kept) < len(episodes):
        text = f"{plural(len(episodes) - len(kept), 'episode')} of an environment seed that is there already, not counted again"
        notes.append(Note(LEFT_OUT, where, text))
    return kept


def _unequal(evaluations: Sequence[Evaluation]) -> list[Note]:
    notes = []
    for task in dict.fromkeys(e.task for e in evaluations):
        labels = list(dict.fromkeys(e.label for e in evaluations if e.task == task))
        counts = {label: sum(len(e.episodes) for e in _of(evaluations, task, label)) for label in labels}
        states = {label: {x.env_seed for e in _of(evaluations, task, label) for x in e.episodes} for label in labels}
        if len(set(counts.values())) > 1:
            text = "; ".join(f"{label} {count}" for label, count in counts.items())
            notes.append(Note(UNEQUAL, f"Evaluated episodes on {task}", text))
        protocols = {label: {e.protocol for e in _of(evaluations, task, label)} for label in labels}
        if len(set().union(*protocols.values())) > 1:
            text = "; ".join(f"{label}: {listed(sorted(names)) or 'unknown'}" for label, names in protocols.items())
            notes.append(Note(UNEQUAL, f"Protocol on {task}", text))
        if len({frozenset(seeds) for seeds in states.values()}) > 1:
            notes.append(Note(UNEQUAL, f"Initial states on {task}", "not the same environment seeds for every method"))
    return notes


def _of(evaluations: Sequence[Evaluation], task: str, label: str) -> list[Evaluation]:
    return [e for e in evaluations if e.task == task and e.label == label]


def _success_table(evaluations: Sequence[Evaluation]) -> Table:
    rows = []
    for task, label in dict.fromkeys((e.task, e.label) for e in evaluations):
        mine = _of(evaluations, task, label)
        episodes = [episode for e in mine for episode in e.episodes]
        ends = [episode.success_end for episode in episodes if episode.success_end is not None]
        rates = [100 * float(np.mean([episode.success for episode in e.episodes])) for e in mine]
        spread = f"{min(rates):.1f} to {max(rates):.1f}" if len(rates) > 1 else "one seed"
        success = _rate(sum(e.success for e in episodes), len(episodes))
        at_end = _rate(sum(ends), len(ends)) if len(ends) == len(episodes) else "—"
        rows.append((task, label, str(len(mine)), str(len(episodes)), success, at_end, spread))
    header = ("task", "method", "seeds", "episodes", "success %", "solved at the end %", "worst to best seed %")
    return Table("Success, in percent, with 95 % Wilson intervals", header, rows, keys=2)


def _rate(successes: int, trials: int) -> str:
    interval = wilson(successes, trials)
    return f"{100 * interval.point:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _per_seed(evaluations: Sequence[Evaluation], tags: Sequence[str]) -> dict[str, list[Mapping[str, float]]]:
    """By method, the metrics of each seed that has all the tags."""
    found: dict[str, list[Mapping[str, float]]] = {}
    for e in evaluations:
        if all(math.isfinite(e.metrics.get(tag, math.nan)) for tag in tags):
            found.setdefault(e.label, []).append(e.metrics)
    return found


def _smoothness(evaluations: Sequence[Evaluation], task: str, suffix: str, which: str) -> list[Block]:
    """The layout of tables II and III: accelerations times 100, the best of each column and those within 10 % of it bold."""
    names = [n for n in _TABLE_II if any(f"acc_{n}{suffix}" in e.metrics for e in evaluations)]
    found = _per_seed(evaluations, [f"acc_{name}{suffix}" for name in names])
    if not found or not names:
        return []
    values = {label: {n: [100 * s[f"acc_{n}{suffix}"] for s in seeds] for n in names} for label, seeds in found.items()}
    best = {name: min(float(np.mean(columns[name])) for columns in values.values()) for name in names}
    rows, bold = [], set()
    for r, (label, columns) in enumerate(values.items()):
        optimal = [c for c, name in enumerate(names) if float(np.mean(columns[name])) <= 1.1 * best[name] + 1e-12]
        bold |= {(r, 1 + c) for c in optimal if len(values) > 1}
        rows.append((label, *(_spread(columns[name]) for name in names), str(len(optimal))))
    caption = (
        f"Trajectory metrics (10⁻²) of {task}, {which}, as in tables II and III of LeTO: change of the normalized action per "
        "step; mean ± standard deviation over training seeds; bold and counted: at most 1.1 times the least"
    )
    header = ("method", *(f"avg-{n.replace('_', '-')}" for n in names), "num-of-opt")
    return [Table(caption, header, rows, bold=frozenset(bold))]


def _limits(evaluations: Sequence[Evaluation], task: str) -> list[Block]:
    """Violated limits, where they were counted."""
    tags = {tag for e in evaluations for tag in e.metrics if tag.startswith("violations_")}
    kinds = sorted(tag.removeprefix("violations_") for tag in tags if not tag.endswith("_to_success"))
    names = [f"{measure}_{kind}" for kind in kinds for measure in ("violations", "excess")]
    rows = []
    for label, seeds in _per_seed(evaluations, names).items() if names else ():
        cells = []
        for kind in kinds:
            cells += [f"{sum(s[f'violations_{kind}'] for s in seeds):.0f}", f"{max(s[f'excess_{kind}'] for s in seeds):.2g}"]
        rows.append((label, *cells))
    header = ("method", *(f"{kind}: {what}" for kind in kinds for what in ("steps", "worst")))
    caption = (
        f"Violated limits of {task}: steps outside, of all episodes and seeds, and the worst excess in the unit of the limit"
    )
    return [Table(caption, header, rows)] if rows else []


def _contacts(evaluations: Sequence[Evaluation], task: str) -> list[Block]:
    """The layout of table V."""
    rows = []
    for label, seeds in _per_seed(evaluations, ("contact_avg_max", "contact_peak")).items():
        episodes = [episode for e in evaluations if e.label == label for episode in e.episodes]
        solved = f"{sum(e.success for e in episodes)}/{len(episodes)}"
        rows.append(
            (label, _spread([s["contact_avg_max"] for s in seeds]), f"{max(s['contact_peak'] for s in seeds):.1f}", solved)
        )
    caption = f"Contact forces of {task}, in N, as in table V of LeTO"
    return [Table(caption, ("method", "avg-contact-max", "contact-peak", "succ-rate"), rows)] if rows else []


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else f"{values[0]:.2f}"
