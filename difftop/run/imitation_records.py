"""What an imitation run writes while it trains."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file

from difftop.data.demonstrations import Demonstrations
from difftop.data.windows import WindowBatch
from difftop.run.checkpoint import Checkpoint, save_checkpoint
from difftop.run.cli import Settings, run_name
from difftop.run.logger import RunLogger
from difftop.run.offline import OfflineRun
from difftop.run.progress import Progress
from difftop.run.rollouts import Rollouts
from difftop.types import EnvSpec

log = logging.getLogger(__name__)


class ImitationRecords:
    """What a run writes while it trains: tables, TensorBoard events, checkpoints, and the progress line."""

    def __init__(self, folder: Path, settings: Settings, spec: EnvSpec, checkpoint: Checkpoint | None) -> None:
        self.folder, self.settings, self.spec = folder, settings, spec
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(settings.plain(), indent=2) + "\n")
        step = checkpoint.step if checkpoint else None
        rows = checkpoint.train_state["logger"] if checkpoint else None
        self.logger = RunLogger(folder, seed=settings.top.seed, resume_at=step, resume_frames=step or 0, rows=rows)
        self.progress = Progress(settings.run.grad_steps, frames=step or 0, unit="gradient steps")
        self.found: Rollouts | None = None

    def begin(
        self,
        run: OfflineRun,
        demonstrations: Demonstrations,
        training: Demonstrations,
        held_out: Demonstrations | None,
        *,
        resumed: bool,
    ) -> None:
        """Says what is trained on what, and where."""
        verb = f"continues at {run.count.grad_steps:,} of" if resumed else "runs for"
        windows = run.batches.windows
        short = len(training) - len(set(windows.episode.tolist()))
        too_short = f" (none of the {short} that are shorter than one)" if short else ""
        limit = self.settings.run.demos
        which = "the first" if limit and len(demonstrations) == limit else "all"
        held = f"{len(held_out)} held out for the validation loss" if held_out else "none held out"
        log.info("%s: %s %d demonstrations used, %d trained on and %s", demonstrations.path, which, *(
            len(demonstrations), len(training), held
        ))  # fmt: skip
        log.info("%s windows%s", f"{len(windows):,}", too_short)
        log.info("%s %s %s gradient steps in %s", run_name(self.settings), verb, f"{run.config.grad_steps:,}", self.folder)

    def end(self, run: OfflineRun, finished: bool) -> None:
        """Closes the records and says how it ended."""
        self.progress.close()
        self.logger.close()
        state = "trained" if finished else "stopped and saved; the same command goes on"
        log.info("%s at %s gradient steps after %.0f s", state, f"{run.count.grad_steps:,}", run.count.wall_s)

    def on_metrics(self, run: OfflineRun, metrics: Mapping[str, float]) -> None:
        """A row of metrics.csv and the progress line."""
        steps = run.count.grad_steps
        self.logger.training(env_frames=steps, agent_steps=steps, wall_s=run.count.wall_s, episode_return=None, metrics=metrics)
        self.progress.update(steps, note=f"loss {metrics['train/loss']:.4g}" + self._found())

    def on_select(self, run: OfflineRun, rollouts: Rollouts | None, validation: Mapping[str, float]) -> None:
        """A row of eval.csv."""
        steps, metrics = run.count.grad_steps, dict(validation)
        if rollouts is None:
            self.logger.training(
                env_frames=steps, agent_steps=steps, wall_s=run.count.wall_s, episode_return=None, metrics=metrics
            )
            return
        self.found = rollouts
        self.logger.evaluation(
            env_frames=steps,
            agent_steps=steps,
            wall_s=run.count.wall_s,
            return_mean=rollouts.return_mean,
            return_std=rollouts.return_std,
            success_mean=rollouts.success,
            episodes=len(rollouts.episodes),
            metrics=metrics | {f"eval/{tag.removeprefix('eval/')}": value for tag, value in rollouts.metrics.items()},
        )
        self.progress.message(f"{steps:,} gradient steps:{self._found()} of {len(rollouts.episodes)} selection episodes")

    def save(self, run: OfflineRun, best: bool) -> None:
        """A checkpoint that training goes on from; the best one is kept."""
        self.logger.sync()
        save_checkpoint(
            self.folder,
            step=run.count.grad_steps,
            agent_name=str(self.settings.agent["name"]),
            config=self.settings.plain(),
            spec=self.spec,
            model=run.agent.state_dict(),
            train_state={"agent": run.agent.train_state(), "run": run.state_dict(), "logger": self.logger.state_dict()},
            best=best,
        )

    @staticmethod
    def nonfinite_batch(folder: Path) -> Path:
        """Where such a batch is kept."""
        return folder / "nonfinite_batch.safetensors"

    def save_batch(self, batch: WindowBatch) -> Path:
        """The batch that made a loss non-finite."""
        path = self.nonfinite_batch(self.folder)
        tensors = {f"obs/{key}": value for key, value in batch.obs.items()} | {"actions": batch.actions, "mask": batch.mask}
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
        return path

    def _found(self) -> str:
        if self.found is None:
            return ""
        return f" success {self.found.success:.0%}" if self.found.judged else f" return {self.found.return_mean:.1f}"
