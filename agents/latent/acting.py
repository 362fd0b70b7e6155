"""Acting by planning in a latent model: one actor for every agent with a world model and every planner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from agents.world_model import LatentWorld, add_noise
from difftop.losses import full_precision
from difftop.options import ConfigError, option
from difftop.planning.config import LMConfig, MPPIConfig
from difftop.schedules import linear
from difftop.types import PlanResult, SolveStatus

if TYPE_CHECKING:
    from agents.latent_agent import LatentAgent


@dataclass(frozen=True)
class ActingConfig:
    """How actions are chosen in any latent world model."""

    planner: str = option("mppi", "optimizer of the action; none acts by the policy prior alone", choices=("lm", "mppi", "none"))
    horizon: int = option(5, "longest plan, in agent steps", low=1)
    horizon_start: int = option(1, "plan length at the start of training, in agent steps", low=1)
    horizon_steps: int = option(25_000, "agent steps until the plan has its full length", low=0)
    std_start: float = option(0.5, "std of exploration at the start, in action units", low=0)
    std_end: float = option(0.05, "std of exploration at the end", low=0)
    std_steps: int = option(25_000, "agent steps until it has reached its end", low=0)
    start_std: float = option(0.05, "planner=lm: std of the policy prior in the plan's start, while exploring", low=0)
    prior_start: bool = option(True, "planner=lm: plans start at the policy prior's; False: at zeros, the papers' ablation")
    noise: bool = option(True, "planner=lm: add the exploration noise to the planned action (the papers don't)")
    mppi: MPPIConfig = option(MPPIConfig, "settings of planner=mppi")
    lm: LMConfig = option(LMConfig, "settings of planner=lm")

    def check(self, where: str) -> None:
        """Raises a ConfigError for an objective that a latent agent has no model of."""
        if self.lm.objective == "cost":
            key = f"{where}.lm.objective=cost"
            raise ConfigError(f"{key}: is for a learned cost, as imitation has; must be stagewise | return here.")

    def std(self, agent_steps: int) -> float:
        """Exploration's std now."""
        return linear(self.std_start, self.std_end, self.std_steps, agent_steps)

    def plan_length(self, agent_steps: int) -> int:
        """H now."""
        return int(linear(min(self.horizon_start, self.horizon), self.horizon, self.horizon_steps, agent_steps))

    @property
    def prior_std(self) -> float | None:
        """Std of the policy prior where it is sampled; None: the spread that the prior itself has learned."""
        return None

    def mppi_std(self, agent_steps: int) -> float:
        """Smallest spread of MPPI's plans now."""
        return self.mppi.min_std


@dataclass(frozen=True)
class TDMPCActingConfig(ActingConfig):
    """TD-MPC's: a prior without a spread of its own, and MPPI that follows the exploration schedule."""

    min_std: float = option(
        0.05, "std of the policy prior where it is sampled: TD targets, its own update, MPPI's policy plans", low=0
    )

    @property
    def prior_std(self) -> float:
        """`min_std`."""
        return self.min_std

    def mppi_std(self, agent_steps: int) -> float:
        """Exploration's std, but at least `min_std`."""
        return max(self.std(agent_steps), self.min_std)


def policy_plan(model: LatentWorld, z: Tensor, horizon: int, std: float | None, generator: torch.Generator | None) -> Tensor:
    """Actions of the policy prior along its own latent rollout: `z [B, Z]` to `[B, H, A]`; the planner's start."""
    actions = []
    for _ in range(horizon):
        actions.append(model.sample_policy(z, std, generator))
        z = model.next(z, actions[-1])
    return torch.stack(actions, dim=1)


def lm_start(
    config: ActingConfig, model: LatentWorld, z: Tensor, horizon: int, std: float, generator: torch.Generator | None
) -> Tensor:
    """Where Levenberg-Marquardt's plans start, and what its trust region is around: `[B, H, A]`."""
    plan = policy_plan(model, z, horizon, std, generator)
    return plan if config.prior_start else torch.zeros_like(plan)


class Visited(NamedTuple):
    """What a plan was made from: `obs [N, *obs_shape]`, `start [N, H, A]` and the shifted previous plan `[N, H, A]`."""

    obs: Tensor
    start: Tensor
    previous: Tensor


class PlanningActor:
    """Acts in N environments by one batched plan per step; remembers the last plan of each environment as a start."""

    def __init__(
        self, agent: LatentAgent, config: ActingConfig, num_envs: int, generator: torch.Generator, *, explore: bool
    ) -> None:
        self.agent, self.config, self.generator, self.explore = agent, config, generator, explore
        self.previous = torch.zeros(num_envs, config.horizon, agent.spec.action_dim, device=agent.device)
        self.visited: list[Visited] = []  # of each plan, while `keep_visited`
        self.keep_visited = False
        self._counters = torch.zeros(4, dtype=torch.float64)  # plans, failures, iterations, step lengths

    @torch.no_grad()
    def act(self, obs: Tensor, t0: Tensor, agent_steps: int) -> Tensor:
        """Actions `[N, A]`; see `agents.base.Actor`."""
        obs, t0 = obs.to(self.agent.device), t0.to(self.agent.device)
        std = self.config.std(agent_steps) if self.explore else 0.0
        with self.agent.autocast():
            z = full_precision(self.agent.model.encode(obs))
            if self.config.planner == "mppi":
                return self._act_mppi(z, t0, agent_steps)
        # Single rows gain nothing from bfloat16, and the optimizer's small steps would drown in its rounding.
        action = self.agent.model.policy(z) if self.config.planner == "none" else self._act_lm(obs, z, t0, agent_steps)
        noisy = self.config.planner == "none" or self.config.noise
        return add_noise(action, std, self.generator) if noisy else action

    def _act_mppi(self, z: Tensor, t0: Tensor, agent_steps: int) -> Tensor:
        config = self.config.mppi
        horizon, count = self.config.plan_length(agent_steps), max(config.prior_samples, 1)
        prior = policy_plan(self.agent.model, z.repeat_interleave(count, dim=0), horizon, self.config.prior_std, self.generator)
        result = self.agent.mppi.plan(
            self.agent.sampled_model(self.generator),
            z,
            full_precision(prior).view(len(z), count, horizon, -1),
            previous=self._shifted(t0, horizon),
            std=self.config.mppi_std(agent_steps),
            generator=self.generator,
            eval_mode=not self.explore,
        )
        self._remember(result, result.mean, full_precision(prior).view(len(z), count, horizon, -1).mean(1))
        return result.actions[:, 0]

    def _act_lm(self, obs: Tensor, z: Tensor, t0: Tensor, agent_steps: int) -> Tensor:
        horizon = self.config.plan_length(agent_steps)
        std = self.config.start_std if self.explore else 0.0
        prior = lm_start(self.config, self.agent.model, z, horizon, std, self.generator)
        previous = self._shifted(t0, horizon)
        result = self.agent.lm.plan(
            self.agent.latent_model,
            z,
            prior,
            previous=previous,
            scale=self.agent.step_scale(),
            generator=self.generator,
        )
        if self.keep_visited:
            self.visited.append(Visited(obs.cpu(), prior.cpu(), previous.cpu()))
        self._remember(result, result.actions, prior)
        return result.actions[:, 0]

    def _shifted(self, t0: Tensor, horizon: int) -> Tensor:
        """The last plans moved on by one step, their last action zero; zeros where an episode begins."""
        moved = torch.cat([self.previous[:, 1:], torch.zeros_like(self.previous[:, :1])], dim=1)
        return torch.where(t0[:, None, None], 0.0, moved)[:, :horizon]

    def _remember(self, result: PlanResult, plan: Tensor, prior: Tensor) -> None:
        self.previous.zero_()[:, : plan.shape[1]] = plan
        count = len(plan)
        self._counters += torch.tensor(
            [
                count,
                float((result.status == SolveStatus.FAILED).sum()),
                float(result.iterations.sum()),
                float((plan - prior).square().mean().sqrt()) * count,
            ],
            dtype=torch.float64,
        )

    def metrics(self) -> dict[str, float]:
        """Planner failures (count), iterations and step length from the prior (means), since the last call."""
        plans, failures, iterations, moved = self._counters.tolist()
        self._counters.zero_()
        if not plans:
            return {}
        return {
            "plan/failures": failures,
            "plan/failure_rate": failures / plans,
            "plan/iterations": iterations / plans,
            "plan/step_from_prior": moved / plans,
        }

    def state_dict(self) -> dict[str, Any]:
        """Plans, generator, visited states and counters."""
        return {
            "previous": self.previous.clone(),
            "generator": self.generator.get_state(),
            "visited": [list(plan) for plan in self.visited],
            "counters": self._counters.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""
        self.previous.copy_(state["previous"])
        self.generator.set_state(state["generator"].cpu())
        self.visited = [Visited(*plan) for plan in state["visited"]]
        self._counters.copy_(state["counters"])
