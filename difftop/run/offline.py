"""The offline loop: demonstrations to gradient steps, validation, and evaluations that choose a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difftop.data.demonstrations import Demonstrations
from difftop.data.windows import WindowBatch, Windows
from difftop.losses import NonFiniteLossError
from difftop.options import option
from difftop.run.ahead import Ahead
from difftop.run.online import RunError, StopSignal, non_finite
from difftop.run.protocols import PROTOCOLS
from difftop.run.rollouts import Rollouts
from difftop.run.seeding import stream, torch_generator
from difftop.run.workers import ALONE, Workers

_VALIDATION_BATCH = 256
_VALIDATION_WINDOWS = 2048  # at most, spread over the demonstrations that are held out


@dataclass(frozen=True)
class OfflineConfig:
    """Length and cadence of an imitation run, its demonstrations, and how it is evaluated."""

    grad_steps: int = option(
        10_000, "length of the run, short enough for a laptop; experiment=diffusion and others: the papers'", low=1
    )
    batch_size: int = option(64, "windows per gradient step", low=1)
    demos: int = option(
        0, "demonstrations to use (of each file), or to make (mode=demos, no dataset); 0: all of a file, 50 of an expert", low=0
    )
    expert_noise: float = option(0.1, "where demonstrations are made: standard deviation added to the expert's actions", low=0)
    expert_labels: str = option(
        "executed",
        "actions in them: as executed, noise included, or as the expert intended",
        choices=("executed", "intended"),
    )
    valid_fraction: float = option(0.1, "of the demonstrations that are held out for the validation loss", low=0, high=0.9)
    cache_mb: int = option(0, "memory for images of the demonstrations, MB; 0: half of what is free", low=0)
    loading: str = option(
        "auto",
        "batches made ahead by a thread, or when they are wanted; auto: ahead on a GPU",
        choices=("auto", "ahead", "inline"),
    )
    protocol: str = option("difftop", "episodes, their length and seeds in the reported evaluation", choices=tuple(PROTOCOLS))
    eval_every: int = option(2_000, "gradient steps between evaluations that choose the best checkpoint", low=1)
    select_episodes: int = option(10, "episodes in each of them; 0 for none: the last checkpoint is reported", low=0)
    eval_episodes: int = option(-1, "episodes that are reported at the end; -1 as the protocol says, 0 for none", low=-1)
    eval_envs: int = option(10, "evaluation environments that step together", low=1)
    parallel: str = option(
        "auto",
        "a process for each of them; auto: where they draw images or points, are several, and there is a second core",
        choices=("auto", "true", "false"),
    )
    video: bool = option(True, "record the first episode that is reported, as mp4")
    checkpoint_every: int = option(2_000, "gradient steps between checkpoints", low=1)
    log_every: int = option(100, "gradient steps between two rows of metrics", low=1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parallel", str(self.parallel).lower())  # true and false arrive as words for a boolean

    @property
    def reported_episodes(self) -> int:
        """Episodes of the reported evaluation."""
        return PROTOCOLS[self.protocol].episodes if self.eval_episodes < 0 else self.eval_episodes

    @property
    def simulates(self) -> bool:
        """Whether the run needs a simulator at all."""
        return self.select_episodes > 0 or self.reported_episodes > 0


def split(demonstrations: Demonstrations, fraction: float, seed: int) -> tuple[Demonstrations, Demonstrations | None]:
    """Training and held-out demonstrations; at least one trains, and none is held out for a fraction of 0."""
    count = len(demonstrations)
    held = min(round(fraction * count), count - 1) if fraction > 0 else 0
    order = torch.randperm(count, generator=torch_generator(seed, "split")).tolist()
    training = demonstrations.only(sorted(order[held:]))
    return training, demonstrations.only(sorted(order[:held])) if held else None


class Batches:
    """Batches of windows, epoch by epoch without replacement; the k-th batch is a function of k and the seed.

    Where data sets have shares, the windows of an epoch are drawn with replacement, each with its data set's share.

    Args:
        windows: to draw from.
        batch_size: B; all windows where there are fewer. The rest of an epoch that fills no batch is left out.
        seed: of the epochs' orders.
        workers: among whom each batch is shared.
    """

    def __init__(self, windows: Windows, batch_size: int, seed: int, workers: Workers = ALONE) -> None:
        self.windows, self.seed = windows, seed
        self.batch_size = min(batch_size, len(windows))
        self.per_epoch = len(windows) // self.batch_size
        self.workers = workers
        if self.batch_size % workers.count:
            raise RunError(
                f"{workers.count} workers can't share batches of {self.batch_size} windows: make run.batch_size a multiple of "
                f"{workers.count}."
            )
        self._epoch, self._order = -1, torch.zeros(0, dtype=torch.int64)

    def batch(self, number: int) -> WindowBatch:
        """The `number`-th batch, from 0; this worker's share of it."""
        epoch, place = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            generator = torch_generator(self.seed, "epoch", epoch)
            self._epoch, weights = epoch, self.windows.weights
            if weights is None:
                self._order = torch.randperm(len(self.windows), generator=generator)
            else:
                drawn = torch.rand(len(weights), generator=generator, dtype=torch.float64)
                self._order = torch.searchsorted(weights.cumsum(0) / weights.sum(), drawn).clamp_max(len(weights) - 1)
        return self.windows.gather(self.workers.share(self._order[place * self.batch_size : (place + 1) * self.batch_size]))


@dataclass
class OfflineCounters:
    """Where the run is; `best` is the best checkpoint's score, at gradient step `best_at`, which is -1 before there is one."""

    grad_steps: int = 0
    best: float = -1.0
    best_at: int = -1
    wall_s: float = 0.0
    loading_s: float = 0.0


@dataclass(frozen=True)
class OfflineHooks:
    """What the loop calls; the session decides what is written where. A worker that doesn't lead is asked for the first two."""

    stop: StopSignal
    save_batch: Callable[[WindowBatch], Path]
    select: Callable[[OfflineRun], Rollouts | None] = lambda run: None
    on_metrics: Callable[[OfflineRun, Mapping[str, float]], None] = lambda run, metrics: None
    on_select: Callable[[OfflineRun, Rollouts | None, Mapping[str, float]], None] = lambda run, found, metrics: None
    save: Callable[[OfflineRun, bool], None] = lambda run, best: None


class OfflineRun:
    """Trains an imitation agent on windows of demonstrations.

    Everything is a function of the configuration, the demonstrations and the seed: a run that was stopped goes on as if it had
    not been. The checkpoint with the highest score (success, or the return where success isn't judged) over the selection
    episodes is marked as the best, the later one among equals; these episodes' seeds are never those of the reported evaluation.

    Args:
        agent: see `agents.policies.training.ImitationAgent`.
        demonstrations: to train on.
        held_out: for the validation loss, or None.
        config: length and cadence.
        seed: of every random stream.
        hooks: where results, metrics and checkpoints go.
        workers: that train together; only the first one validates, evaluates and saves.
    """

    def __init__(
        self,
        agent: Any,
        demonstrations: Demonstrations,
        held_out: Demonstrations | None,
        config: OfflineConfig,
        *,
        seed: int,
        hooks: OfflineHooks,
        workers: Workers = ALONE,
    ) -> None:
        self.agent, self.config, self.seed, self.hooks, self.workers = agent, config, seed, hooks, workers
        self.batches = Batches(_windows(demonstrations, agent.windows), config.batch_size, stream(seed, "batches"), workers)
        cuda = agent.device.type == "cuda"
        wanted = config.loading == "ahead" or (config.loading == "auto" and cuda)
        self.ahead = Ahead(self.batches.batch, config.grad_steps, pinned=cuda) if wanted else None
        self.validation = _fitting_windows(held_out, agent.windows)
        self.count = OfflineCounters()
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._batch: WindowBatch | None = None  # the newest

    def run(self) -> bool:
        """Runs to the end or until a stop is asked for; saves in both cases. Returns whether the end was reached."""
        try:
            return self._run()
        finally:
            if self.ahead:
                self.ahead.close()

    def _run(self) -> bool:
        begun = time.monotonic() - self.count.wall_s
        if self.count.grad_steps < self.config.grad_steps:
            self.agent.prepare_(self.batches.windows)
        while self.count.grad_steps < self.config.grad_steps:
            self._update()
            self.count.wall_s = time.monotonic() - begun
            last = self.count.grad_steps == self.config.grad_steps
            stop = self.workers.any(self.hooks.stop.stopped)
            if last or stop or self._due():
                self._check_finite()
            if self.workers.leads:
                self._record(last, stop)
            if stop:
                return last
        return True

    def _due(self) -> bool:
        """Whether a row of metrics, an evaluation or a checkpoint is due."""
        config = self.config
        return any(self.count.grad_steps % n == 0 for n in (config.log_every, config.eval_every, config.checkpoint_every))

    def _check_finite(self) -> None:
        """Stops where an agent on a GPU has met a non-finite loss, in every worker; see `difftop.contract.Agent.check_finite`."""
        try:
            self.agent.check_finite()
        except NonFiniteLossError as error:
            where = "actions and observations, or lower agent.training.learning_rate"
            path = None if self._batch is None else self.hooks.save_batch(self._batch)
            raise non_finite(error, max(self.count.grad_steps - 1, 0), path, where) from error

    def _record(self, last: bool, stop: bool) -> None:
        """What is due after a gradient step: a row of metrics, an evaluation, a checkpoint."""
        steps, config = self.count.grad_steps, self.config
        if steps % config.log_every == 0 or last:
            self._report()
        best = (steps % config.eval_every == 0 or last) and self._select()
        if best or last or stop or steps % config.checkpoint_every == 0:
            self.hooks.save(self, best)

    def _update(self) -> None:
        begun = time.monotonic()
        made = self.ahead or self.batches
        self._batch = batch = made.batch(self.count.grad_steps)
        self.count.loading_s += time.monotonic() - begun
        try:
            metrics = self.agent.update(batch, self.count.grad_steps).metrics
        except NonFiniteLossError as error:
            path = self.hooks.save_batch(batch)
            raise RunError(
                f"{error} at gradient step {self.count.grad_steps}; the last checkpoint is whole, and the batch is in {path}: "
                "look at its largest actions and observations, or lower agent.training.learning_rate."
            ) from error
        self.count.grad_steps += 1
        for tag, value in metrics.items():
            total, n = self._sums.get(tag, (torch.zeros(()), 0))
            self._sums[tag] = (total + value.detach(), n + 1)

    def _report(self) -> None:
        means = {tag: float(total) / n for tag, (total, n) in self._sums.items()}
        share = self.count.loading_s / max(self.count.wall_s, 1e-9)
        self.hooks.on_metrics(self, means | {"time/loading_share": share, "train/epoch": self.epoch})
        self._sums = {}

    @property
    def epoch(self) -> float:
        """Passes through the training windows so far."""
        return self.count.grad_steps / self.batches.per_epoch

    def _select(self) -> bool:
        """Validation and selection; returns whether this is the best checkpoint so far."""
        if self.ahead:
            self.ahead.rest()  # validation reads the same files
        validation = self.validate()
        found = self.hooks.select(self)
        self.hooks.on_select(self, found, validation)
        score = found.score if found is not None else 0.0
        if self.count.best_at >= 0 and score < self.count.best:
            return False
        self.count.best, self.count.best_at = score, self.count.grad_steps
        return True

    def validate(self) -> dict[str, float]:
        """Mean metrics over held-out windows, weighted by the windows of each batch; empty where none are held out."""
        if self.validation is None:
            return {}
        count = len(self.validation)
        chosen = torch.linspace(0, count - 1, min(count, _VALIDATION_WINDOWS)).round().long()
        sums: dict[str, float] = {}
        for number, index in enumerate(torch.split(chosen, _VALIDATION_BATCH)):
            found = self.agent.validate(self.validation.gather(index), stream(self.seed, "validation", number))
            for tag, value in found.items():
                sums[tag] = sums.get(tag, 0.0) + float(value) * len(index) / len(chosen)
        return sums

    def state_dict(self) -> dict[str, Any]:
        """Everything but the agent."""
        return {"count": dict(vars(self.count)), "sums": {tag: [total, n] for tag, (total, n) in self._sums.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""
        self.count = OfflineCounters(**state["count"])
        self._sums = {tag: (total, n) for tag, (total, n) in state["sums"].items()}


def _windows(demonstrations: Demonstrations, shape: Any) -> Windows:
    try:
        return demonstrations.windows(shape.window, shape.horizon, pad_before=shape.pad_before, pad_after=shape.pad_after)
    except ValueError as error:
        raise RunError(str(error)) from error


def _fitting_windows(held_out: Demonstrations | None, shape: Any) -> Windows | None:
    """Held-out demonstrations that are all too short for a window give no validation loss, rather than no run."""
    try:
        return None if held_out is None else _windows(held_out, shape)
    except RunError:
        return None
