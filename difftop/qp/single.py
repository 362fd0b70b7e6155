"""One program on the CPU, for control loops: the method of `solver.py` where a batch of one costs mostly the calls.

The same three steps, constants and certificate on vectors: matrices that meet the same vector are stacked, small arithmetic is
numpy's (a third of torch's cost per call), and matrix products stay torch's, which keeps to its number of threads. More rounds
than in a batch: one costs far less than the fallback, which decides what they leave open.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from difftop.qp.solver import (
    EFFORTS,
    KKT_TOLERANCE,
    PIVOT_TOLERANCE,
    REFINE_ABOVE,
    RELAXATION,
    SIGN_TOLERANCE,
    Operators,
    Solution,
    solve,
)
from difftop.types import SolveStatus

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Sides = NDArray[np.int8]
ROUNDS = 8  # these left 1 of 1,200 problems of LeTO's size to the fallback


class SingleSolver:
    """Solves one program at a time with the operators of one Hessian; float64, CPU."""

    def __init__(self, operators: Operators) -> None:
        """Takes the result of `solver.prepare`."""
        ops, (m, n) = operators, operators.rows.shape
        self.operators, self.n = operators, n
        self.dual = ops.dual[:m, :m].contiguous().numpy()
        self.from_linear = -torch.cat([ops.inverse, ops.project])  # e -> y0 = -Q^-1 e, A y0
        self.from_point = torch.cat([ops.hessian, ops.rows])  # y -> Q y, A y
        self.from_multiplier = torch.cat([ops.project.mT, ops.rows.mT])  # lambda -> Q^-1 A^T lambda, A^T lambda
        root, matrix = ops.first
        self.root = root.numpy()
        mix = (1 - RELAXATION / 2) * torch.eye(m) - 0.5 * matrix
        self.step = torch.cat([mix, matrix], 1)  # (s, clamp(s)) -> next s

    def solve(self, e: Tensor, lower: Tensor, upper: Tensor, *, soft: Tensor | None = None) -> Solution:
        """As `solver.solve` without factors, for a batch of one: e `[1, n]`, l and u `[1, m]`."""
        program = _Program(self, *(x.detach().numpy()[0] for x in (e, lower, upper)))
        rounds = 0
        while rounds < ROUNDS and not program.contradicts:
            rounds += 1
            if program.finish():
                status, kkt = torch.tensor([int(SolveStatus.SOLVED)]), torch.tensor([program.kkt], dtype=torch.float64)
                y, side = torch.from_numpy(program.y[None]), torch.from_numpy(program.side[None])
                return Solution(y, side, status, kkt, torch.zeros_like(kkt), torch.tensor([rounds]))
        solution = solve(self.operators, e, lower, upper, soft=soft, guess=torch.from_numpy(program.side)[None])
        solution.rounds += rounds
        return solution


class _Program:
    """State of one call of `SingleSolver.solve`."""

    def __init__(self, shared: SingleSolver, e: Array, lower: Array, upper: Array) -> None:
        self.shared, self.e, self.size = shared, e, _largest(e)
        width = upper - lower
        narrowest = width.min(initial=np.inf)
        self.contradicts = bool(narrowest < -KKT_TOLERANCE)
        self.fixed: NDArray[np.bool_] | None = None
        if narrowest <= KKT_TOLERANCE:  # rows with l = u up to rounding are equalities
            self.fixed, middle = width <= KKT_TOLERANCE, 0.5 * (lower + upper)
            lower, upper = np.where(self.fixed, middle, lower), np.where(self.fixed, middle, upper)
        self.lower, self.upper = lower, upper
        start = _times(shared.from_linear, e)
        self.y0, self.gap = start[: shared.n], start[shared.n :]
        self.y, self.kkt = self.y0, math.inf
        self.side = self._identify()

    def _identify(self) -> Sides:
        """Guesses the active sides `[m]`; the splitting of `solver.solve`."""
        root, count = self.shared.root, EFFORTS[0].iterations
        low, high = (((x - self.gap) * root).astype(np.float32) for x in (self.lower, self.upper))
        least, most = torch.from_numpy(low), torch.from_numpy(high)
        copies = [(pair[0], pair[1], pair.view(-1)) for pair in torch.zeros(2, 2, len(root))]  # s, clamp(s), both
        for k in range(count):
            s, clamped, both = copies[k % 2]
            torch.clamp(s, least, most, out=clamped)
            torch.mv(self.shared.step, both, out=copies[1 - k % 2][0])
        last = copies[count % 2][0].numpy()
        side: Sides = (last > high).view(np.int8) - (last < low).view(np.int8)
        return side if self.fixed is None else np.where(self.fixed & (side == 0), np.int8(1), side)

    def finish(self) -> bool:
        """One round of the primal-dual active set: True where `y` is certified, else `side` is the next guess."""
        side, active = self.side, self.side.nonzero()[0]
        schur = self.shared.dual.take(active, 0).take(active, 1)
        factor, failed = torch.linalg.cholesky_ex(torch.from_numpy(schur))
        pivots = np.square(factor.diagonal().numpy()) / schur.diagonal()
        if failed or pivots.min(initial=np.inf) < PIVOT_TOLERANCE:
            side[active[int(failed) - 1 if failed else pivots.argmin()]] = 0
            return False
        multiplier, value, equality = self._equality_problem(active, factor)
        violation = np.maximum(value - self.upper, self.lower - value)
        backward = multiplier * -side / (1 + _largest(multiplier))
        if self.fixed is not None:
            backward[self.fixed] = 0.0
        sign, worst = float(backward.max(initial=0.0)), float(violation.max(initial=0.0))
        if equality <= KKT_TOLERANCE and worst <= KKT_TOLERANCE and sign <= SIGN_TOLERANCE:
            self.kkt = max(equality, worst, sign)
            return True
        side[backward > SIGN_TOLERANCE] = 0
        entering = (violation > KKT_TOLERANCE) & (side == 0)
        side[entering] = np.where(value > self.upper, 1, -1)[entering]
        return False

    def _equality_problem(self, active: Index, factor: Tensor) -> tuple[Array, Array, float]:
        """Sets `y` to the optimum with equality in the rows `active`; returns lambda `[m]`, A y `[m]` and the residual."""
        shared, n = self.shared, self.shared.n
        bound = np.where(self.side > 0, self.upper, self.lower)[active]
        multiplier = np.zeros(len(self.gap))
        multiplier[active] = _solve(factor, self.gap[active] - bound)
        pull = _times(shared.from_multiplier, multiplier)
        y, force = self.y0 - pull[:n], pull[n:]
        for step in range(3):
            both = _times(shared.from_point, y)
            gradient, value = both[:n], both[n:]
            wrong, missing = -(gradient + self.e + force), bound - value[active]
            stationarity = _largest(wrong) / (1 + max(self.size, _largest(gradient)))
            residual = max(stationarity, _largest(missing))
            if step == 2 or not residual > REFINE_ABOVE:
                break
            change = np.zeros_like(multiplier)
            change[active] = _solve(factor, _times(shared.operators.project, wrong)[active] - missing)
            pull = _times(shared.from_multiplier, change)
            multiplier, force = multiplier + change, force + pull[n:]
            y = y + _times(shared.operators.inverse, wrong) - pull[:n]
        self.y = y
        return multiplier, value, residual


def _times(matrix: Tensor, vector: Array) -> Array:
    product: Array = torch.mv(matrix, torch.from_numpy(vector)).numpy()
    return product


def _solve(factor: Tensor, right: Array) -> Array:
    solution: Array = torch.cholesky_solve(torch.from_numpy(right)[:, None], factor)[:, 0].numpy()
    return solution


def _largest(x: Array) -> float:
    return float(np.maximum.reduce(np.abs(x), initial=0.0))
