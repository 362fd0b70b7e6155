"""Gaussians squashed into the box of actions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def bounded_log_std(x: Tensor, low: float, high: float) -> Tensor:
    """A network's output as a log std in (low, high), by tanh."""
    return low + (high - low) / 2 * (torch.tanh(x) + 1)


def squashed_sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """An action and the logarithm of its density.

        a = tanh(u),   u = mean + exp(log_std) noise
        log p(a) = sum_k [ - noise_k^2 / 2 - log_std_k - log(2 pi) / 2 - log(1 - a_k^2) ]

    The last term is taken as 2 (log 2 - u - softplus(-2 u)), which stays finite where tanh rounds to 1.

    Args:
        mean, log_std: `[..., A]`, of u.
        noise: standard normal `[..., A]`.
    Returns:
        a `[..., A]` in [-1, 1] and log p(a) `[...]`; both can be differentiated by mean and log_std.
    Source: SAC, arXiv:1801.01290, appendix C.
    """
    u = torch.addcmul(mean, log_std.exp(), noise)
    log_slope = 2 * (math.log(2) - u - F.softplus(-2 * u))
    log_p = -noise.square() / 2 - log_std - math.log(2 * math.pi) / 2 - log_slope
    return torch.tanh(u), log_p.sum(-1)
