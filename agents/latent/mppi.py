"""Planning by sampling (MPPI) in a latent world."""

from __future__ import annotations

from agents.latent.planning import Decision, PlanSettings, Situation
from agents.latent.prior import policy_plan
from agents.latent.world import World
from difftop.losses import full_precision
from difftop.planning.mppi import MPPIPlanner


class MPPIActing:
    """`planner=mppi`: explores by the spread that it has found; its plans mix in some of the policy prior's."""

    capturable = True

    def __init__(self, settings: PlanSettings, world: World) -> None:
        self.settings, self.world = settings, world
        self.mppi = MPPIPlanner(settings.mppi_for(world.spec.action_dim), world.spec.action_dim)
        self.rollouts = self.mppi.config.samples

    def decide(self, situation: Situation) -> Decision:
        """See `Planner`."""
        settings, world, z, generator = self.settings, self.world, situation.z, situation.generator
        horizon, count = situation.horizon, max(settings.mppi.prior_samples, 1)
        with situation.autocast():
            repeated = policy_plan(world.model, z.repeat_interleave(count, dim=0), horizon, world.prior_std, generator)
            prior = full_precision(repeated).view(len(z), count, horizon, -1)
            found = self.mppi.plan(
                world.sampled_model(generator),
                z,
                prior,
                previous=situation.previous,
                std=situation.mppi_std,
                generator=generator,
                eval_mode=not situation.explore,
            )
        return Decision(found.actions[:, 0], found, start=prior.mean(1), memory=found.mean)
