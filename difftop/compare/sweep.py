"""How far a sweep is: which runs of tasks x agents x seeds have finished, go on, stopped, failed or never began."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difftop.compare.config import StatusConfig
from difftop.curves import CurveError, read_lines

STATES = ("finished", "running", "stopped", "failed", "missing")
_SKIPPED = {"checkpoints", "tensorboard", "videos", "eval", "evaluation"}
_END_BYTES = 8192  # of a table that are read: some ten rows or more


@dataclass(frozen=True)
class RunStatus:
    """One run of a sweep.

    Attributes:
        task, agent, name, seed: which; `name` is the run's, empty for one that is missing.
        state: of `STATES`. `failed` where a loss became non-finite after the last thing that was logged; `stopped` where nothing
            was written for a while.
        done, length: environment frames (of imitation, gradient steps) so far and at the end; 0 where unknown.
        score: last evaluation: mean return, or success where it is known; None before the first.
        idle_min: minutes since anything was written.
    """

    task: str
    agent: str
    name: str
    seed: int
    state: str
    done: int = 0
    length: int = 0
    score: float | None = None
    idle_min: float = 0.0


def sweep_status(config: StatusConfig, now: float | None = None) -> list[RunStatus]:
    """All runs below `config.root`, and those that its tasks x agents x seeds miss.

    A sweep is every combination of the tasks, the agents (with their run names) and the seeds that are found, or that are named.

    Args:
        config: root, and what the sweep should have.
        now: seconds since the epoch, for tests.
    """
    now = time.time() if now is None else now
    root = Path(config.root)
    found = [_status(folder, config.minutes, now) for folder in _folders(root)]
    tasks = [task.replace("/", "-") for task in config.tasks] or _unique(run.task for run in found)
    methods = [_agent(agent) for agent in config.agents] or _unique((run.agent, run.name) for run in found)
    seeds = config.seeds or sorted({run.seed for run in found})
    wanted = [(task, agent, name, seed) for task in tasks for agent, name in methods for seed in seeds]
    kept = [run for run in found if _belongs(run, tasks, methods, seeds)]
    there = {(run.task, run.agent, run.seed): run for run in kept}
    named = {(run.task, run.agent, run.name, run.seed) for run in kept}
    for task, agent, name, seed in wanted:
        if (name and (task, agent, name, seed) not in named) or (not name and (task, agent, seed) not in there):
            kept.append(RunStatus(task, agent, name, seed, "missing"))
    return sorted(kept, key=lambda run: (run.task, run.agent, run.name, run.seed))


def sweep_table(runs: Sequence[RunStatus], root: str = "runs") -> str:
    """The status as a table, with the counts above it."""
    if not runs:
        return f"{root}: no run yet.\n"
    counts = [f"{sum(run.state == state for run in runs)} {state}" for state in STATES if any(r.state == state for r in runs)]
    rows = [("task", "agent", "name", "seed", "state", "done", "of", "last score", "idle")]
    for run in runs:
        missing = run.state == "missing"
        rows.append(
            (
                run.task,
                run.agent,
                run.name,
                str(run.seed),
                run.state,
                "" if missing else f"{run.done:,}",
                f"{run.length:,}" if run.length else "",
                "" if run.score is None else f"{run.score:.4g}",
                "" if missing or run.state == "finished" else f"{run.idle_min:.0f} min",
            )
        )
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    right = {3, 5, 6, 7, 8}
    lines = [
        "  ".join(cell.rjust(w) if c in right else cell.ljust(w) for c, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join([f"{root}: {len(runs)} runs: {', '.join(counts)}", "", *(line.rstrip() for line in lines)]) + "\n"


def _folders(root: Path) -> Iterable[Path]:
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name not in _SKIPPED)
        if "config.json" in names and re.fullmatch(r"seed\d+", Path(folder).name):
            inner[:] = []
            yield Path(folder)


def _status(folder: Path, minutes: float, now: float) -> RunStatus:
    task, agent, name, last = folder.resolve().parts[-4:]
    length, imitates, reports = _length(folder)
    evaluation = _last(folder / "eval.csv", "env_frames", "success_mean", "return_mean")
    evaluated = evaluation.get("env_frames", 0.0)
    done = max(_last(folder / "metrics.csv", "step").get("step", 0.0), evaluated)
    score = evaluation.get("success_mean", evaluation.get("return_mean"))
    written = max((_time(folder / name) for name in ("metrics.csv", "eval.csv", "config.json")), default=0.0)
    idle = max(0.0, (now - written) / 60)
    # The last thing that a run does is its evaluation at the end.
    if imitates:
        evaluated = done if not reports or (folder / "evaluation" / "episodes.csv").is_file() else 0.0
    ended = bool(length) and evaluated >= length
    failed = _time(folder / "nonfinite_batch.safetensors") >= written > 0
    state = "finished" if ended else "failed" if failed else "running" if idle < minutes else "stopped"
    return RunStatus(task, agent, name, int(last.removeprefix("seed")), state, int(done), length, score, idle)


def _length(folder: Path) -> tuple[int, bool, bool]:
    """Frames, or gradient steps, that the configuration asks for (0 where it can't be read), whether it learns from
    demonstrations, and whether it then reports episodes at the end."""
    try:
        run: Any = json.loads((folder / "config.json").read_text())["run"]
        length = run.get("grad_steps", run.get("frames"))
        return (length if isinstance(length, int) else 0), "grad_steps" in run, run.get("eval_episodes") != 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0, False, False


def _last(path: Path, *columns: str) -> dict[str, float]:
    """The last number in each of the columns that has one at the end of the table."""
    found = _last_of(_end(path), columns)
    if not found and _size(path) > _END_BYTES:  # rows longer than that
        with suppress(CurveError):
            header, rows = read_lines(path)
            found = _last_of([header, *(row for _, row in rows)], columns)
    return found


def _last_of(table: Sequence[Sequence[str]], columns: Sequence[str]) -> dict[str, float]:
    """`_last` of the first row, which has the names, and some last rows."""
    found: dict[str, float] = {}
    header = table[0] if table else []
    for column in set(columns) & set(header):
        place = header.index(column)
        for row in reversed(table[1:]):
            if len(row) <= place or not row[place]:  # most rows, where nobody says what success is
                continue
            with suppress(ValueError):
                found[column] = float(row[place])
                break
    return found


def _end(path: Path) -> list[list[str]]:
    """The first row of a CSV and its last ones: a sweep's tables together may have gigabytes."""
    try:
        with path.open("rb") as file:
            first = file.readline()
            size = file.seek(0, os.SEEK_END)
            begin = max(len(first), size - _END_BYTES)
            file.seek(begin)
            rest = file.read()
    except OSError:
        return []
    if begin > len(first):
        rest = rest[rest.find(b"\n") + 1 :]  # the first of these lines is cut
    text = (first + rest).decode("utf-8-sig", errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
    try:
        return list(csv.reader(io.StringIO(text)))
    except csv.Error:
        return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _agent(text: str) -> tuple[str, str]:
    agent, _, name = text.partition("/")
    return agent, name


def _belongs(run: RunStatus, tasks: Sequence[str], methods: Sequence[tuple[str, str]], seeds: Sequence[int]) -> bool:
    method = (run.agent, run.name) in methods or (run.agent, "") in methods
    return run.task in tasks and method and run.seed in seeds


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
