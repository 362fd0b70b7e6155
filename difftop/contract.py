"""The contract between an agent and the loop that trains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from difftop.options import ConfigError


@dataclass(frozen=True)
class UpdateResult:
    """What one gradient step reports.

    Attributes:
        metrics: scalars by tag, as 0-d tensors (reading them synchronizes a GPU, so the logger does it only when it writes).
        priorities: new replay priorities `[B]`, or None for an agent that doesn't use them.
    """

    metrics: dict[str, Tensor]
    priorities: Tensor | None


class Actor(Protocol):
    """Acts in N environments, and owns all memory that acting needs: its generator, the plan of the last step, hidden states.

    An agent makes one actor for training and another for every evaluation, so that evaluating never changes a training run.
    """

    def begin(self, index: int, seed: int | None) -> None:
        """Environment `index` begins the episode `seed`, on which what is drawn there may depend; None: it idles, at no cost."""

    def act(self, obs: Mapping[str, Tensor], t0: Tensor, steps: int) -> Tensor:
        """Actions for N environments.

        Args:
            obs: by key `[N, *shape]`, on any device; keys that the agent doesn't use may be among them.
            t0: `[N]` bool, True where an episode begins (memory of that environment is forgotten).
            steps: training progress, for schedules: agent steps, or gradient steps in imitation.
        Returns:
            actions `[N, A]` in [-1, 1], float32, on the agent's device. Row i depends on environment i only; rows of idle
            environments have no meaning.
        """

    def metrics(self) -> dict[str, float]:
        """Counters since the last call (planner failures, iterations), by tag."""

    def state_dict(self) -> dict[str, Any]:
        """All memory, as tensors, numbers, lists and dicts (loadable with `weights_only=True`)."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`, bit for bit."""


class OnlineActor(Actor, Protocol):
    """An actor whose episodes are trained on."""

    def tells(self, index: int) -> bool:
        """Whether rewards of environment `index`'s episode tell how rare they are for what was learned: it doesn't stray."""


class Agent(Protocol):
    """A policy and its update rule; the one contract of agents that learn from rewards and of those that imitate.

    `state_dict` / `load_state_dict` are the tensors of everything that acts: weights, target weights, running scales,
    normalization. `train_state` holds what only training needs (optimizers, generators), `weights_only`-loadable.
    """

    device: torch.device

    def actor(self, num_envs: int, *, seed: int, explore: bool = False, head: str | None = None) -> Actor:
        """A fresh actor. Same seed and observations, same actions.

        Args:
            num_envs: N.
            seed: of all that acting draws.
            explore: whether to explore, where the agent learns from what it does; False for evaluation.
            head: none, clip or qp in place of an imitation agent's trained head; others refuse it.
        """

    def update(self, batch: Any, steps: int, /) -> UpdateResult:
        """One gradient step on a replayed `Batch` after `steps` agent steps, or the `steps`-th on a `WindowBatch`, from 0.

        Raises:
            NonFiniteLossError: the loss or its gradient is not finite; the weights are as before. On a GPU nothing is raised
                here: the weights stay as they are from then on, and `check_finite` raises.
        """

    def check_finite(self) -> None:
        """Raises the `NonFiniteLossError` that `update` has kept, naming the first non-finite loss; waits for a GPU."""

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors of the model."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Any:
        """Restores the tensors of the model."""

    def train_state(self) -> dict[str, Any]:
        """Optimizers and generators."""

    def load_train_state(self, state: Mapping[str, Any]) -> None:
        """Restores `train_state`, bit for bit."""


class OnlineAgent(Agent, Protocol):
    """An agent that learns from rewards."""

    def actor(self, num_envs: int, *, seed: int, explore: bool = False, head: str | None = None) -> OnlineActor:
        """See `Agent.actor`."""

    def finish_episode(self, actor: Any, rare: float, agent_steps: int, /) -> dict[str, Tensor]:
        """Called after each training episode, before its updates; for losses on the states just visited. Returns metrics.

        Args:
            actor: that of the training environments.
            rare: how rare rewards are, in [0, 1], for exploration: 1 where no step has one, 0 where half of them have.
            agent_steps: so far.
        """


def restore_generator(generator: torch.Generator, state: Tensor) -> None:
    """Sets where an agent's random numbers go on; raises `ConfigError` where they were drawn on another kind of device."""
    if generator.get_state().shape != state.shape:
        here = generator.device.type
        other = "cpu" if here == "cuda" else "cuda"
        raise ConfigError(
            f"device={here}: this run was trained on {other}, and its random numbers don't go on here: continue it with "
            f"device={other}, or begin another under name=..."
        )
    generator.set_state(state)
