"""The policy gradient through the planner: a twin critic on raw observations, and a loss on the first action of a plan."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agents.latent.acting import Visited
from agents.latent.lm import lm_start
from agents.latent.planning import PlanSettings
from agents.latent.world import Unrolled, World
from agents.latent.world_model import WorldModelConfig, one_observation
from difftop.losses import decayed_sum, ema_, full_precision, td_target
from difftop.nn.encoders import PixelEncoder
from difftop.nn.mlp import ensemble_mlp
from difftop.options import option
from difftop.planning import LMPlanner
from difftop.types import EnvSpec, PlanResult


def mode_option(default: str) -> Any:
    """The option `mode`, with an agent's own default."""
    help_ = "states it is taken on: replayed ones, the episode just played, or none (which leaves out the raw critic too)"
    return option(default, help_, choices=("replay", "on_policy", "none"))


@dataclass(frozen=True)
class PolicyGradientConfig:
    """The loss that is differentiated through the optimizer."""

    mode: str = mode_option("replay")
    coef: float = option(0.1, "coefficient of the loss, mode=replay", low=0)
    states: int = option(64, "replayed states per gradient step", low=1)
    every: int = option(4, "gradient steps between two that carry the loss", low=1)
    critic_coef: float = option(0.1, "coefficient of the raw critic's TD error in the model loss", low=0)
    normalize: bool = option(True, "divide the critic's value by the running size of one step's reward (the papers don't)")
    grad_clip: float = option(100.0, "largest gradient norm of the on-policy step", above=0)


class RawCritic(nn.Module):
    """Twin action values on raw observations, `(obs [N, *shape], a [N, A])` to `[2, N]`; two encoders for pixels.

    Source: the official code of arXiv:2402.05421 (`_Q1_s`, `_Q2_s`).
    """

    def __init__(self, spec: EnvSpec, sizes: WorldModelConfig) -> None:
        super().__init__()
        width, seen = sizes.mlp_dim, one_observation(spec)[1]
        self.encoders: nn.ModuleList | None = None
        inputs = seen.shape[0]
        if seen.kind == "image":
            inputs = sizes.latent_dim
            self.encoders = nn.ModuleList(PixelEncoder(seen.shape, sizes.channels, inputs) for _ in range(2))
        self.q = ensemble_mlp(2, [inputs + spec.action_dim, width, width, 1])

    def forward(self, obs: Tensor, a: Tensor) -> Tensor:
        """Values `[2, N]`."""
        if self.encoders is None:
            inputs = torch.cat([obs, a], dim=-1)
        else:
            inputs = torch.stack([torch.cat([encoder(obs), a], dim=-1) for encoder in self.encoders])
        q: Tensor = self.q(inputs)
        return q.squeeze(-1)


class PlannerGradient(nn.Module):
    """Raw critic, its target, and the two losses; `agents/difftop_rl.py` has the formulas.

    Args:
        config: its options.
        settings: of plans.
        world: whose plans are differentiated; it isn't a part of this module.
    """

    def __init__(self, config: PolicyGradientConfig, settings: PlanSettings, world: World) -> None:
        super().__init__()
        self.config, self.settings = config, settings
        self.critic = RawCritic(world.spec, world.sizes)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        world.adopt(self.critic.q, self.target_critic.q)
        self.lm = LMPlanner(settings.lm, world.spec.action_dim)

    def due(self, grad_steps: int) -> bool:
        """Whether this gradient step carries the loss on replayed states."""
        config = self.config
        return config.mode == "replay" and config.coef > 0 and grad_steps % config.every == 0

    def critic_loss(self, world: World, u: Unrolled, generator: torch.Generator) -> Tensor:
        """sum_t rho^t sum_j l(C_j(s_t, a_t) - y~_t) per sample `[B]`, y~_t = r_t + gamma min_j C'_j(s_{t+1}, pi(h(s_{t+1}))).

        l is the world's loss of TD errors: the square, or Huber's in units of the targets' spread.
        """
        steps, batch, _ = u.action.shape
        with torch.no_grad():
            a = world.model.sample_policy(u.z_next, world.prior_std, generator)
            value = full_precision(self.target_critic(u.next_obs, a).amin(dim=0)).view(steps, batch)
            y = td_target(u.reward, u.terminated, value, world.gamma)
        obs = torch.cat([u.obs, u.next_obs[: (steps - 1) * batch]])
        td = full_precision(self.critic(obs, u.action.flatten(0, 1))).view(2, steps, batch) - y
        return decayed_sum(world.value_error(td).sum(dim=0), world.config.rho)

    def starts(self, world: World, z: Tensor, horizon: int, generator: torch.Generator) -> Tensor:
        """Starts of plans of H steps from latents `z [B, Z]`, as while exploring: `[B, H, A]`, without gradient."""
        with torch.no_grad():
            return lm_start(self.settings, world, z.detach(), horizon, self.settings.start_std, generator)

    def planned_loss(
        self,
        world: World,
        obs: Tensor,
        z: Tensor,
        start: Tensor,
        generator: torch.Generator,
        previous: Tensor | None = None,
    ) -> tuple[Tensor, PlanResult]:
        """L_PG over the states `obs [B, *shape]` (a mean), and the plans it went through.

        Args:
            world: plans in it are differentiated.
            obs: observations on the agent's device.
            z: their latents `[B, Z]`, with gradient.
            start: starts of the plans `[B, H, A]`.
            generator: of random starts.
            previous: shifted previous plans `[B, H, A]`, for `acting.lm.start_previous`.
        """
        scale = world.step_scale()
        with torch.autocast(obs.device.type, enabled=False), frozen(world.model.pi):
            plan = self.lm.plan(
                world.latent_model,
                full_precision(z),
                full_precision(start),
                previous=previous,
                scale=scale,
                generator=generator,
                differentiable=True,
            )
        with frozen(self.critic):
            value = full_precision(self.critic(obs, plan.actions[:, 0]).amin(dim=0))
        return -(value / scale if self.config.normalize else value).mean(), plan

    def move_target_(self, rate: float) -> None:
        """One step of the target critic's moving average."""
        ema_(self.target_critic.parameters(), self.critic.parameters(), rate)


def in_chunks(visited: Sequence[Visited], states: int) -> Iterator[Visited]:
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
