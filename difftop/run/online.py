"""The online loop: act, store, update, evaluate, checkpoint; a state machine that can stop and go on anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from difftop.contract import OnlineAgent
from difftop.data.replay import Episode, ReplayBuffer
from difftop.losses import NonFiniteLossError
from difftop.noise import mixed_noise
from difftop.options import option
from difftop.run.rollouts import Array, Environments, Rollouts, roll_out
from difftop.run.seeding import stream
from difftop.types import Batch


@dataclass(frozen=True)
class RunConfig:
    """Length, cadence and memory of an online run."""

    frames: int = option(500_000, "length of the run, in environment frames (agent steps x action repeat)", low=1)
    seed_steps: int = option(5_000, "agent steps of random actions before the first update", low=1)
    seed_noise: str = option(
        "white",
        "random actions: uniform and independent, or Gaussian of a time scale that each episode draws",
        choices=("white", "mixed"),
    )
    updates_per_step: float = option(1.0, "gradient steps per agent step", low=0)
    batch_size: int = option(512, "slices per gradient step", low=1)
    num_envs: int = option(1, "training environments that step together", low=1)
    parallel: bool = option(False, "a process for each environment; pays for pixels with several environments and free cores")
    eval_every: int = option(20_000, "frames between evaluations", low=1)
    eval_episodes: int = option(10, "episodes per evaluation", low=1)
    eval_envs: int = option(5, "evaluation environments that step together", low=1)
    video: bool = option(True, "record the first episode of each evaluation as mp4")
    checkpoint_every: int = option(20_000, "frames between checkpoints", low=1)
    capacity: int = option(1_000_000, "replay size, in transitions", low=1)
    prioritized: bool = option(True, "prioritized replay; false samples uniformly")
    prioritized_while_rare: bool = option(
        False, "with prioritized: only until rewards come; slices are drawn uniformly in twice the share of steps that have one"
    )
    replay_device: str = option(
        "auto",
        "where the replay buffer lives; auto: on the run's GPU where half of it holds the buffer",
        choices=("auto", "cpu", "cuda"),
    )


class RunError(RuntimeError):
    """The run can't go on; one sentence says why and where to look."""


def non_finite(error: NonFiniteLossError, grad_steps: int, batch: Path | None, where: str) -> RunError:
    """The end of a run on a GPU, where a non-finite loss is known only when the next row or checkpoint is written."""
    kept = f", and the newest batch, perhaps a later one, is in {batch}" if batch else ""
    return RunError(
        f"{error} at or before gradient step {grad_steps}, where the weights have stayed; the last checkpoint is whole{kept}: "
        f"look at its largest {where}. A run of another name with capture=false device=cpu stops at the step itself, and saves "
        "its batch."
    )


class StopSignal(Protocol):
    """Becomes true when the user asks the run to stop."""

    @property
    def stopped(self) -> bool:
        """Whether a stop was asked for."""


@dataclass
class Slot:
    """One training environment's episode in progress; a function of `number` and `actions`, so only these are saved."""

    number: int
    obs: list[Array] = field(default_factory=list)
    actions: list[Array] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    successes: list[float] = field(default_factory=list)
    noise: Tensor | None = None  # of the seed phase; a function of `number`


@dataclass
class Counters:
    """Where the run is. `pending` gradient steps are owed; while `bursting` they are paid before the next agent step."""

    agent_steps: int = 0
    grad_steps: int = 0
    episodes: int = 0
    next_eval: int = 0
    next_checkpoint: int = 0
    pending: float = 0.0
    bursting: bool = False
    evaluated_at: int = -1
    wall_s: float = 0.0
    told: int = 0  # episodes that tell how rare rewards are: those that don't stray from what was learned
    rewarded: float = 0.0  # share of steps with a reward other than 0, in the last ten of them or so

    @property
    def rare(self) -> float:
        """How rare rewards are, in [0, 1]: 1 where no step has one, 0 where half of them have."""
        return max(0.0, 1 - 2 * self.rewarded)


class OnlineRun:
    """Trains an agent in its environments.

    The loop follows TD-MPC: for every agent step `updates_per_step` gradient steps are owed, and all that are owed are paid when
    an episode ends, beginning after `seed_steps` random agent steps (whose gradient steps are owed too).

    Everything it does is a function of the configuration and the seed. An episode is a function of its number and its
    actions, so a checkpoint in the middle of one keeps the actions and plays them again on resume, checking that the
    observations agree.

    Args:
        agent: learns from rewards.
        envs: training environments, with one observation.
        eval_envs: separate ones for evaluation.
        replay: replay buffer with the agent's horizon.
        config: length and cadence.
        seed: of every random stream.
        hooks: where results, metrics and checkpoints go.
    """

    def __init__(
        self,
        agent: OnlineAgent,
        envs: Environments,
        eval_envs: Environments,
        replay: ReplayBuffer,
        config: RunConfig,
        *,
        seed: int,
        hooks: Hooks,
    ) -> None:
        self.agent, self.spec, self.envs, self.eval_envs = agent, envs.difftop_spec, envs, eval_envs
        self.key = self.spec.only_key
        self.replay, self.config, self.seed, self.hooks = replay, config, seed, hooks
        self.actor = agent.actor(envs.num_envs, seed=stream(seed, "actor"), explore=True)
        self.random = torch.Generator().manual_seed(stream(seed, "random_actions"))
        self.sampling = torch.Generator(replay.device).manual_seed(stream(seed, "replay"))
        self.count = Counters()
        self.slots: list[Slot] = []
        self._sums: dict[str, tuple[Tensor | float, int]] = {}
        self._batch: Batch | None = None  # the newest

    @property
    def frames(self) -> int:
        """Environment frames so far."""
        return self.count.agent_steps * self.spec.action_repeat

    def run(self) -> bool:
        """Runs to the end or until a stop is asked for; saves in both cases. Returns whether the end was reached."""
        begun = time.monotonic() - self.count.wall_s
        if not self.slots:
            self.slots = [self._begin(i) for i in range(self.envs.num_envs)]
        while self.frames < self.config.frames or self.count.bursting:
            self._unit()
            self.count.wall_s = time.monotonic() - begun
            if self.hooks.stop.stopped:
                self._save()
                return False
        if self.count.evaluated_at < self.count.agent_steps:
            self._evaluate()
            self._save()
        return True

    def _unit(self) -> None:
        """The next unit of work: an evaluation, a checkpoint, a gradient step or an agent step."""
        count, config = self.count, self.config
        if count.bursting:
            if count.pending >= 1:
                self._update()
            else:
                count.bursting = False
        elif self.frames >= count.next_eval:
            count.next_eval = (self.frames // config.eval_every + 1) * config.eval_every
            if count.evaluated_at < count.agent_steps:
                self._evaluate()
        elif self.frames >= count.next_checkpoint:
            count.next_checkpoint = (self.frames // config.checkpoint_every + 1) * config.checkpoint_every
            self._save()
        else:
            self._step()

    def _begin(self, index: int) -> Slot:
        slot = Slot(self.count.episodes)
        self.count.episodes += 1
        seed = stream(self.seed, "train_env", slot.number)
        slot.obs.append(self.envs.reset_at(index, seed)[self.key])
        self.actor.begin(index, seed)
        return slot

    def _step(self) -> None:
        obs = {self.key: torch.from_numpy(np.stack([slot.obs[-1] for slot in self.slots]))}
        t0 = torch.tensor([not slot.actions for slot in self.slots])
        if self.count.agent_steps < self.config.seed_steps:
            actions = self._random_actions()
        else:
            actions = self.actor.act(obs, t0, self.count.agent_steps).cpu()
        chosen = actions.numpy()
        next_obs, rewards, terminated, truncated, infos = self.envs.step(chosen)
        self.count.agent_steps += len(self.slots)
        self.count.pending += self.config.updates_per_step * len(self.slots)
        for i, slot in enumerate(self.slots):
            slot.obs.append(next_obs[self.key][i])
            slot.actions.append(chosen[i])
            slot.rewards.append(float(rewards[i]))
            if "success" in infos[i]:
                slot.successes.append(float(infos[i]["success"]))
            if terminated[i] or truncated[i]:
                self._finish(i, bool(terminated[i]))

    def _random_actions(self) -> Tensor:
        """Of the seed phase `[N, A]`: uniform, or of each episode's own noise, a function of its number and its steps."""
        if self.config.seed_noise == "white":
            return torch.rand(len(self.slots), self.spec.action_dim, generator=self.random) * 2 - 1
        for slot in self.slots:
            if slot.noise is None:
                seed = stream(self.seed, "seed_noise", slot.number)
                slot.noise = mixed_noise(self.spec.episode_steps, self.spec.action_dim, seed).clamp(-1, 1)
        return torch.stack([slot.noise[len(slot.actions) % len(slot.noise)] for slot in self.slots if slot.noise is not None])

    def _finish(self, index: int, terminated: bool) -> None:
        """Stores the episode that has ended, lets the updates that are owed begin, and starts the next episode."""
        slot = self.slots[index]
        newest = slice(-self.replay.frame_shape[0], None)  # of stacked frames: replay stacks them itself
        ends = torch.zeros(len(slot.actions), dtype=torch.bool)
        ends[-1] = terminated
        self.replay.add(
            Episode(
                obs=torch.from_numpy(np.stack([o[newest] for o in slot.obs])),
                action=torch.from_numpy(np.stack(slot.actions)),
                reward=torch.tensor(slot.rewards, dtype=torch.float32),
                terminated=ends,
            )
        )
        if self.count.agent_steps <= self.config.seed_steps or self.actor.tells(index):
            self.count.told += 1
            share = sum(reward != 0 for reward in slot.rewards) / len(slot.rewards)
            self.count.rewarded += max(0.1, 1 / self.count.told) * (share - self.count.rewarded)
        self._gather(
            {"train/return": sum(slot.rewards), "train/episode_steps": float(len(slot.actions)), "train/rare": self.count.rare}
        )
        if slot.successes:
            self._gather({"train/success": max(slot.successes)})
        self._gather(self._learned_from_episode())
        self._gather(self.actor.metrics())
        self.count.bursting = self.count.agent_steps >= self.config.seed_steps and self.replay.num_starts > 0
        self.slots[index] = self._begin(index)
        self._report()

    def _learned_from_episode(self) -> Mapping[str, Tensor]:
        try:
            metrics: dict[str, Tensor] = self.agent.finish_episode(self.actor, self.count.rare, self.count.agent_steps)
            return metrics
        except NonFiniteLossError as error:
            raise RunError(
                f"{error} after {self.count.grad_steps} gradient steps, and the weights have stayed; the last checkpoint is "
                "whole: look at the episode's rewards, or lower agent.loss.learning_rate."
            ) from error

    def _update(self) -> None:
        evenly = 1 - self.count.rare if self.config.prioritized_while_rare else 0.0
        self._batch = batch = self.replay.sample(self.config.batch_size, self.sampling, uniform=evenly)
        try:
            result = self.agent.update(batch, self.count.agent_steps)
        except NonFiniteLossError as error:
            path = self.hooks.save_batch(batch)
            raise RunError(
                f"{error} at gradient step {self.count.grad_steps}; the last checkpoint is whole, and the batch is in {path}: "
                "look at its largest rewards and observations, or lower agent.loss.learning_rate."
            ) from error
        if result.priorities is not None and self.config.prioritized:
            self.replay.update_priorities(batch.index, result.priorities)
        self.count.pending -= 1
        self.count.grad_steps += 1
        self._gather(result.metrics)

    def _check_finite(self) -> None:
        """Stops where an agent on a GPU has met a non-finite loss; see `difftop.contract.Agent.check_finite`."""
        try:
            self.agent.check_finite()
        except NonFiniteLossError as error:
            where = "rewards and observations, or lower agent.loss.learning_rate"
            path = None if self._batch is None else self.hooks.save_batch(self._batch)
            raise non_finite(error, max(self.count.grad_steps - 1, 0), path, where) from error

    def _save(self) -> None:
        self._check_finite()
        self.hooks.save(self)

    def _evaluate(self) -> None:
        steps = self.count.evaluated_at = self.count.agent_steps  # its seeds don't depend on how many evaluations there were
        seeds = [stream(self.seed, "eval_env", steps, episode) for episode in range(self.config.eval_episodes)]
        found = roll_out(
            self.eval_envs,
            lambda n: self.agent.actor(n, seed=stream(self.seed, "eval_actor", steps), explore=False),
            seeds,
            steps=steps,
            record=self.config.video,
            died=self.hooks.died,
        )
        self.hooks.on_eval(self, found)

    def _gather(self, metrics: Mapping[str, Tensor | float]) -> None:
        for tag, value in metrics.items():
            total, n = self._sums.get(tag, (0.0, 0))
            self._sums[tag] = (total + value, n + 1)

    def _report(self) -> None:
        self._check_finite()
        if self._sums:
            self.hooks.on_metrics(self, {tag: float(total) / n for tag, (total, n) in self._sums.items()})
        self._sums = {}

    def state_dict(self) -> dict[str, Any]:
        """Everything but weights, agent and replay: counters, generators, episodes in progress, metrics not yet written."""
        return {
            "count": dict(vars(self.count)),
            "slots": [{"number": s.number, "actions": [torch.from_numpy(a) for a in s.actions]} for s in self.slots],
            "last_obs": [torch.from_numpy(s.obs[-1]) for s in self.slots],
            "actor": self.actor.state_dict(),
            "random": self.random.get_state(),
            "sampling": self.sampling.get_state(),
            "sums": {tag: [total, n] for tag, (total, n) in self._sums.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`, playing the episodes in progress again."""
        count = state["count"]
        self.count = Counters(**({"told": count.get("episodes", 0)} | count))  # older checkpoints: all episodes told
        self.actor.load_state_dict(state["actor"])
        self.random.set_state(state["random"])
        if self.sampling.get_state().shape != state["sampling"].shape:
            other = "cpu" if self.replay.device.type == "cuda" else "cuda"
            raise RunError(
                f"this run's replay was on another device than {self.replay.device.type}, where its random numbers don't go on: "
                f"continue it with run.replay_device={other}."
            )
        self.sampling.set_state(state["sampling"])
        self._sums = {tag: (total, n) for tag, (total, n) in state["sums"].items()}
        self.slots = [self._replayed(i, saved) for i, saved in enumerate(state["slots"])]
        for slot, expected in zip(self.slots, state["last_obs"], strict=True):
            if not np.array_equal(slot.obs[-1], expected.numpy()):
                raise RunError(
                    f"episode {slot.number} does not play as it did before the stop: the simulator is another version or not "
                    "deterministic here; go on under another name=..."
                )

    def _replayed(self, index: int, saved: Mapping[str, Any]) -> Slot:
        slot = Slot(saved["number"])
        slot.obs.append(self.envs.reset_at(index, stream(self.seed, "train_env", slot.number))[self.key])
        for action in saved["actions"]:
            obs, reward, _, _, info = self.envs.step_at(index, action.numpy())
            slot.obs.append(obs[self.key])
            slot.actions.append(action.numpy())
            slot.rewards.append(reward)
            if "success" in info:
                slot.successes.append(float(info["success"]))
        return slot


@dataclass(frozen=True)
class Hooks:
    """What the loop calls; the session decides what is written where. `died` is what environments raise whose process is gone."""

    on_eval: Callable[[OnlineRun, Rollouts], None]
    on_metrics: Callable[[OnlineRun, Mapping[str, float]], None]
    save: Callable[[OnlineRun], None]
    save_batch: Callable[[Batch], Path]
    stop: StopSignal
    died: type[Exception] = ConnectionError
