"""Acting by the policy prior alone, and the plans that it makes along its own latent rollout, where planners start."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.latent.planning import Decision, PlanSettings, Situation
from agents.latent.world import World
from agents.latent.world_model import WorldModel


def policy_plan(model: WorldModel, z: Tensor, horizon: int, std: float | None, generator: torch.Generator | None) -> Tensor:
    """Actions of the policy prior along its own latent rollout: `z [B, Z]` to `[B, H, A]`; the planner's start."""
    actions = []
    for _ in range(horizon):
        actions.append(model.sample_policy(z, std, generator))
        z = model.next(z, actions[-1])
    return torch.stack(actions, dim=1)


class PriorActing:
    """`planner=none`: the policy prior's action, with the exploration noise."""

    capturable = True

    def __init__(self, settings: PlanSettings, world: World) -> None:
        self.settings, self.world = settings, world

    def decide(self, situation: Situation) -> Decision:
        """See `Planner`."""
        mean = self.world.model.policy(situation.z)
        return Decision(situation.explored(mean, self.settings, self.world.rewarded()))
