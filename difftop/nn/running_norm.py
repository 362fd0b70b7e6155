"""Standardization by running statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningNorm(nn.Module):
    """`(x - mean) / std`, bounded, with mean and std of all batches that `update` has seen; the identity before the first.

    Args:
        size: of the last axis.
        bound: largest absolute output.
    Source: SimbaV2, arXiv:2502.15280, section 4.1 (RSNorm).  Differs: bounded; std of at least 1e-3.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, size: int, bound: float = 10.0) -> None:
        super().__init__()
        self.bound = bound
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return ((x - self.mean) * (self.var + 1e-6).rsqrt()).clamp(-self.bound, self.bound)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Takes in a batch `[N, size]`; one with a non-finite number, which the loss will tell, is passed over.

        Source: Chan, Golub, LeVeque 1979, the pairwise formula for means and sums of squares.
        """
        x = x.to(self.mean.dtype)
        sound = torch.isfinite(x).all()
        total = self.count + x.shape[0]
        share = torch.where(sound, x.shape[0] / total, 0.0).to(x.dtype)
        delta = torch.where(sound, x.mean(dim=0), 0.0) - self.mean
        var = torch.where(sound, x.var(dim=0, unbiased=False), 0.0)
        self.var.copy_((1 - share) * self.var + share * var + share * (1 - share) * delta.square())
        self.mean.add_(share * delta)
        self.count.copy_(torch.where(sound, total, self.count))
