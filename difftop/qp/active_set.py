"""Dual active set for one quadratic program: slow, and always with an answer. The last resort of `solver.py`.

Source: Goldfarb and Idnani, "A numerically stable dual method for solving strictly convex quadratic programs",
Mathematical Programming 27, 1983.
Differs: works on H = A Q^-1 A^T alone; two-sided rows; starts from a guess of the active set; can widen soft rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from difftop.types import SolveStatus

Array = NDArray[np.float64]
Index = NDArray[np.int64]
VIOLATION = 1e-10  # rows count as satisfied within this, a tenth of what the certificate allows
DEPENDENT = 1e-9  # a combination of rows vanishes when its largest entry is below this part of the largest weight
ROUNDING = 1e-12  # weights of a combination below this part of the largest are zero
INDEPENDENT = 1e-12  # smallest squared pivot of a starting set, relative to its diagonal


@dataclass(frozen=True)
class DualResult:
    """Outcome of `DualActiveSet.run`.

    Attributes:
        status: SOLVED, RELAXED (solved after widening), INFEASIBLE (proven) or FAILED (out of steps).
        side: `[m]`, +1 where a row is active at its upper bound, -1 at its lower one, 0 where it is not active.
        moved: `[2, m]`, by how much lower bounds were lowered and upper bounds raised.
    """

    status: SolveStatus
    side: NDArray[np.int8]
    moved: Array


class DualActiveSet:
    """Minimize 1/2 y^T Q y + e^T y subject to l <= A y <= u, seen from the dual.

    Every step keeps optimal multipliers mu >= 0 of a set W of independent rows, takes the most violated row p, and moves along

        mu_p += t,   mu_W -= t r,   r = H_WW^-1 H_Wp,   violation of p -= t (H_pp - H_pW r)

    until p holds, or a multiplier reaches zero and its row leaves W. If p depends on W and no row can leave, the weights (1, -r)
    combine the bounds to a contradiction, which proves that no y satisfies them all.
    """

    def __init__(
        self, rows: Array, project: Array, dual: Array, y0: Array, lower: Array, upper: Array, soft: Index | None
    ) -> None:
        """Takes A, A Q^-1 `[m, n]`, H = A Q^-1 A^T `[m, m]`, y0 = -Q^-1 e `[n]`, l, u `[m]`, and `soft` of `solver.solve`."""
        self.rows, self.project, self.dual, self.y0 = rows, project, dual, y0
        self.gap: Array = np.einsum("ij,j->i", rows, y0)
        self.lower, self.upper, self.moved = lower.copy(), upper.copy(), np.zeros((2, len(rows)))
        self.soft = np.full(len(rows), -1) if soft is None else soft
        ends = (self.soft[(self.soft >= 0) & np.isfinite(bound)] for bound in (lower, upper))
        self.choice = sum(len(np.unique(end)) for end in ends) > 1  # whether there is more than one limit to move
        self.fixed = lower == upper  # equalities: their multipliers have no sign, so they never leave
        self.weight = 1.0 / np.sqrt(np.maximum(dual.diagonal(), np.finfo(np.float64).tiny))
        self.active: Index = np.zeros(0, dtype=np.int64)
        self.sign, self.mu = np.zeros(0), np.zeros(0)

    def run(self, guess: NDArray[np.int8]) -> DualResult:
        """Solves the problem, starting from those rows of `guess` `[m]` whose multipliers have the right sign.

        Which of several soft limits in conflict give way can depend on the order in which rows enter. Where there is a choice, a
        conflict therefore starts again without the guess: the outcome is the sample's alone, whatever made the guess.
        """
        self._start(np.flatnonzero(guess), guess[guess != 0].astype(np.float64))
        status, relaxed = SolveStatus.FAILED, False
        for _ in range(20 * len(self.gap) + 100):
            value = self._values()
            violation = np.maximum(value - self.upper, self.lower - value)
            violation[self.active] = 0.0
            entering = int(np.argmax(np.where(violation > VIOLATION, violation * self.weight, 0.0)))
            if violation[entering] <= VIOLATION:
                status = SolveStatus.RELAXED if relaxed else SolveStatus.SOLVED
                break
            proof = self._enter(entering, 1.0 if value[entering] > self.upper[entering] else -1.0, violation[entering])
            if proof is None:
                continue
            excess = self._excess(proof)
            if excess <= 0:
                break
            if self.choice and guess.any() and bool((self.soft[proof != 0] >= 0).any()):
                return self.run(np.zeros_like(guess))
            relaxed = self._widen(proof, excess)
            if not relaxed:
                status = SolveStatus.INFEASIBLE
                break
        side = np.zeros(len(self.gap), dtype=np.int8)
        side[self.active] = self.sign
        return DualResult(status, side, self.moved)

    def _values(self) -> Array:
        """A y `[m]`; where a huge y0 lets rounding show, the active rows are put back to their bounds."""
        active, s = self.active, self.sign
        y = self.y0 - np.einsum("ij,i->j", self.project[active], s * self.mu)
        off = s * (np.einsum("ij,j->i", self.rows[active], y) - np.where(s > 0, self.upper[active], self.lower[active]))
        if np.abs(off).max(initial=0.0) > 0.01 * VIOLATION:
            y -= np.einsum("ij,i->j", self.project[active], s * _solve(self._schur(active, s), off))
        value: Array = np.einsum("ij,j->i", self.rows, y)
        return value

    def _start(self, active: Index, sign: Array) -> None:
        """Sets W to `active` without dependent rows and without those whose multipliers would have the wrong sign."""
        while True:
            schur = self._schur(active, sign)
            factor, failed = torch.linalg.cholesky_ex(torch.from_numpy(schur))
            pivots = factor.diagonal().numpy() ** 2 / schur.diagonal()
            if failed or np.any(pivots < INDEPENDENT):
                weakest = int(failed) - 1 if failed else int(np.argmin(pivots))
                active, sign = np.delete(active, weakest), np.delete(sign, weakest)
                continue
            bound = np.where(sign > 0, self.upper[active], self.lower[active])
            mu = _solve(schur, sign * (self.gap[active] - bound))
            keep = (mu >= 0) | self.fixed[active]
            if keep.all():
                self.active, self.sign, self.mu = active, sign, mu
                return
            active, sign = active[keep], sign[keep]

    def _schur(self, active: Index, sign: Array) -> Array:
        schur: Array = sign[:, None] * self.dual[active[:, None], active] * sign
        return schur

    def _enter(self, entering: int, sign: float, violation: float) -> Array | None:
        """Adds a violated row, dropping others on the way; returns the proof `[m]` if that is impossible."""
        mu_entering = 0.0
        while True:
            active, s = self.active, self.sign
            column = sign * s * self.dual[active, entering]
            r = _solve(self._schur(active, s), column)
            combination = np.zeros(len(self.gap))
            combination[active], combination[entering] = -s * r, sign
            dependent = (
                np.abs(np.einsum("ij,i->j", self.rows, combination)).max(initial=0.0) <= DEPENDENT * np.abs(combination).max()
            )
            curvature = self.dual[entering, entering] - column @ r
            full = np.inf if dependent or curvature <= 0 else violation / curvature
            can_leave = (r > 1e-13) & ~self.fixed[active]
            ratio = np.where(can_leave, self.mu / np.where(can_leave, r, 1.0), np.inf)
            longest = ratio.min(initial=np.inf)
            if full == np.inf and longest == np.inf:
                return np.where(np.abs(combination) > ROUNDING * np.abs(combination).max(), combination, 0.0)
            step = min(full, longest)
            self.mu = np.where(self.fixed[active], self.mu - step * r, np.maximum(self.mu - step * r, 0.0))
            mu_entering += step
            violation -= step * curvature
            if full <= longest:
                self.active, self.sign, self.mu = np.append(active, entering), np.append(s, sign), np.append(self.mu, mu_entering)
                return None
            keep = np.arange(len(active)) != int(np.argmin(ratio))
            self.active, self.sign, self.mu = active[keep], s[keep], self.mu[keep]

    def _excess(self, proof: Array) -> float:
        """By how much weights contradict the bounds: A^T w = 0, yet w^T A y <= -excess. Not positive if they prove nothing."""
        if np.abs(np.einsum("ij,i->j", self.rows, proof)).max(initial=0.0) > DEPENDENT * np.abs(proof).max():
            return 0.0
        used = proof != 0
        return -float((proof[used] * np.where(proof[used] > 0, self.upper[used], self.lower[used])).sum())

    def _widen(self, proof: Array, excess: float) -> bool:
        """Moves the soft limits in a contradiction, all by the same amount, until it is none; False if none is soft.

        A limit is one side of one group, and moves as a whole. The contradiction then holds with equality, so that a smaller
        amount would not do: the total is the least one, where the contradictions of a sample involve one limit only.
        """
        up, down = (np.isin(self.soft, self.soft[(self.soft >= 0) & side]) for side in (proof > 0, proof < 0))
        weight = proof[up & (proof > 0)].sum() - proof[down & (proof < 0)].sum()
        if weight == 0:
            return False
        self.lower[down] -= excess / weight
        self.upper[up] += excess / weight
        self.moved += excess / weight * np.stack([down, up])
        self.fixed = self.lower == self.upper
        self._start(self.active, self.sign)
        return True


def _solve(matrix: Array, right: Array) -> Array:
    """Linear solve on torch's threads: numpy's would start one per core for each of these small systems."""
    solution: Array = torch.linalg.solve_ex(torch.from_numpy(matrix), torch.from_numpy(right))[0].numpy()
    return solution
