"""Model predictive path integral control over a latent model: the planner of TD-MPC, batched over environments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from difftop.host import readable
from difftop.options import check_ranges
from difftop.planning.checks import check_problem, check_scale
from difftop.planning.config import MPPIConfig
from difftop.planning.model import LatentModel
from difftop.planning.rollout import rollout_return
from difftop.types import PlanResult, SolveStatus


@dataclass(frozen=True)
class SampledPlan(PlanResult):
    """A plan with the distribution that it was drawn from; `value` is that of the elite, before exploration noise.

    Attributes:
        mean: `[B, H, A]`, for the warm start of the next step (`shift_plan(mean)`).
        std: `[B, H, A]`.
    """

    mean: Tensor
    std: Tensor


class MPPIPlanner:
    """Plans by sampling.

    In each round, plans a ~ N(mean, std) clamped to the box and the policy's own plans are ranked by model return G; the best
    become elites with weights w = exp(temperature (G - max G) / scale), and

        c = sum w a / sum w,   mean <- momentum mean + (1 - momentum) c,   std <- clamp(sqrt(sum w (a - c)^2 / sum w), min, max)

    The plan is one elite, drawn by its weight; exploration adds N(0, std) to it.

    Source: TD-MPC, arXiv:2203.04955, section 3 and its code. Differs: batched over B problems; noise is added to
    all steps of the plan, and the result is clamped to the box; a non-finite return counts as the worst instead of as 0.
    """

    def __init__(self, config: MPPIConfig, action_dim: int) -> None:
        check_ranges(config, "MPPIConfig")
        if action_dim < 1:
            raise ValueError(f"action_dim={action_dim}: must be at least 1.")
        self.config = config
        self.action_dim = action_dim

    @torch.no_grad()
    def plan(
        self,
        model: LatentModel,
        z0: Tensor,
        prior: Tensor,
        *,
        previous: Tensor | None = None,
        std: Tensor | float | None = None,
        scale: Tensor | float | None = None,
        generator: torch.Generator | None = None,
        eval_mode: bool = False,
    ) -> SampledPlan:
        """Plans for B latents.

        Args:
            model: callables; needs `reward`.
            z0: `[B, Z]`.
            prior: policy plans `[B, P, H, A]` (TD-MPC: P = config.prior_samples) or `[B, H, A]`.
            previous: shifted mean of the last step `[B, H, A]`; zeros in rows where an episode begins, None: zeros.
            std: smallest spread now (a schedule), a number or a 0-d tensor; None: `config.min_std`.
            scale: size of one step's reward, positive, a number or `[B]`, which makes plans independent of the unit of reward;
                None: 1, as published, where the temperature is in units of the reward.
            generator: source of all noise.
            eval_mode: no exploration noise.
        Returns:
            actions `[B, H, A]` in [-1, 1]; FAILED where no plan had a finite return (then the prior is returned).
        """
        plans = self._check(z0, prior, previous, std)
        check_scale(scale, len(z0))
        unit = scale.to(z0).view(-1, 1) if isinstance(scale, Tensor) else z0.new_full((1, 1), 1.0 if scale is None else scale)
        c, low = self.config, self.config.min_std if std is None else std
        mean = torch.zeros_like(plans[:, 0]) if previous is None else previous
        spread = torch.full_like(mean, c.max_std)
        prior_values = self._values(model, z0, plans)
        for _ in range(c.iterations):
            noise = torch.randn(len(z0), c.samples, *mean.shape[1:], generator=generator, dtype=z0.dtype, device=z0.device)
            drawn = (mean.unsqueeze(1) + spread.unsqueeze(1) * noise).clamp_(-1, 1)
            values, index = torch.cat([self._values(model, z0, drawn), prior_values], 1).topk(c.elites, dim=1)
            elites = torch.cat([drawn, plans], 1).gather(1, index[..., None, None].expand(-1, -1, *mean.shape[1:]))
            weights = torch.exp(c.temperature * (values - values[:, :1]) / unit).nan_to_num(0.0)
            weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-9)
            w = weights[..., None, None]
            centre = (w * elites).sum(1)
            spread = (w * (elites - centre.unsqueeze(1)).square()).sum(1).sqrt()
            spread = spread.maximum(low).clamp_max(c.max_std) if isinstance(low, Tensor) else spread.clamp(low, c.max_std)
            mean = c.momentum * mean + (1 - c.momentum) * centre
        failed = ~torch.isfinite(values[:, 0])
        chosen = draw_one(torch.where(failed.unsqueeze(1), 1.0, weights), generator)
        rows = torch.arange(len(z0), device=z0.device)
        actions = elites[rows, chosen]
        if not eval_mode:
            noise = torch.randn(actions.shape, generator=generator, dtype=z0.dtype, device=z0.device)
            actions = (actions + spread * noise).clamp(-1, 1)
        actions = torch.where(failed.view(-1, 1, 1), plans[:, 0], actions)
        status = torch.where(failed, int(SolveStatus.FAILED), int(SolveStatus.SOLVED))
        return SampledPlan(actions, values[rows, chosen], status, torch.full_like(status, c.iterations), mean, spread)

    def _check(self, z0: Tensor, prior: Tensor, previous: Tensor | None, std: Tensor | float | None) -> Tensor:
        """The policy plans, `[B, P, H, A]` in the box."""
        plans = prior.unsqueeze(1) if prior.dim() == 3 else prior
        if plans.dim() != 4 or plans.shape[1] == 0:
            raise ValueError(f"prior: shape {list(prior.shape)}; must be [B, H, A] or [B, P, H, A] with P >= 1.")
        check_problem(z0, plans[:, 0], previous, self.action_dim)
        if readable(plans) and not bool(torch.isfinite(plans).all()):
            bad = int((~torch.isfinite(plans.flatten(1)).all(1)).sum())
            raise ValueError(f"prior: {bad} of {len(plans)} rows are not finite; check the policy.")
        if isinstance(std, Tensor) and std.dim():
            raise ValueError(f"std: shape {list(std.shape)}; must be a number or 0-d.")
        if std is not None and not isinstance(std, Tensor) and not 0 <= std < torch.inf:
            raise ValueError(f"std={std}: must be at least 0 and finite.")
        return plans.clamp(-1, 1)

    def _values(self, model: LatentModel, z0: Tensor, plans: Tensor) -> Tensor:
        batch, count = plans.shape[:2]
        z = z0.unsqueeze(1).expand(-1, count, -1).reshape(batch * count, -1)
        values = rollout_return(model, z, plans.flatten(0, 1)).view(batch, count)
        return torch.where(torch.isfinite(values), values, -torch.inf)


def draw_one(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """One index `[B]` per row of `weights [B, N]`, by its weight: argmax_i w_i / e_i, e_i ~ Exp(1).

    The numbers of `torch.multinomial`, which on a GPU waits to check its input.
    """
    return (weights / torch.empty_like(weights).exponential_(generator=generator)).argmax(1)
