"""TD-MPC (2022): a latent world model with a value function, acting by sampling-based planning.

Source: Hansen, Wang, Su, "Temporal Difference Learning for Model Predictive Control", arXiv:2203.04955.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.acting import TDMPCActingConfig
from agents.latent_agent import LatentAgent, LatentAgentConfig, LossConfig, Unrolled
from agents.world_model import WorldModel, WorldModelConfig
from difftop.losses import check_finite, clipped_step, decayed_sum, ema_, full_precision, input_gradient, td_target
from difftop.options import option


@dataclass(frozen=True)
class TDMPCConfig(LatentAgentConfig):
    """Options of `agent=tdmpc`."""

    name: str = option("tdmpc", "registry name of the agent")
    discount: float = option(0.99, "discount gamma per agent step", above=0, high=1)
    model: WorldModelConfig = option(WorldModelConfig, "network sizes")
    loss: LossConfig = option(LossConfig, "loss coefficients")
    acting: TDMPCActingConfig = option(TDMPCActingConfig, "planner, exploration and horizon schedules")


class TDMPC(LatentAgent):
    """World model, its target copy, and their update.

        L = mean_i w_i sum_t rho^t [ c1 mean_k (z_{t+1} - h'(s_{t+1}))_k^2 + c2 (R(z_t, a_t) - r_t)^2
                                     + c3 sum_j (Q_j(z_t, a_t) - y_t)^2 ]
        y_t = r_t + gamma min_j Q'_j(h(s_{t+1}), pi(h(s_{t+1})) + noise)
        L_pi = - sum_t rho^t mean_i min_j Q_j(sg(z_t), pi(sg(z_t)) + noise)

    where ' marks target networks. The gradient of L is divided by T, as in the official code.

    Source: TD-MPC, arXiv:2203.04955, equations 7 to 10.  Differs: one crop of each observation per update, where the official
    code draws a new one for every use; a termination is not bootstrapped.
    """

    model: WorldModel

    def _build(self) -> None:
        self.model = WorldModel(self.spec, self.config.model)
        self.target = copy.deepcopy(self.model).requires_grad_(False)
        super()._build()

    def move_targets(self) -> None:
        """One step of the target networks' moving average."""
        ema_(self.target.parameters(), self.model.parameters(), self.config.loss.target_rate)

    def losses(self, u: Unrolled, weight: Tensor, agent_steps: int) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """The scaled loss to differentiate, metrics, and replay priorities `[B]`."""
        config = self.config.loss
        steps, batch, _ = u.action.shape
        with torch.no_grad():
            z_target = full_precision(self.target.encode(u.next_obs)).view(steps, batch, -1)
            y = self.td_targets(u)
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
        loss = (weight * per_sample).mean() / steps
        metrics = {f"train/{name}_loss": term.detach().mean() for name, term in terms.items()}
        metrics |= {"train/model_loss": loss.detach() * steps, "train/td_target": y.mean()}
        priorities = decayed_sum(td.detach().abs().sum(dim=0), config.rho)
        return loss, metrics, priorities

    def td_targets(self, u: Unrolled) -> Tensor:
        """y `[T, B]`, from the online encoder and policy and the target Q; also feeds the running scale of returns."""
        a = self.model.sample_policy(u.z_next, self.config.acting.prior_std, self.generator)
        value = full_precision(self.target.values(u.z_next, a).amin(dim=0)).view_as(u.reward)
        y = td_target(u.reward, u.terminated, value, self.discount)
        self.return_scale.update(y)
        self.reward_size.update(u.reward)
        return y

    def update_policy(self, z: Tensor) -> dict[str, Tensor]:
        """One step of the policy prior up the model's Q, at latents `z [T+1, B, Z]` that get no gradient."""
        with self.autocast():
            a = self.model.sample_policy(z.flatten(0, 1), self.config.acting.prior_std, self.generator)
            q = full_precision(self.model.values(z.flatten(0, 1), a).amin(dim=0)).view(z.shape[:2])
        rho = self.config.loss.rho ** torch.arange(len(q), device=q.device)
        loss = -(rho * q.mean(dim=1)).sum()
        check_finite(loss, "the policy loss")
        parameters = list(self.model.pi.parameters())
        for p, gradient in zip(parameters, input_gradient(loss, parameters), strict=True):
            p.grad = gradient
        norm = clipped_step(self.policy_optimizer, parameters, self.config.loss.grad_clip, "the policy loss's gradient")
        return {"train/policy_loss": loss.detach(), "train/policy_grad_norm": norm}
