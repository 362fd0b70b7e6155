"""LeTO's constrained trajectory head: a differentiable quadratic program as the last layer of a policy."""

from difftop.qp.clip import ClipHead
from difftop.qp.heads import HEADS, FreeHead, make_head
from difftop.qp.layer import QPHead, SolveInfo
from difftop.qp.trajectory import TrajectoryLimits

__all__ = ["HEADS", "ClipHead", "FreeHead", "QPHead", "SolveInfo", "TrajectoryLimits", "make_head"]
