"""IBC: implicit behavior cloning. The policy is an energy of observation and action, minimized by sampling.

    p(a | o) = exp(f(o, a)) / integral of exp(f(o, .)),    a = argmax f(o, a)

Source: Florence et al., arXiv:2109.00137, sections 2 and B.1 (derivative-free optimizer); Diffusion Policy's IBC-DFO for numbers.
Differs: the first deviation is IBC's 0.33 (with Diffusion Policy's 0.03, samples hardly leave where they were drawn); MLP of 4 x
128 and 256 negatives (they take 4 x 1024 and 1024), which two CPU cores can train; samples stay inside the range of the
demonstrated actions while they are refined. As theirs, moves and the energy's inputs are in units of half that range, action by
action.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from agents.policies.chunks import PolicyConfig, WindowPolicy
from agents.policies.noise import Noise
from agents.policies.training import TrainingConfig, WindowShape, schedule_option
from difftop.data.demonstrations import Demonstrations
from difftop.data.normalize import Affine
from difftop.data.windows import WindowBatch
from difftop.losses import full_precision
from difftop.nn.mlp import dropout
from difftop.options import option
from difftop.types import EnvSpec

_MARGIN = 0.05  # of its range that each action may go beyond the demonstrated ones
_POSITIVE_STD = 1e-4  # noise on demonstrated actions, of half their range
_SHRINK = 0.5  # of the deviation of a move, from round to round


@dataclass(frozen=True)
class IBCTraining(TrainingConfig):
    """Diffusion Policy's for IBC."""

    learning_rate: float = option(1e-4, "of Adam", above=0)
    weight_decay: float = option(1e-6, "decoupled; 0 is plain Adam", low=0)
    schedule: str = schedule_option("cosine")
    warmup_steps: int = option(500, "gradient steps over which the learning rate rises from 0", low=0)
    beta1: float = option(0.95, "Adam's decay of the gradient's mean", low=0, high=1)


@dataclass(frozen=True)
class IBCConfig(PolicyConfig):
    """Options of IBC."""

    name: str = option("ibc", "implicit behavior cloning", choices=("ibc",))
    training: IBCTraining = option(IBCTraining, "optimizer")
    window: int = option(2, "T_s: observations that the action depends on", low=1)
    horizon: int = option(1, "T_p: actions of one prediction; sampling gets hard beyond one", low=1)
    hidden_dims: list[int] = option([128] * 4, "widths of the MLP's hidden layers; Diffusion Policy: 4 of 1024", low=1)
    dropout: float = option(0.1, "share of the MLP's units that are left out in training", low=0, high=0.9)
    negatives: int = option(256, "sampled actions that the demonstrated one is told from; Diffusion Policy: 1024", low=1)
    samples: int = option(1024, "actions that are tried while acting", low=1)
    rounds: int = option(5, "of trying, resampling and moving them", low=1)
    noise: float = option(0.33, "standard deviation of the first move, of half an action's range in the demonstrations", low=0)

    @property
    def windows(self) -> WindowShape:
        """See `PolicyConfig`."""
        return WindowShape(self.window, self.horizon, self.window - 1, self.horizon - 1)


class IBC(WindowPolicy):
    """See the module.

    Buffers:
        low, high: `[A]`, range of the samples, from the demonstrations, with a margin.
    Attributes:
        scaling: actions to what the energy sees of them, [-1, 1] over the range of the demonstrations.
    """

    config: IBCConfig
    low: Tensor
    high: Tensor

    def __init__(self, config: IBCConfig, spec: EnvSpec, *, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(config, spec)
            features = self.observer.out * config.window
            widths = [*config.hidden_dims, 1]
            self.from_obs, self.from_action = nn.Linear(features, widths[0]), nn.Linear(self.limits.size, widths[0], bias=False)
            self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths))
        self.scaling = Affine((spec.action_dim,))
        self.register_buffer("low", -torch.ones(spec.action_dim))
        self.register_buffer("high", torch.ones(spec.action_dim))

    def fit_normalizer_(self, demonstrations: Demonstrations) -> None:
        """Takes normalization and the range of the actions."""
        super().fit_normalizer_(demonstrations)
        actions = demonstrations.rows("actions")
        self.scaling.fit_(actions, "min_max")
        low, high = actions.aminmax(dim=0)
        margin = _MARGIN * (high - low)
        self.low.copy_((low - margin).clamp_min(-1))
        self.high.copy_((high + margin).clamp_max(1))

    def energies(self, features: Tensor, actions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """f `[K, S]` of features `[K, F]` and S actions each `[K, S, T_p A]`; units are left out where there is a generator."""
        scaled = self.scaling(actions.view(*actions.shape[:-1], self.config.horizon, -1)).flatten(-2).to(features.dtype)
        hidden = self.from_obs(features)[:, None] + self.from_action(scaled)  # the observation's part is computed once
        for layer in self.layers:
            if generator is not None:
                hidden = dropout(hidden, self.config.dropout, generator)
            hidden = layer(torch.relu(hidden))
        return full_precision(hidden.squeeze(-1))

    def loss(self, batch: WindowBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """InfoNCE: the demonstrated action among uniform ones a_1 .. a_S, mean over windows whose chunk has no padding.

            - log ( exp f(o, a*) / (exp f(o, a*) + sum_s exp f(o, a_s)) )

        Returns:
            the loss, and `loss`, `accuracy` (share of windows whose demonstrated action has the largest f).
        Source: IBC, arXiv:2109.00137, equation 2.
        """
        last = self.config.window - 1
        target, known = batch.actions[:, last:], batch.mask[:, last:].all(1)
        noise = self.batch_noise(len(target), generator)
        features = self.observer(batch.obs, noise).flatten(1)
        positive = (target + _POSITIVE_STD * self.scaling.scale * noise.normal(*target.shape[1:])).flatten(1)
        actions = torch.cat([positive[:, None], self._spread(noise, self.config.negatives)], 1)
        f = self.energies(features, actions, (generator or torch.default_generator) if self.training else None)
        per_window = -f.log_softmax(-1)[:, 0]
        count = known.sum().clamp_min(1)
        loss = torch.where(known, per_window, 0.0).sum() / count
        accuracy = (known & (f.argmax(-1) == 0)).sum() / count
        return loss, {"loss": loss.detach(), "accuracy": accuracy}

    def chunk(self, obs: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """See `WindowPolicy`; samples are drawn uniformly, and in each round resampled by their probability and moved by noise.

        Source: IBC, arXiv:2109.00137, algorithm 1.
        """
        config = self.config
        features = self.observer(obs, noise).flatten(1)
        samples, std = self._spread(noise, config.samples), config.noise
        low, high, half = (x.repeat(config.horizon) for x in (self.low, self.high, self.scaling.scale))
        for _ in range(config.rounds - 1):
            edges = self.energies(features, samples).softmax(-1).cumsum(-1)
            chosen = torch.searchsorted(edges, noise.uniform(config.samples) * edges[:, -1:]).clamp_max(config.samples - 1)
            kept = samples.gather(1, chosen[..., None].expand_as(samples))
            samples = (kept + std * half * noise.normal(*samples.shape[1:])).clamp(low, high)
            std *= _SHRINK
        best = self.energies(features, samples).argmax(-1)
        return samples[torch.arange(len(best)), best].view(len(best), config.horizon, -1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Weights of before there was a scaling see actions as they are."""
        for name, value in Affine(tuple(self.low.shape)).state_dict().items():
            state_dict.setdefault(f"{prefix}scaling.{name}", value)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _spread(self, noise: Noise, count: int) -> Tensor:
        """Uniform actions `[K, count, T_p A]`."""
        low, high = self.low.repeat(self.config.horizon), self.high.repeat(self.config.horizon)
        return low + (high - low) * noise.uniform(count, self.limits.size)
