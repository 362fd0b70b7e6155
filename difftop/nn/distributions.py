"""Distributions of actions that networks predict."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class GaussianMixture:
    """Mixtures of M Gaussians with diagonal covariance, over vectors of D entries.

        p(x) = sum_m softmax(logits)_m prod_d N(x_d; mean_md, std_md)

    Attributes:
        logits: `[..., M]`.
        mean, std: `[..., M, D]`.
    """

    logits: Tensor
    mean: Tensor
    std: Tensor

    def log_prob(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        """Log density, nats.

        Args:
            x: `[..., D]`.
            known: `[..., D]` bool, entries that count; the others are integrated out. None for all.
        Returns:
            `[...]`.
        """
        deviation = (x[..., None, :] - self.mean) / self.std
        terms = -0.5 * deviation.square() - self.std.log() - 0.5 * math.log(2 * math.pi)
        if known is not None:
            terms = torch.where(known[..., None, :], terms, 0.0)
        return torch.logsumexp(F.log_softmax(self.logits, -1) + terms.sum(-1), -1)

    def sample(self, uniform: Tensor, normal: Tensor, std: float | None = None) -> Tensor:
        """Samples as a function of random numbers.

        Args:
            uniform: `[...]` in [0, 1), chooses the mode.
            normal: `[..., D]`, standard normal.
            std: in place of every mode's own; small ones give the mode's mean.
        Returns:
            `[..., D]`.
        """
        edges = self.logits.softmax(-1).cumsum(-1)[..., :-1]  # the last mode takes what is left
        mode = (uniform[..., None] >= edges).sum(-1)[..., None, None].expand(*self.mean.shape[:-2], 1, self.mean.shape[-1])
        mean = self.mean.gather(-2, mode).squeeze(-2)
        return mean + normal * (self.std.gather(-2, mode).squeeze(-2) if std is None else std)


class MixtureHead(nn.Module):
    """From features to a `GaussianMixture` over actions.

        mean = tanh(W_1 h),   std = softplus(W_2 h) + min_std,   logits = W_3 h

    Args:
        inputs: size of the features.
        outputs: D.
        modes: M.
        min_std: smallest standard deviation.
    Source: robomimic's `GMMActorNetwork` and `RNNGMMActorNetwork`.
    """

    def __init__(self, inputs: int, outputs: int, modes: int, min_std: float) -> None:
        super().__init__()
        self.modes, self.outputs, self.min_std = modes, outputs, min_std
        self.linear = nn.Linear(inputs, modes * (2 * outputs + 1))

    def forward(self, features: Tensor) -> GaussianMixture:
        """Mixtures `[...]` of features `[..., inputs]`, in float32 whatever the precision of the product."""
        return self.mixture(self.raw(features))

    def raw(self, features: Tensor) -> Tensor:
        """All that the mixtures of features `[..., inputs]` are made of `[..., M (2 D + 1)]`, in float32 likewise."""
        raw: Tensor = self.linear(features)
        return raw.float() if raw.dtype == torch.bfloat16 else raw

    def mixture(self, raw: Tensor) -> GaussianMixture:
        """Mixtures `[...]` of what `raw` returned."""
        logits, mean, std = torch.split(raw, [self.modes, self.modes * self.outputs, self.modes * self.outputs], -1)
        shape = (*raw.shape[:-1], self.modes, self.outputs)
        return GaussianMixture(logits, mean.view(shape).tanh(), F.softplus(std.view(shape)) + self.min_std)
