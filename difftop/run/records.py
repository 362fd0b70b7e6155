"""What every run writes while it trains: its configuration, tables and TensorBoard events, checkpoints, and the progress line."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Self

from safetensors.torch import save_file
from torch import Tensor

from difftop.contract import Agent
from difftop.run.checkpoint import Checkpoint, save_checkpoint
from difftop.run.cli import Settings, run_name
from difftop.run.logger import RunLogger
from difftop.run.progress import Progress
from difftop.run.rollouts import Rollouts
from difftop.types import EnvSpec
from difftop.written import write_whole

log = logging.getLogger(__name__)


class Records:
    """The records of a run of either kind.

    Args:
        folder: of the run.
        settings: as they were composed.
        spec: of the environment.
        checkpoint: that the run goes on from, None for a new one.
        length: of the whole run, in `unit`.
        repeat: units in one step of a checkpoint.
        unit: what the progress line counts.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        spec: EnvSpec,
        checkpoint: Checkpoint | None,
        *,
        length: int,
        repeat: int = 1,
        unit: str = "frames",
    ) -> None:
        self.folder, self.settings, self.spec, self.length, self.unit = folder, settings, spec, length, unit
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "config.json", json.dumps(settings.plain(), indent=2) + "\n")
        step = checkpoint.step if checkpoint else None
        rows = checkpoint.train_state["logger"] if checkpoint else None
        done = (step or 0) * repeat
        self.logger = RunLogger(folder, seed=settings.top.seed, resume_at=step, resume_frames=done, rows=rows)
        self.progress = Progress(length, frames=done, unit=unit)

    def __enter__(self) -> Self:
        """Itself; it is left with everything closed, however the run ends."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(OSError) if kind else nullcontext():  # what ended the run is said, not what followed from it
            self.logger.close()

    def say_begin(self, done: int, resumed: bool) -> None:
        """Says what is run, and where."""
        verb = f"continues at {done:,} of" if resumed else "runs for"
        log.info("%s %s %s %s in %s", run_name(self.settings), verb, f"{self.length:,}", self.unit, self.folder)

    def close(self, done: int, wall_s: float, how: str | None) -> None:
        """Ends the progress line and says how the run ended; None: before its end."""
        self.progress.close()
        state = how or "stopped and saved; the same command goes on"
        log.info("%s at %s %s after %.0f s: %s", state, f"{done:,}", self.unit, wall_s, self.folder)

    def evaluated(self, found: Rollouts, done: int, steps: int, wall_s: float, more: Mapping[str, float]) -> None:
        """A row of eval.csv, with metrics `more`."""
        self.logger.evaluation(
            env_frames=done,
            agent_steps=steps,
            wall_s=wall_s,
            return_mean=found.return_mean,
            return_std=found.return_std,
            success_mean=found.success,
            episodes=len(found.episodes),
            metrics={**more, **{f"eval/{tag.removeprefix('eval/')}": value for tag, value in found.metrics.items()}},
        )

    def checkpoint(self, step: int, agent: Agent, run: Mapping[str, Any], **more: Any) -> None:
        """Saves what training goes on from; `more` as `save_checkpoint` takes it."""
        self.logger.sync()
        save_checkpoint(
            self.folder,
            step=step,
            agent_name=str(self.settings.agent["name"]),
            config=self.settings.plain(),
            spec=self.spec,
            model=agent.state_dict(),
            train_state={"agent": agent.train_state(), "run": run, "logger": self.logger.state_dict()},
            **more,
        )

    def keep_batch(self, tensors: Mapping[str, Tensor]) -> Path:
        """Saves the batch that made a loss non-finite."""
        path = nonfinite_batch(self.folder)
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
        return path


def nonfinite_batch(folder: Path) -> Path:
    """Where a run keeps such a batch."""
    return folder / "nonfinite_batch.safetensors"
