"""TD-MPC's world: squared errors, a target copy of all networks, and a prior that climbs the value."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from agents.latent.tdmpc_model import TDMPCModel
from agents.latent.world import LossConfig, Losses, Unrolled, World
from agents.latent.world_model import WorldModelConfig
from difftop.losses import decayed_sum, ema_, full_precision, td_target
from difftop.types import EnvSpec


class TDMPCWorld(World):
    """World model, its target copy, and their losses; `agents/tdmpc.py` has the formulas.

    Args:
        spec: of the environment.
        sizes: of the networks.
        config: coefficients.
        discount: gamma per agent step.
        prior_std: std of the policy prior where it is sampled: TD targets, its own update, MPPI's policy plans.
    """

    model: TDMPCModel

    def __init__(self, spec: EnvSpec, sizes: WorldModelConfig, config: LossConfig, *, discount: float, prior_std: float) -> None:
        super().__init__(spec, TDMPCModel(spec, sizes), config, discount)
        self.target = copy.deepcopy(self.model).requires_grad_(False)
        self._sizes, self.prior_std = sizes, prior_std

    @property
    def sizes(self) -> WorldModelConfig:
        """Sizes of the networks."""
        return self._sizes

    def move_targets_(self) -> None:
        """One step of the target networks' moving average."""
        ema_(self.target.parameters(), self.model.parameters(), self.config.target_rate)

    def losses(self, u: Unrolled, generator: torch.Generator) -> Losses:
        """The scaled loss, metrics, and replay priorities."""
        config = self.config
        steps, batch, _ = u.action.shape
        with torch.no_grad():
            z_target = full_precision(self.target.encode(u.next_obs)).view(steps, batch, -1)
            y = self.td_targets(u, generator)
        z, a = u.z[:-1].flatten(0, 1), u.action.flatten(0, 1)
        consistency = (full_precision(u.z[1:]) - z_target).square().mean(dim=2)
        reward = (full_precision(self.model.predict_reward(z, a)).view(steps, batch) - u.reward).square()
        td = full_precision(self.model.values(z, a)).view(2, steps, batch) - y
        terms = {
            "consistency": decayed_sum(consistency, config.rho),
            "reward": decayed_sum(reward, config.rho),
            "value": decayed_sum(td.square().sum(dim=0), config.rho),
        }
        per_sample = config.consistency * terms["consistency"] + config.reward * terms["reward"] + config.value * terms["value"]
        loss = (u.weight * per_sample).mean() / steps
        metrics = {f"train/{name}_loss": term.detach().mean() for name, term in terms.items()}
        metrics |= {"train/model_loss": loss.detach() * steps, "train/td_target": y.mean()}
        return Losses(loss, metrics, decayed_sum(td.detach().abs().sum(dim=0), config.rho))

    def td_targets(self, u: Unrolled, generator: torch.Generator) -> Tensor:
        """y `[T, B]`, from the online encoder and policy and the target Q; also feeds the running scales."""
        a = self.model.sample_policy(u.z_next, self.prior_std, generator)
        value = full_precision(self.target.values(u.z_next, a).amin(dim=0)).view_as(u.reward)
        y = td_target(u.reward, u.terminated, value, self.discount)
        self.return_scale.update(y)
        self.reward_size.update(u.reward)
        return y

    def prior_loss(self, z: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The prior climbs the model's Q."""
        a = self.model.sample_policy(z.flatten(0, 1), self.prior_std, generator)
        q = full_precision(self.model.values(z.flatten(0, 1), a).amin(dim=0)).view(z.shape[:2])
        rho = self.config.rho ** torch.arange(len(q), device=q.device)
        return -(rho * q.mean(dim=1)).sum(), {}
