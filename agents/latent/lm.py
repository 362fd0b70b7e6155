"""Planning by Levenberg-Marquardt in a latent world; the one place where agents meet that planner."""

from __future__ import annotations

from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agents.latent.exploration import add_noise
from agents.latent.planning import Decision, PlanSettings, Situation
from agents.latent.prior import policy_plan
from agents.latent.world import World
from difftop.options import ConfigError
from difftop.planning.config import LMConfig
from difftop.planning.model import LatentModel
from difftop.types import PlanResult

if TYPE_CHECKING:
    from difftop.planning.theseus_lm import TheseusPlanner


class LM:
    """The Levenberg-Marquardt planner, imported when it first plans, because theseus takes a second to load.

    Args:
        config: its options.
        action_dim: A.
    Raises:
        ConfigError: theseus isn't installed.
    """

    def __init__(self, config: LMConfig, action_dim: int) -> None:
        self.config, self.action_dim = config, action_dim
        if find_spec("theseus") is None:
            raise ConfigError(
                "this agent plans with Theseus, which isn't installed: run `make setup`, or "
                "`pip install --no-build-isolation --no-deps theseus-ai` and what docs/install.md names."
            )

    def plan(
        self,
        model: LatentModel,
        z0: Tensor,
        prior: Tensor,
        *,
        previous: Tensor | None = None,
        scale: Tensor | float | None = None,
        generator: torch.Generator | None = None,
        differentiable: bool = False,
    ) -> PlanResult:
        """Plans for B latents; see `TheseusPlanner.plan`."""
        return self._planner.plan(
            model, z0, prior, previous=previous, scale=scale, generator=generator, differentiable=differentiable
        )

    @cached_property
    def _planner(self) -> TheseusPlanner:
        from difftop.planning.theseus_lm import TheseusPlanner

        return TheseusPlanner(self.config, self.action_dim)


class LMPlanning:
    """`planner=lm`: plans start at the policy prior's and stay near it."""

    def __init__(self, settings: PlanSettings, world: World) -> None:
        self.settings, self.world = settings, world
        self.lm = LM(settings.lm, world.spec.action_dim)

    def decide(self, situation: Situation) -> Decision:
        """See `Planner`. Single rows gain nothing from bfloat16, and the small steps would drown in its rounding."""
        settings, world, generator = self.settings, self.world, situation.generator
        start_std = settings.start_std if situation.explore else 0.0
        start = lm_start(settings, world, situation.z, situation.horizon, start_std, generator)
        found = self.lm.plan(
            world.latent_model,
            situation.z,
            start,
            previous=situation.previous,
            scale=world.step_scale(),
            generator=generator,
        )
        std = settings.std(situation.agent_steps) if situation.explore and settings.noise else 0.0
        return Decision(add_noise(found.actions[:, 0], std, generator), found, start)


def lm_start(
    settings: PlanSettings, world: World, z: Tensor, horizon: int, std: float, generator: torch.Generator | None
) -> Tensor:
    """Where Levenberg-Marquardt's plans start, and what its trust region is around: `[B, H, A]`."""
    plan = policy_plan(world.model, z, horizon, std, generator)
    return plan if settings.prior_start else torch.zeros_like(plan)
