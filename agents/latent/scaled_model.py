"""A world model of normalized networks: observations standardized, LayerNorm after every hidden layer and on latents."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import nn

from agents.latent.tdmpc_model import ScalarModel
from agents.latent.world_model import WorldModelConfig, one_observation
from difftop.nn.encoders import PixelEncoder
from difftop.nn.mlp import normed_ensemble, normed_mlp, orthogonal_
from difftop.nn.running_norm import RunningNorm
from difftop.options import option
from difftop.types import EnvSpec


@dataclass(frozen=True)
class ScaledModelConfig(WorldModelConfig):
    """Sizes of the networks."""

    latent_dim: int = option(64, "size of the latent state", low=1)
    mlp_dim: int = option(256, "hidden units of dynamics, reward, policy and value networks", low=1)
    members: int = option(2, "value networks", low=1)
    latent_gain: bool = option(
        False, "the latents' LayerNorm has a gain and an offset, which are trained; False: latents of unit size"
    )


class ScaledModel(ScalarModel):
    """TD-MPC's networks, normalized.

        z = LN(h((s - mean) / std)),  z' = LN(d(z, a)),  r = R(z, a),  q_i = Q_i(z, a),  a = tanh(pi(z))

    Hidden layers are `Linear LayerNorm SiLU`: LayerNorm in the critic is what keeps values from running away at several updates
    per step (BRO, arXiv:2405.16158), in the latents what keeps them from growing; SiLU costs a third of Mish on a CPU.

    Source: TD-MPC, arXiv:2203.04955, appendix F, for the networks' parts; shapes are `WorldModel`'s.
    """

    def __init__(self, spec: EnvSpec, config: ScaledModelConfig) -> None:
        super().__init__()
        z, a, width = config.latent_dim, spec.action_dim, config.mlp_dim
        seen = one_observation(spec)[1]
        net = partial(normed_mlp, activation=nn.SiLU, initialize_=orthogonal_)
        latents = partial(net, last=nn.Identity(), last_gain=config.latent_gain)
        if seen.kind == "vector":
            inputs = seen.shape[0]
            self.encoder = nn.Sequential(RunningNorm(inputs), latents([inputs, config.encoder_dim, z]))
        else:
            self.encoder = nn.Sequential(
                PixelEncoder(seen.shape, config.channels, z), nn.LayerNorm(z, elementwise_affine=config.latent_gain)
            )
        self.dynamics = latents([z + a, width, width, z])
        self.reward = net([z + a, width, width, 1], zero_last=True)
        self.pi = net([z, width, width, a])
        self.q = normed_ensemble(config.members, [z + a, width, width, 1], activation=nn.SiLU, initialize_=orthogonal_)
