"""Learning curves from run folders and from others' `step,reward,seed` tables.

    python -m difftop.plot runs/dmc-walker-walk --references published/dmcontrol --out curve.png

A run's folder is `<root>/<env>/<agent>/<name>/seed<k>` and holds eval.csv; references are `<method>/<task>.csv`.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difftop.stats import Array, bootstrap, iqm, mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

# Okabe and Ito's colours, which colour-blind readers can tell apart, for our runs; greys and markers for published curves.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREYS = ("#444444", "#888888", "#666666", "#AAAAAA")
_MARKERS = "osD^vPX"


class CurveError(ValueError):
    """A table or folder that can't be drawn; the message names the file, the line and what is wrong."""


@dataclass(frozen=True)
class Series:
    """One run's evaluations: `steps [n]` rising, in environment frames, and `returns [n]`."""

    steps: Array
    returns: Array


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

    def summary(self, statistic: Callable[[Array], Array] = mean) -> tuple[Array, Array, Array, Array]:
        """Steps that every seed covers, and there the statistic and its 95 % bootstrap interval over seeds.

        Seeds evaluated at other steps are interpolated linearly, never beyond their own first and last evaluation.
        """
        first = max(series.steps[0] for series in self.seeds.values())
        last = min(series.steps[-1] for series in self.seeds.values())
        steps = np.unique(np.concatenate([series.steps for series in self.seeds.values()]))
        steps = steps[(steps >= first) & (steps <= last)]
        values = np.array([np.interp(steps, series.steps, series.returns) for series in self.seeds.values()])
        intervals = [bootstrap([column], statistic, resamples=1000) for column in values.T]
        point, low, high = (np.array([getattr(i, name) for i in intervals]) for name in ("point", "low", "high"))
        return steps, point, low, high


def read_table(path: Path, columns: Sequence[str]) -> Array:
    """Numbers of the named columns, `[rows, len(columns)]`; rows with an empty cell among them are left out.

    Raises:
        CurveError: the file is missing, a column is missing, or a cell isn't a finite number.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CurveError(f"{path} can't be read: {getattr(error, 'strerror', None) or 'it is not text'}.") from error
    reader = csv.DictReader(io.StringIO(text))
    missing = [column for column in columns if column not in (reader.fieldnames or [])]
    if missing:
        present = ",".join(reader.fieldnames or []) or "nothing"
        raise CurveError(
            f"{path} has no column {', '.join(missing)}: its first line is '{present}', expected {','.join(columns)}."
        )
    rows = []
    for row in reader:
        cells = [row[column] for column in columns]
        if all(cells):
            rows.append([_number(cell, f"{path}:{reader.line_num}: {name}") for cell, name in zip(cells, columns, strict=True)])
    return np.array(rows, dtype=np.float64).reshape(-1, len(columns))


def read_curve(path: Path | str, *, task: str | None = None, label: str | None = None, reference: bool = False) -> Curve:
    """A `step,reward,seed` table, rows in any order; the task is the file's name and the method its folder's, unless given.

    A step that a seed has twice keeps its last value, and the log says so.

    Raises:
        CurveError: see `read_table`; also when there is no row.
    """
    path = Path(path)
    rows = read_table(path, ("step", "reward", "seed"))
    if not len(rows):
        raise CurveError(f"{path} holds no row: there is nothing to draw.")
    seeds = {int(seed): _series(rows[rows[:, 2] == seed], f"{path}, seed {seed:g}") for seed in np.unique(rows[:, 2])}
    return Curve(task or path.stem, label or path.resolve().parent.name, seeds, reference)


def read_runs(paths: Iterable[Path | str]) -> list[Curve]:
    """Curves of runs: each path is a run's folder, a folder with runs anywhere below it, or a `step,reward,seed` table.

    Runs of one task, agent and name are seeds of one curve. Of two runs with the same seed the longer is taken, and the log
    says so. The legend shows the run's name only where an agent has several.

    Raises:
        CurveError: a path holds no run, or a table is bad.
    """
    curves: list[Curve] = []
    runs: dict[tuple[str, str, str], dict[int, Series]] = {}
    for path in map(Path, paths):
        if path.is_file():
            curves.append(read_curve(path))
            continue
        tables = sorted(path.rglob("eval.csv"))
        if not tables:
            raise CurveError(f"{path} holds no eval.csv: give run folders, folders above them, or step,reward,seed tables.")
        for table in tables:
            rows = read_table(table, ("env_frames", "return_mean"))
            if len(rows):
                task, agent, name, seed = _identity(table.parent)
                _keep_longer(runs.setdefault((task, agent, name), {}), seed, _series(rows, str(table)), table)
    for (task, agent, name), seeds in runs.items():
        several = len({other for _, same, other in runs if same == agent}) > 1
        curves.append(Curve(task, f"{agent} {name}" if several else agent, seeds))
    if not curves:
        raise CurveError("no run has an evaluation yet: there is nothing to draw.")
    return curves


def read_references(folder: Path | str, tasks: Iterable[str]) -> list[Curve]:
    """Published curves of `tasks`: every `<method>/<task>.csv` below `folder`, where a run's task may carry a prefix (`dmc-`).

    Raises:
        CurveError: `folder` is missing, or a table is bad. A task without a table is only logged.
    """
    folder = Path(folder)
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


def plot_curves(curves: Sequence[Curve], out: Path | str, *, statistic: str = "mean") -> Path:
    """One panel per task: the statistic over seeds, its 95 % bootstrap interval, and every seed as a thin line.

    References are dashed, with a marker at every published point, and cut where our longest run of the task ends.

    Args:
        curves: at least one.
        out: the image; its ending chooses the format.
        statistic: `mean` or `iqm`.
    """
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(curve.task for curve in curves))
    across = min(3, len(tasks))
    down = math.ceil(len(tasks) / across)
    figure = Figure(figsize=(1.0 + 4.6 * across, 0.8 + 3.2 * down), dpi=150, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    labels = {reference: _unique(c.label for c in curves if c.reference is reference) for reference in (False, True)}
    for panel, task in zip(panels, tasks, strict=False):
        mine = [curve for curve in curves if curve.task == task]
        for curve in mine:
            _draw(panel, curve, labels[curve.reference].index(curve.label), iqm if statistic == "iqm" else mean)
        ends = [s.steps[-1] for c in mine if not c.reference for s in c.seeds.values()]
        _dress(panel, task, max(ends) if ends else None)
    for panel in panels[len(tasks) :]:
        panel.set_visible(False)
    handles = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    columns = max(1, int(figure.get_figwidth() / 2.6))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return _save(figure, Path(out))


def plot_run(folder: Path | str, out: Path | str | None = None) -> Path:
    """A run's own curve: evaluations with their spread over episodes, and the returns of training episodes as dots.

    Args:
        folder: a run's folder, with eval.csv and perhaps metrics.csv.
        out: the image; None is `curve.png` in the folder.
    Raises:
        CurveError: eval.csv is missing, bad or empty.
    """
    from matplotlib.figure import Figure

    folder = Path(folder)
    rows = read_table(folder / "eval.csv", ("env_frames", "return_mean", "return_std"))
    if not len(rows):
        raise CurveError(f"{folder / 'eval.csv'} holds no row: there is nothing to draw.")
    task, agent, name, seed = _identity(folder)
    figure = Figure(figsize=(6.0, 3.8), dpi=150, layout="constrained")
    panel = figure.subplots()
    if (folder / "metrics.csv").is_file():
        training = read_table(folder / "metrics.csv", ("step", "reward"))
        panel.scatter(training[:, 0], training[:, 1], s=6, color="#BBBBBB", linewidths=0, label="training episode")
    steps, point, spread = rows.T
    panel.fill_between(
        steps, point - spread, point + spread, color=_COLOURS[0], alpha=0.2, linewidth=0, label="±1 std of episodes"
    )
    panel.plot(steps, point, color=_COLOURS[0], linewidth=1.8, marker="o", markersize=3, label="evaluation")
    _dress(panel, f"{task}: {agent}, {name}, seed {seed}", None)
    panel.legend(frameon=False, fontsize=8, loc="best")
    return _save(figure, Path(out) if out else folder / "curve.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m difftop.plot", description="Draws learning curves of runs.")
    parser.add_argument("paths", nargs="+", help="run folders, folders above them, or step,reward,seed tables")
    parser.add_argument(
        "--references", action="append", default=[], help="folder of <method>/<task>.csv published curves; may be repeated"
    )
    parser.add_argument("--out", default="curve.png", help="image to write (png, pdf, svg); default curve.png")
    parser.add_argument("--statistic", choices=("mean", "iqm"), default="mean", help="over seeds; default mean")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        curves = read_runs(options.paths)
        tasks = list(dict.fromkeys(curve.task for curve in curves))
        for folder in options.references:
            curves += read_references(folder, tasks)
        out = plot_curves(curves, options.out, statistic=options.statistic)
    except CurveError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{out}\n")
    return 0


def _draw(panel: Axes, curve: Curve, position: int, statistic: Callable[[Array], Array]) -> None:
    """Draws a curve; `position` among the labels of its kind chooses colour and marker."""
    steps, point, low, high = curve.summary(statistic)
    count = f"{len(curve.seeds)} seed{'s' if len(curve.seeds) > 1 else ''}"
    if curve.reference:
        style: dict[str, Any] = {
            "linestyle": "--",
            "linewidth": 1.0,
            "marker": _MARKERS[position % len(_MARKERS)],
            "markersize": 4,
        }
        panel.plot(
            steps, point, color=_GREYS[position % len(_GREYS)], label=f"{curve.label} (published, {count})", zorder=2, **style
        )
        return
    colour = _COLOURS[position % len(_COLOURS)]
    if len(curve.seeds) > 1:
        panel.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        for series in curve.seeds.values():
            panel.plot(series.steps, series.returns, color=colour, linewidth=0.6, alpha=0.5)
    panel.plot(steps, point, color=colour, label=f"{curve.label} ({count})", linewidth=1.8, zorder=3)


def _dress(panel: Axes, title: str, end: float | None) -> None:
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("environment frames")
    panel.set_ylabel("return")
    panel.xaxis.set_major_formatter(lambda x, position: _short(x))
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.set_xlim(left=0, right=end)
    if panel.dataLim.y0 >= 0:
        panel.set_ylim(bottom=0)


def _short(frames: float) -> str:
    """`0`, `500`, `40k`, `1.5M`."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(frames) >= size:
            return f"{frames / size:g}{unit}"
    return f"{frames:g}"


def _save(figure: Figure, out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".writing_{out.name}")
    try:
        figure.savefig(temporary)
    except ValueError as error:
        raise CurveError(f"can't write {out}: {str(error).splitlines()[0]}.") from error
    os.replace(temporary, out)
    return out


def _identity(folder: Path) -> tuple[str, str, str, int]:
    """(task, agent, name, seed) of a run's folder."""
    parts = folder.resolve().parts
    task, agent, name = parts[-4:-1] if len(parts) > 4 else ("run", parts[-1], "")
    seed = re.fullmatch(r"seed(\d+)", parts[-1])
    return task, agent, name, int(seed[1]) if seed else 0


def _series(rows: Array, where: str) -> Series:
    """Rows `[n, 2+]` of step and return by rising step; of equal steps the last counts."""
    latest = {step: value for step, value in rows[:, :2].tolist()}
    if len(latest) < len(rows):
        log.warning("%s: %d of %d rows repeat a step; the last value of each counts", where, len(rows) - len(latest), len(rows))
    steps = sorted(latest)
    return Series(np.array(steps), np.array([latest[step] for step in steps]))


def _keep_longer(seeds: dict[int, Series], seed: int, series: Series, table: Path) -> None:
    if seed in seeds:
        log.warning("%s: seed %d is there twice for this task, agent and name; the longer run counts", table, seed)
        if seeds[seed].steps[-1] >= series.steps[-1]:
            return
    seeds[seed] = series


def _unique(labels: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(labels))


def _number(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CurveError(f"{where} is '{cell}': must be a finite number.")
    return value


if __name__ == "__main__":
    sys.exit(main())
