"""Trajectory optimization over a latent model that is given as callables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from difftop.planning.config import LMConfig, MPPIConfig
from difftop.planning.model import LatentModel
from difftop.planning.mppi import MPPIPlanner, SampledPlan
from difftop.planning.rollout import rollout, rollout_cost, rollout_return, shift_plan

if TYPE_CHECKING:
    from difftop.planning.theseus_lm import TheseusPlanner

__all__ = [
    "LMConfig",
    "LatentModel",
    "MPPIConfig",
    "MPPIPlanner",
    "SampledPlan",
    "TheseusPlanner",
    "rollout",
    "rollout_cost",
    "rollout_return",
    "shift_plan",
]


def __getattr__(name: str) -> Any:
    # Theseus is imported when the planner is first asked for: the rest of the package works without it.
    if name == "TheseusPlanner":
        from difftop.planning.theseus_lm import TheseusPlanner

        return TheseusPlanner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
