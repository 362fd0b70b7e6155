"""The solver against Clarabel, DAQP, the KKT conditions and itself in another order."""

from __future__ import annotations

import daqp
import numpy as np
import pytest
import torch

from difftop.qp import QPHead, TrajectoryLimits, solver
from difftop.qp.active_set import DualActiveSet
from difftop.qp.solver import prepare, solve
from difftop.types import SolveStatus
from tests.qp.problems import (
    XYZ_ROWS,
    Z_ROW,
    Problem,
    box_limits,
    clarabel_solve,
    duplicated,
    leto_limits,
    make,
    pinned,
    residuals,
    with_signs,
)

SOLVED, INFEASIBLE, RELAXED = int(SolveStatus.SOLVED), int(SolveStatus.INFEASIBLE), int(SolveStatus.RELAXED)


CASES = {
    "leto": lambda: make(leto_limits(6), 32),
    "T_p=10": lambda: make(leto_limits(10), 24),
    "T_p=16": lambda: make(leto_limits(16), 12),
    "tight": lambda: make(leto_limits(10, 0.01), 16),
    "condition 1e4": lambda: make(leto_limits(10), 16, condition=1e4),
    "condition 1e6": lambda: make(leto_limits(10), 16, condition=1e6),
    "previous": lambda: make(leto_limits(10), 16, previous=True),
    "position z": lambda: make(box_limits(10, Z_ROW), 16, position=True),
    "position xyz": lambda: make(box_limits(10, XYZ_ROWS), 16, position=True),
    "duplicated rows": lambda: duplicated(make(leto_limits(6), 16)),
    "equalities": lambda: pinned(make(leto_limits(10), 16)),
    "bang-bang": lambda: with_signs(make(leto_limits(24), 8), 50.0),
    "one step": lambda: make(TrajectoryLimits(7, 1, range(6)), 16),
    "one action": lambda: make(TrajectoryLimits(3, 8, (1,), acceleration_min=-0.1, acceleration_max=0.1), 16),
    "nothing constrained": lambda: make(TrajectoryLimits(3, 8, ()), 16, condition=1e2),
    "nothing wanted": lambda: with_signs(make(leto_limits(10), 4), 0.0),
    "scaled": lambda: (lambda p: Problem(1e6 * p.hessian, p.rows, 1e6 * p.e, p.lower, p.upper))(make(leto_limits(6), 16)),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_clarabel(name: str) -> None:
    p = CASES[name]()
    s = solve(prepare(p.hessian, p.rows), p.e, p.lower, p.upper)
    assert s.status.tolist() == [SOLVED] * len(p.e)
    assert s.kkt.max() <= 1e-9
    assert residuals(p, s.y, s.side).max() <= 1e-9
    for i in range(min(8, len(p.e))):
        y, infeasible = clarabel_solve(p.hessian, p.rows, p.e[i], p.lower[i], p.upper[i])
        assert not infeasible
        torch.testing.assert_close(s.y[i], y, rtol=0, atol=1e-7)


@pytest.mark.parametrize("horizon", [6, 16])
def test_agrees_with_daqp(horizon: int) -> None:
    p = make(leto_limits(horizon), 12, seed=5)
    s = solve(prepare(p.hessian, p.rows), p.e, p.lower, p.upper)
    for i in range(12):
        y, _, flag, _ = daqp.solve(
            *(x.numpy() for x in (p.hessian, p.e[i], p.rows, p.upper[i], p.lower[i])), np.zeros(len(p.rows), dtype=np.int32)
        )
        assert flag == 1
        torch.testing.assert_close(s.y[i], torch.from_numpy(np.asarray(y)), rtol=0, atol=1e-6)


def test_ten_thousand_problems_of_letos_size() -> None:
    for seed in range(10):  # another Hessian each
        p = make(leto_limits(6), 1000, seed=seed)
        s = solve(prepare(p.hessian, p.rows), p.e, p.lower, p.upper)
        value = s.y @ p.rows.mT
        assert bool((s.status == SOLVED).all())
        assert torch.maximum(value - p.upper, p.lower - value).max() < 1e-9
        assert residuals(p[:20], s.y[:20], s.side[:20]).max() < 1e-9
        assert s.kkt.max() < 1e-9


@pytest.mark.parametrize("condition", [1e2, 1e8])
def test_every_condition_is_solved(condition: float) -> None:
    p = make(leto_limits(10), 64, condition=condition)
    s = solve(prepare(p.hessian, p.rows), p.e, p.lower, p.upper)
    assert bool((s.status == SOLVED).all()) and s.kkt.max() <= 1e-9
    assert residuals(p[:16], s.y[:16], s.side[:16]).max() <= 1e-9


def test_no_active_limits_and_no_limits() -> None:
    p = make(leto_limits(6), 4)
    s = solve(prepare(p.hessian, p.rows), torch.zeros_like(p.e), p.lower, p.upper)
    assert torch.equal(s.y, torch.zeros_like(s.y)) and s.status.tolist() == [SOLVED] * 4
    free = make(TrajectoryLimits(3, 4, ()), 4)
    s = solve(prepare(free.hessian, free.rows), free.e, free.lower, free.upper)
    torch.testing.assert_close(s.y, -torch.linalg.solve(free.hessian, free.e.mT).mT, rtol=1e-10, atol=0)
    assert s.status.tolist() == [SOLVED] * 4


def test_rows_of_the_batch_do_not_meet() -> None:
    p = make(box_limits(10, XYZ_ROWS), 64, position=True, previous=True)
    operators = prepare(p.hessian, p.rows)
    whole = solve(operators, p.e, p.lower, p.upper)
    assert {SOLVED, INFEASIBLE} == set(whole.status.tolist())
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    shuffled = solve(operators, p.e[order], p.lower[order], p.upper[order])
    assert torch.equal(shuffled.status, whole.status[order])
    torch.testing.assert_close(shuffled.y, whole.y[order], rtol=0, atol=1e-11, equal_nan=True)
    for i in range(0, 64, 9):
        alone = solve(operators, p.e[i : i + 1], p.lower[i : i + 1], p.upper[i : i + 1])
        torch.testing.assert_close(alone.y[0], whole.y[i], rtol=0, atol=1e-11, equal_nan=True)


def test_verdicts_agree_with_clarabel() -> None:
    p = make(box_limits(10, Z_ROW), 100, position=True, previous=True, seed=4)
    s = solve(prepare(p.hessian, p.rows), p.e, p.lower, p.upper)
    verdicts = [clarabel_solve(p.hessian, p.rows, p.e[i], p.lower[i], p.upper[i], 1e-9)[1] for i in range(100)]
    assert (s.status == INFEASIBLE).tolist() == verdicts
    assert 5 < sum(verdicts) < 50
    assert s.y[s.status == INFEASIBLE].isnan().all() and s.y[s.status == SOLVED].isfinite().all()


def test_soft_rows_are_widened_by_the_least_amount() -> None:
    p = make(box_limits(10, Z_ROW), 60, position=True, previous=True, seed=4)
    m = len(p.rows)
    hard = torch.arange(m) < m - 9
    operators = prepare(p.hessian, p.rows)
    strict, s = solve(operators, p.e, p.lower, p.upper), solve(operators, p.e, p.lower, p.upper, soft=torch.where(hard, -1, 0))
    relaxed = (strict.status == INFEASIBLE).nonzero()[:, 0]
    assert len(relaxed) > 5 and bool((s.status[relaxed] == RELAXED).all())
    solved = strict.status == SOLVED
    assert torch.equal(s.y[solved], strict.y[solved]) and bool((s.slack[solved] == 0).all())
    value = s.y @ p.rows.mT
    violation = torch.maximum(value - p.upper, p.lower - value)
    assert violation[:, hard].max() <= 1e-9 and s.kkt.max() <= 1e-9
    torch.testing.assert_close(violation[relaxed].amax(1), s.slack[relaxed], rtol=0, atol=1e-8)
    n, soft = p.rows.shape[1], ~hard
    for i in relaxed[:8].tolist():  # min t over (y, t): hard rows hold, soft rows within t; a speck of curvature makes it a QP
        rows = torch.cat([torch.cat([p.rows, -soft[:, None].double()], 1), torch.cat([p.rows, soft[:, None].double()], 1)])
        upper = torch.cat([p.upper[i], torch.full((m,), torch.inf).double()])
        lower = torch.cat([torch.full((m,), -torch.inf).double(), p.lower[i]])
        cost = torch.zeros(n + 1, dtype=torch.float64)
        cost[n] = 1.0
        y, _ = clarabel_solve(1e-9 * torch.eye(n + 1, dtype=torch.float64), rows, cost, lower, upper, 1e-10)
        torch.testing.assert_close(s.slack[i], y[n], rtol=0, atol=1e-6)


def test_a_contradiction_of_hard_rows_does_not_move_soft_ones() -> None:
    p = make(box_limits(10, XYZ_ROWS), 40, position=True, previous=True)
    group = QPHead(box_limits(10, XYZ_ROWS)).constraints.soft
    s = solve(prepare(p.hessian, p.rows), p.e, p.lower, p.upper, soft=torch.where(group == 2, 0, -1))
    assert set(s.status.tolist()) == {SOLVED, RELAXED, INFEASIBLE}
    verdicts = []
    for i in range(40):  # without the soft rows
        verdicts.append(clarabel_solve(p.hessian, p.rows[group != 2], p.e[i], p.lower[i, group != 2], p.upper[i, group != 2])[1])
    assert (s.status == INFEASIBLE).tolist() == verdicts


def test_which_limits_give_way_does_not_depend_on_the_guess() -> None:
    sums = [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
    limits = TrajectoryLimits(3, 3, dt=0.25, acceleration_min=-1.0, position_matrix=sums, position_min=-0.05, position_max=-0.05)
    p, soft = make(limits, 30, position=True, previous=True), QPHead(limits).constraints.soft
    operators, m, g = prepare(p.hessian, p.rows), len(p.rows), np.random.default_rng(0)
    y0, relaxed = -p.e @ operators.inverse, 0
    for i in range(30):
        numbers = [x.numpy() for x in (p.rows, operators.project, operators.dual[:m, :m], y0[i], p.lower[i], p.upper[i], soft)]
        moved = []
        for guess in [np.zeros(m), *g.integers(-1, 2, (3, m))]:
            guess = np.where(np.isfinite(np.where(guess > 0, numbers[5], numbers[4])), guess, 0).astype(np.int8)
            out = DualActiveSet(*numbers).run(guess)
            relaxed += out.status is SolveStatus.RELAXED
            moved.append(out.moved)
        for other in moved[1:]:
            np.testing.assert_allclose(other, moved[0], rtol=0, atol=1e-9)
    assert relaxed > 40


def test_hard_contradictions_stay_infeasible() -> None:
    limits = leto_limits(6)
    p = make(limits, 3)
    upper, lower = p.upper.clone(), p.lower.clone()
    lower[1, 0], upper[1, 0] = 1.05, 1.0  # what a previous action of 1.15 asks for
    lower[2, :6] = upper[2, :6] = 0.9
    upper[2, 6:12] = 0.7  # reachable: 0.9 -> 0.7 needs two steps of 0.1
    s = solve(prepare(p.hessian, p.rows), p.e, lower, upper, soft=torch.full((66,), -1))
    assert s.status.tolist() == [SOLVED, INFEASIBLE, INFEASIBLE]


@pytest.mark.parametrize("name", ["leto", "duplicated rows", "equalities", "position xyz", "bang-bang"])
def test_fallback_alone_solves(name: str) -> None:
    p = CASES[name]()
    operators = prepare(p.hessian, p.rows)
    s = solve(operators, p.e, p.lower, p.upper)
    m, g = len(p.rows), np.random.default_rng(0)
    y0 = -p.e @ operators.inverse
    for i in range(4):
        for guess in (np.zeros(m), g.integers(-1, 2, m), s.side[i].numpy()):
            guess = np.where(np.isfinite(np.where(guess > 0, p.upper[i], p.lower[i])), guess, 0).astype(np.int8)
            numbers = (x.numpy() for x in (p.rows, operators.project, operators.dual[:m, :m], y0[i], p.lower[i], p.upper[i]))
            out = DualActiveSet(*numbers, None).run(guess)
            assert out.status is SolveStatus.SOLVED
            check = Problem(p.hessian, p.rows, p.e[i : i + 1], p.lower[i : i + 1], p.upper[i : i + 1])
            assert residuals(check, s.y[i : i + 1], torch.from_numpy(out.side)[None]).max() < 1e-8


def test_without_any_effort_the_fallback_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    p = make(box_limits(8, XYZ_ROWS), 12, position=True, previous=True)
    whole = solve(prepare(p.hessian, p.rows), p.e, p.lower, p.upper)
    monkeypatch.setattr(solver, "EFFORTS", (solver.Effort(2.0, False, 0, 0),))
    alone = solve(prepare(p.hessian, p.rows), p.e, p.lower, p.upper)
    assert torch.equal(alone.status, whole.status)
    torch.testing.assert_close(alone.y, whole.y, rtol=0, atol=1e-10, equal_nan=True)


def test_a_hessian_without_a_minimum() -> None:
    p = make(leto_limits(3), 2)
    for bad in (p.hessian - 10 * torch.eye(21), torch.full_like(p.hessian, torch.nan), torch.zeros_like(p.hessian)):
        with pytest.raises(ValueError, match=r"hessian \[21, 21\] is not positive definite"):
            prepare(bad, p.rows)


def test_a_result_without_certificate_is_no_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    p = make(leto_limits(6), 8)
    monkeypatch.setattr(solver, "PIVOT_TOLERANCE", 2.0)
    s = solve(prepare(p.hessian, p.rows), p.e, p.lower, p.upper)
    assert s.status.tolist() == [int(SolveStatus.FAILED)] * 8
    assert s.y.isnan().all() and s.kkt.isinf().all()
