"""Plans the way home of a point mass: a model is two or three functions, no network and no agent."""

import torch

from difftop.planning import LatentModel, LMConfig, MPPIConfig, MPPIPlanner
from difftop.planning import plan as optimize


def dynamics(z: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Position and velocity in the plane [B, 4] after 0.3 s of acceleration `a [B, 2]`."""
    velocity = z[:, 2:] + 0.3 * a
    return torch.cat([z[:, :2] + 0.3 * velocity, velocity], 1)


model = LatentModel(dynamics, reward=lambda z, a: 1 - z[:, :2].square().sum(1) - 0.1 * a.square().sum(1), discount=0.95)
z0 = torch.tensor([[1.0, -0.5, 0.0, 0.0], [0.2, 0.8, -0.5, 0.0]], requires_grad=True)  # two problems, one call
prior = torch.zeros(2, 8, 2)  # [B, H, A]

plan = optimize(model, z0, prior, LMConfig(iterations=10, reward_target=20.0), differentiable=True)
sampled = MPPIPlanner(MPPIConfig(), action_dim=2).plan(model, z0.detach(), prior, generator=torch.Generator().manual_seed(0))
print("returns: least squares", plan.value.tolist(), "MPPI", sampled.value.tolist())
print("d(first action) / d(z0):", torch.autograd.grad(plan.actions[:, 0].sum(), z0)[0].tolist())
