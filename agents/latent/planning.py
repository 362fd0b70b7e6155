"""The contract between acting and a planner: its settings, what it is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from difftop.options import ConfigError, option
from difftop.planning.config import LMConfig, MPPIConfig
from difftop.schedules import linear
from difftop.types import PlanResult


def noise_option(default: str) -> Any:
    """The option `noise_colour`, with an agent's own default."""
    help_ = "planner=lm|none: exploration noise, independent from step to step, or of a time scale that each episode draws"
    return option(default, help_, choices=("white", "mixed"))


_PART = "of an episode that explores, in runs of steps; 0 where half of the steps get a reward"
_SHARES = {
    "exploring_episodes": "share of episodes with random and bold parts; below 1 the others tell how rare rewards are",
    "raw_episodes": "share of training episodes by the weights, not their average (agent.ema); all while rewards are rare",
    "random_share": f"planner=lm|none: what noise plays alone {_PART}",
    "bold_share": f"planner=lm: share with bold plans {_PART}",
}


def share_option(name: str, default: float) -> Any:
    """The option `exploring_episodes`, `raw_episodes`, `random_share` or `bold_share`, with an agent's own default."""
    return option(default, _SHARES[name], low=0, high=1)


@dataclass(frozen=True)
class PlanSettings:
    """How actions are chosen in any latent world model, whatever the planner."""

    horizon: int = option(5, "longest plan, in agent steps", low=1)
    horizon_start: int = option(1, "plan length at the start of training, in agent steps", low=1)
    horizon_steps: int = option(25_000, "agent steps until the plan has its full length", low=0)
    std_start: float = option(0.5, "std of exploration at the start, in action units", low=0)
    std_end: float = option(0.05, "std of exploration at the end", low=0)
    std_steps: int = option(25_000, "agent steps until it has reached its end", low=0)
    explore_until_reward: bool = option(False, "planner=lm|none: std stays at its start until a reward other than 0 was seen")
    exploring_episodes: float = share_option("exploring_episodes", 1.0)
    raw_episodes: float = share_option("raw_episodes", 0.0)
    random_share: float = share_option("random_share", 0.0)
    bold_share: float = share_option("bold_share", 0.0)
    bold_damping: float = option(0.1, "planner=lm: lm.damping of bold plans, which may go far from the prior's", above=0)
    start_std: float = option(0.05, "planner=lm: std of the policy prior in the plan's start, while exploring", low=0)
    prior_start: bool = option(True, "planner=lm: plans start at the policy prior's; False: at zeros, the papers' ablation")
    noise_colour: str = noise_option("white")
    noise: bool = option(True, "planner=lm: add the exploration noise to the planned action (the papers don't)")
    mppi: MPPIConfig = option(MPPIConfig, "settings of planner=mppi")
    lm: LMConfig = option(LMConfig, "settings of planner=lm")

    def check(self, where: str) -> None:
        """Raises a ConfigError for an objective that a latent agent has no model of."""
        if self.lm.objective == "cost":
            key = f"{where}.lm.objective=cost"
            raise ConfigError(f"{key}: is for a learned cost, as imitation has; must be stagewise | return here.")

    def std(self, agent_steps: int) -> float:
        """Exploration's std now."""
        return linear(self.std_start, self.std_end, self.std_steps, agent_steps)

    def plan_length(self, agent_steps: int) -> int:
        """H now."""
        return int(linear(min(self.horizon_start, self.horizon), self.horizon, self.horizon_steps, agent_steps))

    def mppi_std(self, agent_steps: int, *, explore: bool) -> float:
        """Smallest spread of MPPI's plans now, where actions are to explore, and where they aren't."""
        return self.mppi.min_std

    def mppi_for(self, action_dim: int) -> MPPIConfig:
        """MPPI's settings for so many actions."""
        return self.mppi


@dataclass(frozen=True)
class Situation:
    """What a planner is asked, for K environments.

    Attributes:
        z: their latents `[K, Z]`.
        previous: their last plans moved on by one step, cut to H actions `[K, H, A]`; zeros where an episode begins.
        agent_steps: training progress, for schedules.
        explore: whether the action is to explore.
        generator: source of all random numbers, on the device of `z`.
        autocast: makes the context for matrix products in the run's precision.
        noise: of unit variance, `[K, A]`, where exploration noise has a memory; None: white, drawn from the generator.
        std: of exploration now; a 0-d tensor where planning is captured, because a graph keeps the numbers that it has seen.
        mppi_std: smallest spread of MPPI's plans now, likewise.
        alone: where noise of std 1 acts alone, whatever was planned, `[K]` bool; None: nowhere.
        bold: where plans may go far from the prior's, `[K]` bool; None: nowhere.
    """

    z: Tensor
    previous: Tensor
    agent_steps: int
    explore: bool
    generator: torch.Generator
    autocast: Callable[[], AbstractContextManager[object]]
    noise: Tensor | None = None
    std: Tensor | float = 0.0
    mppi_std: Tensor | float = 0.0
    alone: Tensor | None = None
    bold: Tensor | None = None

    def explored(self, mean: Tensor, settings: PlanSettings, rewarded: Tensor) -> Tensor:
        """Actions `[K, A]` with exploration noise, in the box; as they are where the action isn't to explore.

        Args:
            mean: `[K, A]`.
            settings: of the noise.
            rewarded: whether there is a reward to go for, 0-d bool, for `explore_until_reward`; on a GPU nothing waits for it.
        """
        if not self.explore:
            return mean
        std, noise = self.std, self.noise
        if noise is None:
            noise = torch.randn(mean.shape, generator=self.generator, device=mean.device)
        if settings.explore_until_reward:
            std = torch.where(rewarded, std, settings.std_start)
        if self.alone is not None:
            alone = self.alone[:, None]
            mean, std = torch.where(alone, 0.0, mean), torch.where(alone, 1.0, std)
        return (mean + std * noise.to(mean)).clamp(-1, 1)

    @property
    def horizon(self) -> int:
        """H."""
        return self.previous.shape[1]


@dataclass(frozen=True)
class Decision:
    """What a planner does.

    Attributes:
        action: `[K, A]` in [-1, 1], exploration included.
        plan: where it comes from, `[K, H, A]`, for the log; None for a planner without one.
        start: where plans started `[K, H, A]`; None: not known.
        memory: what the next plan starts from, moved on by one step, `[K, H, A]`; None: the plan.
    """

    action: Tensor
    plan: PlanResult | None = None
    start: Tensor | None = None
    memory: Tensor | None = None


class Planner(Protocol):
    """Chooses actions in a world. It keeps nothing from one call to the next; its constructor takes `(settings, world)`.

    One that may be captured as a CUDA graph has an attribute `capturable` that is true: `decide` reads no number on the host, and
    takes those that change from `Situation.std` and `mppi_std`, not from `agent_steps`. One that rolls out many states at a time
    for one environment says in `rollouts` how many, and gets the products for it (`difftop.products`).
    """

    def decide(self, situation: Situation) -> Decision:
        """Actions now; row i depends on row i of the situation only, and on the generator. Called without gradient."""
