"""What an imitation run writes while it trains."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from difftop.data.demonstrations import Demonstrations
from difftop.data.windows import WindowBatch
from difftop.run.checkpoint import Checkpoint
from difftop.run.cli import Settings
from difftop.run.offline import OfflineRun
from difftop.run.records import Records
from difftop.run.rollouts import Rollouts
from difftop.types import EnvSpec

log = logging.getLogger(__name__)


class ImitationRecords(Records):
    """It counts gradient steps; an evaluation selects the best of them."""

    def __init__(self, folder: Path, settings: Settings, spec: EnvSpec, checkpoint: Checkpoint | None) -> None:
        super().__init__(folder, settings, spec, checkpoint, length=settings.run.grad_steps, unit="gradient steps")
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
        windows = run.batches.windows
        self.progress.samples = run.batches.batch_size
        short = len(training) - len(set(windows.episode.tolist()))
        too_short = f" (none of the {short} that are shorter than one)" if short else ""
        limit = self.settings.run.demos
        which = "the first" if limit and len(demonstrations) == limit else "all"
        held = f"{len(held_out)} held out for the validation loss" if held_out else "none held out"
        log.info("%s: %s %d demonstrations used, %d trained on and %s", demonstrations.path, which, *(
            len(demonstrations), len(training), held
        ))  # fmt: skip
        log.info("%s windows%s", f"{len(windows):,}", too_short)
        self.say_begin(run.count.grad_steps, resumed)

    def end(self, run: OfflineRun, finished: bool) -> None:
        """Says how it ended."""
        self.close(run.count.grad_steps, run.count.wall_s, "trained" if finished else None)

    def on_metrics(self, run: OfflineRun, metrics: Mapping[str, float]) -> None:
        """A row of metrics.csv and the progress line."""
        self._row(run, metrics)
        self.progress.update(run.count.grad_steps, note=f"loss {metrics['train/loss']:.4g}" + self._found())

    def on_select(self, run: OfflineRun, rollouts: Rollouts | None, validation: Mapping[str, float]) -> None:
        """A row of eval.csv; of metrics.csv where nothing was played."""
        steps = run.count.grad_steps
        if rollouts is None:
            self._row(run, validation)
            return
        self.found = rollouts
        self.evaluated(rollouts, steps, steps, run.count.wall_s, validation)
        self.progress.message(f"{steps:,} gradient steps:{self._found()} of {len(rollouts.episodes)} selection episodes")

    def save(self, run: OfflineRun, best: bool) -> None:
        """A checkpoint that training goes on from; the best one is kept."""
        self.checkpoint(run.count.grad_steps, run.agent, run.state_dict(), best=best)

    def save_batch(self, batch: WindowBatch) -> Path:
        """The batch that made a loss non-finite."""
        obs = {f"obs/{key}": value for key, value in batch.obs.items()}
        return self.keep_batch(obs | {"actions": batch.actions, "mask": batch.mask})

    def _row(self, run: OfflineRun, metrics: Mapping[str, float]) -> None:
        steps = run.count.grad_steps
        self.logger.training(env_frames=steps, agent_steps=steps, wall_s=run.count.wall_s, episode_return=None, metrics=metrics)

    def _found(self) -> str:
        if self.found is None:
            return ""
        return f" success {self.found.success:.0%}" if self.found.judged else f" return {self.found.return_mean:.1f}"
