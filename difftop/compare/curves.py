"""Reads run folders and tables into curves, and keeps a note of everything that couldn't be used."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from difftop.compare.names import bare_task, task_names
from difftop.compare.notes import LEFT_OUT, UNEQUAL, Note, plural
from difftop.curves import (
    Curve,
    CurveError,
    Series,
    TidySeed,
    arranged,
    identity,
    is_tidy,
    numbers,
    read_lines,
    read_table,
    read_tidy,
)
from difftop.stats import Array

_INSIDE_A_RUN = {"checkpoints", "tensorboard", "videos"}
METRICS = "metrics.csv"
REPORT = ("report.html", "report.md", "scores.csv")  # files of a comparison, which another one doesn't read


class CompareError(ValueError):
    """There is nothing to compare; the message names the folders."""


@dataclass(frozen=True)
class RunInfo:
    """What is known of one of our runs beside its curve.

    Attributes:
        folder: of the run, or the tidy table that it is in.
        config: its config.json, empty where that is missing or bad; of a tidy table the few options that it tells.
        evaluations: `[n, 3]`, env_frames, agent_steps and wall_s of each evaluation, NaN where a tidy table doesn't tell; no row
            where they weren't written.
        training: `[n, 2]`, agent_steps and wall_s of each row of metrics.csv.
        episodes: episodes per evaluation, 0 where unknown.
    """

    folder: Path
    config: dict[str, Any]
    evaluations: Array
    training: Array
    episodes: int

    def option(self, key: str) -> Any:
        """A value of config.json by its dotted key, None where it isn't there."""
        return _value(self.config, key)

    @property
    def action_repeat(self) -> int:
        """Environment frames per agent step; 0 where unknown."""
        later = self.evaluations[self.evaluations[:, 1] > 0]
        return round(float(later[-1, 0] / later[-1, 1])) if len(later) else 0


@dataclass
class Reading:
    """All that was read.

    Attributes:
        curves: of every method on every task.
        runs: by task, label and seed, for runs of ours that have a folder.
        notes: what was left out and why.
        episodes: tables of evaluated episodes, for imitation.
        unused: published tables of tasks that aren't compared.
        folders: run folders that were found.
        imitators: folders of runs that learn from demonstrations; what they evaluate while they train chooses a checkpoint, over
            gradient steps, and is no learning curve over frames.
        seen: files that were found, so that none is read twice.
    """

    curves: list[Curve] = field(default_factory=list)
    runs: dict[tuple[str, str, int], RunInfo] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    episodes: list[Path] = field(default_factory=list)
    unused: int = 0
    folders: int = 0
    imitators: list[Path] = field(default_factory=list)
    seen: set[Path] = field(default_factory=set)


@dataclass(frozen=True)
class _Found:
    """One seed of one method, with the task and the label as they are written."""

    task: str
    label: tuple[str, str]  # of runs: agent and name; of tidy tables: method; of others: folder and the folder above it
    seed: int
    series: Series
    where: Path
    info: RunInfo | None = None


def read(
    runs: Sequence[Path | str], references: Sequence[Path | str], *, min_coverage: float = 0.5, enough: float = np.inf
) -> Reading:
    """Reads everything below the given paths; a bad file is a note, never an exception.

    Args:
        runs: run folders, folders anywhere above them, tidy tables, or `step,reward,seed` tables.
        references: tidy tables, or tables `<method>/<task>.csv`, at any depth; only tasks that `runs` has are used, all if there
            is no run.
        min_coverage: a seed that ends before this share of its curve's longest seed is left out,
        enough: unless it has so many frames.
    """
    reading = Reading()
    ours = [found for path in runs for found in _below(Path(path), reading)]
    wanted = {bare_task(found.task) for found in ours} or None
    theirs = [found for path in references for found in _below(Path(path), reading, references=True, wanted=wanted)]
    names = task_names({found.task for found in (*ours, *theirs)})
    for group, reference in ((ours, False), (theirs, True)):
        labels = _labels(group)
        seeds: dict[tuple[str, str], dict[int, _Found]] = {}
        for found in group:
            _keep_longer(seeds.setdefault((names[found.task], labels[found.info is not None, found.label]), {}), found, reading)
        for (task, label), found_seeds in seeds.items():
            longest = max(float(found.series.steps[-1]) for found in found_seeds.values())
            _curve(task, label, found_seeds, reference, min(min_coverage * longest, enough), reading)
    reading.curves.sort(key=lambda curve: (curve.task, curve.reference, curve.label))
    return reading


def _curve(task: str, label: str, found: dict[int, _Found], reference: bool, shortest: float, reading: Reading) -> None:
    """Adds the curve of the seeds that go as far as `shortest`."""
    longest = max(f.series.steps[-1] for f in found.values())
    kept = {}
    for seed, f in sorted(found.items()):
        end = f.series.steps[-1]
        if end < shortest:
            text = f"covers {end:,.0f} of the {longest:,.0f} frames of its curve, less than min_coverage allows"
            reading.notes.append(Note(LEFT_OUT, f"{label} on {task}, seed {seed}", text))
            continue
        kept[seed] = f.series
        if f.info is not None:
            reading.runs[task, label, seed] = f.info
    reading.curves.append(Curve(task, label, kept, reference))


def _below(path: Path, reading: Reading, *, references: bool = False, wanted: set[str] | None = None) -> Iterator[_Found]:
    """Every seed in the runs and tables at or below `path`; of references only tables, and only of the wanted tasks."""
    if not path.exists():
        reading.notes.append(Note(LEFT_OUT, str(path), "is no file or folder"))
        return
    files = 0
    for folder, names in _folders(path):
        tables = [name for name in names if name.endswith(".csv") and name != "episodes.csv"]
        is_run = not references and ("eval.csv" in names or ("config.json" in names and METRICS in names))
        real = folder.resolve()
        new = [folder / name for name in names if real / name not in reading.seen]
        reading.seen |= {real / file.name for file in new}
        files += len(tables) + ("episodes.csv" in names)
        if is_run and new:
            reading.folders += 1
            yield from _run(folder, reading)
        for file in new:
            if file.name == "episodes.csv" and not references:
                reading.episodes.append(file)
            elif file.name in tables and not is_run and is_tidy(file):
                yield from _study(file, reading, references, wanted)
            elif file.name in tables and not is_run and wanted is not None and bare_task(_table_task(file)) not in wanted:
                reading.unused += 1
            elif file.name in tables and not is_run:
                yield from _table(file, reading)
    if not files:
        reading.notes.append(Note(LEFT_OUT, str(path), "holds no run (a folder with eval.csv) and no CSV"))


def _folders(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders at or below `path` with their files, in order, without earlier reports and a run's checkpoints and the like."""
    if path.is_file():
        yield path.parent, [path.name]
        return
    for folder, inner, names in os.walk(path):
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name not in _INSIDE_A_RUN)
        if set(REPORT) <= set(names):
            inner[:] = []
            continue
        yield Path(folder), sorted(name for name in names if not name.startswith("."))


def _study(path: Path, reading: Reading, reference: bool, wanted: set[str] | None) -> Iterator[_Found]:
    """The seeds of a tidy table; of a published one, those on the wanted tasks."""
    bad: list[str] = []
    try:
        seeds = read_tidy(path, bad=bad)
    except CurveError as error:
        reading.notes.append(Note(LEFT_OUT, str(path), _why(error, path)))
        return
    parts = [(seed, _sound(seed.rows, np.zeros(len(seed.rows), dtype=bool), "", path, bad)) for seed in seeds]
    _say_bad(bad, path, reading)
    if not any(len(rows) for _, rows in parts):
        reading.notes.append(Note(LEFT_OUT, str(path), "has no row that can be used"))
    for seed, rows in parts:
        if not len(rows) or (wanted is not None and bare_task(seed.task) not in wanted):
            continue
        series, note = arranged(rows)
        if note:
            subject = f"{path}, {seed.label} on {seed.task}, seed {seed.seed}"
            reading.notes.append(Note(LEFT_OUT if "counts" in note else UNEQUAL, subject, note))
        info = None if reference else _told(path, seed)
        yield _Found(seed.task, (seed.label, path.stem if reference else ""), seed.seed, series, path, info)


def _told(path: Path, seed: TidySeed) -> RunInfo:
    """What a tidy table tells of a run beside its curve."""
    whole, short = (
        _optional(path, columns, seed.header, seed.lines)
        for columns in (("env_frames", "agent_steps", "wall_s"), ("env_frames", "wall_s"))
    )
    evaluations = whole if len(whole) else np.insert(short, 1, np.nan, axis=1)
    counts = _optional(path, ("episodes",), seed.header, seed.lines)
    episodes = int(counts[-1, 0]) if len(counts) else 0
    run = {"eval_episodes": episodes} if episodes else {}
    config = {"env": {"obs": seed.obs} if seed.obs else {}, "run": run}
    return RunInfo(path, config, evaluations, np.empty((0, 2)), episodes)


def _table(path: Path, reading: Reading) -> Iterator[_Found]:
    """The seeds of a `step,reward,seed` table."""
    bad: list[str] = []
    try:
        rows = read_table(path, ("step", "reward", "seed"), bad=bad)
    except CurveError as error:
        reading.notes.append(Note(LEFT_OUT, str(path), _why(error, path)))
        return
    rows = _sound(rows, rows[:, 2] % 1 != 0, "seed is not a whole number", path, bad)
    _say_bad(bad, path, reading)
    if not len(rows):
        reading.notes.append(Note(LEFT_OUT, str(path), "has no row that can be used"))
    task, label = path.stem, (path.resolve().parent.name, path.resolve().parent.parent.name)
    if path.name == METRICS:
        task, agent, name, _ = run_identity(path.parent)
        label = (agent, name)
        reading.notes.append(Note(UNEQUAL, str(path), "holds training episodes, which explore, not evaluations"))
    for seed in np.unique(rows[:, 2]):
        series, note = arranged(rows[rows[:, 2] == seed])
        if note:
            reading.notes.append(Note(LEFT_OUT if "counts" in note else UNEQUAL, f"{path}, seed {seed:g}", note))
        yield _Found(task, label, int(seed), series, path)


def _table_task(path: Path) -> str:
    return run_identity(path.parent)[0] if path.name == METRICS else path.stem


def _run(folder: Path, reading: Reading) -> Iterator[_Found]:
    """The seed of a run folder."""
    config = _config(folder, reading)
    if isinstance(_value(config, "run.grad_steps"), int):
        reading.imitators.append(folder)
        return
    path = folder / "eval.csv"
    bad: list[str] = []
    try:
        header, lines = read_lines(path)
        rows = numbers(path, header, lines, ("env_frames", "return_mean"), bad=bad)
    except CurveError as error:
        reading.notes.append(Note(LEFT_OUT, str(folder), _why(error, path)))
        return
    rows = _sound(rows, np.zeros(len(rows), dtype=bool), "", path, bad)
    _say_bad(bad, path, reading)
    if not len(rows):
        reading.notes.append(Note(LEFT_OUT, str(folder), "has no evaluation yet"))
        return
    series, note = arranged(rows)
    if note:
        reading.notes.append(Note(LEFT_OUT if "counts" in note else UNEQUAL, str(path), note))
    task, agent, name, seed = run_identity(folder, config)
    evaluations = _optional(path, ("env_frames", "agent_steps", "wall_s"), header, lines)
    training = _optional(folder / METRICS, ("agent_steps", "wall_s"))
    episodes = _optional(path, ("episodes",), header, lines)
    info = RunInfo(folder, config, evaluations, training, int(episodes[-1, 0]) if len(episodes) else 0)
    wanted = info.option("run.frames")
    if isinstance(wanted, int) and series.steps[-1] < wanted:
        text = f"unfinished: evaluated up to {series.steps[-1]:,.0f} of {wanted:,} frames"
        reading.notes.append(Note(UNEQUAL, str(folder), text))
    yield _Found(task, (agent, name), seed, series, folder, info)


def _sound(rows: Array, wrong: Any, why: str, path: Path, bad: list[str]) -> Array:
    """Rows without negative steps and without the `wrong` ones, which become sentences."""
    negative = rows[:, 0] < 0
    bad += [f"{path}: step is {step:g}: must be at least 0" for step in rows[negative, 0]]
    bad += [f"{path}: {why}"] * int((wrong & ~negative).sum())
    return np.asarray(rows[~negative & ~wrong])


def _say_bad(bad: Sequence[str], path: Path, reading: Reading) -> None:
    if bad:
        first = bad[0].removeprefix(str(path)).lstrip(": ").rstrip(".")
        where = f"line {first}" if first[:1].isdigit() else first
        reading.notes.append(Note(LEFT_OUT, str(path), f"{plural(len(bad), 'row')} left out; the first: {where}"))


def _why(error: CurveError, path: Path) -> str:
    """The error without the path, which is the note's subject."""
    return str(error).removeprefix(str(path)).lstrip(": ").rstrip(".")


def _config(folder: Path, reading: Reading) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        text = f"can't be read ({error}); the run counts, what its configuration would tell is unknown"
        reading.notes.append(Note(LEFT_OUT, str(path), text))
        return {}
    return config if isinstance(config, dict) else {}


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _optional(
    path: Path, columns: tuple[str, ...], header: Sequence[str] = (), lines: Sequence[tuple[int, list[str]]] = ()
) -> Array:
    """Columns that needn't be there, of a file or of what was read of it."""
    try:
        return numbers(path, header, lines, columns, bad=[]) if header else read_table(path, columns, bad=[])
    except CurveError:
        return np.empty((0, len(columns)))


def run_identity(folder: Path, config: dict[str, Any] | None = None) -> tuple[str, str, str, int]:
    """(task, agent, name, seed): of the folder's place, and where it has been moved, of its configuration (read if None)."""
    config = _config(folder, Reading()) if config is None else config
    task, agent, name, seed = (_value(config, key) for key in ("env.name", "agent.name", "top.name", "top.seed"))
    place = identity(folder)
    in_place = re.fullmatch(r"seed\d+", folder.resolve().name) and (not task or bare_task(place[0]) == bare_task(str(task)))
    if in_place or not config:
        return place
    bare = str(task or folder.resolve().name).replace("/", "-")
    swept = [f"{key}={_value(config, key)}" for key in _value(config, "top.swept") or []]
    name = str(name) if name not in (None, "auto") else "default"
    return bare, str(agent or "run"), "+".join([name, *swept]), seed if isinstance(seed, int) else 0


def _labels(group: Sequence[_Found]) -> dict[tuple[bool, tuple[str, str]], str]:
    """Shortest distinct name of each method: a run's name only where an agent has several, a folder's parent likewise."""
    keys = {(found.info is not None, found.label) for found in group}
    agents = [agent for is_run, (agent, _) in keys if is_run]
    short = {key: " ".join(filter(None, key[1])) if key[0] and agents.count(key[1][0]) > 1 else key[1][0] for key in keys}
    full = {(is_run, (a, b)): f"{a} {b}".rstrip() if is_run else f"{b}/{a}" for is_run, (a, b) in keys}
    names = list(short.values())
    labels = {key: full[key] if names.count(name) > 1 else name for key, name in short.items()}
    return labels


def _keep_longer(seeds: dict[int, _Found], found: _Found, reading: Reading) -> None:
    other = seeds.get(found.seed)
    if other is not None:
        shorter, found = sorted((found, other), key=lambda f: float(f.series.steps[-1]))
        text = f"seed {found.seed} of the same method and task is also in {found.where}, which is as long or longer"
        reading.notes.append(Note(LEFT_OUT, str(shorter.where), text))
    seeds[found.seed] = found
