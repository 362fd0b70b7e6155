"""Diffusion Policy: chunks of actions by denoising, with a 1D U-Net or a transformer.

    (o_{t-1}, o_t) -> encoder, end to end -> condition c
    x_k = sqrt(abar_k) a + sqrt(1 - abar_k) eps,   loss |eps - net(x_k, k, c)|^2

Actions a_{t-T_o+1} .. a_{t-T_o+T_p} are denoised together; T_a of them, from a_t on, are executed.

Source: Chi et al., arXiv:2303.04137, and its code: the convolutional network (DP-C) and the transformer (DP-T, section IV.A),
noise prediction, squared-cosine schedule.
Differs: channels 64, 128, 256, as in ManiSkill's baseline (the paper's are 256, 512, 1024), which two CPU cores can train; ten
DDIM steps while acting (100 DDPM steps); windows go on to the last observation of a demonstration, as in ManiSkill's baseline,
and what is to be done after it is to stay (`pad`; the paper repeats the last action); steps before the first don't count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.policies.chunks import PolicyConfig, Repeated, WindowPolicy
from agents.policies.noise import Noise
from agents.policies.padding import check_rest, held_targets, motions, pad_option
from agents.policies.training import TrainingConfig, WindowShape, schedule_option
from difftop.data.demonstrations import Demonstrations
from difftop.data.windows import WindowBatch
from difftop.losses import full_precision
from difftop.nn.denoising import Denoising
from difftop.nn.denoising_transformer import DenoisingTransformer
from difftop.nn.observation import EncoderConfig
from difftop.nn.resnet import NORMS
from difftop.nn.transformer import drawing_from
from difftop.nn.unet1d import UNet1d
from difftop.options import ConfigError, option
from difftop.types import EnvSpec

_KERNEL, _GROUPS = 5, 8  # of the U-Net's convolutions and GroupNorm, in all of the paper's runs


@dataclass(frozen=True)
class DiffusionTraining(TrainingConfig):
    """Diffusion Policy's."""

    learning_rate: float = option(1e-4, "of Adam", above=0)
    weight_decay: float = option(1e-6, "decoupled; 0 is plain Adam", low=0)
    schedule: str = schedule_option("cosine")
    warmup_steps: int = option(500, "gradient steps over which the learning rate rises from 0", low=0)
    beta1: float = option(0.95, "Adam's decay of the gradient's mean", low=0, high=1)
    ema: float = option(
        0.9999, "largest decay of the averaged weights that act, 1 - (1 + k)^-3/4 after k steps; 0: no average", low=0, high=1
    )


@dataclass(frozen=True)
class DiffusionEncoder(EncoderConfig):
    """Diffusion Policy's: averaged weights act, and the batch's statistics are those of other weights."""

    norm: str = option("group", "images: normalization in the ResNet", choices=NORMS)


@dataclass(frozen=True)
class DiffusionConfig(PolicyConfig):
    """Options of Diffusion Policy."""

    name: str = option("diffusion", "Diffusion Policy", choices=("diffusion",))
    training: DiffusionTraining = option(DiffusionTraining, "optimizer")
    encoder: DiffusionEncoder = option(DiffusionEncoder, "networks for images and point clouds")
    window: int = option(2, "T_o: observations that the actions depend on", low=1)
    horizon: int = option(16, "T_p: actions that are denoised together, the first at the window's first observation", low=1)
    execute: int = option(8, "T_a: actions that are executed before the next prediction", low=1)
    pad: str = pad_option("hold")
    backbone: str = option("unet", "network that denoises: convolutions, or attention", choices=("unet", "transformer"))
    widths: list[int] = option([64, 128, 256], "backbone=unet: channels, level by level; the paper's are 256, 512, 1024", low=8)
    step_dim: int = option(64, "backbone=unet: size of the embedding of the diffusion step; the paper's is 256", low=2)
    layers: int = option(4, "backbone=transformer: layers of the decoder; the paper's are 8", low=1)
    dim: int = option(128, "backbone=transformer: size of a token, even and a multiple of heads; the paper's is 256", low=2)
    heads: int = option(4, "backbone=transformer: of the attention", low=1)
    dropout: float = option(
        0.1, "backbone=transformer: share of what each layer adds that is left out; the paper's is 0.3", low=0, high=0.9
    )
    steps: int = option(100, "K: steps of the diffusion", low=2)
    sampler: str = option("ddim", "while acting: ddpm takes all K steps, ddim fewer ones without noise", choices=("ddpm", "ddim"))
    ddim_steps: int = option(10, "sampler=ddim: how many", low=1)

    @property
    def windows(self) -> WindowShape:
        """See `PolicyConfig`."""
        future = self.horizon - self.window  # actions after that of a window's last observation
        return WindowShape(self.window, future + 1, self.window - 1, future)


class Diffusion(WindowPolicy):
    """See the module."""

    config: DiffusionConfig
    moves: Tensor

    def __init__(self, config: DiffusionConfig, spec: EnvSpec, *, seed: int) -> None:
        _check(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(config, spec)
            self.net = _network(config, spec.action_dim, self.observer.out)
        self.denoising = Denoising(config.steps)
        self.register_buffer("moves", motions(self.limits.selected, spec.action_dim), persistent=False)

    def fit_normalizer_(self, demonstrations: Demonstrations) -> None:
        """Takes the normalization; refuses to hold where actions are positions."""
        super().fit_normalizer_(demonstrations)
        check_rest(self.config.pad, demonstrations)

    def loss(self, batch: WindowBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the predicted noise over actions that count (see `pad`), one random k per window.

        Source: DDPM, arXiv:2006.11239, equation 14.
        """
        actions, known = held_targets(batch, self.moves, self.config.pad)
        noise = self.batch_noise(len(actions), generator)
        condition = self.observer(batch.obs, noise).flatten(1)
        step = (noise.uniform() * self.config.steps).long().clamp_max(self.config.steps - 1)
        eps = noise.normal(*actions.shape[1:]).to(actions.dtype)
        with drawing_from(self.net, generator):
            predicted = full_precision(self.net(self.denoising.noised(actions, eps, step), step, condition))
        error = (predicted - eps).square().mean(-1)
        loss = torch.where(known, error, 0.0).sum() / known.sum().clamp_min(1)
        return loss, {"loss": loss.detach()}

    def chunk(self, obs: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """See `WindowPolicy`."""
        return self._denoised(self.observer(obs, noise).flatten(1), noise)

    def foresee(self, obs: Mapping[str, Tensor], noise: Noise, draws: int) -> Tensor:
        """See `ChunkPolicy`: chunks, drawn once and for all."""
        condition = self.observer(obs, noise).flatten(1)
        chunks = self._denoised(condition.repeat_interleave(draws, 0), Repeated(noise, draws))
        return chunks.reshape(len(condition), 1, -1)

    def drawn(self, kept: Tensor, noise: Noise) -> Tensor:
        """See `ChunkPolicy`: one of them."""
        chunks = kept.view(len(kept), -1, self.windows.horizon, self.spec.action_dim)
        number = (noise.uniform() * chunks.shape[1]).long().clamp_max(chunks.shape[1] - 1)
        return chunks[torch.arange(len(kept), device=kept.device), number]

    def _denoised(self, condition: Tensor, noise: Noise) -> Tensor:
        """Wanted actions `[K, T_p, A]` under conditions `[K, C]`."""
        config = self.config

        def model(x: Tensor, k: int) -> Tensor:
            return self.net(x, torch.full((len(x),), k, device=x.device), condition)  # type: ignore[no-any-return]

        start = noise.normal(config.horizon, self.spec.action_dim)
        if config.sampler == "ddim":
            actions = self.denoising.sample_fast(model, start, config.ddim_steps)
        else:
            draws = noise.normal(config.steps - 1, config.horizon, self.spec.action_dim)
            actions = self.denoising.sample(model, start, draws)
        return actions[:, config.window - 1 :]


def _network(config: DiffusionConfig, actions: int, features: int) -> nn.Module:
    """Predicts noise in `[B, T_p, A]` given steps and the features of T_o observations end to end."""
    if config.backbone == "unet":
        widths = list(config.widths)
        return UNet1d(actions, features * config.window, widths, step_dim=config.step_dim, kernel=_KERNEL, groups=_GROUPS)
    sizes = {"layers": config.layers, "dim": config.dim, "heads": config.heads}
    return DenoisingTransformer(actions, features, config.horizon, config.window, **sizes, dropout=config.dropout)


def _check(config: DiffusionConfig) -> None:
    if config.horizon < config.window:
        raise ConfigError(f"agent.horizon={config.horizon}: must be at least window={config.window}.")
    if config.ddim_steps > config.steps or config.step_dim % 2:
        raise ConfigError(
            f"agent.ddim_steps={config.ddim_steps}, steps={config.steps}, step_dim={config.step_dim}: at most as many DDIM steps "
            "as steps, and an even step_dim."
        )
    if config.backbone == "transformer":
        if config.dim % config.heads or config.dim % 2:
            raise ConfigError(f"agent.dim={config.dim}: must be even, and a multiple of agent.heads={config.heads}.")
        return
    multiple = 2 ** (len(config.widths) - 1)
    wrong = [width for width in config.widths if width % _GROUPS]
    if not config.widths or wrong:
        raise ConfigError(f"agent.widths={list(config.widths)}: every width must be a multiple of {_GROUPS}.")
    if config.horizon % multiple:
        raise ConfigError(f"agent.horizon={config.horizon}: must be a multiple of {multiple} for {len(config.widths)} widths.")
