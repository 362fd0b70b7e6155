"""Planning by Levenberg-Marquardt in a latent world."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.latent.planning import Decision, PlanSettings, Situation
from agents.latent.prior import policy_plan
from agents.latent.world import World
from difftop.planning import LMPlanner


class LMActing:
    """`planner=lm`: plans start at the policy prior's and stay near it."""

    def __init__(self, settings: PlanSettings, world: World) -> None:
        self.settings, self.world = settings, world
        self.lm = LMPlanner(settings.lm, world.spec.action_dim)
        self.capturable = settings.lm.backend != "theseus"  # Theseus reads numbers in every iteration

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
            damping=self._damping(situation),
            generator=generator,
        )
        action = found.actions[:, 0]
        if settings.noise:
            action = situation.explored(action, settings, world.rewarded())
        return Decision(action, found, start)

    def _damping(self, situation: Situation) -> Tensor | None:
        if situation.bold is None:
            return None
        damping = situation.z.new_full(situation.bold.shape, self.settings.lm.damping)
        return damping.masked_fill(situation.bold, self.settings.bold_damping)


def lm_start(
    settings: PlanSettings, world: World, z: Tensor, horizon: int, std: float, generator: torch.Generator | None
) -> Tensor:
    """Where Levenberg-Marquardt's plans start, and what its trust region is around: `[B, H, A]`."""
    plan = policy_plan(world.model, z, horizon, std, generator)
    return plan if settings.prior_start else torch.zeros_like(plan)
