"""Small problems that the planner's tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from difftop.planning import LatentModel, LMConfig, LMPlanner
from difftop.types import PlanResult
from tests.oracles import Networks, networks, outputs, stagewise_rows

B, Z, A, H = 4, 5, 2, 3
DTYPE = torch.float64
FIXED = LMConfig(target="fixed", reward_target=1.5, value_target=2.5, scale=0.7, damping=2.0)


def problem(seed: int = 0, horizon: int = H, batch: int = B) -> tuple[Networks, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, Z, generator=g, dtype=DTYPE)
    return networks(Z, A, 12, seed=seed), z, torch.rand(batch, horizon, A, generator=g, dtype=DTYPE) - 0.5


def fixed_rows(model: LatentModel, z: Tensor, config: LMConfig = FIXED, horizon: int = H) -> Callable[[Tensor], Tensor]:
    target = torch.full((horizon + 1,), config.reward_target, dtype=DTYPE)
    target[-1] = config.value_target
    return lambda a: stagewise_rows(outputs(model, z, a.view(horizon, A)), target, config.scale, model.discount, config.softness)


def plan(config: LMConfig, model: LatentModel, z: Tensor, prior: Tensor, **kwargs: Any) -> PlanResult:
    return LMPlanner(config, A).plan(model, z, prior, **kwargs)


def linear_cost(batch: int = B, gamma: float = 0.9) -> tuple[LatentModel, Tensor, Callable[[Tensor], Tensor]]:
    """Linear dynamics and cost rows: the plan that minimizes the cost is one linear least-squares solve."""
    g = torch.Generator().manual_seed(3)
    f, b = 0.5 * torch.randn(Z, Z, generator=g, dtype=DTYPE), torch.randn(Z, A, generator=g, dtype=DTYPE)
    model = LatentModel(lambda z, a: z @ f.t() + a @ b.t(), discount=gamma, cost=lambda z, a: torch.cat([z + 1, 3 * a], 1))
    z = 0.3 * torch.randn(batch, Z, generator=g, dtype=DTYPE)

    def optimum(z):
        def rows(a):
            state, out = z, []
            for t in range(H):
                out.append(gamma ** (t / 2) * torch.cat([state + 1, 3 * a.view(H, A)[t]]))
                state = f @ state + b @ a.view(H, A)[t]
            return torch.cat(out)

        zero = torch.zeros(H * A, dtype=DTYPE)
        return torch.linalg.lstsq(torch.func.jacrev(rows)(zero), -rows(zero).unsqueeze(1)).solution.view(H, A)

    return model, z, optimum
