"""LeTO's constrained trajectory head: a differentiable quadratic program as the last layer of a policy."""

from difftop.qp.clip import ClipHead
from difftop.qp.layer import QPHead, SolveInfo
from difftop.qp.trajectory import TrajectoryLimits

__all__ = ["ClipHead", "QPHead", "SolveInfo", "TrajectoryLimits"]
