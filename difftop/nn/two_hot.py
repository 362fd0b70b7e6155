"""Regression as classification: numbers as mass on the two nearest of a row of bins, equally spaced in symlog units."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def symlog(x: Tensor) -> Tensor:
    """`sign(x) log(1 + |x|)`."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """`sign(x) (exp|x| - 1)`, the inverse of `symlog`.

    Its slope at 0 is 1. Made of `where`, because what autograd makes of the kink of `abs`, `clamp` or `relu` at 0 is 0 or differs
    between versions of torch.
    """
    negative = x < 0
    size = torch.expm1(torch.where(negative, -x, x))
    return torch.where(negative, -size, size)


class TwoHot(nn.Module):
    """Turns logits over K bins into a number, and compares them with one.

        value(l) = symexp(sum_k softmax(l)_k b_k),   b_k = low + k (high - low) / (K - 1)
        loss(l, x) = - (1 - f) log softmax(l)_i - f log softmax(l)_{i+1},   symlog(x) = (1 - f) b_i + f b_{i+1}

    Numbers beyond the last bins count as the last bins.

    Source: TD-MPC2, arXiv:2310.16828, section 3.1; DreamerV3, arXiv:2301.04104.
    """

    bins: Tensor

    def __init__(self, count: int = 101, low: float = -10.0, high: float = 10.0) -> None:
        super().__init__()
        self.count, self.low, self.high = count, low, high
        self.register_buffer("bins", torch.linspace(low, high, count, dtype=torch.float64).float(), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Numbers `[..., 1]` of logits `[..., K]`."""
        return symexp(self._mean(_full(logits).softmax(-1)))

    def loss(self, logits: Tensor, x: Tensor) -> Tensor:
        """Cross-entropy between the two-hot form of `x` and the logits.

        Args:
            logits: `[..., N, K]`; bfloat16 is taken to float32.
            x: `[N]`, constants.
        Returns:
            `[..., N]`; its minimum is the entropy of (1 - f, f), up to log 2.
        """
        logits = _full(logits)
        place = (symlog(x).clamp(self.low, self.high) - self.low) * ((self.count - 1) / (self.high - self.low))
        index = place.nan_to_num(0.0).floor().clamp(max=self.count - 2)  # of NaN, f and so the loss are NaN
        f = place - index
        left = index.long().unsqueeze(-1).expand(*logits.shape[:-1], 1)
        chosen = logits.gather(-1, torch.cat([left, left + 1], dim=-1))
        return logits.logsumexp(-1) - torch.lerp(chosen[..., 0], chosen[..., 1], f)

    def linearize(self, logits: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Numbers and their pullback, for `difftop.nn.linearize`."""
        p = logits.softmax(-1)
        mean = self._mean(p)
        weights = (self.bins - mean) * p * torch.exp(mean.abs())
        return symexp(mean), lambda g: g * weights

    def _mean(self, p: Tensor) -> Tensor:
        return (p * self.bins).sum(-1, keepdim=True)


def _full(logits: Tensor) -> Tensor:
    """float32 where autocast made it bfloat16: a bin's share needs more than eight bits."""
    return logits.float() if logits.dtype == torch.bfloat16 else logits
