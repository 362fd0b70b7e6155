"""Damped least-squares steps, solved where the system is small and exact."""

from __future__ import annotations

import torch
from torch import Tensor


def damped_step(jacobian: Tensor, residual: Tensor, damping: Tensor, gap: Tensor | None = None, rho: float = 0.0) -> Tensor:
    """Step that minimizes the damped linear model of 1/2 |r|^2 + 1/2 rho |a - prior|^2.

        delta = argmin 1/2 |r + J delta|^2 + rho/2 |delta - gap|^2 + lambda/2 |delta|^2
              = d - J^T (J J^T + mu I)^-1 (r + J d),   mu = lambda + rho,   d = rho gap / mu

    The system has the smaller of R and N unknowns: in the dual form the cost does not grow with the action dimension.
    It is solved in float64, because J J^T + mu I spans more digits than float32 has as soon as |J|^2 / lambda > 1e7.

    Args:
        jacobian: J `[B, R, N]`.
        residual: r `[B, R]`.
        damping: lambda `[B]`, positive.
        gap: `prior - a` `[B, N]`, where rho > 0.
        rho: proximal weight.
    Returns:
        delta `[B, N]`; a sample with non-finite input gets a non-finite step, others are not affected.
    """
    rows, columns = jacobian.shape[1:]
    j, r = jacobian.double(), residual.double().unsqueeze(2)
    mu = (damping.double() + rho).view(-1, 1, 1)
    d = None
    if gap is not None and rho > 0:
        d = rho / mu * gap.double().unsqueeze(2)
        r = r + j @ d
    if rows == 1:
        step = -j.transpose(1, 2) * (r / (j.square().sum(2, keepdim=True) + mu))
    elif rows <= columns:
        step = -(j.transpose(1, 2) @ _solve(j @ j.transpose(1, 2), mu, r))
    else:
        step = -_solve(j.transpose(1, 2) @ j, mu, j.transpose(1, 2) @ r)
    return (step if d is None else step + d).squeeze(2).to(jacobian.dtype)


def curvature_solve(jacobian: Tensor, vector: Tensor, damping: Tensor) -> Tensor:
    """`(J^T J + mu I)^-1 vector` with J held constant, by Woodbury; `jacobian [B, R, N]`, `vector [B, N]`, mu = `damping [B]`."""
    j, v = jacobian.detach().double(), vector.double().unsqueeze(2)
    mu = damping.double().view(-1, 1, 1)
    if j.shape[1] > j.shape[2]:
        return _solve(j.transpose(1, 2) @ j, mu, v).squeeze(2).to(vector.dtype)
    inner = _solve(j @ j.transpose(1, 2), mu, j @ v)
    return ((v - j.transpose(1, 2) @ inner) / mu).squeeze(2).to(vector.dtype)


def _solve(gram: Tensor, mu: Tensor, right: Tensor) -> Tensor:
    gram.diagonal(dim1=1, dim2=2).add_(mu.squeeze(2))
    solution: Tensor = torch.linalg.solve_ex(gram, right)[0]  # `solve` raises for the whole batch when one sample fails
    return solution
