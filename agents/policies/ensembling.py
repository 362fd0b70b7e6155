"""Temporal ensembling: what is done now is a mean over all chunks that foresaw this moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from agents.policies.chunks import WindowPolicy, WindowPredictor


class EnsemblePredictor(WindowPredictor):
    """Weighted means of the chunks that were predicted since the episode began, moment by moment.

        a_t = sum_i w_i a_t^i / sum_i w_i,   w_i = exp(-m i),   a_t^0 the oldest prediction of a_t

    All T_p moments of the present chunk are such means, so that a head sees a whole chunk.

    Args:
        policy, num_envs, seed: see `WindowPredictor`.
        rate: m; 0 weighs all alike, a large one trusts the oldest prediction.
    Source: ACT, arXiv:2304.13705, section IV.B and algorithm 2.
    Differs: sums are carried from step to step; with T_a > 1 the chunks are T_a steps apart.
    """

    def __init__(self, policy: WindowPolicy, num_envs: int, seed: int, rate: float) -> None:
        super().__init__(policy, num_envs, seed)
        self.rate, horizon, device = rate, policy.windows.horizon, policy.device
        self.total = torch.zeros(num_envs, horizon, policy.spec.action_dim, device=device)  # sum of w a, the first one of now
        self.weight = torch.zeros(num_envs, horizon, device=device)  # sum of w
        self.count = torch.zeros(num_envs, horizon, device=device)  # predictions

    def predict(self, obs: Mapping[str, Tensor], t0: Tensor, due: Tensor) -> Tensor:
        """See `agents.policies.chunks.Predictor`."""
        chunk = super().predict(obs, t0, due)
        total, weight, count = (self._moved(x, t0) for x in (self.total, self.weight, self.count))
        new = torch.where(due[:, None], torch.exp(-self.rate * count), 0.0)
        self.total, self.weight, self.count = total + new[..., None] * chunk, weight + new, count + due[:, None]
        mean = self.total / self.weight.clamp_min(torch.finfo(new.dtype).tiny)[..., None]
        return torch.where(due[:, None, None], mean, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """All memory."""
        return super().state_dict() | {"total": self.total, "weight": self.weight, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`, bit for bit."""
        super().load_state_dict(state)
        for name in ("total", "weight", "count"):
            setattr(self, name, state[name].to(self.policy.device))

    @staticmethod
    def _moved(x: Tensor, t0: Tensor) -> Tensor:
        """One step on: what was of the next moment is of now; nothing is kept where an episode begins."""
        later = torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)
        return torch.where(t0.view(-1, *[1] * (x.dim() - 1)), 0.0, later)
