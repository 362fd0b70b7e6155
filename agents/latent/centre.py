"""What the values of all states have in common, which replay tells without any bootstrapping."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ValueCentre(nn.Module):
    """The value that every state would have if all were alike.

        c = m / (1 - gamma (1 - p)),   m <- (1 - tau) m + tau mean r,   p <- (1 - tau) p + tau mean terminated

    Bootstrapping brings it up by a share of (1 - gamma) x (rate of the target networks) per gradient step: 20,000 of them at 0.99
    and 0.005. A value network whose last bias moves with c has only the differences between states to learn. The first batch sets
    m and p.

    Args:
        tau: weight of a new batch.
    Source: Naik, Wan, Tomar, Sutton, "Reward Centering", arXiv:2405.09999.  Differs: rewards stay as they are and values carry
    the centre, so that plans and terminations mean what they did; terminations are counted in.
    """

    reward: Tensor
    ends: Tensor
    value: Tensor
    filled: Tensor

    def __init__(self, tau: float = 0.01) -> None:
        super().__init__()
        self.tau = tau
        for name in ("reward", "ends", "value"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def update(self, reward: Tensor, terminated: Tensor, discount: Tensor | float) -> Tensor:
        """Takes in a batch, any shape; returns by how much c moved, 0-d. One with a non-finite reward is passed over.

        `discount` is gamma per agent step, below 1 unless episodes terminate.
        """
        sound = torch.isfinite(reward).all()
        share = torch.where(self.filled, self.tau, 1.0)
        mean = torch.lerp(self.reward, reward.to(self.reward.dtype).mean(), share.to(self.reward.dtype))
        ends = torch.lerp(self.ends, terminated.to(self.ends.dtype).mean(), share.to(self.ends.dtype))
        self.reward.copy_(torch.where(sound, mean, self.reward))
        self.ends.copy_(torch.where(sound, ends, self.ends))
        before = self.value.clone()
        self.value.copy_(self.reward / (1 - discount * (1 - self.ends)).clamp(min=1e-3))
        self.filled.logical_or_(sound)
        return self.value - before
