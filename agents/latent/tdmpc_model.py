"""TD-MPC's world model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agents.latent.exploration import PRIOR_NOISE_CLIP, add_noise
from agents.latent.world_model import WorldModel, WorldModelConfig, one_observation
from difftop.nn.encoders import make_encoder
from difftop.nn.linearize import PolicyValue, StateAction
from difftop.nn.mlp import EnsembleMLP, ensemble_mlp, mlp
from difftop.planning.model import LatentModel
from difftop.types import EnvSpec


class ScalarModel(WorldModel):
    """What models share that predict rewards and values as numbers, and act by a deterministic prior.

    A subclass makes the networks `encoder`, `dynamics`, `reward`, `pi` (before its tanh) and the ensemble `q`.
    """

    encoder: nn.Module
    dynamics: nn.Module
    reward: nn.Module
    q: EnsembleMLP

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
        """Action values of every member `[E, N]`."""
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

    def sample_policy(self, z: Tensor, std: float | None, generator: torch.Generator | None) -> Tensor:
        """The prior's action with clipped Gaussian noise, kept in the box; its gradient is that of the mean."""
        if std is None:
            raise ValueError("std=None: this policy prior has no spread of its own.")
        return add_noise(self.policy(z), std, generator, PRIOR_NOISE_CLIP)


class TDMPCModel(ScalarModel):
    """Networks of TD-MPC, over flattened batches.

        z = h(s),  z' = d(z, a),  r = R(z, a),  q_i = Q_i(z, a),  a = pi(z)

    Latents are `[N, Z]`, actions `[N, A]`, rewards `[N]`, values `[2, N]`.

    Source: TD-MPC, arXiv:2203.04955, section 4 and appendix F.
    """

    def __init__(self, spec: EnvSpec, config: WorldModelConfig) -> None:
        super().__init__()
        z, a, width = config.latent_dim, spec.action_dim, config.mlp_dim
        self.encoder = make_encoder(one_observation(spec)[1], config.encoder_dim, config.channels, z)
        self.dynamics = mlp([z + a, width, width, z])
        self.reward = mlp([z + a, width, width, 1], zero_last=True)
        self.pi = mlp([z, width, width, a])
        self.q = ensemble_mlp(2, [z + a, width, width, 1])
