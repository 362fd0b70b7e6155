"""One program on the CPU: the same verdicts, certificates and results as the batch."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difftop.qp import QPHead, TrajectoryLimits, single, solver
from difftop.qp.single import SingleSolver
from difftop.qp.solver import prepare, solve
from difftop.types import SolveStatus
from tests.qp.problems import XYZ_ROWS, Z_ROW, Problem, box_limits, duplicated, leto_limits, make, outside, residuals
from tests.qp.test_solver import CASES

SOLVED, RELAXED, INFEASIBLE = int(SolveStatus.SOLVED), int(SolveStatus.RELAXED), int(SolveStatus.INFEASIBLE)


def assert_same(p: Problem, soft: torch.Tensor | None = None) -> list[int]:
    """Compares every sample with the batch; returns the statuses."""
    operators = prepare(p.hessian, p.rows)
    one, batch = SingleSolver(operators), solve(operators, p.e, p.lower, p.upper, soft=soft)
    for i in range(len(p.e)):
        s = one.solve(p.e[i : i + 1], p.lower[i : i + 1], p.upper[i : i + 1], soft=soft)
        assert s.status.tolist() == batch.status[i : i + 1].tolist()
        for values, others, scale in ((s.y, batch.y, 1 + batch.y[i].nan_to_num().abs().max()), (s.slack, batch.slack, 1)):
            assert values.dtype == others.dtype and values.shape == others[i : i + 1].shape
            torch.testing.assert_close(values[0], others[i], rtol=0, atol=1e-10 * float(scale), equal_nan=True)
        if s.status[0] == SOLVED:
            assert s.kkt[0] <= 1e-9
            check = Problem(p.hessian, p.rows, p.e[i : i + 1], p.lower[i : i + 1], p.upper[i : i + 1])
            assert residuals(check, s.y, s.side).max() <= 1e-9
        elif s.status[0] == INFEASIBLE:
            assert s.y.isnan().all() and s.kkt.isinf().all()
        assert s.rounds[0] >= 1 or s.status[0] == INFEASIBLE
    status: list[int] = batch.status.tolist()
    return status


@pytest.mark.parametrize("name", CASES)
def test_every_case_equals_the_batch(name: str) -> None:
    assert set(assert_same(CASES[name]()[:8])) == {SOLVED}


@pytest.mark.parametrize("name", ["continuity", "outside"])
@pytest.mark.parametrize("matrix", [Z_ROW, XYZ_ROWS])
def test_contradictions_equal_the_batch(name: str, matrix: list[list[float]]) -> None:
    limits = box_limits(10, matrix)
    p = make(limits, 12, position=True, previous=name == "continuity", seed=4)
    p = p if name == "continuity" else outside(p)
    soft = QPHead(limits).constraints.soft
    assert set(assert_same(p)) == {SOLVED, INFEASIBLE}
    assert set(assert_same(p, soft)) == {SOLVED, RELAXED}
    assert set(assert_same(p, torch.where(soft == len(matrix) - 1, 0, -1))) <= {SOLVED, RELAXED, INFEASIBLE}


def test_impossible_bounds_equal_the_batch() -> None:
    p = make(leto_limits(4), 3)
    lower, upper = p.lower.clone(), p.upper.clone()
    lower[1, 0], upper[1, 0] = 1.05, 1.0
    lower[2, :6] = upper[2, :6] = 0.9
    upper[2, 6:12] = 0.7
    assert assert_same(Problem(p.hessian, p.rows, p.e, lower, upper)) == [SOLVED, INFEASIBLE, INFEASIBLE]


size = st.floats(0.01, 1.0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), actions=st.integers(1, 4), horizon=st.integers(1, 6), seed=st.integers(0, 999))
def test_any_problem_equals_the_batch(data: st.DataObject, actions: int, horizon: int, seed: int) -> None:
    chosen = data.draw(st.lists(st.integers(0, actions - 1), unique=True))
    with_positions = bool(chosen) and horizon > 1 and data.draw(st.booleans())
    limits = TrajectoryLimits(
        actions,
        horizon,
        chosen,
        dt=data.draw(size),
        velocity_max=[data.draw(size) for _ in chosen],
        velocity_min=[-data.draw(st.one_of(size, st.just(torch.inf))) for _ in chosen],
        acceleration_min=-data.draw(size),
        acceleration_max=data.draw(st.one_of(size, st.just(torch.inf))),
        position_matrix=[[1.0] * len(chosen), [1.0] + [0.0] * (len(chosen) - 1)] if with_positions else None,
        position_min=-0.05,
        position_max=data.draw(st.sampled_from([-0.05, 0.1])),
    )
    condition = data.draw(st.sampled_from([1.0, 1e2, 1e4]))
    p = make(limits, 4, seed=seed, condition=condition, position=with_positions, previous=data.draw(st.booleans()))
    kind = data.draw(st.sampled_from(["plain", "twice", "pinned", "large", "nothing wanted"]))
    soft = QPHead(limits).constraints.soft if with_positions else None
    if kind == "twice":
        p, soft = duplicated(p), None if soft is None else torch.cat([soft] * 2)
    some = (torch.arange(len(p.rows)) % 5 == 0) & p.upper.isfinite()
    lower = torch.where(some, p.upper, p.lower) if kind == "pinned" else p.lower
    p = Problem(p.hessian, p.rows, {"large": 50.0, "nothing wanted": 0.0}.get(kind, 1.0) * p.e, lower, p.upper)
    assert_same(p, soft)


def test_the_head_uses_it_for_one_sample_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    head, calls = QPHead(leto_limits(4)).eval(), []
    whole = SingleSolver.solve
    monkeypatch.setattr(SingleSolver, "solve", lambda *a, **k: calls.append(1) or whole(*a, **k))
    e, previous = torch.randn(2, 28), 0.1 * torch.randn(2, 7)
    with torch.no_grad():
        both, info = head(e, None, previous)
        assert not calls
        for i in range(2):
            one, single_info = head(e[i : i + 1].requires_grad_(), None, previous[i : i + 1])
            torch.testing.assert_close(one, both[i : i + 1], rtol=0, atol=1e-6)
            assert single_info.status.tolist() == info.status[i : i + 1].tolist() and one.dtype == torch.float32
        assert len(calls) == 2
        head.L.data += 0.5 * torch.eye(28)
        moved, _ = head(e[:1], None, previous[:1])
        assert not torch.allclose(moved, both[:1])
        torch.testing.assert_close(moved, copy.deepcopy(head)(e, None, previous)[0][:1], rtol=0, atol=1e-6)
        assert head(e[:0], None, previous[:0])[0].shape == (0, 4, 7)
    with torch.inference_mode():
        torch.testing.assert_close(head(e[:1], None, previous[:1])[0], moved)
    calls.clear()
    head(e[:1], None, previous[:1])[0].sum().backward()
    assert not calls and head.L.grad is not None


def test_hardly_any_problem_of_letos_size_needs_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(single, "solve", lambda *a, **k: calls.append(1) or solve(*a, **k))
    p = make(leto_limits(10), 200, previous=True)
    one = SingleSolver(prepare(p.hessian, p.rows))
    rounds = [int(one.solve(p.e[i : i + 1], p.lower[i : i + 1], p.upper[i : i + 1]).rounds) for i in range(200)]
    assert len(calls) <= 2 and sum(rounds) < 2 * 200


def test_what_it_leaves_open_the_fallback_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    p = make(leto_limits(4), 4)
    operators = prepare(p.hessian, p.rows)
    expected = solve(operators, p.e, p.lower, p.upper).y
    monkeypatch.setattr(single, "PIVOT_TOLERANCE", 2.0)
    s = SingleSolver(operators).solve(p.e[:1], p.lower[:1], p.upper[:1])
    assert s.status.tolist() == [SOLVED] and s.rounds.tolist() == [single.ROUNDS + 1]
    torch.testing.assert_close(s.y, expected[:1], rtol=0, atol=1e-10)
    monkeypatch.setattr(solver, "PIVOT_TOLERANCE", 2.0)
    s = SingleSolver(operators).solve(p.e[:1], p.lower[:1], p.upper[:1])
    assert s.status.tolist() == [int(SolveStatus.FAILED)] and s.y.isnan().all() and s.kkt.isinf().all()
