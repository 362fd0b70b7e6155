"""Batched quadratic programs that share Hessian and constraint matrix, solved exactly and certified one by one.

    minimize over y   1/2 y^T Q y + e^T y      subject to   l <= A y <= u          (Q [n,n], A [m,n] shared; e, l, u per sample)

Seen from the dual, a sample is nothing but the values c = -A Q^-1 e that its rows would take without constraints; the matrix
H = A Q^-1 A^T is the same for all. Three steps:

1. *Identify* (float32): Douglas-Rachford splitting, whose iteration is one clamp and one [B,m] x [m,m] product, guesses the
   active rows.
2. *Finish* (float64): the equality problem of the guessed rows W is solved with a Cholesky factor of H_WW; rows whose
   multiplier has the wrong sign leave, violated rows enter (primal-dual active set), until the Karush-Kuhn-Tucker (KKT)
   conditions hold.
3. *Fallback*: what is left goes to the dual active set of `active_set.py`, which finds the solution or proves that there is
   none.

Step 1 never decides a result: a sample counts as solved when its KKT residual, computed in float64 from Q, A, e, l, u, is small.

Source: Lions and Mercier, SIAM J. Numer. Anal. 16, 1979 (splitting); Hintermueller, Ito and Kunisch, SIAM J. Optim. 13, 2002
(primal-dual active set). The combination, and its sharing of H, are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from difftop.qp.active_set import DualActiveSet
from difftop.qp.batched import active_rows, cholesky_solve, drop_weakest, largest, pick, spread
from difftop.types import SolveStatus

KKT_TOLERANCE = 1e-9  # largest residual of a solved sample; stationarity and multipliers are relative, violation is absolute
SIGN_TOLERANCE = 1e-10  # a multiplier may have the wrong sign by this part of 1 + max |multiplier|
REFINE_ABOVE = 1e-12  # residual of an equality problem that is worth a step of iterative refinement
PIVOT_TOLERANCE = 1e-13  # rows are dependent when a squared pivot is below this part of its diagonal entry
RELAXATION = 1.6  # over-relaxation of the splitting, in (0, 2)


@dataclass(frozen=True)
class Effort:
    """One attempt at a sample: the splitting, then the finish.

    Attributes:
        kappa: penalty of the splitting, in units of 1 / H_ii.
        adapted: multiply it by sqrt(tr Q / tr Q^-1) mean_i(H_ii / |a_i|^2), which grows with the condition of Q (2 to 600 for
            conditions from 1e2 to 1e8).
        iterations: of the splitting.
        rounds: most rounds of the finish.
    """

    kappa: float
    adapted: bool
    iterations: int
    rounds: int


# Enough in turn for nearly all samples of LeTO's size; for conditions up to 1e8; for linear terms 10 and 100 times too large.
EFFORTS = (Effort(2.0, False, 24, 2), Effort(2.0, True, 100, 4), Effort(20.0, True, 200, 2), Effort(200.0, True, 200, 2))
FEW = 4  # so many samples are not worth another effort: the fallback takes about a millisecond for each


@dataclass(frozen=True)
class Operators:
    """What all samples share, made once per Hessian by `prepare`.

    Attributes:
        hessian: Q `[n, n]`.
        rows: A `[m, n]`.
        inverse: Q^-1 `[n, n]`.
        project: A Q^-1 `[m, n]`.
        dual: H `[m, m]`, extended by min(m, n) rows and columns of identity, which pad small active sets.
        scale: H_ii^-1/2 `[m]`.
        level: what `Effort.adapted` multiplies with.
        first: `reflection` of the first effort.
    """

    hessian: Tensor
    rows: Tensor
    inverse: Tensor
    project: Tensor
    dual: Tensor
    scale: Tensor
    level: Tensor
    first: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Factors:
    """Active sets of some samples and the factors of their H_WW, kept for the backward pass.

    Attributes:
        samples: `[b]`, rows of the batch.
        solved: `[b]` bool, those whose certificate holds.
        active: `[b, k]`, active rows of A in increasing order, then m, m + 1, ... where padded.
        factor: `[b, k, k]`, lower triangular.
    """

    samples: Tensor
    solved: Tensor
    active: Tensor
    factor: Tensor


@dataclass
class Solution:
    """Solutions of a batch.

    Attributes:
        y: minimizers `[B, n]`, float64; NaN where there is no certificate.
        side: `[B, m]` int8, +1 where a row is active at its upper bound, -1 at its lower one.
        status: `SolveStatus` per sample `[B]`.
        kkt: residual `[B]`; infinite where there is no certificate.
        slack: largest widening of a soft row `[B]`, in its unit; 0 unless RELAXED.
        rounds: equality problems solved per sample `[B]`.
        factors: for the backward pass, if asked for.
    """

    y: Tensor
    side: Tensor
    status: Tensor
    kkt: Tensor
    slack: Tensor
    rounds: Tensor
    factors: list[Factors] = field(default_factory=list)


def prepare(hessian: Tensor, rows: Tensor) -> Operators:
    """Everything that doesn't depend on the sample; O(m^3), once per Hessian.

    Args:
        hessian: Q `[n, n]`, symmetric positive definite, float64.
        rows: A `[m, n]`, float64; m may be 0.
    Raises:
        ValueError: Q isn't positive definite.
    """
    with torch.no_grad():
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if failed or not torch.isfinite(factor).all():
            n = hessian.shape[0]
            raise ValueError(
                f"hessian [{n}, {n}] is not positive definite (its leading minor {int(failed)} is not); its eigenvalues must "
                "all be positive: look for NaN in L, or raise eps."
            )
        inverse = torch.cholesky_inverse(factor)
        project = rows @ inverse
        (m, n), pad = rows.shape, min(rows.shape)
        dual = torch.eye(m + pad, dtype=hessian.dtype, device=hessian.device)
        dual[:m, :m] = project @ rows.mT
        scale = dual.diagonal()[:m].clamp_min(torch.finfo(dual.dtype).tiny).rsqrt()
        lengths = rows.square().sum(1).clamp_min(torch.finfo(dual.dtype).tiny)
        level = (hessian.trace() / inverse.trace()).sqrt() * (dual.diagonal()[:m] / lengths).mean()
        first = _reflection(dual, scale, level, EFFORTS[0])
        return Operators(hessian, rows, inverse, project, dual, scale, level, first)


def _reflection(dual: Tensor, scale: Tensor, level: Tensor, effort: Effort) -> tuple[Tensor, Tensor]:
    """R^1/2 `[m]` and 1.6 (I - 2 (I + R^1/2 H R^1/2)^-1), float32 `[m, m]`, for the penalties R of an effort."""
    m = len(scale)
    root = scale * (effort.kappa * (level if effort.adapted else torch.ones_like(level))).sqrt()
    eye = torch.eye(m, dtype=dual.dtype, device=dual.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(eye + root[:, None] * dual[:m, :m] * root))
    return root, (RELAXATION * (eye - 2 * inverse)).float()


def solve(
    operators: Operators,
    e: Tensor,
    lower: Tensor,
    upper: Tensor,
    *,
    soft: Tensor | None = None,
    keep_factors: bool = False,
    guess: Tensor | None = None,
) -> Solution:
    """Solves B problems.

    Args:
        operators: from `prepare`.
        e: linear terms `[B, n]`, float64, finite.
        lower, upper: l and u `[B, m]`, float64, infinite where a side is free.
        soft: `[m]`, int64, -1 for rows that must hold, otherwise a number for rows that are one limit: where a sample is
            infeasible, such limits are moved by the least amount, as a whole. None: all rows must hold.
        keep_factors: keep what `adjoint` needs.
        guess: sides `[B, m]`, int8, that step 3 starts from instead of steps 1 and 2, where these were tried already.
    Returns:
        `Solution`; row i depends on row i of the inputs only.
    """
    with torch.no_grad():
        run = _Run(operators, e, lower, upper, keep_factors)
        pending = run.pending
        side = (run.result.side if guess is None else guess)[pending]
        for number, effort in enumerate(EFFORTS if guess is None else ()):
            if pending.numel() <= (FEW if number else 0):
                break
            side = run.identify(pending, effort)
            for _ in range(effort.rounds):
                if pending.numel():
                    pending, side = run.finish(pending, side)
        if pending.numel():
            run.fallback(pending, side, soft)
        return run.result


def adjoint(operators: Operators, factors: list[Factors], certified: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Solves the adjoint of each sample's active equality problem,

        [Q  A_W^T; A_W  0] [p; q] = [g; 0].

    Args:
        factors: `Solution.factors`.
        certified: samples with a certificate `[B]`, bool.
        g: gradients of a loss with respect to y `[B, n]`, float64; ignored where not certified.
    Returns:
        p `[B, n]` and q `[B, m]`; zero on inactive rows, and where there is no certificate. The gradients are -p for e,
        -(p y^T + y p^T) / 2 summed over the batch for Q, and q for the bound at which a row is active.
    """
    g = torch.where(certified[:, None], g, 0.0)
    through = g @ operators.project.mT
    q = torch.zeros_like(through)
    for part in factors:
        right = pick(through[part.samples], part.active)
        solved = spread(cholesky_solve(part.factor, right), part.active, q.shape[1])
        q[part.samples[part.solved]] = solved[part.solved]
    return g @ operators.inverse - q @ operators.project, q


class _Run:
    """State of one call of `solve`."""

    def __init__(self, operators: Operators, e: Tensor, lower: Tensor, upper: Tensor, keep_factors: bool) -> None:
        self.ops, self.e, self.keep = operators, e, keep_factors
        self.y0 = -e @ operators.inverse
        self.gap = self.y0 @ operators.rows.mT
        width = upper - lower
        narrow = width <= KKT_TOLERANCE
        self.fixed = None
        status = torch.full(e.shape[:1], int(SolveStatus.FAILED), device=e.device)
        if bool(narrow.any()):  # rows with l = u up to rounding are equalities, and where l > u there is no solution
            empty = (width < -KKT_TOLERANCE).any(1)
            status[empty] = int(SolveStatus.INFEASIBLE)
            self.fixed, middle = narrow, 0.5 * (lower + upper)
            lower, upper = torch.where(narrow, middle, lower), torch.where(narrow, middle, upper)
        self.lower, self.upper = lower, upper
        self.pending = (status == int(SolveStatus.FAILED)).nonzero()[:, 0]
        self.result = Solution(
            y=torch.full_like(e, torch.nan),
            side=torch.zeros(lower.shape, dtype=torch.int8, device=e.device),
            status=status,
            kkt=e.new_full(e.shape[:1], torch.inf),
            slack=e.new_zeros(e.shape[0]),
            rounds=torch.zeros_like(status),
        )

    def identify(self, pending: Tensor, effort: Effort) -> Tensor:
        """Guesses the active sides of the `pending` samples, int8 `[b, m]`.

        The iterates are s = t - c in the usual notation z = clamp(t), x = argmin 1/2 x^T Q x + e^T x + 1/2 |A x - (2z - t)|_R^2,
        t += 1.6 (A x - z): the shift by c removes every term but the bounds that depends on the sample.
        """
        scale, matrix = (
            self.ops.first if effort is EFFORTS[0] else _reflection(self.ops.dual, self.ops.scale, self.ops.level, effort)
        )
        sides = []
        for rows in torch.split(pending, self._chunk(pending, 512)):
            low = ((self.lower[rows] - self.gap[rows]) * scale).float()
            high = ((self.upper[rows] - self.gap[rows]) * scale).float()
            s = torch.zeros_like(low)
            for _ in range(effort.iterations):
                z = torch.clamp(s, low, high)
                s = torch.addmm(s, z.sub_(s, alpha=0.5), matrix, beta=1 - RELAXATION / 2)
            sides.append((s > high).to(torch.int8) - (s < low).to(torch.int8))
        side = torch.cat(sides)
        return side if self.fixed is None else torch.where(self.fixed[pending] & (side == 0), 1, side)

    def finish(self, pending: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """One round of the primal-dual active set; returns the samples that are still open and their next sides."""
        size, limit = self._chunk(pending, 128), min(self.ops.rows.shape)
        counts = (side != 0).sum(1)
        if len(pending) <= size and int(counts.max()) <= limit:
            return self._round(pending, side)
        order = counts.argsort()  # similar sizes together, in pieces that fit a core's cache
        hopeless = int((counts > limit).sum())  # more rows than unknowns, surely dependent: left as they are
        order, last = order[: len(order) - hopeless], order[len(order) - hopeless :]
        parts = [self._round(pending[part], side[part]) for part in torch.split(order, size) if len(part)]
        parts.append((pending[last], side[last]))
        return torch.cat([samples for samples, _ in parts]), torch.cat([sides for _, sides in parts])

    def _chunk(self, pending: Tensor, size: int) -> int:
        return pending.numel() if pending.is_cuda else size

    def _round(self, samples: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """`finish` for one chunk `[b]`, side `[b, m]`."""
        ops, m = self.ops, side.shape[1]
        lower, upper, e, y0, gap = (x.index_select(0, samples) for x in (self.lower, self.upper, self.e, self.y0, self.gap))
        active = active_rows(side)
        schur = torch.take(ops.dual, active[:, :, None] * ops.dual.shape[0] + active[:, None, :])
        factor, failed = torch.linalg.cholesky_ex(schur)
        bound = torch.where(side > 0, upper, lower)
        multiplier = spread(cholesky_solve(factor, pick(gap - bound, active)), active, m)
        y = y0 - multiplier @ ops.project
        for step in range(3):
            value, gradient = y @ ops.rows.mT, y @ ops.hessian
            wrong = -(gradient + e + multiplier @ ops.rows)
            missing = torch.where(side != 0, bound - value, 0.0)
            stationarity = largest(wrong) / (1 + torch.maximum(largest(e), largest(gradient)))
            equality = torch.maximum(stationarity, largest(missing))
            if step == 2 or not bool((equality > REFINE_ABOVE).any()):
                break
            change = spread(cholesky_solve(factor, pick(wrong @ ops.project.mT - missing, active)), active, m)
            multiplier = multiplier + change
            y = y + wrong @ ops.inverse - change @ ops.project
        violation = torch.maximum(value - upper, lower - value)
        backward = (multiplier * side).neg_() / (1 + largest(multiplier))[:, None]
        if self.fixed is not None:
            backward = torch.where(self.fixed[samples], 0.0, backward)
        pivots = factor.diagonal(dim1=1, dim2=2).square() / schur.diagonal(dim1=1, dim2=2)
        dependent = (failed > 0) | (pivots < PIVOT_TOLERANCE).any(1)
        sign = backward.amax(1) if m else torch.zeros_like(equality)
        kkt = torch.maximum(torch.maximum(equality, sign), violation.amax(1) if m else equality)
        solved = (kkt <= KKT_TOLERANCE) & (sign <= SIGN_TOLERANCE) & ~dependent
        self._accept(Factors(samples, solved, active, factor), y, side, kkt)
        if bool(solved.all()):
            return samples[:0], side[:0]
        left = (~solved).nonzero()[:, 0]
        following = torch.where(backward[left] > SIGN_TOLERANCE, 0, side[left])
        entering = (value > upper)[left].to(torch.int8) - (value < lower)[left].to(torch.int8)
        following = torch.where((violation[left] > KKT_TOLERANCE) & (following == 0), entering, following)
        broken = dependent[left]
        if bool(broken.any()):
            following = torch.where(
                broken[:, None], drop_weakest(side[left], active[left], pivots[left], failed[left]), following
            )
        return samples[left], following

    def _accept(self, factors: Factors, y: Tensor, side: Tensor, kkt: Tensor) -> None:
        result, kept = self.result, factors.solved.nonzero()[:, 0]
        result.rounds.index_add_(0, factors.samples, torch.ones_like(factors.samples))
        if not len(kept):
            return
        index = factors.samples.index_select(0, kept)
        for all_, values in ((result.y, y), (result.side, side), (result.kkt, kkt)):
            all_.index_copy_(0, index, values.index_select(0, kept))
        result.status.index_fill_(0, index, int(SolveStatus.SOLVED))
        if self.keep:
            result.factors.append(factors)

    def fallback(self, pending: Tensor, side: Tensor, soft: Tensor | None) -> None:
        """Decides the samples that no effort solved, one after the other on the CPU."""
        m = side.shape[1]
        rows, project, dual = (x.cpu().numpy() for x in (self.ops.rows, self.ops.project, self.ops.dual[:m, :m]))
        y0, lower, upper = (x[pending].cpu().numpy() for x in (self.y0, self.lower, self.upper))
        guess, soft_rows = side.cpu().numpy(), None if soft is None else soft.cpu().numpy()
        self.lower, self.upper = self.lower.clone(), self.upper.clone()
        decided = []
        for i, sample in enumerate(pending.tolist()):
            outcome = DualActiveSet(rows, project, dual, y0[i], lower[i], upper[i], soft_rows).run(guess[i])
            self.result.status[sample] = int(outcome.status)
            decided.append(torch.from_numpy(outcome.side))
            if outcome.status is SolveStatus.RELAXED:
                moved = torch.from_numpy(outcome.moved).to(side.device)
                self.lower[sample] -= moved[0]
                self.upper[sample] += moved[1]
                self.result.slack[sample] = moved.max()
        status = self.result.status[pending]
        feasible = (status == int(SolveStatus.SOLVED)) | (status == int(SolveStatus.RELAXED))
        self.result.status[pending[feasible]] = int(SolveStatus.FAILED)  # until the certificate says otherwise
        if bool(feasible.any()):
            self.finish(pending[feasible], torch.stack(decided).to(side.device)[feasible])
        relaxed = pending[(status == int(SolveStatus.RELAXED))]
        certified = self.result.status[relaxed] == int(SolveStatus.SOLVED)
        self.result.status[relaxed[certified]] = int(SolveStatus.RELAXED)
