"""TD-MPC2's world: cross-entropies of two-hot targets, target values, and a prior that climbs the value and its own entropy."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agents.latent.tdmpc2_model import TDMPC2Model, TDMPC2ModelConfig
from agents.latent.world import LossConfig, Losses, Unrolled, World
from difftop.host import readable
from difftop.losses import RunningScale, decayed_sum, ema_, full_precision, td_target
from difftop.nn.mlp import Members
from difftop.options import option
from difftop.planning.model import LatentModel
from difftop.types import EnvSpec


@dataclass(frozen=True)
class TDMPC2LossConfig(LossConfig):
    """Coefficients of the model loss and the policy's, and their optimizers."""

    horizon: int = option(3, "steps of a replayed slice the model is unrolled for, in agent steps", low=1)
    consistency: float = option(20.0, "coefficient of the latent prediction error", low=0)
    reward: float = option(0.1, "coefficient of the reward's cross-entropy", low=0)
    value: float = option(0.1, "coefficient of the value's cross-entropy", low=0)
    learning_rate: float = option(3e-4, "Adam's learning rate, for model and policy", above=0)
    encoder_rate: float = option(0.3, "the encoder's learning rate, as a fraction of learning_rate", above=0)
    grad_clip: float = option(20.0, "largest gradient norm, of the model and of the policy", above=0)
    target_every: int = option(1, "gradient steps between two moves of the target networks", low=1)
    entropy: float = option(
        1e-4, "coefficient of the policy's entropy per action dimension, in units of the running scale", low=0
    )


class TDMPC2World(World):
    """World model, its target values, and their losses; `agents/tdmpc2.py` has the formulas.

    Args:
        spec: of the environment.
        sizes: of the networks.
        config: coefficients.
        discount: gamma per agent step.
    """

    model: TDMPC2Model
    config: TDMPC2LossConfig

    def __init__(self, spec: EnvSpec, sizes: TDMPC2ModelConfig, config: TDMPC2LossConfig, *, discount: float) -> None:
        super().__init__(spec, TDMPC2Model(spec, sizes), config, discount)
        self.target_q = copy.deepcopy(self.model.q).requires_grad_(False)
        self.value_scale = RunningScale(floor=1.0, peak=0.0)

    @property
    def sizes(self) -> TDMPC2ModelConfig:
        """Sizes of the networks, none left open."""
        return self.model.config

    def optimizers(self, more: Sequence[nn.Parameter]) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        """The encoder learns more slowly than the rest."""
        rate = self.config.learning_rate
        encoder = list(self.model.encoder.parameters())
        slow = {id(p) for p in encoder}
        rest = [p for p in [*self.trained(), *more] if id(p) not in slow]
        groups: list[dict[str, Any]] = [{"params": encoder, "lr": rate * self.config.encoder_rate}, {"params": rest}]
        return (
            torch.optim.Adam(groups, lr=rate, fused=True),
            torch.optim.Adam(self.model.pi.parameters(), lr=rate, eps=1e-5, fused=True),
        )

    def two_members(self, generator: torch.Generator) -> Members:
        """Two value networks, drawn without replacement; known to the host only where it needn't wait for them."""
        order = torch.randperm(self.sizes.members, generator=generator, device=generator.device)[:2]
        return [int(i) for i in order.tolist()] if readable(order) else order

    def sampled_model(self, generator: torch.Generator) -> LatentModel:
        """For MPPI: plans end in the mean of two members, drawn once per plan.

        Source: the official code of arXiv:2310.16828, which draws them anew in every round and noise for the last action too.
        """
        return self.model.latent_model(self.discount, self.two_members(generator))

    def move_targets_(self) -> None:
        """One step of the target values' moving average."""
        ema_(self.target_q.parameters(), self.model.q.parameters(), self.config.target_rate)

    def losses(self, u: Unrolled, generator: torch.Generator) -> Losses:
        """The scaled loss, metrics, and no priorities."""
        config = self.config
        steps, batch, _ = u.action.shape
        y = self.td_targets(u, generator)
        z, a = u.z[:-1].flatten(0, 1), u.action.flatten(0, 1)
        consistency = (full_precision(u.z[1:]) - full_precision(u.z_next).view_as(u.z[1:])).square().mean(dim=2)
        reward_logits = self.model.reward_logits(z, a)
        reward = self.model.two_hot.loss(reward_logits, u.reward.flatten())
        value = self.model.two_hot.loss(self.model.value_logits(z, a, generator=generator), y.flatten()).mean(dim=0)
        terms = {
            "consistency": decayed_sum(consistency, config.rho),
            "reward": decayed_sum(reward.view(steps, batch), config.rho),
            "value": decayed_sum(value.view(steps, batch), config.rho),
        }
        per_sample = config.consistency * terms["consistency"] + config.reward * terms["reward"] + config.value * terms["value"]
        loss = (u.weight * per_sample).mean() / steps
        metrics = {f"train/{name}_loss": term.detach().mean() for name, term in terms.items()}
        error = (self.model.number(reward_logits.detach()) - u.reward.flatten()).abs().mean()
        metrics |= {"train/reward_error": error, "train/model_loss": loss.detach() * steps, "train/td_target": y.mean()}
        return Losses(loss, metrics, None)

    @torch.no_grad()
    def td_targets(self, u: Unrolled, generator: torch.Generator) -> Tensor:
        """y `[T, B]`; also feeds the running scales by which the LM planner normalizes."""
        a, _ = self.model.policy_sample(u.z_next, generator)
        logits = self.model.value_logits(u.z_next, a, q=self.target_q, members=self.two_members(generator))
        y = td_target(u.reward, u.terminated, self.model.number(logits).amin(dim=0).view_as(u.reward), self.discount)
        self.return_scale.update(y)
        self.reward_size.update(u.reward)
        return y

    def prior_loss(self, z: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The prior climbs the model's Q and its own entropy."""
        config = self.config
        a, log_p = self.model.policy_sample(z.flatten(0, 1), generator)
        logits = self.model.value_logits(z.flatten(0, 1), a, members=self.two_members(generator), generator=generator)
        q = self.model.number(logits).mean(dim=0).view(z.shape[:2])
        self.value_scale.update(q[0].detach())
        scale = self.value_scale.value
        entropy = -log_p.view(z.shape[:2])
        rho = config.rho ** torch.arange(len(q), device=q.device, dtype=q.dtype)
        loss = -(rho * (q / scale + config.entropy * self.spec.action_dim * entropy).mean(dim=1)).mean()
        return loss, {"train/policy_entropy": entropy.detach().mean(), "train/value_scale": scale.clone()}
