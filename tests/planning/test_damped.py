"""Damped steps against dense solves of the normal equations in float64."""

import pytest
import torch

from difftop.planning.damped import curvature_solve, damped_step


def dense(jacobian, residual, damping, gap=None, rho=0.0):
    j, r = jacobian.double(), residual.double()
    n = j.shape[2]
    right = -(j.transpose(1, 2) @ r.unsqueeze(2)).squeeze(2)
    if gap is not None:
        right = right + rho * gap.double()
    return torch.linalg.solve(j.transpose(1, 2) @ j + (damping.double() + rho).view(-1, 1, 1) * torch.eye(n).double(), right)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 7), (3, 7), (7, 7), (9, 4)])
@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_step_solves_the_normal_equations(rows: int, columns: int, rho: float) -> None:
    g = torch.Generator().manual_seed(0)
    j = torch.randn(5, rows, columns, generator=g, dtype=torch.float64)
    r, gap = torch.randn(5, rows, generator=g, dtype=torch.float64), torch.randn(5, columns, generator=g, dtype=torch.float64)
    damping = torch.rand(5, generator=g, dtype=torch.float64) + 0.01
    torch.testing.assert_close(damped_step(j, r, damping, gap, rho), dense(j, r, damping, gap, rho), rtol=1e-10, atol=1e-10)
    v = torch.randn(5, columns, generator=g, dtype=torch.float64)
    curvature = j.transpose(1, 2) @ j + damping.view(-1, 1, 1) * torch.eye(columns).double()
    torch.testing.assert_close(curvature_solve(j, v, damping), torch.linalg.solve(curvature, v), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("correlated", [False, True])
def test_float32_is_exact_where_the_primal_form_is_lost(norm: float, correlated: bool) -> None:
    g = torch.Generator().manual_seed(0)
    j = torch.randn(64, 6, 30, generator=g)
    if correlated:
        j = j[:, :1] + 0.01 * j
    j = j / j.norm(dim=2, keepdim=True) * norm
    r, damping = torch.randn(64, 6, generator=g), torch.full((64,), 1e-3)
    exact = _by_rows(j, r, damping)
    error = (damped_step(j, r, damping).double() - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.max() < 1e-5


def _by_rows(j, r, damping):
    # QR of the stacked system [J; sqrt(lambda) I] never forms J J^T, so it keeps all digits of float64.
    n = j.shape[2]
    stacked = torch.cat([j.double(), damping.double().sqrt().view(-1, 1, 1) * torch.eye(n).double()], 1)
    right = torch.cat([-r.double(), torch.zeros(j.shape[0], n).double()], 1)
    q, upper = torch.linalg.qr(stacked)
    return torch.linalg.solve_triangular(upper, q.transpose(1, 2) @ right.unsqueeze(2), upper=True).squeeze(2)


def test_a_bad_sample_stays_alone() -> None:
    g = torch.Generator().manual_seed(0)
    j, r, damping = torch.randn(4, 3, 5, generator=g), torch.randn(4, 3, generator=g), torch.ones(4)
    good = damped_step(j, r, damping)
    j[2, 0, 0] = torch.nan
    bad = damped_step(j, r, damping)
    assert not torch.isfinite(bad[2]).any()
    keep = [0, 1, 3]
    assert torch.equal(good[keep], bad[keep])
