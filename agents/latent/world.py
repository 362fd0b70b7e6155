"""A latent world as an agent trains it: networks, their targets, the losses of a batch, and the loss of the policy prior."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from agents.latent.world_model import WorldModel, WorldModelConfig
from difftop.losses import RunningScale
from difftop.options import option
from difftop.planning.model import LatentModel
from difftop.types import EnvSpec


@dataclass(frozen=True)
class LossConfig:
    """Coefficients of the model loss and its optimizer."""

    horizon: int = option(5, "steps of a replayed slice the model is unrolled for, in agent steps", low=1)
    rho: float = option(0.5, "weight of step t is rho^t", low=0, high=1)
    consistency: float = option(2.0, "coefficient of the latent prediction error", low=0)
    reward: float = option(0.5, "coefficient of the reward error", low=0)
    value: float = option(0.1, "coefficient of the TD error", low=0)
    learning_rate: float = option(1e-3, "Adam's learning rate, for model and policy", above=0)
    grad_clip: float = option(10.0, "largest joint gradient norm", above=0)
    target_rate: float = option(0.01, "rate of the target networks' moving average", above=0, high=1)
    target_every: int = option(2, "gradient steps between two moves of the target networks", low=1)
    shift_pixels: int = option(4, "random shift of pixel observations, in pixels", low=0)


@dataclass(frozen=True)
class Unrolled:
    """What one batch gives after encoding and unrolling, time-major so that all heads run in one batched pass.

    Attributes:
        obs: first observations, augmented, `[B, *shape]`.
        next_obs: the T observations after them, augmented, `[T*B, *shape]`.
        z_next: their latents under the online encoder `[T*B, Z]`, no gradient.
        z: latents predicted from the first observation `[T+1, B, Z]`.
        action, reward, terminated: `[T, B, A]`, `[T, B]`, `[T, B]`.
        weight: of the samples `[B]`.
    """

    obs: Tensor
    next_obs: Tensor
    z_next: Tensor
    z: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    weight: Tensor


class Losses(NamedTuple):
    """The scaled loss to differentiate, metrics by tag, and replay priorities `[B]` (None: not used)."""

    loss: Tensor
    metrics: dict[str, Tensor]
    priorities: Tensor | None


class World(nn.Module):
    """What `LatentAgent` trains and planners plan in; a subclass adds the losses and targets of a paper.

    Args:
        spec: of the environment.
        model: the networks.
        config: coefficients.
        discount: gamma per agent step.
    Attributes:
        latent_model: the networks as planners see them.
        prior_std: std of the policy prior where it is sampled; None: the spread that the prior itself has learned.
        return_scale, reward_size: running spreads of TD targets and of rewards.
        rare: how rare rewards are, in [0, 1]; 1 at first. Checkpoints keep it with the weights, which were learned for it.
    """

    config: LossConfig
    prior_std: float | None = None
    rarity: Tensor

    def __init__(self, spec: EnvSpec, model: WorldModel, config: LossConfig, discount: float) -> None:
        super().__init__()
        self.spec, self.config, self.discount = spec, config, discount
        self.model = model
        self.return_scale = RunningScale(peak=0.0)
        self.reward_size = RunningScale()
        self.latent_model = model.latent_model(discount)
        self.rare = 1.0
        self.register_buffer("rarity", torch.ones(()))  # the same, for a captured update

    def with_model(self, model: WorldModel) -> World:
        """This world, its scales included, with the weights of another model."""
        other = copy.copy(self)
        other._modules = self._modules | {"model": model}
        other.latent_model = model.latent_model(self.discount)
        return other

    def set_rare(self, rare: float) -> None:
        """How rare rewards are now, in [0, 1]."""
        self.rare = rare
        self.rarity.fill_(rare)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        state_dict.setdefault(f"{prefix}rarity", torch.zeros(()))  # older ones don't tell: their values had one discount
        super()._load_from_state_dict(state_dict, prefix, *more)
        self.rare = float(self.rarity)

    @property
    def gamma(self) -> Tensor | float:
        """Discount of the values that are learned now, per agent step."""
        return self.discount

    @property
    def seeks(self) -> bool:
        """Whether updates are now of the kind that seeks rewards; each kind is captured for itself."""
        return False

    @property
    def sizes(self) -> WorldModelConfig:
        """Sizes of the networks, none left open."""
        raise NotImplementedError

    def losses(self, u: Unrolled, generator: torch.Generator) -> Losses:
        """Of networks and values; also feeds the running scales."""
        raise NotImplementedError

    def prior_loss(self, z: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the policy prior, at latents `z [T+1, B, Z]` that get no gradient; and metrics."""
        raise NotImplementedError

    def move_targets_(self) -> None:
        """One step of the target networks' moving average."""
        raise NotImplementedError

    def adopt(self, critic: nn.Module, target: nn.Module) -> None:
        """Another critic of the values here and its target, plain stacks of layers, to be trained as the world's own are."""

    def value_error(self, td: Tensor) -> Tensor:
        """The loss of TD errors, element by element."""
        return td.square()

    def optimizers(self, more: Sequence[nn.Parameter]) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        """Of the model loss, which trains `more` too, and of the policy prior."""
        rate = self.config.learning_rate
        return (
            torch.optim.Adam([*self.trained(), *more], lr=rate, fused=True),
            torch.optim.Adam(self.model.pi.parameters(), lr=rate, fused=True),
        )

    def trained(self) -> list[nn.Parameter]:
        """Parameters that the model loss trains: all networks but the policy prior."""
        return [p for name, p in self.model.named_parameters() if not name.startswith("pi.")]

    def sampled_model(self, generator: torch.Generator) -> LatentModel:
        """The model for one plan of a planner that samples; `generator` makes the choices that are drawn once per plan."""
        return self.latent_model

    def step_scale(self) -> Tensor:
        """Size of one step's reward, 0-d, by which planners normalize: the spread of rewards, or of returns per step."""
        return torch.maximum(self.reward_size.value, (1 - self.discount) * self.return_scale.value)

    def rewarded(self) -> Tensor:
        """Whether a reward other than 0 was seen, 0-d."""
        return self.reward_size.largest > 0

    def unroll(self, obs: Tensor, next_obs: Tensor, action: Tensor, **known: Any) -> Unrolled:
        """Encodes observations and rolls the dynamics along the actions; only this loop is sequential. See `Unrolled`."""
        with torch.no_grad():
            z_next = self.model.encode(next_obs)
        z = [self.model.encode(obs)]
        for a in action:
            z.append(self.model.next(z[-1], a))
        return Unrolled(obs=obs, next_obs=next_obs, z_next=z_next, z=torch.stack(z), action=action, **known)
