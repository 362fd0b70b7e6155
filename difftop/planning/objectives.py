"""What a plan minimizes: residual rows with scales, weights and Jacobians.

    minimize over a   1/2 |r(a)|^2

Raw rewards never meet the damping: they are divided by a scale s (the size of one step's reward), so that one damping serves
tasks whose returns differ by orders of magnitude.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from difftop.planning.config import LMConfig
from difftop.planning.rollout import discounts
from difftop.planning.trajectory import Trajectory

Residual = tuple[Tensor, Callable[[], Tensor]]


@dataclass(frozen=True)
class Objective:
    """Residual rows of one batch of plans.

    Attributes:
        config: `objective` and its constants.
        weights: gamma^t `[H+1, 1]`.
        scale: s `[N]`, positive, detached.
        target: c of the stagewise rows in normalised units `[H+1, N]`, detached; None for other objectives.
    """

    config: LMConfig
    weights: Tensor
    scale: Tensor
    target: Tensor | None

    def linearize(self, trajectory: Trajectory) -> Residual:
        """Residuals `[N, R]`, and a function that gives their Jacobian `[N, R, H*A]`.

        stagewise   r_t = sqrt(2 g_t tau softplus((c_t - x_t) / tau)),   x_t = R_t / s (t < H), x_H = V / s,   g_t = gamma^t
        return      r   = c - G / s
        cost        r_t = sqrt(g_t) phi(z_t, a_t) / s
        """
        if trajectory.cost_rows is not None:
            return self._cost(trajectory, trajectory.cost_rows)
        return self._return(trajectory) if self.target is None else self._stagewise(trajectory, self.target)

    def value(self, trajectory: Trajectory) -> Tensor:
        """Return (minus the cost) of the plans in the model's own units `[N]`, detached."""
        with torch.no_grad():
            if trajectory.cost_rows is not None:
                return -(self.weights[:-1] * trajectory.cost_rows.square().sum(-1)).sum(0) / 2
            return (self.weights * trajectory.outputs).sum(0)

    def select(self, rows: Tensor) -> Objective:
        """The objective of some rows."""
        target = None if self.target is None else self.target.index_select(1, rows)
        return replace(self, scale=self.scale.index_select(0, rows), target=target)

    def _stagewise(self, trajectory: Trajectory, target: Tensor) -> Residual:
        tau, g = self.config.softness, self.weights
        u = (target - trajectory.outputs / self.scale) / tau
        # The floor keeps r away from 0, where sqrt has no derivative: it binds for rewards 27 tau above the target.
        rows = (F.softplus(u, threshold=40).clamp_min(1e-12) * (2 * tau * g)).sqrt()
        return rows.t(), lambda: trajectory.reward_jacobian(torch.sigmoid(u) * -g / (rows * self.scale))

    def _return(self, trajectory: Trajectory) -> Residual:
        rows = self.config.return_target - (self.weights * trajectory.outputs).sum(0) / self.scale
        slopes = (-self.weights / self.scale).expand_as(trajectory.outputs)
        return rows.unsqueeze(1), lambda: trajectory.return_gradient(slopes).unsqueeze(1)

    def _cost(self, trajectory: Trajectory, cost_rows: Tensor) -> Residual:
        slopes = self.weights[:-1].sqrt() / self.scale
        return (cost_rows * slopes.unsqueeze(-1)).transpose(0, 1).flatten(1), lambda: trajectory.cost_jacobian(slopes)


def prepare(
    config: LMConfig, gamma: float, prior: Trajectory, samples: int, starts: int = 1, scale: Tensor | float | None = None
) -> Objective:
    """The objective of B plans from each of S starts, of which the first is the policy prior.

    Args:
        config: options.
        gamma: discount.
        prior: trajectory of the starts, `S * B` rows, start-major.
        samples: B.
        starts: S.
        scale: s of plan(), a positive number or `[B]`; None: one per sample.
    """
    with torch.no_grad():
        cost = prior.cost_rows is not None
        outputs = prior.outputs[:, :samples] if prior.cost_rows is None else prior.cost_rows[:, :samples].norm(dim=-1)
        weights = discounts(gamma, outputs.shape[0] + cost, outputs).unsqueeze(1)
        if config.scale > 0:
            scale = config.scale
        if scale is None:
            s = _own_scale(outputs, gamma, cost)
        else:
            s = scale.to(outputs) if isinstance(scale, Tensor) else outputs.new_full((), scale)
        s = s.expand(samples)
        target = None
        if config.objective == "stagewise":
            target = torch.full_like(outputs, config.reward_target)
            target[-1] = config.value_target
            # A prior that can't be valued must not take the other starts with it.
            known = torch.where(torch.isfinite(outputs), outputs, 0.0)
            target = (target + known / s if config.target == "prior" else target).repeat(1, starts)
        return Objective(config, weights, s.repeat(starts), target)


def _own_scale(outputs: Tensor, gamma: float, cost: bool) -> Tensor:
    """Scale per sample: the largest step reward of the prior, or its value as a reward per step if that is larger.

    Homogeneous of degree 1 in rewards and values, so that plans do not change when both are multiplied by a constant.
    """
    sizes = outputs.abs()
    if not cost:
        sizes = torch.cat([sizes[:-1], sizes[-1:] * max(1 - gamma, 0.01)])
    s = sizes.amax(0)
    return torch.where((s > 0) & torch.isfinite(s), s, torch.ones_like(s))
