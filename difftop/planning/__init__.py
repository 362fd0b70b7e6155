"""Trajectory optimization over a latent model that is given as callables."""

from difftop.planning.config import LMConfig, MPPIConfig
from difftop.planning.model import LatentModel
from difftop.planning.mppi import MPPIPlanner, SampledPlan
from difftop.planning.planner import LMPlanner, TheseusPlanner, plan
from difftop.planning.rollout import rollout, rollout_cost, rollout_return, shift_plan

__all__ = [
    "LMConfig",
    "LMPlanner",
    "LatentModel",
    "MPPIConfig",
    "MPPIPlanner",
    "SampledPlan",
    "TheseusPlanner",
    "plan",
    "rollout",
    "rollout_cost",
    "rollout_return",
    "shift_plan",
]
