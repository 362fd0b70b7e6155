"""TD-MPC2's world model: latents on simplices, normalized networks, classified rewards and values, a stochastic prior."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from agents.latent.exploration import add_noise
from agents.latent.world_model import WorldModel, WorldModelConfig, one_observation
from difftop.losses import full_precision
from difftop.nn.activations import SimNorm
from difftop.nn.encoders import make_simplex_encoder
from difftop.nn.gaussian import bounded_log_std, squashed_sample
from difftop.nn.linearize import Linearized, PolicyValue, StateAction
from difftop.nn.mlp import EnsembleMLP, Members, dropout, normed_ensemble, normed_mlp
from difftop.nn.two_hot import TwoHot
from difftop.options import ConfigError, option
from difftop.planning.model import LatentModel
from difftop.types import EnvSpec

SIZES: dict[str, dict[str, Any]] = {
    "1M": {"latent_dim": 128, "encoder_dim": 256, "mlp_dim": 384, "members": 2},
    "5M": {"latent_dim": 512, "encoder_dim": 256, "mlp_dim": 512, "members": 5},
}

LOG_STD = (-10.0, 2.0)  # of the policy prior, before its tanh


@dataclass(frozen=True)
class TDMPC2ModelConfig(WorldModelConfig):
    """Sizes of the networks: of `size`, where they are 0."""

    size: str = option("5M", "about the number of parameters; sets the sizes that are 0", choices=tuple(SIZES))
    latent_dim: int = option(0, "size of the latent state; 0: 128 (1M) or 512 (5M)", low=0)
    encoder_dim: int = option(0, "hidden units of the state encoder; 0: 256", low=0)
    mlp_dim: int = option(0, "hidden units of dynamics, reward, policy and value networks; 0: 384 (1M) or 512 (5M)", low=0)
    members: int = option(0, "value networks, at least 2; 0: 2 (1M) or 5 (5M)", low=0)
    simplex_dim: int = option(8, "numbers in each simplex of the latent state", low=1)
    bins: int = option(101, "bins of rewards and values", low=2)
    symlog_max: float = option(10.0, "the bins reach from minus this to this, in symlog units", above=0)
    dropout: float = option(0.01, "dropout after the first layer of the value networks", low=0, high=0.9)

    def resolved(self) -> TDMPC2ModelConfig:
        """With all sizes set.

        Raises:
            ConfigError: sizes that don't fit each other.
        """
        made = replace(self, **{key: value for key, value in SIZES[self.size].items() if not getattr(self, key)})
        if made.latent_dim % made.simplex_dim:
            raise ConfigError(
                f"agent.model.latent_dim={made.latent_dim}: must be a multiple of agent.model.simplex_dim={made.simplex_dim}."
            )
        if made.members < 2:
            raise ConfigError(f"agent.model.members={made.members}: must be at least 2; targets take the lower of two.")
        return made


class TDMPC2Model(WorldModel):
    """Networks of TD-MPC2, over flattened batches.

        z = h(s),  z' = d(z, a)                       both end in LayerNorm and SimNorm
        R(z, a) = value of logits,  Q_j(z, a) likewise, j = 1 .. E
        a = tanh(mean(z) + std(z) noise)              the policy prior

    Source: TD-MPC2, arXiv:2310.16828, section 3.1 and appendix H.  Differs: 84x84 frames (see `SimplexPixelEncoder`).
    """

    def __init__(self, spec: EnvSpec, config: TDMPC2ModelConfig) -> None:
        super().__init__()
        self.config = config = config.resolved()
        z, a, width = config.latent_dim, spec.action_dim, config.mlp_dim
        simplex = config.simplex_dim
        self.encoder = make_simplex_encoder(one_observation(spec)[1], config.encoder_dim, config.channels, z, simplex)
        self.dynamics = normed_mlp([z + a, width, width, z], last=SimNorm(simplex))
        self.reward = normed_mlp([z + a, width, width, config.bins], zero_last=True)
        self.pi = normed_mlp([z, width, width, 2 * a])
        self.q = normed_ensemble(config.members, [z + a, width, width, config.bins])
        self.two_hot = TwoHot(config.bins, -config.symlog_max, config.symlog_max)

    def encode(self, obs: Tensor) -> Tensor:
        """Latents `[N, Z]`: non-negative, and each group of `simplex_dim` sums to 1."""
        z: Tensor = self.encoder(obs)
        return z

    def next(self, z: Tensor, a: Tensor) -> Tensor:
        """Next latents `[N, Z]`."""
        z_next: Tensor = self.dynamics(torch.cat([z, a], dim=-1))
        return z_next

    def reward_logits(self, z: Tensor, a: Tensor) -> Tensor:
        """Logits `[N, K]` of the reward of one agent step."""
        logits: Tensor = self.reward(torch.cat([z, a], dim=-1))
        return logits

    def value_logits(
        self,
        z: Tensor,
        a: Tensor,
        *,
        q: EnsembleMLP | None = None,
        members: Members | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Logits `[E, N, K]` of action values.

        Args:
            z, a: `[N, Z]`, `[N, A]`.
            q: the value networks, for example the targets; the model's own where None.
            members: those wanted; all where None.
            generator: source of dropout; None: no dropout.
        """
        drop = None if generator is None else lambda h: dropout(h, self.config.dropout, generator)
        logits: Tensor = (q or self.q)(torch.cat([z, a], dim=-1), members, drop)
        return logits

    def predict_reward(self, z: Tensor, a: Tensor) -> Tensor:
        """Rewards `[N]` of one agent step."""
        return self.number(self.reward_logits(z, a))

    def values(self, z: Tensor, a: Tensor) -> Tensor:
        """Action values of every member `[E, N]`."""
        return self.number(self.value_logits(z, a))

    def number(self, logits: Tensor) -> Tensor:
        """Rewards or values `[..., N]` of logits `[..., N, K]`."""
        x: Tensor = self.two_hot(logits)
        return x.squeeze(-1)

    def policy(self, z: Tensor) -> Tensor:
        """The prior's action without noise `[N, A]`, in (-1, 1)."""
        return torch.tanh(self.pi(z).chunk(2, dim=-1)[0])

    def policy_sample(self, z: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """An action of the prior `[N, A]` and the logarithm of its density `[N]`; differentiable by the prior's weights."""
        mean, raw = full_precision(self.pi(z)).chunk(2, dim=-1)
        log_std = bounded_log_std(raw, *LOG_STD)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return squashed_sample(mean, log_std, noise)

    def sample_policy(self, z: Tensor, std: float | None, generator: torch.Generator | None) -> Tensor:
        """The prior's action with its own spread where `std` is None, else its mean with noise of `std`, in the box."""
        return self.policy_sample(z, generator)[0] if std is None else add_noise(self.policy(z), std, generator)

    def latent_model(self, discount: float, members: Members | None = None) -> LatentModel:
        """The model as a planner sees it: the mean of the values of `members` (all where None) at pi's mean ends a plan."""
        reward, pi = nn.Sequential(self.reward, self.two_hot), nn.Sequential(self.pi, FirstHalf())
        q = nn.Sequential(self.q if members is None else SomeMembers(self.q, members), self.two_hot)
        terminal = PolicyValue(q, pi, mean=True)
        return LatentModel(StateAction(self.dynamics), StateAction(reward, scalar=True), terminal, discount)


class FirstHalf(nn.Module):
    """The first half of the last axis: the policy's mean, of mean and log std."""

    def forward(self, x: Tensor) -> Tensor:
        """`[..., 2 A]` to `[..., A]`."""
        return x.chunk(2, dim=-1)[0]

    def linearize(self, x: Tensor) -> Linearized:
        """Output and its pullback, for `difftop.nn.linearize`."""
        return self.forward(x), lambda g: torch.cat([g, torch.zeros_like(g)], dim=-1)


class SomeMembers(nn.Module):
    """Some members of an ensemble `[N, in]` to `[E', N, out]`; for planners that take no Jacobian."""

    def __init__(self, ensemble: EnsembleMLP, members: Members) -> None:
        super().__init__()
        self.ensemble, self.members = ensemble, members

    def forward(self, x: Tensor) -> Tensor:
        """The chosen members' outputs."""
        y: Tensor = self.ensemble(x, self.members)
        return y
