"""The planners of latent agents, by the name of `agent.acting.planner`. One more is a file, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agents.latent.lm import LMActing
from agents.latent.mppi import MPPIActing
from agents.latent.planning import Planner, PlanSettings
from agents.latent.prior import PriorActing
from agents.latent.world import World
from difftop.entry_points import Extended
from difftop.options import option

PLANNERS: Extended[Callable[[PlanSettings, World], Planner]] = Extended(
    {"lm": LMActing, "mppi": MPPIActing, "none": PriorActing}, "difftop.planners"
)


def planner_option(default: str) -> Any:
    """The option that chooses one."""
    return option(default, "optimizer of the action; none acts by the policy prior alone", choices=PLANNERS)
