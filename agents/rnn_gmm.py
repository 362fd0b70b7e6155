"""BC-RNN-GMM: a recurrent policy that predicts a mixture of Gaussians.

    o_t -> encoder -> LSTM -> p(a_t, ..., a_{t+T_p-1}) = sum_m w_m N(mu_m, diag sigma_m^2)

Source: Mandlekar et al., arXiv:2108.03298, and robomimic's `BC_RNN_GMM`; LSTM 2 x 400 for low-dimensional observations, 2 x 1000
for images, windows of 10.
Differs: padded steps don't count in the loss; T_p may be longer than one step (one mixture over the whole chunk).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.policies.noise import Noise
from agents.policies.recurrent import RecurrentConfig, RecurrentPolicy
from agents.policies.training import WindowShape
from difftop.data.windows import WindowBatch, overlapping
from difftop.nn.distributions import MixtureHead
from difftop.options import option
from difftop.types import EnvSpec

# robomimic's: the smallest that is learned, and that of acting, where a mode is drawn and about its mean taken.
LEAST_STD = ACTING_STD = 1e-4


@dataclass(frozen=True)
class RnnGmmConfig(RecurrentConfig):
    """Options of BC-RNN-GMM; the defaults are robomimic's for low-dimensional observations."""

    name: str = option("rnn_gmm", "recurrent policy with a mixture of Gaussians", choices=("rnn_gmm",))
    window: int = option(10, "T_s: steps the LSTM is unrolled for in training, and after which it forgets while acting", low=1)
    horizon: int = option(1, "T_p: actions of one prediction", low=1)
    modes: int = option(5, "Gaussians in the mixture", low=1)

    @property
    def windows(self) -> WindowShape:
        """See `PolicyConfig`."""
        pad = self.window + self.horizon - 2  # a window begins at every step of a demonstration
        return WindowShape(self.window, self.horizon, 0, pad)


class RnnGmm(RecurrentPolicy):
    """See the module."""

    config: RnnGmmConfig

    def __init__(self, config: RnnGmmConfig, spec: EnvSpec, *, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(config, spec)
            self.mixture = MixtureHead(config.hidden_dim, self.limits.size, config.modes, LEAST_STD)

    def loss(self, batch: WindowBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log likelihood of the chunk at every step, per action, over steps that are no padding:

        - sum_{b, i} log p_bi(a_{b,i}, ..., a_{b,i+T_p-1}) / number of actions that count
        """
        features, _ = self.outputs(batch.obs, self.batch_noise(len(batch.actions), generator))
        target = overlapping(batch.actions, self.config.horizon)  # [B, T_s, T_p, A]
        known = overlapping(batch.mask, self.config.horizon)
        entries = known[..., None].expand_as(target).flatten(2)
        log_prob = self.mixture(features).log_prob(target.flatten(2), entries)
        loss = -torch.where(known.any(-1), log_prob, 0.0).sum() / known.sum().clamp_min(1)
        return loss, {"loss": loss.detach()}

    def chunk(self, features: Tensor, noise: Noise) -> Tensor:
        """See `RecurrentPolicy`."""
        return self.drawn(self.mixture.raw(features), noise)

    def foresee(self, obs: Mapping[str, Tensor], noise: Noise, draws: int) -> Tensor:
        """See `ChunkPolicy`: the mixtures."""
        return self.mixture.raw(self.features(obs, noise))

    def drawn(self, kept: Tensor, noise: Noise) -> Tensor:
        """See `ChunkPolicy`."""
        drawn = self.mixture.mixture(kept).sample(noise.uniform(), noise.normal(self.limits.size), ACTING_STD)
        return drawn.view(len(drawn), self.config.horizon, -1)
