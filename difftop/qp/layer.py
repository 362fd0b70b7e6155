"""LeTO's trajectory head: a quadratic program as the last layer of a policy, with exact gradients."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.autograd.function import once_differentiable

from difftop.qp.single import SingleSolver
from difftop.qp.solver import Operators, Solution, adjoint, prepare, solve
from difftop.qp.trajectory import TrajectoryLimits, TrajectoryRows, check_rows
from difftop.types import SolveStatus

INITS = ("uniform", "identity")  # of a learned metric


@dataclass(frozen=True)
class SolveInfo:
    """How each sample was solved.

    Attributes:
        status: `SolveStatus` `[B]`. SOLVED and RELAXED rows are certified; the others hold NaN and pass no gradient.
        kkt: residual of the optimality conditions `[B]`, float64; infinite where there is no certificate.
        slack: by how much a position limit was widened `[B]`, in the unit of position; 0 unless RELAXED.
        rounds: equality problems solved `[B]`.
    """

    status: Tensor
    kkt: Tensor
    slack: Tensor
    rounds: Tensor

    @classmethod
    def solved(cls, e: Tensor) -> SolveInfo:
        """Every one of the samples e `[B, n]` SOLVED without a program: residual, slack and rounds are 0."""
        zero = e.new_zeros(len(e), dtype=torch.float64)
        status = torch.full_like(zero, int(SolveStatus.SOLVED), dtype=torch.int64)
        return cls(status, zero, zero, torch.zeros_like(status))

    @property
    def certified(self) -> Tensor:
        """`[B]` bool: the action is the certified optimum of the given or the relaxed problem."""
        return (self.status == int(SolveStatus.SOLVED)) | (self.status == int(SolveStatus.RELAXED))

    def mean(self, losses: Tensor) -> Tensor:
        """Mean of per-sample losses `[B]` over the certified samples; 0 without gradient if there is none."""
        return torch.where(self.certified, losses, 0.0).sum() / self.certified.sum().clamp_min(1)

    def counts(self) -> dict[str, int]:
        """Number of samples by status, for logging."""
        return {status.name.lower(): int((self.status == int(status)).sum()) for status in SolveStatus}


class SolveQP(torch.autograd.Function):
    """y(Q, e, l, u) = argmin 1/2 y^T Q y + e^T y subject to l <= A y <= u, with its implicit derivative.

    On the active rows W the optimum solves a linear system; its adjoint (p, q), from the factors of the forward pass, gives

        dL/de = -p,   dL/dQ = -1/2 sum_b (p_b y_b^T + y_b p_b^T),   dL/du = q where u is active,   dL/dl = q where l is.

    The gradient is exact wherever y is differentiable. At a weakly active row (zero multiplier) y has a kink, and one of the
    one-sided derivatives is returned.
    Source: OptNet, arXiv:1703.00443, eqs. 6 and 7.
    Differs: the gradient of the shared Q is the sum over the batch; qpth returns the mean.
    """

    @staticmethod
    def forward(
        ctx: Any, hessian: Tensor, e: Tensor, lower: Tensor, upper: Tensor, operators: Operators, soft: Tensor | None
    ) -> tuple[Tensor, Solution]:
        """Solves the batch; see `solver.solve`. All tensors float64, `hessian` the one that `operators` were prepared from."""
        solution = solve(operators, e, lower, upper, soft=soft, keep_factors=any(ctx.needs_input_grad))
        ctx.operators, ctx.factors = operators, solution.factors
        ctx.save_for_backward(solution.y, solution.side, solution.kkt)
        return solution.y, solution

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, _: None) -> tuple[Tensor | None, ...]:
        """Gradients of Q, e, l and u; only those that are needed."""
        y, side, kkt = ctx.saved_tensors
        certified = torch.isfinite(kkt)
        p, q = adjoint(ctx.operators, ctx.factors, certified, g)
        needs_hessian, needs_e, needs_lower, needs_upper = ctx.needs_input_grad[:4]
        outer = p.mT @ torch.where(certified[:, None], y, 0.0) if needs_hessian else None
        return (
            None if outer is None else -0.5 * (outer + outer.mT),
            -p if needs_e else None,
            torch.where(side < 0, q, 0.0) if needs_lower else None,
            torch.where(side > 0, q, 0.0) if needs_upper else None,
            None,
            None,
        )


class QPHead(nn.Module):
    """Maps a network's output e to the trajectory of actions

        y = argmin 1/2 y^T Qbar y + e^T y   subject to the limits,     Qbar = L L^T + eps I + alpha S^T A_diff^T A_diff S.

    L is lower triangular and learned; Qbar is shared by all samples. Without active limits y = -Qbar^-1 e, so minus e is what the
    network wants, in the metric of Qbar. LeTO uses e = -tanh(network output).

    In training, a sample whose limits contradict each other is INFEASIBLE. In evaluation mode, its position limits are widened
    by the least amount that lets velocity, acceleration and continuity hold, and it is RELAXED (INFEASIBLE is left for a
    previous action from which even those can't be met). Rows that are neither SOLVED nor RELAXED hold NaN, so that no
    uncertified action is ever executed, and give zero gradient: average losses with `SolveInfo.mean`.

    Everything is computed in float64, autocast or not, and y is returned in the dtype of e. For `torch.compile` the head is a
    graph break. Where no gradient of L is wanted, the factors of Qbar are kept until L changes.

    Args:
        limits: what to satisfy; see `TrajectoryLimits`.
        alpha: weight of the accelerations, in [0, inf).
        eps: added to the diagonal of L L^T, in [0, inf).
        init: `uniform`, LeTO's tril(U[0, 1]), or `identity`, which starts with far fewer limits active.
        learn: whether L is trained.
        generator: for `uniform`.
    Source: LeTO, arXiv:2401.17500, eqs. 5 to 8 and 11.
    Differs: L stays triangular, the official code trains the upper triangle too; limits per dimension; infeasibility is handled.
    """

    alpha: Tensor
    eps: Tensor

    def __init__(
        self,
        limits: TrajectoryLimits,
        *,
        alpha: float = 1.0,
        eps: float = 1e-4,
        init: str = "uniform",
        learn: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("alpha", alpha), ("eps", eps)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value} must be a finite number, at least 0.")
        if init not in INITS:
            raise ValueError(f"init={init!r} must be {' or '.join(map(repr, INITS))}.")
        self.limits = limits
        self.constraints = TrajectoryRows(limits)
        n = limits.size
        start = torch.rand(n, n, generator=generator).tril() if init == "uniform" else torch.eye(n)
        self.L = nn.Parameter(start, requires_grad=learn)
        self.register_buffer("alpha", torch.tensor(alpha, dtype=torch.float64), persistent=False)
        self.register_buffer("eps", torch.tensor(eps, dtype=torch.float64), persistent=False)
        self._kept: tuple[tuple[Tensor, ...], Tensor, Operators] | None = None
        self._single: SingleSolver | None = None

    @classmethod
    def projection(cls, limits: TrajectoryLimits) -> QPHead:
        """A head without parameters to learn: the trajectory inside the limits that is nearest to -e."""
        return cls(limits, alpha=0.0, eps=0.0, init="identity", learn=False)

    def hessian(self) -> Tensor:
        """Qbar `[n, n]`, float64, differentiable in L."""
        factor = self.L.double().tril()
        smooth = self.constraints.difference @ self.constraints.selection
        return (
            factor @ factor.mT
            + self.eps * torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
            + self.alpha * smooth.mT @ smooth
        )

    @_disable_dynamo  # torch.compiler.disable, but torch._dynamo (2 s) is imported at the first call
    def forward(self, e: Tensor, position: Tensor | None = None, previous: Tensor | None = None) -> tuple[Tensor, SolveInfo]:
        """Solves B programs.

        Args:
            e: linear terms `[B, T_p A]`; entry j A + i belongs to action i of step j.
            position: p_t `[B, c]`, current positions of the c constrained actions, where there are position limits.
            previous: last executed action `[B, A]`: turns the continuity limit (11) on. Pass it at deployment, always; in
                training (the demonstrated previous action) it is an option that LeTO leaves out.
        Returns:
            y `[B, T_p, A]` in the dtype of e, and `SolveInfo`. Row i depends on row i of the inputs only.
        Raises:
            ValueError: wrong shapes, NaN in an input (with the sample), or a Hessian that is not positive definite.
        """
        check_rows("e", e, (len(e), self.limits.size))
        with torch.autocast(e.device.type, enabled=False) if torch.is_autocast_enabled(e.device.type) else nullcontext():
            lower, upper = self.constraints.bounds(len(e), position, previous)
            hessian, operators = self._prepared()
            soft = None if self.training or self.limits.position_matrix is None else self.constraints.soft
            if torch.is_grad_enabled():
                y, solution = SolveQP.apply(hessian, e.double(), lower, upper, operators, soft)  # type: ignore[no-untyped-call]
            else:
                solution = self._solve(operators, e.double(), lower, upper, soft)
                y = solution.y
        info = SolveInfo(solution.status, solution.kkt, solution.slack, solution.rounds)
        return y.to(e.dtype).view(len(e), self.limits.horizon, self.limits.action_dim), info

    def _prepared(self) -> tuple[Tensor, Operators]:
        """Qbar and what is made from it; without gradients of L kept for as long as L, alpha and eps have the same values."""
        if torch.is_grad_enabled() and self.L.requires_grad:
            hessian = self.hessian()
            return hessian, prepare(hessian.detach(), self.constraints.rows)
        source = (self.L, self.alpha, self.eps)
        kept = self._kept
        if kept is None or any(a.device != b.device or not torch.equal(a, b) for a, b in zip(kept[0], source, strict=True)):
            hessian = self.hessian().detach()
            kept = tuple(x.detach().clone() for x in source), hessian, prepare(hessian, self.constraints.rows)
            self._kept = kept
        return kept[1:]

    def _solve(self, operators: Operators, e: Tensor, lower: Tensor, upper: Tensor, soft: Tensor | None) -> Solution:
        """Without gradients; one sample on the CPU, the case of a control loop, by its own solver."""
        if len(e) != 1 or e.device.type != "cpu":
            return solve(operators, e, lower, upper, soft=soft)
        if self._single is None or self._single.operators is not operators:
            self._single = SingleSolver(operators)
        return self._single.solve(e, lower, upper, soft=soft)
