"""What a run writes down: `metrics.csv`, `eval.csv` and TensorBoard events, all of which survive a kill and a resume."""

from __future__ import annotations

import csv
import io
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

EVAL_COLUMNS = ("env_frames", "agent_steps", "return_mean", "return_std", "success_mean", "episodes", "wall_s")
TRAINING_COLUMNS = ("step", "reward", "seed", "agent_steps", "wall_s")

Value = float | int | str | None


class CsvError(ValueError):
    """A CSV file that can't be read; the message names file, line and what is wrong."""


class CsvLog:
    """A table that grows by rows, and by columns when a row brings a new one.

    A row is one write, so that a kill leaves a readable file; new columns rewrite the file beside and rename it. Rows are kept
    in the file only: in memory those of a long run would grow without end.

    Args:
        path: the CSV; continued if it exists.
        columns: that come first, whatever a row holds.
        resume_at: agent steps of the checkpoint that the run goes on from. Rows of later agent steps, a last row that was cut
            off, and columns that only such rows used are dropped; so the finished file equals an uninterrupted run's. None
            starts the file again.
        rows: rows there were at that checkpoint, where known: rows of the same agent steps may have been written after it.
    Raises:
        CsvError: a file to continue isn't such a table.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], *, resume_at: int | None = None, rows: int | None = None) -> None:
        self.path = path
        self._columns = list(columns)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = self._resumed(resume_at, rows) if resume_at is not None and path.exists() else []
        self._count = len(kept)
        self._rewrite(kept)

    def __len__(self) -> int:
        """Rows written."""
        return self._count

    def write(self, row: Mapping[str, Value]) -> None:
        """Appends a row; None is an empty cell."""
        cells = {key: _text(value) for key, value in row.items() if value is not None}
        new = [key for key in cells if key not in self._columns]
        if new:
            rows = list(self._whole_lines())
            self._columns += new
            self._rewrite([*rows, cells])
        else:
            with self.path.open("a", newline="") as file:
                file.write(self._format([cells]))
        self._count += 1

    def sync(self) -> None:
        """Forces all rows to disk; called before a checkpoint, so that it never is ahead of the table."""
        with self.path.open("a") as file:
            os.fsync(file.fileno())

    def _whole_lines(self) -> csv.DictReader[str]:
        """The rows of the file, without one that was cut off."""
        text = self.path.read_text()
        return csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))

    def _resumed(self, agent_steps: int, rows: int | None) -> list[dict[str, str]]:
        """The rows to go on from; their columns become the table's."""
        reader, kept = self._whole_lines(), list[dict[str, str]]()
        columns = list(reader.fieldnames or [])
        if columns and "agent_steps" not in columns:
            raise CsvError(f"{self.path} has no column agent_steps, so it can't be continued: move it away.")
        for row in reader:
            try:
                keep = int(row["agent_steps"]) <= agent_steps
            except (TypeError, ValueError) as error:
                raise CsvError(
                    f"{self.path}:{reader.line_num}: agent_steps is {row['agent_steps']!r}, not a whole number."
                ) from error
            if keep and (rows is None or len(kept) < rows):
                kept.append({key: value for key, value in row.items() if key in columns and value})
        used = {key for row in kept for key in row}
        self._columns += [key for key in columns if key in used and key not in self._columns]
        return kept

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        header = io.StringIO()
        csv.writer(header, lineterminator="\n").writerow(self._columns)
        temporary = self.path.with_name(f".writing_{self.path.name}")
        temporary.write_text(header.getvalue() + self._format(rows))
        os.replace(temporary, self.path)

    def _format(self, rows: list[dict[str, str]]) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([row.get(column, "") for column in self._columns] for row in rows)
        return text.getvalue()


class EventWriter(Protocol):
    """The part of TensorBoard's `SummaryWriter` that we use."""

    def add_scalar(self, tag: str, value: float, step: int) -> Any:
        """One point."""

    def flush(self) -> None:
        """Writes what is pending."""

    def close(self) -> None:
        """Ends the file."""


class RunLogger:
    """Writes a run's numbers; the x axis of everything is `env_frames`.

    `metrics.csv` holds training rows: `step` (env frames), `reward` (return of the training episode), `seed`, `agent_steps`,
    `wall_s` and one column per tag. `eval.csv` holds one row per evaluation. TensorBoard gets the same numbers.

    Args:
        folder: the run's folder.
        seed: of the run.
        resume_at: agent steps of the checkpoint that the run goes on from; None for a new run.
        resume_frames: its environment frames.
        rows: what `state_dict` gave at that checkpoint; without it a row of the checkpoint's very agent steps that was written
            after it (an evaluation, when the save came just before it) would stay and be written again.
        tensorboard: write events too (the import takes about two seconds).
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        seed: int,
        resume_at: int | None = None,
        resume_frames: int = 0,
        rows: Mapping[str, int] | None = None,
        tensorboard: bool = True,
    ) -> None:
        self._seed = seed
        rows = rows or {}
        self._training = CsvLog(Path(folder) / "metrics.csv", TRAINING_COLUMNS, resume_at=resume_at, rows=rows.get("training"))
        self._evaluations = CsvLog(Path(folder) / "eval.csv", EVAL_COLUMNS, resume_at=resume_at, rows=rows.get("evaluation"))
        self._events = _event_writer(Path(folder) / "tensorboard", resume_at, resume_frames) if tensorboard else None

    def training(
        self, *, env_frames: int, agent_steps: int, wall_s: float, episode_return: float | None, metrics: Mapping[str, float]
    ) -> None:
        """A row of training metrics; `episode_return` is None where no episode ended."""
        row: dict[str, Value] = {
            "step": env_frames,
            "reward": episode_return,
            "seed": self._seed,
            "agent_steps": agent_steps,
            "wall_s": round(wall_s, 2),
        }
        self._training.write(row | dict(metrics))
        self._event(env_frames, metrics)

    def evaluation(
        self,
        *,
        env_frames: int,
        agent_steps: int,
        wall_s: float,
        return_mean: float,
        return_std: float,
        success_mean: float | None,
        episodes: int,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """A row of an evaluation; `success_mean` None or NaN, where the environment knows no success, is an empty cell."""
        if success_mean is not None and math.isnan(success_mean):
            success_mean = None
        row: dict[str, Value] = {
            "env_frames": env_frames,
            "agent_steps": agent_steps,
            "return_mean": return_mean,
            "return_std": return_std,
            "success_mean": success_mean,
            "episodes": episodes,
            "wall_s": round(wall_s, 2),
        }
        self._evaluations.write(row | dict(metrics or {}))
        scalars = {"eval/return_mean": return_mean, "eval/return_std": return_std} | dict(metrics or {})
        self._event(env_frames, scalars if success_mean is None else scalars | {"eval/success_mean": success_mean})

    def state_dict(self) -> dict[str, int]:
        """How many rows each table has; for the checkpoint, and for `rows` on resume."""
        return {"training": len(self._training), "evaluation": len(self._evaluations)}

    def sync(self) -> None:
        """Forces everything to disk; call it before saving a checkpoint."""
        self._training.sync()
        self._evaluations.sync()
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Ends the event file; the tables need no closing."""
        if self._events is not None:
            self._events.close()

    def _event(self, env_frames: int, scalars: Mapping[str, float]) -> None:
        if self._events is not None:
            for tag, value in scalars.items():
                self._events.add_scalar(tag, value, env_frames)


def _event_writer(folder: Path, resume_at: int | None, resume_frames: int) -> EventWriter:
    from torch.utils.tensorboard import SummaryWriter

    _quiet_writers()
    # TensorBoard drops what an earlier life of the run wrote from purge_step on.
    writer: EventWriter = SummaryWriter(str(folder), purge_step=None if resume_at is None else resume_frames + 1)
    return writer


def _quiet_writers() -> None:
    """No traceback of TensorBoard's thread where a disk is full: the next event, or the end of the run, raises the same error."""
    previous = threading.excepthook
    if getattr(previous, "quiets_writers", False):
        return

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            previous(args)

    hook.quiets_writers = True  # type: ignore[attr-defined]
    threading.excepthook = hook


def _text(value: float | int | str) -> str:
    return format(value, ".8g") if isinstance(value, float) else str(value)
