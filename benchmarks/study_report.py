"""The report of a study: a tidy table, a Markdown page and a picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from benchmarks.study import Cell, Study
from benchmarks.study_queue import SCALE, Records, Row, longest, ranking, read_rows, survivors
from difftop.compare.notes import plural
from difftop.curves import CurveError
from difftop.stats import Interval, bootstrap
from tools.tidy_results import merged, written


class Point(NamedTuple):
    """A setting at a mark.

    Attributes:
        iqm: over tasks and seeds, of returns over 1000, with its interval, which has no width where a task has a single run;
            None where a task has none.
        tasks, runs: how many have one.
        minutes: mean of the runs' own clocks at the mark.
    """

    iqm: Interval | None
    tasks: int
    runs: int
    minutes: float


def report(study: Study, records: Records, out: Path, table: Path | None = None) -> list[Path]:
    """Writes `out`.csv, .md and .png, and adds the rows to `table` where one is given. Returns the files.

    Rows of both tables that are not of the study stay, and a run that goes further there than here stays as it is.

    Raises:
        CurveError: no run has an evaluation yet, or a table is bad.
    """
    paths = [out.with_name(f"{out.name}.csv"), *([table] if table else [])]
    before = {path: read_rows(path) if path.exists() else [] for path in paths}
    records = replace(records, elsewhere=longest([records.elsewhere, *before.values()]))
    rows = [row for cell in every_cell(study) for row in with_commit(records, cell)]
    if not rows:
        raise CurveError(f"{records.root}: no run of the study has an evaluation yet; run it first, without --report.")
    out.parent.mkdir(parents=True, exist_ok=True)
    for path in paths:
        path.write_text(written(merged(before[path], rows)))
    page, picture = out.with_name(f"{out.name}.md"), out.with_name(f"{out.name}.png")
    page.write_text(text(study, records, picture.name))
    draw(study, records, picture)
    return [*paths, page, picture]


def every_cell(study: Study) -> list[Cell]:
    """Every run that the study could have."""
    return study.cells(list(study.config.settings), study.seeds)


def with_commit(records: Records, cell: Cell) -> list[Row]:
    """Rows of a run; those that tell no commit have that of the last process that trained it."""
    parts = records.training(cell)
    commit = parts[-1]["commit"] if parts else ""
    return [row | {"commit": row.get("commit") or commit} for row in records.rows(cell)]


def point(study: Study, records: Records, setting: str, mark: int) -> Point:
    """A setting at a mark, over all seeds that are there."""
    strata, minutes = [], []
    for task in study.config.tasks:
        found = [row for seed in study.seeds if (row := records.at(Cell(setting, task, seed), mark))]
        strata.append([float(row["return_mean"]) / SCALE for row in found])
        minutes += [float(row["wall_s"]) / 60 for row in found if row["wall_s"]]
    found = bootstrap(strata) if all(strata) else None
    if found and min(map(len, strata)) == 1:
        found = Interval(found.point, found.point, found.point)
    return Point(
        found,
        sum(map(bool, strata)),
        sum(map(len, strata)),
        fmean(minutes) if minutes else float("nan"),
    )


def text(study: Study, records: Records, picture: str) -> str:
    """The page."""
    parts = [f"# {study.name}", " ".join([study.config.about, *_standing(study, records)]).strip()]
    points = {(s, mark): point(study, records, s, mark) for s in study.config.settings for mark in study.marks}
    parts += [
        "## By setting",
        f"Interquartile mean over tasks and seeds of return / {SCALE:.0f}, with its 95 % interval (stratified bootstrap over the "
        "seeds of each task, where each has two). A setting that lacks a task has no mean. Minutes: CPU time of a run to "
        f"{100_000:,} frames with its evaluations, on one thread; where only the run's clock is known, that.",
        _by_setting(study, records, points),
        f"![Interquartile mean against frames and against minutes]({picture})",
        "## By task",
        "Mean return at the last mark that was reached, with its frames where it is not the last one, and the number of seeds.",
        _by_task(study, records),
    ]
    if study.halving:
        parts += ["## Rounds", *_rounds(study, records)]
    diagnoses = _diagnoses(study, records)
    if diagnoses:
        parts += ["## Diagnosis", _diagnosis_text(), _diagnosis_table(study, diagnoses)]
    return "\n\n".join(parts) + "\n"


def _standing(study: Study, records: Records) -> list[str]:
    """What the study is, and what of it is missing."""
    config, last = study.config, study.rounds[-1].frames
    alive = survivors(study, records, set())
    wanted = {cell: r.frames for r, settings in zip(study.rounds, alive, strict=False) for cell in study.cells(settings, r.seeds)}
    missing = [cell for cell, frames in wanted.items() if not records.finished(cell, frames)]
    lines = [
        f"{plural(len(config.settings), 'setting')} on {plural(len(config.tasks), 'task')}, up to "
        f"{plural(len(study.seeds), 'seed')} and {last:,} frames; {plural(config.episodes, 'episode')} at each evaluation."
    ]
    if missing:
        lines.append(f"**Unfinished: {len(missing)} of {len(wanted)} runs.**")
    if len(alive) < len(study.rounds):
        lines.append(f"Of {len(study.rounds)} rounds, {len(study.rounds) - len(alive)} could not begin yet.")
    return lines


def _by_setting(study: Study, records: Records, points: dict[tuple[str, int], Point]) -> str:
    rows = []
    for setting in study.config.settings:
        cells = [_iqm(points[setting, mark], len(study.config.tasks)) for mark in study.marks]
        cost = []
        for cell in study.cells([setting], study.seeds):
            reached = records.rows(cell)
            frames = float(reached[-1]["env_frames"]) if reached else 0.0
            if frames > 0:
                cost.append(records.minutes(cell) * 100_000 / frames)
        rows.append([setting, *cells, f"{fmean(cost):.0f}" if cost else "—"])
    return _table(["setting", *(f"{mark:,} frames" for mark in study.marks), "minutes"], rows)


def _iqm(found: Point, tasks: int) -> str:
    if found.iqm is None:
        return f"{found.tasks} of {tasks} tasks" if found.tasks else "—"
    ends = f" [{found.iqm.low:.3f}, {found.iqm.high:.3f}]" if found.iqm.low < found.iqm.high else ""
    return f"{found.iqm.point:.3f}{ends}, {plural(found.runs, 'run')}"


def _by_task(study: Study, records: Records) -> str:
    rows = []
    for task in study.config.tasks:
        cells = []
        for setting in study.config.settings:
            at = {mark: [records.at(Cell(setting, task, seed), mark) for seed in study.seeds] for mark in study.marks}
            reached = [mark for mark, found in at.items() if any(found)]
            if not reached:
                cells.append("—")
                continue
            values = [float(row["return_mean"]) for row in at[reached[-1]] if row]
            where = "" if reached[-1] == study.marks[-1] else f" at {reached[-1]:,}"
            cells.append(f"{fmean(values):.0f}{where} ({len(values)})")
        rows.append([task, *cells])
    return _table(["task", *study.config.settings], rows)


def _rounds(study: Study, records: Records) -> Iterable[str]:
    for k, (r, settings) in enumerate(zip(study.rounds, survivors(study, records, set()), strict=False)):
        ranked = [f"{name} {score:.3f}" for name, score in ranking(study, records, settings, r.seeds, r.frames)]
        seeds = ", ".join(map(str, r.seeds))
        by = "by the interquartile mean there (a missing run counts as 0)"
        yield f"{k + 1}. Seeds {seeds} to {r.frames:,} frames, {by}: {'; '.join(ranked)}."


def _diagnoses(study: Study, records: Records) -> dict[Cell, dict[str, Any]]:
    """diagnosis.json of the newest checkpoint that has one."""
    found = {}
    for cell in every_cell(study):
        files = sorted((study.folder(cell, records.root) / "diagnosis").glob("step_*/diagnosis.json"))
        if files:
            found[cell] = json.loads(files[-1].read_text())
    return found


def _diagnosis_text() -> str:
    return (
        "Of the last checkpoint (`mode=diagnose`), means over seeds. R2: of predicted value changes, the worst of 1 to 5 steps "
        "ahead. Correlation: of values and the returns that followed. Returns by the prior alone, Levenberg-Marquardt and MPPI "
        "from the same states; the last column is what Levenberg-Marquardt gains on the prior. The rows 'all' hold means over "
        "tasks; there the gain is that of the mean returns."
    )


def _diagnosis_table(study: Study, diagnoses: dict[Cell, dict[str, Any]]) -> str:
    rows = []
    for setting in study.config.settings:
        by_task = {}
        for task in study.config.tasks:
            found = [d for cell, d in diagnoses.items() if (cell.setting, cell.task) == (setting, task)]
            if found:
                by_task[task] = [_mean(column) for column in zip(*map(figures, found), strict=True)]
        rows += [_diagnosis_row(setting, task, numbers) for task, numbers in by_task.items()]
        if len(by_task) > 1:
            rows.append(_diagnosis_row(setting, "all", [_mean(column) for column in zip(*by_task.values(), strict=True)]))
    return _table(["setting", "task", "R2", "correlation", "prior", "LM", "MPPI", "LM / prior"], rows)


def figures(diagnosis: dict[str, Any]) -> list[float]:
    """Worst R2 of value changes 1 to 5 steps ahead, correlation, and returns by prior, LM and MPPI; NaN where unknown."""
    measures, returns = diagnosis["measures"], diagnosis["returns"]
    known = [float(x) for x in measures["value_r2"][:5] if x == x]
    by = [float(returns.get(name, "nan")) for name in ("prior", "lm", "mppi")]
    return [min(known, default=float("nan")), float(measures["value_correlation"]), *by]


def _diagnosis_row(setting: str, task: str, numbers: Sequence[float]) -> list[str]:
    r2, correlation, prior, lm, mppi = numbers
    gain = f"{lm / prior:.2f}" if prior > 0 else "—"
    return [setting, task, f"{r2:.2f}", f"{correlation:.2f}", f"{prior:.0f}", f"{lm:.0f}", f"{mppi:.0f}", gain]


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if value == value]
    return fmean(known) if known else float("nan")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw(study: Study, records: Records, path: Path) -> None:
    """IQM with its interval by setting, against frames and against minutes by the runs' own clocks."""
    from matplotlib.figure import Figure

    from difftop.plot import short

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    frames, minutes = figure.subplots(1, 2, sharey=True)
    for k, setting in enumerate(study.config.settings):
        at = [(mark, point(study, records, setting, mark)) for mark in study.marks]
        known = [(mark, found.minutes, found.iqm) for mark, found in at if found.iqm]
        if not known:
            continue
        marks, clocks, iqms = zip(*known, strict=True)
        style = {"color": f"C{k % 10}", "marker": "o", "linestyle": ("-", "--", ":")[k // 10 % 3]}
        for axes, x in ((frames, marks), (minutes, clocks)):
            axes.plot(x, [i.point for i in iqms], label=setting, **style)
            axes.fill_between(x, [i.low for i in iqms], [i.high for i in iqms], color=style["color"], alpha=0.15, linewidth=0)
    frames.xaxis.set_major_formatter(lambda x, position: short(x))
    frames.set_xlabel("environment frames")
    minutes.set_xlabel("minutes, evaluations included")
    frames.set_ylabel(f"interquartile mean of return / {SCALE:.0f}")
    for axes in (frames, minutes):
        axes.grid(alpha=0.25)
        axes.set_xlim(left=0)
        if axes.dataLim.y0 >= 0:
            axes.set_ylim(bottom=0)
    if frames.get_legend_handles_labels()[0]:
        figure.legend(*frames.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)
