"""What a run that learns from rewards writes while it trains."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file

from difftop.run.checkpoint import Checkpoint, save_checkpoint
from difftop.run.cli import Settings, run_name
from difftop.run.logger import RunLogger
from difftop.run.online import OnlineRun
from difftop.run.progress import Progress
from difftop.run.rollouts import Rollouts
from difftop.run.session import save_video
from difftop.types import Batch, EnvSpec

log = logging.getLogger(__name__)


class OnlineRecords:
    """Tables, TensorBoard events, videos, the curve, checkpoints, and the progress line."""

    def __init__(self, folder: Path, settings: Settings, spec: EnvSpec, checkpoint: Checkpoint | None) -> None:
        self.folder, self.settings, self.spec = folder, settings, spec
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(settings.plain(), indent=2) + "\n")
        step = checkpoint.step if checkpoint else None
        rows = checkpoint.train_state["logger"] if checkpoint else None
        frames = (step or 0) * spec.action_repeat
        self.logger = RunLogger(folder, seed=settings.top.seed, resume_at=step, resume_frames=frames, rows=rows)
        self.progress = Progress(settings.run.frames, frames=frames)
        self.failures = 0.0
        self.last_return: float | None = None

    def begin(self, run: OnlineRun, resumed: bool) -> None:
        """Says what is run, and where."""
        verb = f"continues at {run.frames:,} of" if resumed else "runs for"
        log.info("%s %s %s frames in %s", run_name(self.settings), verb, f"{self.settings.run.frames:,}", self.folder)

    def end(self, run: OnlineRun, finished: bool) -> None:
        """Closes the records and says how it ended."""
        self.progress.close()
        self.logger.close()
        state = "finished" if finished else "stopped and saved; the same command goes on"
        log.info("%s at %s frames after %.0f s: %s", state, f"{run.frames:,}", run.count.wall_s, self.folder)

    def on_eval(self, run: OnlineRun, found: Rollouts) -> None:
        """A row of eval.csv, the video, and the curve drawn anew."""
        self.last_return = found.return_mean
        self.logger.evaluation(
            env_frames=run.frames,
            agent_steps=run.count.agent_steps,
            wall_s=run.count.wall_s,
            return_mean=found.return_mean,
            return_std=found.return_std,
            success_mean=found.success,
            episodes=len(found.episodes),
            metrics={f"eval/{tag.removeprefix('eval/')}": value for tag, value in found.metrics.items()},
        )
        success = f", success {found.success:.0%}" if found.judged else ""
        self.progress.message(f"{run.frames:,} frames: return {found.return_mean:.1f} +- {found.return_std:.1f}{success}")
        if found.frames:
            save_video(self.folder / "videos" / f"eval_{run.frames:09d}.mp4", found.frames, self.spec)
        from difftop.plot import plot_run

        plot_run(self.folder)

    def on_metrics(self, run: OnlineRun, metrics: Mapping[str, float]) -> None:
        """A row of metrics.csv and the progress line."""
        self.failures += metrics.get("plan/failures", 0.0)
        self.logger.training(
            env_frames=run.frames,
            agent_steps=run.count.agent_steps,
            wall_s=run.count.wall_s,
            episode_return=metrics.get("train/return"),
            metrics=metrics,
        )
        self.progress.update(run.frames, last_return=self.last_return, failures=int(self.failures))

    def save(self, run: OnlineRun) -> None:
        """A checkpoint that training goes on from."""
        self.logger.sync()
        save_checkpoint(
            self.folder,
            step=run.count.agent_steps,
            agent_name=str(self.settings.agent["name"]),
            config=self.settings.plain(),
            spec=self.spec,
            model=run.agent.state_dict(),
            train_state={"agent": run.agent.train_state(), "run": run.state_dict(), "logger": self.logger.state_dict()},
            replay=run.replay,
        )

    def save_batch(self, batch: Batch) -> Path:
        """The batch that made a loss non-finite."""
        path = self.folder / "nonfinite_batch.safetensors"
        save_file({key: value.contiguous() for key, value in vars(batch).items()}, path)
        return path
