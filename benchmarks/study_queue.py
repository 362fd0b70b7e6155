"""The queue of a study: what is done, what comes next, and the processes that do it."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from benchmarks.study import ROOT, Cell, Study
from difftop.curves import CurveError, read_lines
from difftop.run.signals import StopOnSignal
from difftop.stats import iqm
from tools.tidy_results import run_rows

SCALE = 1000.0  # return that counts as 1
LEDGER = ("setting", "task", "seed", "what", "frames", "status", "wall_s", "cpu_s", "commit")
_POLL_S = 0.2

Row = dict[str, str]
Failed = set[tuple[Cell, int]]  # runs, by length


class Job(NamedTuple):
    """A process to start: `what` is train or diagnose."""

    cell: Cell
    frames: int
    what: str


@dataclass(frozen=True)
class Records:
    """What is known of runs: their folders below `root`, rows of tidy tables from elsewhere, and the ledger of processes.

    Attributes:
        study, root: whose runs, and where.
        elsewhere: rows of tidy tables.
    """

    study: Study
    root: Path
    elsewhere: Sequence[Row] = ()

    @property
    def ledger(self) -> Path:
        """CSV of the processes that ended, a row each."""
        return self.root / "queue.csv"

    def rows(self, cell: Cell) -> list[Row]:
        """Evaluations as rows of the tidy table, of the run here or the one from elsewhere, whichever is longer.

        The commit of a run here is in the ledger: `commit`.
        """
        here, there = self._here(cell), self._there(cell)
        return max(here, there, key=_end)

    def finished(self, cell: Cell, frames: int) -> bool:
        """Whether a run has been evaluated at its last frame, and saved after it; or is known from elsewhere as far as that."""
        there, here = self._there(cell), self._here(cell)
        if there and float(there[-1]["env_frames"]) >= frames:
            return True
        saved = self.saved_steps(cell)
        return bool(here) and float(here[-1]["env_frames"]) >= frames and saved >= int(here[-1]["agent_steps"] or 0)

    def saved_steps(self, cell: Cell) -> int:
        """Agent steps of the last checkpoint, -1 where there is none."""
        last = self.study.folder(cell, self.root) / "checkpoints" / "last"
        return int(last.resolve().name.rpartition("_")[2]) if last.exists() else -1

    def diagnosed(self, cell: Cell) -> bool:
        """Whether the last checkpoint has its diagnosis; a run from elsewhere has no checkpoint to diagnose."""
        last = self.study.folder(cell, self.root) / "checkpoints" / "last"
        return not last.exists() or (last.parents[1] / "diagnosis" / last.resolve().name / "diagnosis.json").exists()

    def frames(self, cell: Cell) -> float:
        """How far a run has come here, by its evaluations: from where it goes on."""
        rows = self._here(cell)
        return float(rows[-1]["env_frames"]) if rows else 0.0

    def minutes(self, cell: Cell) -> float:
        """CPU minutes of a run by the ledger; where it doesn't hold all of the run, the run's own clock."""
        rows, parts = self.rows(cell), self.training(cell)
        clock = float(rows[-1]["wall_s"] or "nan") if rows else float("nan")
        whole = bool(parts) and sum(float(part["wall_s"]) for part in parts) >= clock
        return (sum(float(part["cpu_s"]) for part in parts) if whole else clock) / 60

    def at(self, cell: Cell, mark: int) -> Row | None:
        """The evaluation at a mark: the first one from it on, before the next one would come."""
        near = (row for row in self.rows(cell) if mark <= float(row["env_frames"]) < mark + self.study.eval_every)
        return next(near, None)

    def training(self, cell: Cell) -> list[Row]:
        """Rows of the ledger: the processes that trained a run."""
        if not self.ledger.exists():
            return []
        header, lines = read_lines(self.ledger)
        found = [dict(zip(header, cells, strict=True)) for _, cells in lines]
        mine = (*map(str, cell), "train")
        return [row for row in found if (row["setting"], row["task"], row["seed"], row["what"]) == mine]

    def note(self, job: Job, status: int, wall_s: float, cpu_s: float, commit: str) -> None:
        """Appends a process that ended to the ledger."""
        self.root.mkdir(parents=True, exist_ok=True)
        begun = self.ledger.exists()
        with self.ledger.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not begun:
                writer.writerow(LEDGER)
            writer.writerow((*job.cell, job.what, job.frames, status, round(wall_s, 1), round(cpu_s, 1), commit))

    def _here(self, cell: Cell) -> list[Row]:
        folder = self.study.folder(cell, self.root)
        if not (folder / "eval.csv").exists():
            return []
        return run_rows(folder, names={f"{self.study.kind(cell).agent} {cell.setting}": cell.setting})

    def _there(self, cell: Cell) -> list[Row]:
        kind = self.study.kind(cell)
        mine = (cell.setting, kind.task, kind.obs, str(cell.seed))
        found = [row for row in self.elsewhere if (row["method"], row["task"], row["obs"], row["seed"]) == mine]
        return sorted(found, key=lambda row: float(row["env_frames"]))


def read_rows(path: Path) -> list[Row]:
    """A tidy table."""
    header, lines = read_lines(path)
    missing = [name for name in ("method", "task", "obs", "seed", "env_frames", "return_mean", "wall_s") if name not in header]
    if missing:
        raise CurveError(f"{path} has no column {missing[0]}: give a tidy table, as docs/results/dmcontrol.csv.")
    return [dict(zip(header, cells, strict=True)) for _, cells in lines]


def longest(tables: Iterable[Sequence[Row]]) -> list[Row]:
    """One table of several: of a run that is in more than one, the rows of that which goes furthest, the first of equals."""
    runs: dict[tuple[str, ...], list[Row]] = {}
    for table in tables:
        mine: dict[tuple[str, ...], list[Row]] = {}
        for row in table:
            mine.setdefault(tuple(row[name] for name in ("method", "task", "obs", "seed")), []).append(row)
        for key, rows in mine.items():
            if key not in runs or _end(rows) > _end(runs[key]):
                runs[key] = rows
    return [row for rows in runs.values() for row in rows]


def _end(rows: Sequence[Row]) -> float:
    return max((float(row["env_frames"]) for row in rows), default=-1.0)


def ranking(study: Study, records: Records, settings: Sequence[str], seeds: Sequence[int], mark: int) -> list[tuple[str, float]]:
    """Settings and their IQM over tasks and seeds at a mark, of returns over 1000, best first.

    A run without an evaluation there, because it failed, counts as 0; of equals, the one that stands first in the file is first.
    """
    scores = {}
    for setting in settings:
        rows = [records.at(cell, mark) for cell in study.cells([setting], seeds)]
        scores[setting] = float(iqm(np.array([float(row["return_mean"]) / SCALE if row else 0.0 for row in rows])))
    return sorted(scores.items(), key=lambda item: -item[1])


def survivors(study: Study, records: Records, failed: Failed) -> list[list[str]]:
    """Settings of each round that can begin, a list per round: all, then the best of a round whose runs have all ended."""
    alive = [list(study.config.settings)]
    for before, after in zip(study.rounds, study.rounds[1:], strict=False):
        cells = study.cells(alive[-1], before.seeds)
        if not all(records.finished(cell, before.frames) or (cell, before.frames) in failed for cell in cells):
            break
        ranked = [setting for setting, _ in ranking(study, records, alive[-1], before.seeds, before.frames)]
        alive.append(ranked[: math.ceil(after.keep * len(ranked))])
    return alive


def pending(study: Study, records: Records, failed: Failed) -> list[Job]:
    """What is missing and can be run now, in the order in which it is run."""
    lengths: dict[Cell, int] = {}
    for length, settings in zip(study.rounds, survivors(study, records, failed), strict=False):
        lengths |= {cell: length.frames for cell in study.cells(settings, length.seeds)}
    jobs = []
    for cell, frames in lengths.items():
        if (cell, frames) in failed:
            continue
        if not records.finished(cell, frames):
            jobs.append(Job(cell, frames, "train"))
        elif study.config.diagnose and not records.diagnosed(cell):
            jobs.append(Job(cell, frames, "diagnose"))
    cost = costs(study, records, jobs)
    place = {seed: k for k, seed in enumerate(study.seeds)} if study.config.order == "seed" else {}
    return sorted(jobs, key=lambda job: (place.get(job.cell.seed, 0), cost[job]))


def costs(study: Study, records: Records, jobs: Sequence[Job]) -> dict[Job, float]:
    """What each job still costs: seconds where some run of the study has been timed, else units of `Kind.work`.

    Seconds per unit are the median of the timed runs of the same setting on the same task, else of the setting, else of all.
    Diagnoses count as nothing: they are short.
    """
    rates: dict[tuple[str, ...], list[float]] = {}
    for cell in study.cells(list(study.config.settings), study.seeds):
        rows = records.rows(cell)
        frames, wall = (float(rows[-1]["env_frames"]), float(rows[-1]["wall_s"] or 0)) if rows else (0.0, 0.0)
        if frames > 0 and wall > 0:
            for key in ((cell.setting, cell.task), (cell.setting,), ()):
                rates.setdefault(key, []).append(wall / study.kind(cell).work(frames))
    found = {}
    for job in jobs:
        left = max(job.frames - records.frames(job.cell), 0.0) if job.what == "train" else 0.0
        keys = ((job.cell.setting, job.cell.task), (job.cell.setting,), ())
        rate = next((median(rates[key]) for key in keys if key in rates), 1.0)
        found[job] = study.kind(job.cell).work(left) * rate
    return found


def timed(study: Study, records: Records) -> bool:
    """Whether `costs` are seconds."""
    return any(records.rows(cell) for cell in study.cells(list(study.config.settings), study.seeds))


@dataclass
class Child:
    """A process that runs."""

    job: Job
    process: subprocess.Popen[bytes]
    log: Path
    begun: float
    commit: str


def run_queue(study: Study, records: Records, slots: int, say: Callable[[str], None] | None = None) -> int:
    """Runs what is missing, `slots` processes at a time. Returns the exit status: 0, 1 where runs failed, 130 where stopped.

    SIGTERM and Ctrl-C let every run save itself; a second Ctrl-C ends them at once.
    """
    say = say or partial(print, flush=True)
    failed: Failed = set()
    children: list[Child] = []
    asked = False
    with StopOnSignal() as stop:
        try:
            jobs = pending(study, records, failed)
            while children or (jobs and not stop.stopped):
                while jobs and len(children) < slots and not stop.stopped:
                    children.append(_started(study, records, jobs.pop(0), say))
                if stop.stopped and not asked:
                    asked = True
                    say(f"stopping: {len(children)} of the runs save themselves; Ctrl-C again ends them at once")
                    _signal(children, signal.SIGTERM)
                ended = [child for child in children if _ended(child, records, failed, stop.stopped, say)]
                if ended:
                    children = [child for child in children if child not in ended]
                    running = {child.job for child in children}
                    jobs = [job for job in pending(study, records, failed) if job not in running]
                else:
                    time.sleep(_POLL_S)
        finally:  # a second Ctrl-C, or a mistake of ours
            _signal(children, signal.SIGKILL)
    if stop.stopped:
        return 130
    for cell, frames in sorted(failed):
        say(f"failed: {cell} to {frames:,} frames")
    return 1 if failed else 0


def commit_now() -> str:
    """Short hash of the code that runs, with a + where files differ from it; empty outside of a repository."""
    options: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True, "check": False}
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **options)
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no", "--", "*.py", "*.yaml"], **options)
    except OSError:
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else ""


def _started(study: Study, records: Records, job: Job, say: Callable[[str], None]) -> Child:
    cell = job.cell
    log = records.root / "logs" / f"{cell.task.replace('/', '-')}-{cell.setting}-seed{cell.seed}-{job.what}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    training = job.what == "train"
    command = study.train(cell, job.frames, records.root) if training else study.diagnosis(cell, records.root)
    with log.open("wb") as file:  # its own process group: the terminal's Ctrl-C comes to the queue alone, which passes it on
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
    say(f"{job.what}: {cell}" + (f" to {job.frames:,} frames" if training else ""))
    return Child(job, process, log, time.monotonic(), commit_now())


def _ended(child: Child, records: Records, failed: Failed, stopped: bool, say: Callable[[str], None]) -> bool:
    """Whether a child has ended; if so, writes that down and says it."""
    pid, status, usage = os.wait4(child.process.pid, os.WNOHANG)
    if pid == 0:
        return False
    code = child.process.returncode = os.waitstatus_to_exitcode(status)
    wall, cpu, job = time.monotonic() - child.begun, usage.ru_utime + usage.ru_stime, child.job
    records.note(job, code, wall, cpu, child.commit)
    done = records.finished(job.cell, job.frames) and (job.what == "train" or records.diagnosed(job.cell))
    if code == 0 and done:
        say(f"done: {job.what} {job.cell} after {wall / 60:.1f} min, {cpu / 60:.1f} of CPU")
    elif stopped:
        say(f"stopped: {job.what} {job.cell}")
    else:
        failed.add((job.cell, job.frames))
        said = child.log.read_text(errors="replace").strip().splitlines()
        say(f"failed: {job.what} {job.cell}, exit status {code}: {said[-1] if said else 'it said nothing'} ({child.log})")
    return True


def _signal(children: Sequence[Child], number: signal.Signals) -> None:
    """Sends a signal to the processes that have not ended; the processes of their environments too where it is SIGKILL."""
    for child in children:
        if child.process.returncode is None:
            if number == signal.SIGKILL:
                os.killpg(child.process.pid, number)
                child.process.wait()
            else:
                # Not Popen's own, which takes the exit status of one that has just ended away from wait4.
                os.kill(child.process.pid, number)
