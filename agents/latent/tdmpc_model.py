"""Latent world models: what agents and planners ask of one, and TD-MPC's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from difftop.nn.encoders import make_encoder
from difftop.nn.linearize import PolicyValue, StateAction
from difftop.nn.mlp import ensemble_mlp, mlp
from difftop.options import option
from difftop.planning.model import LatentModel
from difftop.types import EnvSpec


@dataclass(frozen=True)
class WorldModelConfig:
    """Sizes of the networks."""

    latent_dim: int = option(50, "size of the latent state", low=1)
    encoder_dim: int = option(256, "hidden units of the state encoder", low=1)
    mlp_dim: int = option(512, "hidden units of dynamics, reward, policy and value networks", low=1)
    channels: int = option(32, "channels of the pixel encoder's convolutions", low=1)


class LatentWorld(nn.Module):
    """A task-oriented latent dynamics model; acting, planning and the loss through the planner know no other methods.

        z = h(s),  z' = d(z, a),  a = pi(z),  and reward and value inside `latent_model`

    Latents are `[N, Z]`, actions `[N, A]`. The policy prior's network is `pi`, and no other parameter's name begins so.
    """

    pi: nn.Module

    def encode(self, obs: Tensor) -> Tensor:
        """Latents `[N, Z]` of observations `[N, *obs_shape]`."""
        raise NotImplementedError

    def next(self, z: Tensor, a: Tensor) -> Tensor:
        """Next latents `[N, Z]`."""
        raise NotImplementedError

    def policy(self, z: Tensor) -> Tensor:
        """The prior's action without noise `[N, A]`, in (-1, 1)."""
        raise NotImplementedError

    def sample_policy(self, z: Tensor, std: float | None, generator: torch.Generator | None) -> Tensor:
        """The prior's action with noise of `std`, in the box; None: of the prior's own spread, where it has learned one."""
        raise NotImplementedError

    def latent_model(self, discount: float) -> LatentModel:
        """The model as a planner sees it, with fast paths for Jacobians."""
        raise NotImplementedError


class WorldModel(LatentWorld):
    """Networks of TD-MPC, over flattened batches.

        z = h(s),  z' = d(z, a),  r = R(z, a),  q_i = Q_i(z, a),  a = pi(z)

    Latents are `[N, Z]`, actions `[N, A]`, rewards `[N]`, values `[2, N]`.

    Source: TD-MPC, arXiv:2203.04955, section 4 and appendix F.
    """

    def __init__(self, spec: EnvSpec, config: WorldModelConfig) -> None:
        super().__init__()
        z, a, width = config.latent_dim, spec.action_dim, config.mlp_dim
        self.encoder = make_encoder(spec.obs_kind, spec.obs_shape, config.encoder_dim, config.channels, z)
        self.dynamics = mlp([z + a, width, width, z])
        self.reward = mlp([z + a, width, width, 1], zero_last=True)
        self.pi = mlp([z, width, width, a])
        self.q = ensemble_mlp(2, [z + a, width, width, 1])

    def encode(self, obs: Tensor) -> Tensor:
        """Latents `[N, Z]`."""
        z: Tensor = self.encoder(obs)
        return z

    def next(self, z: Tensor, a: Tensor) -> Tensor:
        """Next latents `[N, Z]`."""
        z_next: Tensor = self.dynamics(torch.cat([z, a], dim=-1))
        return z_next

    def predict_reward(self, z: Tensor, a: Tensor) -> Tensor:
        """Rewards `[N]` of one agent step."""
        r: Tensor = self.reward(torch.cat([z, a], dim=-1))
        return r.squeeze(-1)

    def values(self, z: Tensor, a: Tensor) -> Tensor:
        """Both action values `[2, N]`."""
        q: Tensor = self.q(torch.cat([z, a], dim=-1))
        return q.squeeze(-1)

    def policy(self, z: Tensor) -> Tensor:
        """Mean action of the prior `[N, A]`, in (-1, 1)."""
        return torch.tanh(self.pi(z))

    def latent_model(self, discount: float) -> LatentModel:
        """The model as a planner sees it: `V(z) = min_i Q_i(z, pi(z))` ends a plan."""
        return LatentModel(
            StateAction(self.dynamics), StateAction(self.reward, scalar=True), PolicyValue(self.q, self.pi), discount
        )

    def sample_policy(self, z: Tensor, std: float | None, generator: torch.Generator | None, noise_clip: float = 0.3) -> Tensor:
        """The prior's action with clipped Gaussian noise, kept in the box; its gradient is that of the mean."""
        if std is None:
            raise ValueError("std=None: TD-MPC's policy prior has no spread of its own.")
        return add_noise(self.policy(z), std, generator, noise_clip)


def add_noise(mean: Tensor, std: float, generator: torch.Generator | None, noise_clip: float | None = None) -> Tensor:
    """`clamp(mean + noise, -1, 1)` with Gaussian noise; the gradient passes as if nothing had been clamped.

    Args:
        mean: actions, any shape.
        std: standard deviation, in units of the action range [-1, 1]; 0 adds nothing.
        generator: source of the noise, on the device of `mean`.
        noise_clip: largest noise, or None.
    """
    if std == 0:
        return mean
    noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=torch.float32).to(mean.dtype) * std
    if noise_clip is not None:
        noise = noise.clamp_(-noise_clip, noise_clip)
    with torch.no_grad():
        moved = (mean + noise).clamp_(-1, 1)
    return moved + (mean - mean.detach())
