"""Evaluation: an agent's own environments, its own seeds, no effect on training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


class VectorEnvironment(Protocol):
    """N environments that step together; the caller resets each of them by a seed when its episode is over."""

    num_envs: int

    def reset_at(self, index: int, seed: int) -> Array:
        """Begins an episode of environment `index`, a function of `seed` alone; its first observation."""

    def step_at(self, index: int, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Steps one environment."""

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, list[dict[str, Any]]]:
        """Steps all: observations `[N, ...]`, rewards, terminated, truncated `[N]`, one info each."""

    def render_at(self, index: int) -> Array:
        """An RGB frame `[height, width, 3]`, uint8."""

    def close(self) -> None:
        """Frees simulators and processes."""


class ActorLike(Protocol):
    """The part of `agents.base.Actor` that evaluation needs."""

    def act(self, obs: Tensor, t0: Tensor, agent_steps: int) -> Tensor:
        """Actions `[N, A]`."""

    def metrics(self) -> dict[str, float]:
        """Counters by tag."""


@dataclass(frozen=True)
class EvalResult:
    """Episodes of one evaluation.

    Attributes:
        returns: undiscounted return per episode.
        successes: success per episode (reached at any step), NaN where the environment doesn't say.
        lengths: agent steps per episode.
        frames: frames of the first episode, if recorded.
        metrics: the actor's counters.
    """

    returns: list[float]
    successes: list[float]
    lengths: list[int]
    frames: list[Array]
    metrics: dict[str, float]

    @property
    def return_mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def return_std(self) -> float:
        """Population standard deviation of the returns."""
        return float(np.std(self.returns))

    @property
    def success_mean(self) -> float:
        """Mean success, NaN where unknown."""
        return float(np.mean(self.successes))


def evaluate(
    envs: VectorEnvironment,
    make_actor: Callable[[int], ActorLike],
    seeds: Sequence[int],
    *,
    agent_steps: int,
    record: bool = False,
) -> EvalResult:
    """Plays one episode per seed.

    Args:
        envs: evaluation environments; as many episodes run at a time.
        make_actor: actor for a number of environments.
        seeds: one per episode.
        agent_steps: training progress, for the schedules of acting.
        record: keep frames of the first episode.
    """
    slots = min(envs.num_envs, len(seeds))
    actor = make_actor(envs.num_envs)
    returns, lengths = [0.0] * len(seeds), [0] * len(seeds)
    successes, frames = [float("nan")] * len(seeds), []
    obs = np.stack([envs.reset_at(i, seeds[i % len(seeds)]) for i in range(envs.num_envs)])
    t0 = np.ones(envs.num_envs, dtype=bool)
    playing: list[int | None] = [i if i < slots else None for i in range(envs.num_envs)]
    waiting = list(range(slots, len(seeds)))
    if record:
        frames.append(envs.render_at(0))
    while any(episode is not None for episode in playing):
        actions = actor.act(torch.from_numpy(obs), torch.from_numpy(t0), agent_steps)
        obs, rewards, terminated, truncated, infos = envs.step(actions.cpu().numpy())
        t0 = terminated | truncated
        for i, episode in enumerate(playing):
            if episode is not None:
                returns[episode] += float(rewards[i])
                lengths[episode] += 1
                if "success" in infos[i]:
                    successes[episode] = float(np.fmax(successes[episode], infos[i]["success"]))
                if record and episode == 0:
                    frames.append(envs.render_at(i))
            if t0[i]:
                playing[i] = waiting.pop(0) if episode is not None and waiting else None
                obs[i] = envs.reset_at(i, seeds[playing[i] or 0])
    return EvalResult(returns, successes, lengths, frames, actor.metrics())
