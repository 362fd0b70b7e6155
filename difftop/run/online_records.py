"""What a run that learns from rewards writes while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from difftop.run.checkpoint import Checkpoint
from difftop.run.cli import Settings
from difftop.run.online import OnlineRun
from difftop.run.records import Records
from difftop.run.rollouts import Rollouts
from difftop.run.session import save_video
from difftop.types import Batch, EnvSpec


class OnlineRecords(Records):
    """Also videos and the curve; it counts frames."""

    def __init__(self, folder: Path, settings: Settings, spec: EnvSpec, checkpoint: Checkpoint | None) -> None:
        super().__init__(folder, settings, spec, checkpoint, length=settings.run.frames, repeat=spec.action_repeat)
        self.failures = 0.0
        self.last_return: float | None = None

    def begin(self, run: OnlineRun, resumed: bool) -> None:
        """Says what is run, and where."""
        self.say_begin(run.frames, resumed)

    def end(self, run: OnlineRun, finished: bool) -> None:
        """Says how it ended."""
        self.close(run.frames, run.count.wall_s, "finished" if finished else None)

    def on_eval(self, run: OnlineRun, found: Rollouts) -> None:
        """A row of eval.csv, the video, and the curve drawn anew."""
        self.last_return = found.return_mean
        self.evaluated(found, run.frames, run.count.agent_steps, run.count.wall_s, {})
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
        self.checkpoint(run.count.agent_steps, run.agent, run.state_dict(), replay=run.replay)

    def save_batch(self, batch: Batch) -> Path:
        """The batch that made a loss non-finite."""
        return self.keep_batch(vars(batch))
