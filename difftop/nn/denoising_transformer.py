"""A transformer over time that predicts the noise in a sequence of actions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from difftop.nn.activations import Mish
from difftop.nn.transformer import sinusoids, transformer_decoder


class DenoisingTransformer(nn.Module):
    """Tokens of noisy actions attend to those before them, and to tokens of the diffusion step and of the observations.

        memory = MLP([waves(k), linear(o_1), ..., linear(o_{T_o})] + places)
        eps_t = linear(decoder(linear(x_t) + place_t, memory)),   x_t sees x_1 .. x_t, k, and o_1 .. o_t

    Args:
        actions: A.
        features: of one observation.
        horizon: T, actions.
        window: T_o, observations, of the first actions.
        layers, dim, heads: of the decoder; its MLPs have width 4 dim (GELU).
        dropout: share; see `difftop.nn.transformer`.
    Source: Diffusion Policy, arXiv:2303.04137, section IV.A, and its code: causal attention, an MLP in place of an encoder.
    Differs: initial weights are Xavier's; no dropout inside the attention's weights.
    """

    later: Tensor
    unseen: Tensor

    def __init__(
        self, actions: int, features: int, horizon: int, window: int, *, layers: int, dim: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.window, self.dim = window, dim
        self.from_action, self.from_features = nn.Linear(actions, dim), nn.Linear(features, dim)
        self.action_place = nn.Parameter(0.02 * torch.randn(horizon, dim))
        self.memory_place = nn.Parameter(0.02 * torch.randn(1 + window, dim))
        self.memory = nn.Sequential(nn.Linear(dim, 4 * dim), Mish(), nn.Linear(4 * dim, dim))
        self.decoder = transformer_decoder(layers, dim, heads, 4 * dim, dropout, activation="gelu")
        self.out = nn.Linear(dim, actions)
        t = torch.arange(horizon)[:, None]
        self.register_buffer("later", torch.arange(horizon) > t, persistent=False)  # True: isn't attended to
        self.register_buffer("unseen", torch.arange(-1, window) > t, persistent=False)  # the step is always seen

    def forward(self, x: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """Noise `[B, T, A]` in x `[B, T, A]` at steps `[B]`, int64, given features of observations end to end `[B, T_o F]`."""
        seen = self.from_features(condition.view(len(x), self.window, -1))
        waves = sinusoids(step, self.dim).to(seen.dtype)[:, None]
        memory = self.memory(torch.cat([waves, seen], 1) + self.memory_place)
        tokens = self.from_action(x) + self.action_place
        y = self.decoder(tokens, memory, tgt_mask=self.later, memory_mask=self.unseen, tgt_is_causal=False)
        noise: Tensor = self.out(y)
        return noise
