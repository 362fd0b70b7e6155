"""ACT: action chunking with transformers, a conditional VAE over chunks of actions.

    q(w | o_t, a_t, ..., a_{t+T_p-1}) = N(mu, diag sigma^2):  transformer encoder over [class, vectors, actions]
    (a_t, ..., a_{t+T_p-1}) = decoder(T_p queries, memory),   memory = encoder(w, tokens of o_t)
    loss = mean |a - decoder|_1 + beta KL(q | N(0, I));   while acting w = 0

While acting a chunk is predicted at every step, and all that foresaw a moment have a say in it (`ensemble`).

Source: Zhao et al., arXiv:2304.13705, section IV; experiment/act is its table III.
Differs: layers normalize before, not after; places are added to the tokens once, not in every layer; no dropout inside the
attention's weights; image networks start at random and have batch statistics of their own (pretrained and frozen there); actions
are in [-1, 1] as they are (standardized there), and padded steps don't count (they are zeros in the code's mean). The defaults
are small enough for a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from agents.policies.chunks import PolicyConfig, WindowPolicy, WindowPredictor
from agents.policies.cvae_model import kl_to_standard
from agents.policies.ensembling import EnsemblePredictor
from agents.policies.noise import Noise
from agents.policies.padding import check_rest, held_targets, motions, pad_option
from agents.policies.training import TrainingConfig, WindowShape
from difftop.data.demonstrations import Demonstrations
from difftop.data.windows import WindowBatch
from difftop.losses import full_precision
from difftop.nn.tokens import ObservationTokens
from difftop.nn.transformer import drawing_from, sinusoids, transformer_decoder, transformer_encoder
from difftop.options import ConfigError, option
from difftop.types import EnvSpec


@dataclass(frozen=True)
class ACTTraining(TrainingConfig):
    """ACT's."""

    learning_rate: float = option(3e-4, "of Adam; the paper's is 1e-5", above=0)
    weight_decay: float = option(1e-4, "decoupled; 0 is plain Adam", low=0)
    warmup_steps: int = option(200, "gradient steps over which the learning rate rises from 0; the paper has none", low=0)


@dataclass(frozen=True)
class ACTConfig(PolicyConfig):
    """Options of ACT."""

    name: str = option("act", "action chunking with transformers", choices=("act",))
    training: ACTTraining = option(ACTTraining, "optimizer")
    horizon: int = option(20, "T_p: actions of one prediction; the paper's is 100, 2 s", low=1)
    pad: str = pad_option("mask")
    ensemble: bool = option(True, "while acting, actions are means over all chunks that foresaw them; False: the newest chunk's")
    ensemble_rate: float = option(0.01, "m: weights exp(-m i) of these chunks, i = 0 the oldest", low=0)
    latent_dim: int = option(32, "size of w, the CVAE's latent", low=1)
    kl: float = option(10.0, "beta: weight of the KL divergence, nats", low=0)
    dim: int = option(128, "size of a token, a multiple of 4 and of heads; the paper's is 512", low=4)
    heads: int = option(4, "of the attention; the paper's are 8", low=1)
    feedforward: int = option(256, "width of each layer's MLP; the paper's is 3200", low=1)
    encoder_layers: int = option(2, "of the CVAE's encoder, and of that of the observations; the paper's are 4", low=1)
    decoder_layers: int = option(2, "from observations to actions; the paper's are 7", low=1)
    dropout: float = option(0.1, "share of what each layer adds that is left out in training", low=0, high=0.9)

    @property
    def windows(self) -> WindowShape:
        """See `PolicyConfig`."""
        return WindowShape(1, self.horizon, 0, self.horizon - 1)


class ChunkPosterior(nn.Module):
    """q(w | o, a) of chunks `[B, T_p, A]`; it sees no images. Padded steps are left out.

    Args:
        config: options.
        vectors: size of the vectors of an observation, end to end; 0 for none.
        action_dim: A.
    """

    place: Tensor

    def __init__(self, config: ACTConfig, vectors: int, action_dim: int) -> None:
        super().__init__()
        dim, sizes = config.dim, (config.dim, config.heads, config.feedforward, config.dropout)
        self.classes = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.from_vectors = nn.Linear(vectors, dim) if vectors else None
        self.from_action = nn.Linear(action_dim, dim)
        self.encoder = transformer_encoder(config.encoder_layers, *sizes)
        self.out = nn.Linear(dim, 2 * config.latent_dim)
        count = 1 + bool(vectors) + config.horizon
        self.register_buffer("place", sinusoids(torch.arange(count), dim), persistent=False)

    def forward(self, vectors: Tensor, actions: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance `[B, W]`.

        Args:
            vectors: `[B, V]`.
            actions: `[B, T_p, A]`.
            known: `[B, T_p]` bool, False where a step is padding.
        """
        parts = [self.classes.expand(len(actions), -1, -1)]
        if self.from_vectors is not None:
            parts.append(self.from_vectors(vectors)[:, None])
        seen = torch.where(known[..., None], actions, 0.0)
        tokens = torch.cat([*parts, self.from_action(seen)], 1) + self.place
        unseen = torch.cat([torch.zeros_like(known[:, :1]).expand(-1, len(parts)), ~known], 1)
        first = self.encoder(tokens, src_key_padding_mask=unseen)[:, 0]
        mean, log_variance = full_precision(self.out(first)).chunk(2, -1)
        return mean, log_variance.clamp(-20, 20)  # keeps exp and its gradient finite


class ACT(WindowPolicy):
    """See the module."""

    config: ACTConfig
    moves: Tensor

    def __init__(self, config: ACTConfig, spec: EnvSpec, *, seed: int) -> None:
        if config.dim % config.heads or config.dim % 4:
            raise ConfigError(f"agent.dim={config.dim}: must be a multiple of 4 and of agent.heads={config.heads}.")
        sizes = config.dim, config.heads, config.feedforward, config.dropout
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(config, spec, partial(ObservationTokens, dim=config.dim))
            self.vectors = [key for key, shape in self.observer.shapes.items() if len(shape) == 1]
            size = sum(self.observer.shapes[key][0] for key in self.vectors)
            self.posterior = ChunkPosterior(config, size, spec.action_dim)
            self.from_latent = nn.Linear(config.latent_dim, config.dim)
            self.encoder = transformer_encoder(config.encoder_layers, *sizes)
            self.decoder = transformer_decoder(config.decoder_layers, *sizes)
            self.queries = nn.Parameter(sinusoids(torch.arange(config.horizon), config.dim))
            self.out = nn.Linear(config.dim, spec.action_dim)
        self.register_buffer("moves", motions(self.limits.selected, spec.action_dim), persistent=False)

    def fit_normalizer_(self, demonstrations: Demonstrations) -> None:
        """Takes the normalization; refuses to hold where actions are positions."""
        super().fit_normalizer_(demonstrations)
        check_rest(self.config.pad, demonstrations)

    def loss(self, batch: WindowBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean absolute error over actions that count (see `pad`), plus beta times the mean KL divergence over windows with any.

        Returns:
            the loss, and `loss`, `l1`, `kl` (nats).
        Source: ACT, arXiv:2304.13705, algorithm 1.
        """
        noise = self.batch_noise(len(batch.actions), generator)
        actions, known = held_targets(batch, self.moves, self.config.pad)
        counts = known.any(1)
        with drawing_from(self, generator):
            mean, log_variance = self.posterior(self._vectors(batch.obs), actions, known)
            w = mean + (log_variance / 2).exp() * noise.normal(self.config.latent_dim)
            predicted = self.decoded(batch.obs, w, noise)
        error = (predicted - actions).abs().mean(-1)
        l1 = torch.where(known, error, 0.0).sum() / known.sum().clamp_min(1)
        kl = torch.where(counts, kl_to_standard(mean, log_variance), 0.0).sum() / counts.sum().clamp_min(1)
        loss = l1 + self.config.kl * kl
        return loss, {"loss": loss.detach(), "l1": l1.detach(), "kl": kl.detach()}

    def decoded(self, obs: Mapping[str, Tensor], w: Tensor, noise: Noise) -> Tensor:
        """Actions `[K, T_p, A]` of observations by key `[K, 1, *shape]` and latents `[K, W]`; `noise` has K rows."""
        tokens = self.observer(obs, noise)[:, -1]
        memory = self.encoder(torch.cat([self.from_latent(w)[:, None].to(tokens.dtype), tokens], 1))
        y = self.decoder(self.queries.expand(len(w), -1, -1), memory)
        return full_precision(self.out(y))

    def chunk(self, obs: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """See `WindowPolicy`; w is the prior's mean."""
        rows = len(next(iter(obs.values())))
        return self.decoded(obs, torch.zeros(rows, self.config.latent_dim, device=self.device), noise)

    def predictor(self, num_envs: int, seed: int) -> WindowPredictor:
        """See `ChunkPolicy`."""
        if self.config.ensemble:
            return EnsemblePredictor(self, num_envs, seed, self.config.ensemble_rate)
        return super().predictor(num_envs, seed)

    def _vectors(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Normalized vectors of the present observations, end to end `[B, V]`."""
        parts = [self.observer.normalizer[key](obs[key][:, -1]) for key in self.vectors]
        return torch.cat(parts, -1) if parts else next(iter(obs.values())).new_zeros(0)
