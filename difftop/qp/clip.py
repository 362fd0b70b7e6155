"""The baseline that LeTO is compared with: limits by clipping, one action after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from difftop.qp.layer import SolveInfo
from difftop.qp.trajectory import TrajectoryLimits, TrajectoryRows, check_rows
from difftop.types import SolveStatus


class ClipHead(nn.Module):
    """Clips each action to the velocity limits and to what the acceleration limit allows after the one before it:

        y_j = clip(-e_j, max(v_min, y_{j-1} + a_min dt), min(v_max, y_{j-1} + a_max dt)),   constrained actions only.

    It has the signature of `QPHead`, and minus e is what the network wants, as there. With a horizon of one step it equals
    `QPHead.projection`. It does not look ahead, and gradients vanish on clipped entries.

    Args:
        limits: velocity and acceleration limits; position limits can't be clipped to.
    Raises:
        ValueError: there are position limits.
    Source: LeTO's clipping baselines (its single-clip runner).  Differs: the velocity limit is applied too.
    """

    def __init__(self, limits: TrajectoryLimits) -> None:
        super().__init__()
        if limits.position_matrix is not None:
            raise ValueError(
                "position_matrix is set, but clipping can't keep position limits; use the qp head, or leave them out."
            )
        self.limits = limits
        self.constraints = TrajectoryRows(limits)

    def forward(self, e: Tensor, position: Tensor | None = None, previous: Tensor | None = None) -> tuple[Tensor, SolveInfo]:
        """Clips B trajectories.

        Args:
            e: minus the wanted actions `[B, T_p A]`.
            position: ignored, there are no position limits.
            previous: last executed action `[B, A]`, or None to leave the first step to the velocity limits alone.
        Returns:
            y `[B, T_p, A]` and `SolveInfo`: SOLVED with residual 0, or, where the previous action is too far from the
            velocity limits to return to them in one step, INFEASIBLE with a row of NaN.
        Raises:
            ValueError: wrong shapes or NaN.
        """
        batch, rows, chosen = len(e), self.constraints, self.constraints.chosen
        check_rows("e", e, (batch, self.limits.size))
        lower, upper = rows.bounds(batch, None, previous)
        wanted = -e.double().view(batch, self.limits.horizon, self.limits.action_dim)
        low, high = lower[:, : len(chosen)], upper[:, : len(chosen)]
        feasible = (low <= high + 1e-9).all(1)
        steps: list[Tensor] = []
        for j in range(self.limits.horizon):
            if j:
                low = torch.maximum(rows.velocity_min, steps[-1] + rows.jump_min)
                high = torch.minimum(rows.velocity_max, steps[-1] + rows.jump_max)
            steps.append(torch.minimum(torch.maximum(wanted[:, j, chosen], low), high))
        y = wanted.index_copy(2, chosen, torch.stack(steps, 1))
        y = torch.where(feasible[:, None, None], y, torch.nan)
        status = torch.where(feasible, int(SolveStatus.SOLVED), int(SolveStatus.INFEASIBLE))
        zero = e.new_zeros(batch, dtype=torch.float64)
        return y.to(e.dtype), SolveInfo(status, zero.masked_fill(~feasible, torch.inf), zero, torch.zeros_like(status))
