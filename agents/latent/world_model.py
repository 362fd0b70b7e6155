"""The networks of a latent world model: what planners, acting and losses ask of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from difftop.options import ConfigError, option
from difftop.planning.model import LatentModel
from difftop.types import EnvSpec, ObsSpec


@dataclass(frozen=True)
class WorldModelConfig:
    """Sizes of the networks."""

    latent_dim: int = option(50, "size of the latent state", low=1)
    encoder_dim: int = option(256, "hidden units of the state encoder", low=1)
    mlp_dim: int = option(512, "hidden units of dynamics, reward, policy and value networks", low=1)
    channels: int = option(32, "channels of the pixel encoder's convolutions", low=1)


class WorldModel(nn.Module):
    """A task-oriented latent dynamics model.

        z = h(s),  z' = d(z, a),  r = R(z, a),  q_j = Q_j(z, a),  a = pi(z)

    Latents are `[N, Z]`, actions `[N, A]`, rewards `[N]`, values `[E, N]`. The policy prior's network is `pi`, and no other
    parameter's name begins so.
    """

    pi: nn.Module

    def encode(self, obs: Tensor) -> Tensor:
        """Latents `[N, Z]` of observations `[N, *shape]`."""
        raise NotImplementedError

    def next(self, z: Tensor, a: Tensor) -> Tensor:
        """Next latents `[N, Z]`."""
        raise NotImplementedError

    def predict_reward(self, z: Tensor, a: Tensor) -> Tensor:
        """Rewards `[N]` of one agent step."""
        raise NotImplementedError

    def values(self, z: Tensor, a: Tensor) -> Tensor:
        """Action values of every member `[E, N]`."""
        raise NotImplementedError

    def policy(self, z: Tensor) -> Tensor:
        """The prior's action without noise `[N, A]`, in (-1, 1)."""
        raise NotImplementedError

    def sample_policy(self, z: Tensor, std: float | None, generator: torch.Generator | None) -> Tensor:
        """The prior's action with noise of `std`, in the box; None: of the prior's own spread, where it has learned one."""
        raise NotImplementedError

    def latent_model(self, discount: float) -> LatentModel:
        """The model as a planner sees it, with fast paths for Jacobians."""
        raise NotImplementedError


def one_observation(spec: EnvSpec) -> tuple[str, ObsSpec]:
    """Key and spec of the observation that a latent world model encodes.

    Raises:
        ConfigError: there are several, or it is a cloud of points.
    """
    if len(spec.obs) != 1:
        raise ConfigError(
            f"env={spec.name} has {len(spec.obs)} observations ({', '.join(spec.obs)}), and a latent world model encodes one: "
            "set obs=state or obs=pixels."
        )
    key, seen = next(iter(spec.obs.items()))
    if seen.kind == "points":
        raise ConfigError(
            f"env={spec.name} gives points ({key}), and a latent world model encodes a vector or an image: "
            "set obs=state or obs=pixels."
        )
    return key, seen
