"""Quadratic programs of LeTO's kind, and independent solvers for them: for `qp.py` and for the tests of `difftop.qp`."""

from __future__ import annotations

from dataclasses import dataclass

import clarabel
import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from difftop.qp import QPHead, TrajectoryLimits

Z_ROW = [[0.0, 0.0, 1.0, 0.0, 0.0, 0.0]]
XYZ_ROWS = [[1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]]


def leto_limits(horizon: int = 6, acceleration: float = 0.1) -> TrajectoryLimits:
    """The limits of LeTO's robomimic runs."""
    return TrajectoryLimits(7, horizon, range(6), acceleration_min=-acceleration, acceleration_max=acceleration)


def box_limits(horizon: int, position_matrix: list[list[float]]) -> TrajectoryLimits:
    """Position in [0, 0.12], velocity changes of at most 0.1 per step of 0.05 s."""
    return TrajectoryLimits(
        7,
        horizon,
        range(6),
        dt=0.05,
        acceleration_min=-2.0,
        acceleration_max=2.0,
        position_matrix=position_matrix,
        position_min=0.0,
        position_max=0.12,
    )


@dataclass(frozen=True)
class Problem:
    """minimize 1/2 y^T Q y + e^T y subject to l <= A y <= u, e, l, u per sample; float64."""

    hessian: Tensor
    rows: Tensor
    e: Tensor
    lower: Tensor
    upper: Tensor

    def __getitem__(self, index: Tensor | slice) -> Problem:
        return Problem(self.hessian, self.rows, self.e[index], self.lower[index], self.upper[index])


def make(
    limits: TrajectoryLimits, batch: int, *, seed: int = 0, condition: float = 0.0, position: bool = False, previous: bool = False
) -> Problem:
    """LeTO's initial Hessian or one of given condition; e = -tanh(normal), p_t in [0, 0.1]^c, v_{t-1} in [-0.5, 0.5]^A."""
    g = torch.Generator().manual_seed(seed)
    head = QPHead(limits, alpha=limits.dt**2, generator=g)
    e = -torch.tanh(torch.randn(batch, limits.size, generator=g)).double()
    p = 0.1 * torch.rand(batch, len(limits.selected), generator=g).double() if position else None
    v = torch.rand(batch, limits.action_dim, generator=g).double() - 0.5 if previous else None
    hessian = random_hessian(limits.size, condition, g) if condition else head.hessian().detach()
    return Problem(hessian, head.constraints.rows, e, *head.constraints.bounds(batch, p, v))


def random_hessian(n: int, condition: float, generator: torch.Generator) -> Tensor:
    """Eigenvalues spread evenly in the logarithm from condition^-1/2 to condition^1/2."""
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    half = float(np.log10(condition)) / 2
    return (q * torch.logspace(-half, half, n, dtype=torch.float64)) @ q.mT


def duplicated(p: Problem) -> Problem:
    """All rows twice."""
    return Problem(p.hessian, torch.cat([p.rows] * 2), p.e, torch.cat([p.lower] * 2, 1), torch.cat([p.upper] * 2, 1))


def pinned(p: Problem) -> Problem:
    """v_0 given: l = u."""
    value = torch.rand(len(p.e), 6, generator=torch.Generator().manual_seed(3)).double() - 0.5
    lower, upper = p.lower.clone(), p.upper.clone()
    lower[:, :6], upper[:, :6] = value, value
    return Problem(p.hessian, p.rows, p.e, lower, upper)


def with_signs(p: Problem, factor: float) -> Problem:
    """e = +-factor; at 50 far too large for the limits."""
    return Problem(p.hessian, p.rows, factor * p.e.sign(), p.lower, p.upper)


def outside(p: Problem) -> Problem:
    """Every second sample starts half a metre outside of its position box."""
    shift = torch.zeros_like(p.lower)
    shift[::2, -9:] = 0.5
    return Problem(p.hessian, p.rows, p.e, p.lower - shift, p.upper - shift)


def residuals(problem: Problem, y: Tensor, side: Tensor) -> Tensor:
    """KKT residual `[B]` written from the definition, with multipliers from least squares on the active rows."""
    worst = []
    for b in range(len(y)):
        active = side[b].nonzero()[:, 0]
        gradient = problem.hessian @ y[b] + problem.e[b]
        rows = problem.rows[active]
        multiplier = (
            torch.linalg.lstsq(rows.mT, -gradient[:, None], driver="gelsd").solution[:, 0] if len(active) else rows.new_zeros(0)
        )
        stationarity = (gradient + rows.mT @ multiplier).abs().max() / (1 + gradient.abs().max())
        value = problem.rows @ y[b]
        violation = torch.maximum(value - problem.upper[b], problem.lower[b] - value).clamp_min(0).amax() if len(value) else 0.0
        bound = torch.where(side[b] > 0, problem.upper[b], problem.lower[b])[active]
        slack = (value[active] - bound).abs().max() if len(active) else 0.0
        free = (problem.upper[b] - problem.lower[b])[active] > 1e-9
        wrong = (
            (-multiplier * side[b][active])[free].clamp_min(0).max() / (1 + multiplier.abs().max()) if bool(free.any()) else 0.0
        )
        worst.append(max(float(stationarity), float(violation), float(slack), float(wrong)))
    return torch.tensor(worst)


def clarabel_solve(
    hessian: Tensor, rows: Tensor, e: Tensor, lower: Tensor, upper: Tensor, tolerance: float = 1e-12
) -> tuple[Tensor, bool]:
    """One sample by Clarabel's interior point: y, and whether it proved infeasibility instead."""
    above, below = torch.isfinite(upper), torch.isfinite(lower)
    a = torch.cat([rows[above], -rows[below]]).numpy()
    b = torch.cat([upper[above], -lower[below]]).numpy()
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tolerance
    p = sparse.triu(sparse.csc_matrix(hessian.numpy()), format="csc")
    cones = [clarabel.NonnegativeConeT(len(b))] if len(b) else []
    out = clarabel.DefaultSolver(p, e.numpy(), sparse.csc_matrix(a), b, cones, settings).solve()
    return torch.tensor(out.x, dtype=torch.float64), "PrimalInfeasible" in str(out.status)
