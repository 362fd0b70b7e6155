"""Learning curves as data: run folders, tidy tables of a study and `step,reward,seed` tables, read into series per seed.

A run's folder is `<root>/<env>/<agent>/<name>/seed<k>` and holds eval.csv. A tidy table holds all methods and tasks of a study, a
row per evaluation (`TIDY_COLUMNS`). Other published tables are `<method>/<task>.csv`.
"""

from __future__ import annotations

import csv
import io
import itertools
import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from difftop.stats import Array, iqm, mean, percentile_interval, resample_counts, resampled_iqm, resampled_mean

log = logging.getLogger(__name__)

TIDY_COLUMNS = ("method", "task", "obs", "seed", "env_frames", "return_mean", "return_std", "episodes", "wall_s", "commit")
_TIDY = {"method", "task", "seed", "env_frames", "return_mean"}  # those that a table can't do without


class CurveError(ValueError):
    """A table or folder that can't be drawn; the message names the file, the line and what is wrong."""


class _NotFiniteError(CurveError):
    """A NaN or an infinity: a number, but nothing to be drawn."""


@dataclass(frozen=True)
class Series:
    """One run's evaluations: `steps [n]` rising, in environment frames, and `returns [n]`."""

    steps: Array
    returns: Array


@dataclass(frozen=True)
class TidySeed:
    """One seed of one method on one task in a tidy table.

    Attributes:
        rows: `[n, 3]`, env_frames, return_mean and seed of each evaluation, in the order of the file.
        header, lines: its part of the table, as `read_lines` gives it, for further columns.
        obs: kind of observations, empty where the table doesn't tell.
    """

    method: str
    task: str
    seed: int
    rows: Array
    header: list[str]
    lines: list[tuple[int, list[str]]]
    obs: str = ""

    @property
    def label(self) -> str:
        """The method, with its observations unless they are the state."""
        return self.method if self.obs in ("", "state") else f"{self.method} {self.obs}"


@dataclass(frozen=True)
class Curve:
    """All runs of one method on one task.

    Attributes:
        task: name of the panel.
        label: name in the legend.
        seeds: one series per seed.
        reference: published by others, not one of our runs.
    """

    task: str
    label: str
    seeds: dict[int, Series]
    reference: bool = False

    def common(self, max_points: int = 500, *, end: float = np.inf, keep: Sequence[float] = ()) -> tuple[Array, Array]:
        """Steps `[P]` that every seed covers, and the returns there, `[seeds, P]`.

        Seeds evaluated at other steps are interpolated linearly, never beyond their own first and last evaluation; P is 0 where
        they have no range in common.

        Args:
            max_points: the steps are those of all evaluations, thinned to at most so many.
            end: of the range.
            keep: further steps that must be among them, where they are in the range.
        """
        first = max(series.steps[0] for series in self.seeds.values())
        last = min(end, *(series.steps[-1] for series in self.seeds.values()))
        steps = np.unique(np.concatenate([series.steps for series in self.seeds.values()]))
        steps = steps[(steps >= first) & (steps <= last)]
        if len(steps) > max_points:
            steps = steps[np.linspace(0, len(steps) - 1, max_points).round().astype(np.int64)]
        steps = np.union1d(steps, [step for step in keep if first <= step <= last])
        return steps, np.array([np.interp(steps, series.steps, series.returns) for series in self.seeds.values()])

    def summary(
        self, statistic: Callable[[Array], Array] = mean, *, resamples: int = 1000, seed: int = 0
    ) -> tuple[Array, Array, Array, Array]:
        """Steps that every seed covers (see `common`), and there the statistic and its 95 % bootstrap interval over seeds."""
        steps, values = self.common()
        point = statistic(values.T)
        if len(values) == 1 or not len(steps):
            return steps, point, point, point
        resampled = resampled_iqm if statistic is iqm else resampled_mean
        low, high = percentile_interval(resampled(values, resample_counts([len(values)], resamples=resamples, seed=seed)))
        return steps, point, low, high


def read_lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Names of a CSV's columns, and its rows with their line numbers: as many cells of text, empty where a row is short.

    Raises:
        CurveError: the file can't be read, or isn't text or no table.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CurveError(f"{path} can't be read: {getattr(error, 'strerror', None) or 'it is not text'}.") from error
    reader = csv.reader(io.StringIO(text.replace("\0", "\N{REPLACEMENT CHARACTER}")))
    try:
        header = next(reader, [])
        width = len(header)
        lines = [(reader.line_num, (row + [""] * (width - len(row)))[:width]) for row in reader if row]
    except csv.Error as error:
        raise CurveError(f"{path} is not a table: {error}.") from error
    return header, lines


def read_table(path: Path, columns: Sequence[str], *, bad: list[str] | None = None) -> Array:
    """Numbers of the named columns, `[rows, len(columns)]`; rows with an empty cell among them are left out.

    So are rows with a NaN or an infinity, as a diverged run writes them; the log says how many.

    Args:
        path: a CSV.
        columns: names in its first line.
        bad: where given, rows with any bad cell are left out too, and a sentence for every row left out is appended here.
    Raises:
        CurveError: the file is missing, a column is missing, or a cell isn't a number.
    """
    header, lines = read_lines(path)
    return numbers(path, header, lines, columns, bad=bad)


def numbers(
    path: Path,
    header: Sequence[str],
    lines: Iterable[tuple[int, Sequence[str]]],
    columns: Sequence[str],
    *,
    bad: list[str] | None = None,
) -> Array:
    """`read_table` of what `read_lines` gave."""
    missing = [column for column in columns if column not in header]
    if missing:
        present = ",".join(header)[:80] or "nothing"
        wanted = ",".join(columns)
        raise CurveError(f"{path} has no column {', '.join(missing)}: its first line is '{present}', expected {wanted}.")
    places = [header.index(column) for column in columns]
    table = [(line, [row[place] for place in places]) for line, row in lines]
    try:
        whole = np.array([cells for _, cells in table], dtype=np.float64).reshape(-1, len(columns))
    except ValueError:  # some cell is empty or no number: below it is found
        whole = np.array([math.nan])
    if np.isfinite(whole).all():
        return whole
    rows = []
    infinite: list[str] = []
    for line, cells in table:
        if not all(cells):
            if bad is not None:
                bad.append(f"{path}:{line}: {next(c for c, cell in zip(columns, cells, strict=True) if not cell)} is empty")
            continue
        try:
            rows.append([_number(cell, path, line, name) for cell, name in zip(cells, columns, strict=True)])
        except _NotFiniteError as error:
            (infinite if bad is None else bad).append(str(error))
        except CurveError as error:
            if bad is None:
                raise
            bad.append(str(error))
    if infinite:
        log.warning("%s %d of %d rows left out.", infinite[0], len(infinite), len(table))
    return np.array(rows, dtype=np.float64).reshape(-1, len(columns))


def is_tidy(path: Path) -> bool:
    """Whether a CSV's first line has the columns of a tidy table."""
    try:
        with path.open("rb") as file:
            first = file.readline(4096).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return False
    return set(first.strip().split(",")) >= _TIDY


def read_tidy(path: Path, *, bad: list[str] | None = None) -> list[TidySeed]:
    """Every seed of a tidy table, in the order of their first rows.

    Args:
        path: a CSV with the columns method, task, seed, env_frames and return_mean; `obs` is read where it is there.
        bad: see `read_table`.
    Raises:
        CurveError: see `read_table`; also where a method or task is empty, or a seed isn't a whole number.
    """
    header, lines = read_lines(path)
    places = {name: header.index(name) for name in ("method", "task", "seed", "obs") if name in header}
    parts: dict[tuple[str, ...], list[tuple[int, list[str]]]] = {}
    for line, row in lines:
        key = tuple(row[places[name]].strip() if name in places else "" for name in ("method", "task", "seed", "obs"))
        problem = "" if key[0] and key[1] else "method or task is empty"
        problem = problem or ("" if re.fullmatch(r"\d+", key[2]) else f"seed is '{key[2][:40]}': must be a whole number")
        if not problem:
            parts.setdefault(key, []).append((line, row))
        elif bad is None:
            raise CurveError(f"{path}:{line}: {problem}.")
        else:
            bad.append(f"{path}:{line}: {problem}.")
    found = []
    for (method, task, seed, obs), mine in parts.items():
        rows = numbers(path, header, mine, ("env_frames", "return_mean", "seed"), bad=bad)
        if len(rows):
            found.append(TidySeed(method, task, int(seed), rows, header, mine, obs))
    return found


def arranged(rows: Array) -> tuple[Series, str]:
    """Rows `[n, 2+]` of step and return, one seed's in the order of the file, as a series; and what had to be put in order.

    Rows out of order are sorted. Where the steps begin again from the first one, two runs were written under one seed: the longer
    counts, the first of equals. Other repeated steps are those of a log that was continued from an earlier point: the last
    value of each counts.
    """
    steps = rows[:, 0]
    starts = [0, *(np.flatnonzero(np.diff(steps) <= 0) + 1), len(rows)]
    parts = [rows[a:b] for a, b in itertools.pairwise(starts)]
    note = ""
    if len(np.unique(steps)) == len(steps):
        note = "its rows are not in order of their steps; they were sorted" if len(parts) > 1 else ""
    elif len(parts) > 1 and all(part[0, 0] == steps[0] for part in parts):
        rows = max(parts, key=lambda part: float(part[-1, 0]))
        note = f"it is there {len(parts)} times; the longest run counts and {sum(map(len, parts)) - len(rows)} rows do not"
    else:
        note = f"{len(steps) - len(np.unique(steps))} of {len(rows)} rows repeat a step; the last value of each counts"
    latest = dict(rows[:, :2].tolist())
    ordered = sorted(latest)
    return Series(np.array(ordered), np.array([latest[step] for step in ordered])), note


def read_curve(path: Path | str, *, task: str | None = None, label: str | None = None, reference: bool = False) -> Curve:
    """A `step,reward,seed` table, rows in any order; the task is the file's name and the method its folder's, unless given.

    What `arranged` had to put in order, such as a seed that is there twice, the log says.

    Raises:
        CurveError: see `read_table`; also when there is no row.
    """
    path = Path(path)
    rows = read_table(path, ("step", "reward", "seed"))
    if not len(rows):
        raise CurveError(f"{path} holds no row: there is nothing to draw.")
    seeds = {int(seed): _series(rows[rows[:, 2] == seed], f"{path}, seed {seed:g}") for seed in np.unique(rows[:, 2])}
    return Curve(task or path.stem, label or path.resolve().parent.name, seeds, reference)


def read_study(path: Path | str, *, reference: bool = False) -> list[Curve]:
    """Every curve of a tidy table.

    Raises:
        CurveError: see `read_tidy`; also when there is no row.
    """
    seeds: dict[tuple[str, str], dict[int, Series]] = {}
    for found in read_tidy(Path(path)):
        where = f"{path}, {found.label} on {found.task}, seed {found.seed}"
        seeds.setdefault((found.task, found.label), {})[found.seed] = _series(found.rows, where)
    if not seeds:
        raise CurveError(f"{path} holds no row: there is nothing to draw.")
    return [Curve(task, label, series, reference) for (task, label), series in seeds.items()]


def read_runs(paths: Iterable[Path | str]) -> list[Curve]:
    """Curves of runs: each path is a run's folder, a folder with runs anywhere below it, a tidy table, or `step,reward,seed`.

    Runs of one task, agent and name are seeds of one curve. Of two runs with the same seed the longer is taken, and the log
    says so. The legend shows the run's name only where an agent has several.

    Raises:
        CurveError: a path holds no run, or a table is bad.
    """
    curves: list[Curve] = []
    runs: dict[tuple[str, str, str], dict[int, Series]] = {}
    for path in map(Path, paths):
        if path.is_file():
            curves += read_study(path) if is_tidy(path) else [read_curve(path)]
            continue
        tables = sorted(path.rglob("eval.csv"))
        if not tables:
            raise CurveError(f"{path} holds no eval.csv: give run folders, folders above them, or step,reward,seed tables.")
        for table in tables:
            rows = read_table(table, ("env_frames", "return_mean"))
            if len(rows):
                task, agent, name, seed = identity(table.parent)
                _keep_longer(runs.setdefault((task, agent, name), {}), seed, _series(rows, str(table)), table)
    for (task, agent, name), seeds in runs.items():
        several = len({other for _, same, other in runs if same == agent}) > 1
        curves.append(Curve(task, f"{agent} {name}" if several else agent, seeds))
    if not curves:
        raise CurveError("no run has an evaluation yet: there is nothing to draw.")
    return curves


def read_references(folder: Path | str, tasks: Iterable[str]) -> list[Curve]:
    """Published curves of `tasks`, where a run's task may carry a prefix (`dmc-`).

    Args:
        folder: every `<method>/<task>.csv` below it is read; or a tidy table.
        tasks: names in what is returned; one without a published curve is only logged.
    Raises:
        CurveError: `folder` is missing, or a table is bad.
    """
    folder = Path(folder)
    if folder.is_file() and is_tidy(folder):
        study = read_study(folder, reference=True)
        return [replace(c, task=task) for task in tasks for c in study if task == c.task or task.endswith(f"-{c.task}")]
    if not folder.is_dir():
        raise CurveError(f"{folder} is not a folder of <method>/<task>.csv tables.")
    tables = sorted(folder.rglob("*.csv"))
    curves = []
    for task in tasks:
        found = [table for table in tables if task == table.stem or task.endswith(f"-{table.stem}")]
        longest = max((len(table.stem) for table in found), default=0)
        curves += [read_curve(table, task=task, reference=True) for table in found if len(table.stem) == longest]
        if not found:
            log.warning("%s has no table for %s", folder, task)
    return curves


def identity(folder: Path) -> tuple[str, str, str, int]:
    """(task, agent, name, seed) of a run's folder."""
    parts = folder.resolve().parts
    task, agent, name = parts[-4:-1] if len(parts) > 4 else ("run", parts[-1], "")
    seed = re.fullmatch(r"seed(\d+)", parts[-1])
    return task, agent, name, int(seed[1]) if seed else 0


def _series(rows: Array, where: str) -> Series:
    series, note = arranged(rows)
    if note:
        log.warning("%s: %s", where, note)
    return series


def _keep_longer(seeds: dict[int, Series], seed: int, series: Series, table: Path) -> None:
    if seed in seeds:
        log.warning("%s: seed %d is there twice for this task, agent and name; the longer run counts", table, seed)
        if seeds[seed].steps[-1] >= series.steps[-1]:
            return
    seeds[seed] = series


def _number(cell: str, path: Path, line: int, name: str) -> float:
    where = f"{path}:{line}: {name} is '{cell[:40]}': must be a finite number."
    try:
        value = float(cell)
    except ValueError as error:
        raise CurveError(where) from error
    if not math.isfinite(value):
        raise _NotFiniteError(where)
    return value
