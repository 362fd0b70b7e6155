"""TD-MPC2 (2023): TD-MPC with a normalized latent space, classified rewards and values, and a maximum-entropy policy prior.

Source: Hansen, Su, Wang, "TD-MPC2: Scalable, Robust World Models for Continuous Control", arXiv:2310.16828.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from agents.acting import ActingConfig
from agents.latent_agent import LatentAgent, LatentAgentConfig, LossConfig, Unrolled
from agents.tdmpc2_model import TDMPC2Model, TDMPC2ModelConfig
from difftop.losses import RunningScale, check_finite, clipped_step, decayed_sum, ema_, full_precision, input_gradient, td_target
from difftop.options import option
from difftop.planning.config import MPPIConfig
from difftop.planning.model import LatentModel
from difftop.planning.mppi import MPPIPlanner

MANY_ACTIONS = 20  # from this action dimension on MPPI has two more rounds


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


@dataclass(frozen=True)
class TDMPC2MPPIConfig(MPPIConfig):
    """MPPI as TD-MPC2 runs it."""

    prior_fraction: float = option(24 / 512, "policy plans mixed in, as a fraction of `samples`", low=0.0, high=1.0)
    momentum: float = option(0.0, "share of the old mean in the new mean", low=0.0, high=1.0)


@dataclass(frozen=True)
class TDMPC2ActingConfig(ActingConfig):
    """TD-MPC2's: short plans from the start; MPPI explores by the spread it has found, the other planners by the schedule."""

    horizon: int = option(3, "longest plan, in agent steps", low=1)
    horizon_start: int = option(3, "plan length at the start of training, in agent steps", low=1)
    std_start: float = option(0.5, "planner=lm|none: std of exploration at the start, in action units", low=0)
    std_end: float = option(0.05, "planner=lm|none: std of exploration at the end", low=0)
    std_steps: int = option(25_000, "planner=lm|none: agent steps until it has reached its end", low=0)
    mppi: TDMPC2MPPIConfig = option(TDMPC2MPPIConfig, "settings of planner=mppi")


@dataclass(frozen=True)
class TDMPC2Config(LatentAgentConfig):
    """Options of `agent=tdmpc2`."""

    name: str = option("tdmpc2", "registry name of the agent")
    discount: float = option(
        0.0, "discount gamma per agent step; 0: 1 - 5/L within [0.95, 0.995], for episodes of L agent steps", low=0, high=1
    )
    model: TDMPC2ModelConfig = option(TDMPC2ModelConfig, "network sizes")
    loss: TDMPC2LossConfig = option(TDMPC2LossConfig, "loss coefficients")
    acting: TDMPC2ActingConfig = option(TDMPC2ActingConfig, "planner, exploration and horizon schedules")


class TDMPC2(LatentAgent):
    """World model, its target values, and their update.

        L = mean_i w_i 1/T sum_t rho^t [ c1 mean_k (z_{t+1} - sg h(s_{t+1}))_k^2 + c2 CE(R(z_t, a_t), r_t)
                                         + c3 mean_j CE(Q_j(z_t, a_t), y_t) ]
        y_t = r_t + gamma min_{j in P} Q'_j(h(s_{t+1}), a'),   a' ~ pi(h(s_{t+1}))
        L_pi = - mean_t rho^t mean_i [ mean_{j in P'} Q_j(sg z_t, a) / S - c4 A log pi(a) ],   a ~ pi(sg z_t)

    where CE is the cross-entropy of two-hot symlog targets, Q' moving averages of Q, P and P' two members drawn anew in each
    update, and S the running spread of values at t = 0, at least 1. Replay is uniform: no priorities are handed back.

    Source: TD-MPC2, arXiv:2310.16828, equations 3 to 6.  Differs: a termination is not bootstrapped; the entropy is that of the
    squashed action.
    """

    config: TDMPC2Config
    model: TDMPC2Model

    def _build(self) -> None:
        self.model = TDMPC2Model(self.spec, self.config.model)
        self.target_q = copy.deepcopy(self.model.q).requires_grad_(False)
        self.value_scale = RunningScale(floor=1.0, peak=0.0)
        super()._build()
        if self.spec.action_dim >= MANY_ACTIONS:
            mppi = self.config.acting.mppi
            self.mppi = MPPIPlanner(replace(mppi, iterations=mppi.iterations + 2), self.spec.action_dim)

    def _optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        """The encoder learns more slowly than the rest."""
        rate = self.config.loss.learning_rate
        encoder = list(self.model.encoder.parameters())
        slow = {id(p) for p in encoder}
        rest = [p for p in self.trained_by_model_loss() if id(p) not in slow]
        groups: list[dict[str, Any]] = [{"params": encoder, "lr": rate * self.config.loss.encoder_rate}, {"params": rest}]
        return (
            torch.optim.Adam(groups, lr=rate, fused=True),
            torch.optim.Adam(self.model.pi.parameters(), lr=rate, eps=1e-5, fused=True),
        )

    @property
    def sizes(self) -> TDMPC2ModelConfig:
        """Sizes of the networks, none left open."""
        return self.model.config

    @property
    def discount(self) -> float:
        """gamma per agent step: the option, or by the length of an episode.

        Source: TD-MPC2, arXiv:2310.16828, appendix H.
        """
        if self.config.discount > 0:
            return self.config.discount
        return min(max(1 - 5 / self.spec.episode_steps, 0.95), 0.995)

    def two_members(self, generator: torch.Generator) -> list[int]:
        """Two value networks, drawn without replacement."""
        order = torch.randperm(self.sizes.members, generator=generator, device=generator.device)
        return [int(i) for i in order[:2].tolist()]

    def sampled_model(self, generator: torch.Generator) -> LatentModel:
        """For MPPI: plans end in the mean of two members, drawn once per plan.

        Source: the official code of arXiv:2310.16828, which draws them anew in every round and noise for the last action too.
        """
        return self.model.latent_model(self.discount, self.two_members(generator))

    def move_targets(self) -> None:
        """One step of the target values' moving average."""
        ema_(self.target_q.parameters(), self.model.q.parameters(), self.config.loss.target_rate)

    def losses(self, u: Unrolled, weight: Tensor, agent_steps: int) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """The scaled loss to differentiate, metrics, and no priorities."""
        config = self.config.loss
        steps, batch, _ = u.action.shape
        y = self.td_targets(u)
        z, a = u.z[:-1].flatten(0, 1), u.action.flatten(0, 1)
        consistency = (full_precision(u.z[1:]) - full_precision(u.z_next).view_as(u.z[1:])).square().mean(dim=2)
        reward_logits = self.model.reward_logits(z, a)
        reward = self.model.two_hot.loss(reward_logits, u.reward.flatten())
        value = self.model.two_hot.loss(self.model.value_logits(z, a, generator=self.generator), y.flatten()).mean(dim=0)
        terms = {
            "consistency": decayed_sum(consistency, config.rho),
            "reward": decayed_sum(reward.view(steps, batch), config.rho),
            "value": decayed_sum(value.view(steps, batch), config.rho),
        }
        per_sample = config.consistency * terms["consistency"] + config.reward * terms["reward"] + config.value * terms["value"]
        loss = (weight * per_sample).mean() / steps
        metrics = {f"train/{name}_loss": term.detach().mean() for name, term in terms.items()}
        error = (self.model.number(reward_logits.detach()) - u.reward.flatten()).abs().mean()
        metrics |= {"train/reward_error": error, "train/model_loss": loss.detach() * steps, "train/td_target": y.mean()}
        return loss, metrics, None

    @torch.no_grad()
    def td_targets(self, u: Unrolled) -> Tensor:
        """y `[T, B]`; also feeds the running scales by which the LM planner normalizes."""
        a, _ = self.model.policy_sample(u.z_next, self.generator)
        logits = self.model.value_logits(u.z_next, a, q=self.target_q, members=self.two_members(self.generator))
        y = td_target(u.reward, u.terminated, self.model.number(logits).amin(dim=0).view_as(u.reward), self.discount)
        self.return_scale.update(y)
        self.reward_size.update(u.reward)
        return y

    def update_policy(self, z: Tensor) -> dict[str, Tensor]:
        """One step of the policy prior up the model's Q and its own entropy, at latents `z [T+1, B, Z]` that get no gradient."""
        config = self.config.loss
        with self.autocast():
            a, log_p = self.model.policy_sample(z.flatten(0, 1), self.generator)
            members = self.two_members(self.generator)
            logits = self.model.value_logits(z.flatten(0, 1), a, members=members, generator=self.generator)
            q = self.model.number(logits).mean(dim=0).view(z.shape[:2])
        self.value_scale.update(q[0].detach())
        scale = self.value_scale.value
        entropy = -log_p.view(z.shape[:2])
        rho = config.rho ** torch.arange(len(q), device=q.device, dtype=q.dtype)
        loss = -(rho * (q / scale + config.entropy * self.spec.action_dim * entropy).mean(dim=1)).mean()
        check_finite(loss, "the policy loss")
        parameters = list(self.model.pi.parameters())
        for p, gradient in zip(parameters, input_gradient(loss, parameters), strict=True):
            p.grad = gradient
        norm = clipped_step(self.policy_optimizer, parameters, config.grad_clip, "the policy loss's gradient")
        return {
            "train/policy_loss": loss.detach(),
            "train/policy_grad_norm": norm,
            "train/policy_entropy": entropy.detach().mean(),
            "train/value_scale": scale.clone(),
        }
