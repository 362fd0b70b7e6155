"""Residual: a trained policy's actions, corrected by an MLP.

    a = b + scale tanh(MLP(o_t, b)),   b = (b_t, ..., b_{t+T_p-1}) from the frozen base

Source: the baseline "Residual + X" of DiffTORI, arXiv:2402.05421.
Differs: its network isn't published; here the correction is bounded and starts at zero, so that training begins at the base.
Steps of a window count where the base has seen what it sees while acting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents.policies.base_policy import BASE_CHECKPOINT, BASE_DRAWS, BASES, DRAWS, BaseConfig, BasePolicy
from agents.policies.chunks import ChunkPolicy, PolicyConfig, Predictor
from agents.policies.noise import EnvironmentNoise, Noise
from agents.policies.training import WindowShape
from agents.registry import make_policy
from difftop.data.demonstrations import Demonstrations
from difftop.data.windows import Episodes, WindowBatch, overlapping
from difftop.losses import full_precision
from difftop.nn.mlp import mlp
from difftop.options import ConfigError, option
from difftop.types import EnvSpec


@dataclass(frozen=True)
class ResidualConfig(PolicyConfig):
    """Options of the residual policy."""

    name: str = option("residual", "a trained policy's actions, corrected by an MLP", choices=("residual",))
    base: str = option("rnn_gmm", "policy to correct; it is trained in a run of its own", choices=BASES)
    base_checkpoint: str = option("", BASE_CHECKPOINT)
    base_draws: int = option(DRAWS, BASE_DRAWS, low=0)
    window: int = option(10, "T_s: observations of a training window; the base's memory begins with it", low=1)
    horizon: int = option(1, "T_p: actions that are corrected together, at most the base's", low=1)
    hidden_dims: list[int] = option([256, 256], "widths of the MLP's hidden layers", low=1)
    scale: float = option(1.0, "largest correction, action units", above=0)

    @property
    def windows(self) -> WindowShape:
        """See `PolicyConfig`."""
        return WindowShape(self.window, self.horizon, self.window - 1, self.window + self.horizon - 2)


class Residual(ChunkPolicy):
    """See the module."""

    config: ResidualConfig

    def __init__(self, config: ResidualConfig, spec: EnvSpec, *, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(config, spec)
            self.net = mlp([self.observer.out + self.limits.size, *config.hidden_dims, self.limits.size], zero_last=True)
        self.base = BasePolicy(BaseConfig(config.base, config.base_checkpoint), spec, make_policy)

    def fit_normalizer_(self, demonstrations: Demonstrations) -> None:
        """Takes the normalization, and the base from its run."""
        super().fit_normalizer_(demonstrations)
        self.base.read_()
        most, lead = self.base.check().windows.horizon, self.base.check().lead
        if lead >= self.config.window:
            raise ConfigError(
                f"agent.window={self.config.window}: {self.config.base} looks at {lead + 1} observations; take at least as many."
            )
        if self.config.horizon > most:
            raise ConfigError(f"agent.horizon={self.config.horizon}: {self.config.base} predicts {most} actions; lower it.")

    def prepare_(self, demonstrations: Episodes, generator: torch.Generator) -> None:
        """See `agents.policies.training.ImitationAgent.prepare_`: what the base does."""
        self.base.foresee_(demonstrations, self.config.window, self.config.base_draws, generator)

    def corrected(self, features: Tensor, base: Tensor) -> Tensor:
        """Actions `[..., T_p, A]` from features `[..., F]` and the base's actions `[..., T_p, A]`."""
        raw = full_precision(self.net(torch.cat([features, base.flatten(-2).to(features.dtype)], -1)))
        return base + self.config.scale * raw.tanh().view_as(base)

    def loss(self, batch: WindowBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error over actions that are no padding, at every step of the window where the base acts as in an episode.

        Those are the steps of the episode but, for a base that looks at some last observations, the window's first ones.

        Returns:
            the loss, and `loss`, `base_loss` (the same error of the base's own actions).
        """
        noise = self.batch_noise(len(batch.actions), generator)
        seen = batch.mask[:, : self.windows.window]
        begin = seen.int().argmax(1)  # before it is padding, which a base's memory never saw
        base = self.base.plans(batch.obs, noise, begin, batch.rows)[:, :, : self.config.horizon]
        actions = self.corrected(self.observer(batch.obs, noise), base)
        target, known = (overlapping(x, self.config.horizon) for x in (batch.actions, batch.mask))
        whole = torch.arange(self.windows.window, device=seen.device) >= self.base.check().lead
        known = known & (seen & whole)[..., None]
        loss, base_loss = (_masked_error(x, target, known) for x in (actions, base))
        return loss, {"loss": loss.detach(), "base_loss": base_loss}

    def plans(self, obs: Mapping[str, Tensor], noise: Noise, begin: Tensor | None = None) -> Tensor:
        """See `ChunkPolicy`."""
        base = self.base.plans(obs, noise, begin)[:, :, : self.config.horizon]
        return self.corrected(self.observer(obs, noise), base)

    def predictor(self, num_envs: int, seed: int) -> Predictor:
        """See `ChunkPolicy`."""
        return _Corrected(self, num_envs, seed)


class _Corrected:
    """The base's predictor, corrected; it keeps all memory."""

    def __init__(self, policy: Residual, num_envs: int, seed: int) -> None:
        self.policy, self.base = policy, policy.base.predictor(num_envs, seed)
        self.noise = EnvironmentNoise(num_envs, seed + 1, policy.device)

    def predict(self, obs: Mapping[str, Tensor], t0: Tensor, due: Tensor) -> Tensor:
        """See `agents.policies.chunks.Predictor`."""
        policy, rows = self.policy, due.nonzero()[:, 0]
        wanted = self.base.predict(obs, t0, due)[:, : policy.config.horizon].clamp(-1, 1)
        if len(rows):
            seen = {key: x[rows, None] for key, x in policy.observer.received(obs, policy.device).items()}
            features = policy.observer(seen, self.noise.of(rows))[:, 0]
            wanted[rows] = policy.corrected(features, wanted[rows])
        return wanted

    def begin(self, index: int, seed: int) -> None:
        """See `agents.policies.chunks.Predictor`."""
        self.base.begin(index, seed)
        self.noise.begin(index, seed)

    def state_dict(self) -> dict[str, Any]:
        """All memory."""
        return {"base": self.base.state_dict(), "noise": self.noise.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`, bit for bit."""
        self.base.load_state_dict(state["base"])
        self.noise.load_state_dict(state["noise"])


def _masked_error(actions: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean squared error of `[..., A]` over the steps that count, `known [...]`."""
    error = (actions - target).square().mean(-1)
    return torch.where(known, error, 0.0).sum() / known.sum().clamp_min(1)
