"""BC: behavior cloning by an MLP.

    (o_{t-T_s+1}, ..., o_t) -> encoder, end to end -> MLP -> (a_t, ..., a_{t+T_p-1}), or a mixture of Gaussians over them

Source: Mandlekar et al., arXiv:2108.03298, and robomimic's `BC` and `BC_GMM`; 2 layers of 1024, 5 modes.
Differs: ELU in place of ReLU, orthogonal weights; several observations and actions are possible.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.policies.chunks import PolicyConfig, WindowPolicy
from agents.policies.noise import Noise
from agents.policies.training import WindowShape
from agents.rnn_gmm import ACTING_STD, LEAST_STD
from difftop.data.windows import WindowBatch
from difftop.losses import full_precision
from difftop.nn.distributions import MixtureHead
from difftop.nn.mlp import mlp
from difftop.options import option
from difftop.types import EnvSpec


@dataclass(frozen=True)
class BCConfig(PolicyConfig):
    """Options of BC."""

    name: str = option("bc", "behavior cloning by an MLP", choices=("bc",))
    window: int = option(1, "T_s: observations that the action depends on", low=1)
    horizon: int = option(1, "T_p: actions of one prediction", low=1)
    hidden_dims: list[int] = option([1024, 1024], "widths of the MLP's hidden layers", low=1)
    distribution: str = option("gmm", "mixture of Gaussians, or one action by squared error", choices=("gmm", "deterministic"))
    modes: int = option(5, "distribution=gmm: Gaussians in the mixture", low=1)

    @property
    def windows(self) -> WindowShape:
        """See `PolicyConfig`."""
        return WindowShape(self.window, self.horizon, self.window - 1, self.horizon - 1)


class BC(WindowPolicy):
    """See the module."""

    config: BCConfig

    def __init__(self, config: BCConfig, spec: EnvSpec, *, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(config, spec)
            sizes = [self.observer.out * config.window, *config.hidden_dims]
            self.body = nn.Sequential(mlp(sizes), nn.ELU()) if config.hidden_dims else nn.Identity()
            if config.distribution == "gmm":
                self.mixture = MixtureHead(sizes[-1], self.limits.size, config.modes, LEAST_STD)
            else:
                self.linear = nn.Linear(sizes[-1], self.limits.size)

    def loss(self, batch: WindowBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Over actions that are no padding: mean squared error, or the negative log likelihood of the chunk per action.

        - sum_b log p_b(a_t, ..., a_{t+T_p-1}) / number of actions that count
        """
        last = self.config.window - 1
        target, known = batch.actions[:, last:], batch.mask[:, last:]
        features = self._features(batch.obs, self.batch_noise(len(target), generator))
        if self.config.distribution == "gmm":
            entries = known[..., None].expand_as(target).flatten(1)
            log_prob = self.mixture(features).log_prob(target.flatten(1), entries)
            loss = -torch.where(known.any(-1), log_prob, 0.0).sum() / known.sum().clamp_min(1)
        else:
            error = (full_precision(self.linear(features)).tanh().view_as(target) - target).square().mean(-1)
            loss = torch.where(known, error, 0.0).sum() / known.sum().clamp_min(1)
        return loss, {"loss": loss.detach()}

    def chunk(self, obs: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """See `WindowPolicy`."""
        return self.drawn(self._told(obs, noise), noise)

    def foresee(self, obs: Mapping[str, Tensor], noise: Noise, draws: int) -> Tensor:
        """See `ChunkPolicy`: the mixtures, or the actions."""
        return self._told(obs, noise)[:, None]

    def drawn(self, kept: Tensor, noise: Noise) -> Tensor:
        """See `ChunkPolicy`."""
        actions = kept
        if self.config.distribution == "gmm":
            actions = self.mixture.mixture(kept).sample(noise.uniform(), noise.normal(self.limits.size), ACTING_STD)
        return actions.view(len(actions), self.config.horizon, -1)

    def _told(self, obs: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """What the network says of windows `[K, T_s, *shape]`, from which actions are drawn."""
        features = self._features(obs, noise)
        if self.config.distribution == "gmm":
            return self.mixture.raw(features)
        actions: Tensor = self.linear(features).tanh()
        return actions

    def _features(self, obs: Mapping[str, Tensor], noise: Noise) -> Tensor:
        features: Tensor = self.body(self.observer(obs, noise).flatten(1))
        return features
