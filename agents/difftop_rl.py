"""DiffTOP / DiffTORI: a latent world model, acting and learning through a differentiable trajectory optimizer.

Source: Wan, Wang, Erickson, Held, "DiffTORI: Differentiable Trajectory Optimization for Deep Reinforcement and Imitation
Learning", arXiv:2402.05421.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agents.acting import PlanningActor, TDMPCActingConfig, Visited, lm_start
from agents.base import Actor
from agents.latent_agent import LatentAgent, Unrolled
from agents.tdmpc import TDMPC, TDMPCConfig
from agents.tdmpc2 import TDMPC2, TDMPC2ActingConfig, TDMPC2Config
from agents.world_model import WorldModelConfig
from difftop.losses import check_finite, clipped_step, decayed_sum, ema_, full_precision, td_target
from difftop.nn.encoders import PixelEncoder
from difftop.nn.mlp import ensemble_mlp
from difftop.options import option
from difftop.types import EnvSpec, PlanResult


@dataclass(frozen=True)
class PolicyGradientConfig:
    """The loss that is differentiated through the optimizer."""

    mode: str = option(
        "replay",
        "states it is taken on: replayed ones, the episode just played, or none (which leaves out the raw critic too)",
        choices=("replay", "on_policy", "none"),
    )
    coef: float = option(0.1, "coefficient of the loss, mode=replay", low=0)
    states: int = option(64, "replayed states per gradient step", low=1)
    every: int = option(4, "gradient steps between two that carry the loss", low=1)
    critic_coef: float = option(0.1, "coefficient of the raw critic's TD error in the model loss", low=0)
    normalize: bool = option(True, "divide the critic's value by the running size of one step's reward (the papers don't)")
    grad_clip: float = option(100.0, "largest gradient norm of the on-policy step", above=0)


@dataclass(frozen=True)
class LMActingConfig(TDMPCActingConfig):
    """As TD-MPC's, with the differentiable planner."""

    planner: str = option("lm", "optimizer of the action; none acts by the policy prior alone", choices=("lm", "mppi", "none"))


@dataclass(frozen=True)
class DiffTOPConfig(TDMPCConfig):
    """Options of `agent=difftop_rl`."""

    name: str = option("difftop_rl", "registry name of the agent")
    acting: LMActingConfig = option(LMActingConfig, "planner, exploration and horizon schedules")
    policy_gradient: PolicyGradientConfig = option(PolicyGradientConfig, "the loss through the optimizer")


@dataclass(frozen=True)
class LMTDMPC2ActingConfig(TDMPC2ActingConfig):
    """As TD-MPC2's, with the differentiable planner."""

    planner: str = option("lm", "optimizer of the action; none acts by the policy prior alone", choices=("lm", "mppi", "none"))


@dataclass(frozen=True)
class DiffTOPOnTDMPC2Config(TDMPC2Config):
    """Options of `agent=difftop_rl world_model=tdmpc2`."""

    name: str = option("difftop_rl", "registry name of the agent")
    world_model: str = option("tdmpc2", "set by world_model=tdmpc2", choices=("tdmpc2",))
    acting: LMTDMPC2ActingConfig = option(LMTDMPC2ActingConfig, "planner, exploration and horizon schedules")
    policy_gradient: PolicyGradientConfig = option(PolicyGradientConfig, "the loss through the optimizer")


class RawCritic(nn.Module):
    """Twin action values on raw observations, `(obs [N, *obs_shape], a [N, A])` to `[2, N]`; two encoders for pixels.

    Source: the official code of arXiv:2402.05421 (`_Q1_s`, `_Q2_s`).
    """

    def __init__(self, spec: EnvSpec, sizes: WorldModelConfig) -> None:
        super().__init__()
        width = sizes.mlp_dim
        self.encoders: nn.ModuleList | None = None
        inputs = spec.obs_shape[0]
        if spec.obs_kind == "pixels":
            inputs = sizes.latent_dim
            self.encoders = nn.ModuleList(PixelEncoder(spec.obs_shape, sizes.channels, inputs) for _ in range(2))
        self.q = ensemble_mlp(2, [inputs + spec.action_dim, width, width, 1])

    def forward(self, obs: Tensor, a: Tensor) -> Tensor:
        """Values `[2, N]`."""
        if self.encoders is None:
            inputs = torch.cat([obs, a], dim=-1)
        else:
            inputs = torch.stack([torch.cat([encoder(obs), a], dim=-1) for encoder in self.encoders])
        q: Tensor = self.q(inputs)
        return q.squeeze(-1)


class PlannerGradient(LatentAgent):
    """A twin critic on raw observations and a policy-gradient loss through the planner, for any agent with a latent model.

        a(theta) = plan(h(s), R, d, Q)_0          the first action of the optimized plan, by Levenberg-Marquardt
        L_PG = - mean_s min_j C_j(s, a(theta)) / S

    C is the raw critic, frozen inside L_PG and trained by its own TD error beside the model loss; S is the running size of one
    step's reward. L_PG reaches encoder, dynamics, reward and latent Q; never the policy prior, nor C. With `mode=replay` it is
    part of every `every`-th update (the paper's equation 6); with `mode=on_policy` it is summed over the states of the last
    episode and takes one step of an optimizer of its own (what the official code does).

    Source: arXiv:2402.05421, equations 4 to 6.  Differs: the plan is boxed, S normalizes (`normalize`), the policy prior
    ends the plan's value as in TD-MPC.
    """

    config: DiffTOPConfig | DiffTOPOnTDMPC2Config

    def __init__(
        self, spec: EnvSpec, config: DiffTOPConfig | DiffTOPOnTDMPC2Config, *, seed: int, device: torch.device, bf16: bool = False
    ) -> None:
        super().__init__(spec, config, seed=seed, device=device, bf16=bf16)
        self.on_policy_optimizer: torch.optim.Optimizer | None = None
        if config.policy_gradient.mode == "on_policy":
            planned = [p for p in self.model.parameters() if p.requires_grad]
            self.on_policy_optimizer = torch.optim.Adam(planned, lr=config.loss.learning_rate, fused=True)

    def _build(self) -> None:
        super()._build()
        self.critic = RawCritic(self.spec, self.sizes)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)

    def trained_by_model_loss(self) -> list[nn.Parameter]:
        """The world model without its policy, and the raw critic."""
        return super().trained_by_model_loss() + list(self.critic.parameters())

    def move_targets(self) -> None:
        """Also moves the raw critic's target."""
        super().move_targets()
        ema_(self.target_critic.parameters(), self.critic.parameters(), self.config.loss.target_rate)

    def losses(self, u: Unrolled, weight: Tensor, agent_steps: int) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """The world model's loss, the raw critic's, and the policy gradient where it is due."""
        loss, metrics, priorities = super().losses(u, weight, agent_steps)
        config = self.config.policy_gradient
        if config.mode == "none":  # nothing else uses the raw critic
            return loss, metrics, priorities
        critic_loss = self.critic_loss(u)
        metrics["train/critic_loss"] = critic_loss.detach().mean()
        loss = loss + config.critic_coef * (weight * critic_loss).mean() / len(u.action)
        if config.mode == "replay" and config.coef > 0 and self.grad_steps % config.every == 0:
            check_finite(loss.detach(), "the model loss")  # the planner takes no other latents
            chosen = slice(0, config.states)  # replay has drawn the batch at random already
            gradient_loss, plan = self.policy_gradient_loss(u.obs[chosen], agent_steps, z=u.z[0, chosen])
            loss = loss + config.coef * gradient_loss
            metrics |= {
                "train/policy_gradient_loss": gradient_loss.detach(),
                "train/plan_failures": (plan.status != 0).sum().float(),
            }
        return loss, metrics, priorities

    def critic_loss(self, u: Unrolled) -> Tensor:
        """sum_t rho^t sum_j (C_j(s_t, a_t) - y~_t)^2 per sample `[B]`, y~_t = r_t + gamma min_j C'_j(s_{t+1}, pi(h(s_{t+1})))."""
        steps, batch, _ = u.action.shape
        with torch.no_grad():
            a = self.model.sample_policy(u.z_next, self.config.acting.prior_std, self.generator)
            value = full_precision(self.target_critic(u.next_obs, a).amin(dim=0)).view(steps, batch)
            y = td_target(u.reward, u.terminated, value, self.discount)
        obs = torch.cat([u.obs, u.next_obs[: (steps - 1) * batch]])
        td = full_precision(self.critic(obs, u.action.flatten(0, 1))).view(2, steps, batch) - y
        return decayed_sum(td.square().sum(dim=0), self.config.loss.rho)

    def policy_gradient_loss(
        self,
        obs: Tensor,
        agent_steps: int,
        *,
        z: Tensor | None = None,
        start: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> tuple[Tensor, PlanResult]:
        """L_PG over the states `obs [B, *obs_shape]` (a mean), and the plans it went through.

        Args:
            obs: observations on the agent's device.
            agent_steps: sets the plan's length.
            z: their latents, with gradient; encoded here where missing.
            start: starts of the plans `[B, H, A]`; the policy prior's rollout where missing.
            previous: shifted previous plans `[B, H, A]`, for `acting.lm.start_previous`.
        """
        z = self.model.encode(obs) if z is None else z
        acting = self.config.acting
        if start is None:
            with torch.no_grad():
                horizon = acting.plan_length(agent_steps)
                start = lm_start(acting, self.model, z.detach(), horizon, acting.start_std, self.generator)
        scale = self.step_scale()
        with torch.autocast(self.device.type, enabled=False), frozen(self.model.pi):
            plan = self.lm.plan(
                self.latent_model,
                full_precision(z),
                full_precision(start),
                previous=previous,
                scale=scale,
                generator=self.generator,
                differentiable=True,
            )
        with frozen(self.critic):
            value = full_precision(self.critic(obs, plan.actions[:, 0]).amin(dim=0))
        return -(value / scale if self.config.policy_gradient.normalize else value).mean(), plan

    def actor(self, num_envs: int, *, seed: int, explore: bool) -> Actor:
        """As any; with `mode=on_policy` the training actor keeps the states it plans in."""
        actor = super().actor(num_envs, seed=seed, explore=explore)
        assert isinstance(actor, PlanningActor)
        actor.keep_visited = explore and self.on_policy_optimizer is not None
        return actor

    def finish_episode(self, actor: Actor, agent_steps: int) -> dict[str, Tensor]:
        """With `mode=on_policy`: L_PG summed over the states just visited, from the starts they were planned from, one step.

        Source: the official code, `update2`.  Differs: all states of the episode are differentiated in batches at its end,
        where the official code does it one by one while acting; the weights are the same at both times. Random starts
        (`acting.lm.start_random`) are drawn anew.
        """
        assert isinstance(actor, PlanningActor)
        if self.on_policy_optimizer is None or not actor.visited:
            return {}
        visited, actor.visited = actor.visited, []
        total = torch.zeros((), device=self.device)
        for plans in _chunks(visited, self.config.policy_gradient.states):
            obs, start, previous = (x.to(self.device) for x in plans)
            loss, _ = self.policy_gradient_loss(obs, agent_steps, start=start, previous=previous)
            check_finite(loss, "the on-policy policy-gradient loss")
            if loss.requires_grad:  # not where every plan failed
                (loss * len(obs)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() * len(obs)
        metrics = {"train/policy_gradient_loss": total / sum(len(plans.obs) for plans in visited)}
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        if parameters:
            clip, name = self.config.policy_gradient.grad_clip, "the on-policy policy gradient"
            norm = clipped_step(self.on_policy_optimizer, parameters, clip, name)
            metrics["train/policy_gradient_norm"] = norm
        return metrics

    def train_state(self) -> dict[str, Any]:
        """Also the on-policy optimizer."""
        own = self.on_policy_optimizer.state_dict() if self.on_policy_optimizer else None
        return super().train_state() | {"on_policy_optimizer": own}

    def load_train_state(self, state: Mapping[str, Any]) -> None:
        """Restores `train_state`."""
        super().load_train_state(state)
        if self.on_policy_optimizer:
            self.on_policy_optimizer.load_state_dict(state["on_policy_optimizer"])


class DiffTOP(PlannerGradient, TDMPC):
    """`agent=difftop_rl`: on TD-MPC's model, as published."""

    config: DiffTOPConfig


class DiffTOPOnTDMPC2(PlannerGradient, TDMPC2):
    """`agent=difftop_rl world_model=tdmpc2`: the same planner and loss on TD-MPC2's model."""

    config: DiffTOPOnTDMPC2Config


def _chunks(visited: Sequence[Visited], states: int) -> Iterator[Visited]:
    """All plans, at most `states` at a time; plans of different lengths, as the horizon's schedule has them, stay apart."""
    for _, plans in itertools.groupby(visited, key=lambda plan: plan.start.shape[1]):
        whole = [torch.cat(column) for column in zip(*plans, strict=True)]
        yield from (Visited(*chunk) for chunk in zip(*(torch.split(x, states) for x in whole), strict=True))


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, `module`'s parameters are constants: gradients pass through it and none is left in it."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
