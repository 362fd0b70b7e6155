"""Batches of small index sets of different sizes, and linear algebra on them.

The active rows of b samples are one tensor `[b, k]`: increasing indices below m, then m, m + 1, ..., with k the largest size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pick(values: Tensor, active: Tensor) -> Tensor:
    """`values[b, active[b]]` with zeros where `active` is padded; `[b, k]`."""
    return torch.nn.functional.pad(values, (0, active.shape[1])).gather(1, active)


def spread(values: Tensor, active: Tensor, m: int) -> Tensor:
    """The transpose of `pick`: `[b, k]` to `[b, m]`."""
    return values.new_zeros(values.shape[0], m + active.shape[1]).scatter_(1, active, values)[:, :m]


def cholesky_solve(factor: Tensor, right: Tensor) -> Tensor:
    """Two triangular solves, which unlike `torch.cholesky_solve` don't copy the factor; `[b, k]`."""
    half = torch.linalg.solve_triangular(factor, right[..., None], upper=False)
    solution: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)[..., 0]
    return solution


def largest(x: Tensor) -> Tensor:
    """Largest absolute entry of each row; 0 for rows without entries."""
    return x.abs().amax(1) if x.shape[1] else x.new_zeros(x.shape[0])


def active_rows(side: Tensor) -> Tensor:
    """Indices of the nonzero entries of each row in increasing order, padded with m, m + 1, ... to the longest, `[b, k]`."""
    b, m = side.shape
    sample, row = side.nonzero(as_tuple=True)
    counts = (side != 0).sum(1)
    longest = int(counts.max())
    position = torch.arange(len(row), device=side.device) - (counts.cumsum(0) - counts)[sample]
    active = torch.arange(m, m + longest, device=side.device).repeat(b, 1)
    active[sample, position] = row
    return active


def drop_weakest(side: Tensor, active: Tensor, pivots: Tensor, failed: Tensor) -> Tensor:
    """`side` without the row at which the factorization failed, or else the one with the smallest pivot."""
    weakest = torch.where(failed > 0, failed.long() - 1, pivots.argmin(1))
    row = active.gather(1, weakest[:, None])
    return torch.nn.functional.pad(side, (0, active.shape[1])).scatter(1, row, 0)[:, : side.shape[1]]
