"""Rollouts: seeded episodes in environments that step together, for every evaluation, with all that the papers' tables need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from difftop.types import EnvSpec

Array = np.ndarray[Any, np.dtype[Any]]
Observations = dict[str, Array]


class Environments(Protocol):
    """N environments with observations by key that step together; the caller resets each by a seed when its episode is over."""

    num_envs: int
    difftop_spec: EnvSpec

    def reset_at(self, i: int, seed: int) -> Observations:
        """Begins the episode that `seed` determines; its first observation."""

    def step_at(self, i: int, action: Array) -> tuple[Observations, float, bool, bool, dict[str, Any]]:
        """Steps one environment."""

    def step(self, actions: Array) -> tuple[Observations, Array, Array, Array, list[dict[str, Any]]]:
        """Steps all: observations `[N, ...]` by key, rewards, terminated, truncated `[N]`, one info each."""

    def step_only(self, rows: Sequence[int], actions: Array) -> tuple[Observations, Array, Array, Array, list[dict[str, Any]]]:
        """Steps the environments `rows`, with an action each; results as those of `step`, of these only."""

    def render_at(self, i: int) -> Array:
        """An RGB frame `[height, width, 3]`, uint8."""

    def restart_at(self, i: int) -> None:
        """Makes an environment anew whose process died."""

    def close(self) -> None:
        """Frees simulators and processes."""


class ActorLike(Protocol):
    """The part of `difftop.contract.Actor` that rollouts need: what is only played has no memory to save."""

    def begin(self, index: int, seed: int | None) -> None:
        """Environment `index` begins the episode `seed`, of which all that the actor does there is a function; None: it idles."""

    def act(self, obs: Mapping[str, Tensor], t0: Tensor, steps: int) -> Tensor:
        """Actions `[N, A]`."""

    def metrics(self) -> dict[str, float]:
        """Counters by tag."""


@dataclass
class RolloutEpisode:
    """One episode as it was played.

    Attributes:
        seed: of its initial state.
        actions: executed, `[A]` each.
        rewards: one per action.
        success: after each action; empty where the environment doesn't say.
        forces_n: largest contact force during each action, N; empty where the suite doesn't measure it.
        positions: what was asked to be kept of the observation after each action.
    """

    seed: int
    actions: list[Array] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    success: list[bool] = field(default_factory=list)
    forces_n: list[float] = field(default_factory=list)
    positions: list[Array] = field(default_factory=list)

    @property
    def success_step(self) -> int:
        """Index of the first action after which the task was solved, -1 where there is none."""
        return self.success.index(True) if any(self.success) else -1

    @property
    def total(self) -> float:
        """The return, undiscounted."""
        return float(sum(self.rewards))


@dataclass(frozen=True)
class Rollouts:
    """What an evaluation found.

    Attributes:
        episodes: in the order of their seeds.
        frames: of the first episode, if recorded.
        metrics: the actor's counters, and `eval/restarts` (environments whose process died).
    """

    episodes: list[RolloutEpisode]
    frames: list[Array]
    metrics: dict[str, float]

    @property
    def returns(self) -> list[float]:
        """Undiscounted return of each episode."""
        return [episode.total for episode in self.episodes]

    @property
    def return_mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def return_std(self) -> float:
        """Population standard deviation of the returns."""
        return float(np.std(self.returns))

    @property
    def reward_max(self) -> float:
        """Mean over the episodes of their largest reward, the score of tasks that are judged by their best moment (Push-T)."""
        return float(np.mean([max(episode.rewards) for episode in self.episodes]))

    @property
    def judged(self) -> bool:
        """Whether the environment says what success is."""
        return all(episode.success for episode in self.episodes)

    @property
    def success(self) -> float:
        """Share of episodes that were solved at any time; NaN where the environment doesn't say."""
        return float(np.mean([episode.success_step >= 0 for episode in self.episodes])) if self.judged else float("nan")

    @property
    def success_end(self) -> float:
        """Share of episodes that were solved when they ended; NaN where the environment doesn't say."""
        return float(np.mean([episode.success[-1] for episode in self.episodes])) if self.judged else float("nan")

    @property
    def score(self) -> float:
        """What chooses between checkpoints: success, or the return where the environment doesn't say what success is."""
        return self.success if self.judged else self.return_mean

    def padded(self, name: str) -> Array:
        """`actions`, `forces_n` or `positions` of all episodes `[N, T, ...]`, zeros after the end of each."""
        rows = [np.asarray(getattr(episode, name)) for episode in self.episodes]
        longest = max(len(row) for row in rows)
        return np.stack([np.pad(row, [(0, longest - len(row)), *[(0, 0)] * (row.ndim - 1)]) for row in rows])

    @property
    def lengths(self) -> Array:
        """Actions in each episode `[N]`."""
        return np.array([len(episode.actions) for episode in self.episodes])

    @property
    def success_steps(self) -> Array:
        """`RolloutEpisode.success_step` of each `[N]`."""
        return np.array([episode.success_step for episode in self.episodes])


def roll_out(
    envs: Environments,
    make_actor: Callable[[int], ActorLike],
    seeds: Sequence[int],
    *,
    steps: int = 0,
    record: bool = False,
    keep: str = "",
    until_success: bool = False,
    died: type[Exception] = ConnectionError,
) -> Rollouts:
    """Plays one episode per seed, N at a time. An environment without an episode stands still.

    Where the process of an environment dies, it is made anew and the episodes in progress begin again, each being a function
    of its seed; a second death of the same environment is an error.

    Args:
        envs: N environments.
        make_actor: actor for N environments.
        seeds: one per episode.
        steps: training progress, for actors with schedules.
        record: keep frames of the first episode.
        keep: observation to keep after each action, empty for none.
        until_success: an episode ends with the first action that solves the task: `success` is what it would be, in fewer steps;
            returns, and success at the end, are not those of whole episodes.
        died: what `envs` raises then; it has `index`.
    """
    n = envs.num_envs
    actor = make_actor(n)
    player = _Player(envs, [RolloutEpisode(seed) for seed in seeds], keep, record, until_success, actor.begin)
    restarted: set[int] = set()
    while player.playing:
        try:
            obs, t0 = player.observed()
            tensors = {key: torch.from_numpy(value) for key, value in obs.items()}
            actions = actor.act(tensors, torch.from_numpy(t0), steps).cpu().numpy()
            player.step(actions)
        except died as error:
            index = int(error.index)  # type: ignore[attr-defined]
            if index in restarted:
                raise
            restarted.add(index)
            envs.restart_at(index)
            player.begin_again()
    return Rollouts(player.episodes, player.frames, actor.metrics() | {"eval/restarts": float(len(restarted))})


class _Player:
    """Which environment plays which episode. One that never has any shows the first observation of the first seed."""

    def __init__(
        self,
        envs: Environments,
        episodes: list[RolloutEpisode],
        keep: str,
        record: bool,
        until_success: bool,
        begin: Callable[[int, int | None], None],
    ) -> None:
        self.envs, self.episodes, self.keep, self.record, self.begin = envs, episodes, keep, record, begin
        self.until_success = until_success
        self.current: list[int | None] = [i if i < len(episodes) else None for i in range(envs.num_envs)]
        self.waiting = list(range(min(envs.num_envs, len(episodes)), len(episodes)))
        self.frames: list[Array] = []
        self.obs: list[Observations] | None = None
        self.t0 = np.ones(envs.num_envs, dtype=bool)

    @property
    def playing(self) -> bool:
        return any(episode is not None for episode in self.current)

    def begin_again(self) -> None:
        """Forgets what was played of the episodes in progress."""
        for number in self.current:
            if number is not None:
                self.episodes[number] = RolloutEpisode(self.episodes[number].seed)
        if 0 in self.current:
            self.frames = []
        self.obs = None

    def observed(self) -> tuple[Observations, Array]:
        if self.obs is None:
            self.obs = [self._reset(i) for i in range(self.envs.num_envs)]
            self.t0 = np.ones(self.envs.num_envs, dtype=bool)
        return {key: np.stack([row[key] for row in self.obs]) for key in self.obs[0]}, self.t0.copy()

    def step(self, actions: Array) -> None:
        assert self.obs is not None
        rows = [i for i, number in enumerate(self.current) if number is not None]
        obs, rewards, terminated, truncated, infos = self.envs.step_only(rows, actions[rows])
        self.t0 = np.zeros(self.envs.num_envs, dtype=bool)
        for place, i in enumerate(rows):
            self.obs[i] = {key: value[place] for key, value in obs.items()}
            self._keep(i, actions[i], float(rewards[place]), infos[place])
            solved = self.until_success and bool(infos[place].get("success", False))
            self.t0[i] = over = bool(terminated[place] or truncated[place] or solved)
            if over and self.waiting:
                self.current[i] = self.waiting.pop(0)
                self.obs[i] = self._reset(i)
            elif over:
                self.current[i] = None
                self.begin(i, None)

    def _keep(self, i: int, action: Array, reward: float, info: Mapping[str, Any]) -> None:
        number = self.current[i]
        assert number is not None, i
        episode = self.episodes[number]
        episode.actions.append(np.array(action))
        episode.rewards.append(reward)
        if "success" in info:
            episode.success.append(bool(info["success"]))
        if "contact_force_n" in info:
            episode.forces_n.append(float(info["contact_force_n"]))
        if self.keep and self.obs is not None:
            episode.positions.append(np.array(self.obs[i][self.keep]))
        if self.record and number == 0:
            self.frames.append(self.envs.render_at(i))

    def _reset(self, i: int) -> Observations:
        number = self.current[i]
        obs = self.envs.reset_at(i, self.episodes[number or 0].seed)
        self.begin(i, None if number is None else self.episodes[number].seed)
        if self.record and number == 0:
            self.frames.append(self.envs.render_at(i))
        return obs
