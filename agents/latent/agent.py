"""The one agent with a latent world model: a world, a planner, and the gradient through a planner or none."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from agents.latent.acting import PlanningActor
from agents.latent.gradient import PlannerGradient, PolicyGradientConfig, in_chunks
from agents.latent.lm import LMActing
from agents.latent.options import LatentAgentConfig
from agents.latent.planners import PLANNERS
from agents.latent.world import Unrolled, World
from agents.latent.world_model import WorldModel, one_observation
from difftop.capture import Graphs
from difftop.contract import UpdateResult, restore_generator
from difftop.diagnose import LatentView
from difftop.losses import FiniteWatch, average_, input_gradient
from difftop.nn.encoders import random_shift
from difftop.options import ConfigError
from difftop.products import wide_products
from difftop.types import Batch, EnvSpec

_FIRST = 10.0  # the average is over the last tenth or so of all updates, until that is as long as `ema` says


def rates_to_(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Learning rates that are tensors to where the weights are; a checkpoint's are loaded on the CPU."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"] = group["lr"].to(device)


class LatentAgent(nn.Module):
    """Acts by planning in a world, and trains it.

    With `ema` it acts by a moving average of the model's weights: what one update after another undoes and does again doesn't
    move the policy. A share of the training episodes (`acting.raw_episodes`) is played by the weights themselves, so that no two
    are by the same policy, and while rewards are rare all are.

        w'_k = (1 - c_k) w'_{k-1} + c_k w_k,   c_k = max(1 - ema, 10 / (10 + k))   after update k

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.  Differs: old weights fade.

    Args:
        config: options; `acting.planner` names the planner.
        spec: of the environment; it has one observation.
        world: makes the world; called with torch's generator seeded.
        gradient: options of the policy gradient through the planner; None, or with mode=none: no such loss, and no raw critic.
        seed: of the initial weights and of the agent's generator.
        device, bf16: where and in which precision matrix products run.
    Raises:
        ConfigError: the environment has several observations.
    Attributes:
        average, averaged: the averaged model and of how many updates it is, 0-d; None without `ema`.
    """

    averaged: Tensor | None

    def __init__(
        self,
        config: LatentAgentConfig,
        spec: EnvSpec,
        world: Callable[[], World],
        gradient: PolicyGradientConfig | None = None,
        *,
        seed: int,
        device: torch.device,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.spec, self.device, self.bf16 = config, spec, device, bf16
        self.pixels = one_observation(spec)[1].kind == "image"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.world = world()
            self.average = copy.deepcopy(self.model).requires_grad_(False) if config.ema else None
            self.gradient: PlannerGradient | None = None
            if gradient is not None and gradient.mode != "none":
                self.gradient = PlannerGradient(gradient, config.acting, self.world)
        self.register_buffer("averaged", torch.zeros((), dtype=torch.float64) if config.ema else None)
        self.to(device)
        make_planner = PLANNERS[config.acting.planner]
        self._acts_in = [self.world if self.average is None else self.world.with_model(self.average)]
        self.planner, self._raw_planner = make_planner(config.acting, self.acts_in), make_planner(config.acting, self.world)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.critic_parameters = list(self.gradient.critic.parameters()) if self.gradient else []
        self.optimizer, self.prior_optimizer = self.world.optimizers(self.critic_parameters)
        self.on_policy_optimizer: torch.optim.Optimizer | None = None
        if self.gradient and self.gradient.config.mode == "on_policy":
            planned = [p for p in self.model.parameters() if p.requires_grad]
            self.on_policy_optimizer = torch.optim.Adam(planned, lr=config.loss.learning_rate, fused=True)
        self.grad_steps = 0
        self.capture_graphs("false")

    @property
    def model(self) -> WorldModel:
        """The world's networks."""
        return self.world.model

    @property
    def acts_in(self) -> World:
        """The world with the averaged weights where there are any: it acts, but in `acting.raw_episodes`."""
        return self._acts_in[0]  # in a list: its weights and scales are in the state already

    def capture_graphs(self, mode: str) -> None:
        """How updates and acting run: `capture=auto | true | false`; raises `ConfigError` where it can't be."""
        self.graphs = Graphs(self.device, mode, generators=[self.generator], optimizers=[self.optimizer, self.prior_optimizer])
        self.finite = FiniteWatch(self.device, deferred=self.graphs.active or None)
        self._told = 0

    def autocast(self) -> torch.autocast:
        """Matrix products in bfloat16 where `precision=bf16`; weights, losses and optimizers stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def actor(self, num_envs: int, *, seed: int, explore: bool = False, head: str | None = None) -> PlanningActor:
        """A `PlanningActor` on this agent's weights; with `mode=on_policy` the one that explores keeps the states it plans in."""
        if head is not None:
            raise ConfigError(f"head={head}: is for agents that imitate, and agent={self.config.name} learns from rewards.")
        generator = torch.Generator(self.device).manual_seed(seed)
        return PlanningActor(
            self.acts_in,
            self.planner,
            self.config.acting,
            num_envs,
            generator,
            raw=(self.world, self._raw_planner) if explore and self.average is not None else None,
            graphs=self.graphs.sharing([generator]),
            autocast=self.autocast,
            explore=explore,
            keep_visited=explore and self.on_policy_optimizer is not None and isinstance(self.planner, LMActing),
        )

    def update(self, batch: Batch, agent_steps: int) -> UpdateResult:
        """One gradient step on world and critic, one on the policy prior, and one of the targets where it is due."""
        gradient = self.gradient
        due = gradient is not None and gradient.due(self.grad_steps)
        planned = self.config.acting.plan_length(agent_steps) if due else 0
        moves = (self.grad_steps + 1) % self.config.loss.target_every == 0
        name = "an update with the policy gradient" if planned else "an update"
        fields = list(vars(batch).values())
        with wide_products(batch.reward.numel(), self.world.sizes.mlp_dim):
            metrics, priorities = self.graphs(
                name, partial(self._update, planned, moves), fields, (planned, moves, self.world.seeks)
            )
        self.grad_steps += 1
        if self.graphs.active and self.device.type == "cpu":  # where nothing waits for it
            self.check_finite()
        return UpdateResult(metrics, priorities)

    def _update(self, planned: int, moves: bool, *batch: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """`update` of a `Batch`'s fields; with the policy gradient of plans of `planned` steps, or none, and target moves."""
        world, gradient, config = self.world, self.gradient, self.config.loss
        with self.autocast():
            u = self.unroll(Batch(*batch))
            loss, metrics, priorities = world.losses(u, self.generator)
            if gradient is not None:
                critic_loss = gradient.critic_loss(world, u, self.generator)
                metrics["train/critic_loss"] = critic_loss.detach().mean()
                loss = loss + gradient.config.critic_coef * (u.weight * critic_loss).mean() / len(u.action)
            if gradient is not None and planned:
                self.finite.check(loss, "the model loss")  # the planner takes no other latents
                chosen = slice(0, gradient.config.states)  # replay has drawn the batch at random already
                obs, z = u.obs[chosen], u.z[0, chosen]
                start = gradient.starts(world, z, planned, self.generator)
                planned_loss, plan = gradient.planned_loss(world, obs, z, start, self.generator)
                loss = loss + gradient.config.coef * planned_loss
                metrics["train/policy_gradient_loss"] = planned_loss.detach()
                metrics["train/plan_failures"] = (plan.status != 0).sum().float()
        self.finite.check(loss, "the model loss")
        loss.backward()  # type: ignore[no-untyped-call]
        trained, name = [*world.trained(), *self.critic_parameters], "the model loss's gradient"
        metrics["train/grad_norm"] = self.finite.clipped_step(self.optimizer, trained, config.grad_clip, name)

        metrics |= self.update_prior(u.z.detach())

        if moves:
            world.move_targets_()
            if gradient is not None:
                gradient.move_target_(config.target_rate)
        if self.average is not None and self.averaged is not None:
            self.averaged.add_(1)
            rate = (_FIRST / (_FIRST + self.averaged)).clamp(min=1 - self.config.ema)
            average_(self.average, self.model, rate.to(torch.float32))
        if priorities is not None and self.finite.deferred:  # the run ends before a weight would follow from these
            priorities = priorities.nan_to_num(0.0, posinf=0.0)
        return metrics, priorities

    def update_prior(self, z: Tensor) -> dict[str, Tensor]:
        """One gradient step on the policy prior alone, at latents `z [T+1, B, Z]`; returns metrics."""
        with self.autocast():
            loss, metrics = self.world.prior_loss(z, self.generator)
        self.finite.check(loss, "the policy loss")
        parameters = list(self.model.pi.parameters())
        for p, gradient in zip(parameters, input_gradient(loss, parameters), strict=True):
            p.grad = gradient
        clip, name = self.config.loss.grad_clip, "the policy loss's gradient"
        norm = self.finite.clipped_step(self.prior_optimizer, parameters, clip, name)
        return metrics | {"train/policy_loss": loss.detach(), "train/policy_grad_norm": norm}

    def unroll(self, batch: Batch) -> Unrolled:
        """Brings a batch to the device, shifts its pixels at random, and rolls the world along it."""
        obs = batch.obs.to(self.device, non_blocking=True)
        action = batch.action.to(self.device, non_blocking=True).transpose(0, 1).contiguous()
        first, rest = self._shifted(obs[:, 0]), self._shifted(obs[:, 1:].transpose(0, 1)).flatten(0, 1)
        return self.world.unroll(
            first,
            rest,
            action,
            reward=batch.reward.to(self.device).t(),
            terminated=batch.terminated.to(self.device).t(),
            weight=batch.weight.to(self.device),
        )

    def _shifted(self, obs: Tensor) -> Tensor:
        pad = self.config.loss.shift_pixels
        return random_shift(obs, pad, self.generator) if self.pixels and pad else obs

    def finish_episode(self, actor: PlanningActor, rare: float, agent_steps: int) -> dict[str, Tensor]:
        """With `mode=on_policy`: L_PG summed over the states just visited, from the starts they were planned from, one step.

        Source: the official code of arXiv:2402.05421, `update2`.  Differs: all states of the episode are differentiated in
        batches at its end, where the official code does it one by one while acting; the weights are the same at both times.
        Random starts (`acting.lm.start_random`) are drawn anew.
        """
        for world in (self.world, self.acts_in):
            world.set_rare(rare)
        counted = self._captures()
        if self.gradient is None or self.on_policy_optimizer is None or not actor.visited:
            return counted
        visited, actor.visited = actor.visited, []
        total = torch.zeros((), device=self.device)
        for plans in in_chunks(visited, self.gradient.config.states):
            obs, start, previous = (x.to(self.device) for x in plans)
            loss, _ = self.gradient.planned_loss(self.world, obs, self.model.encode(obs), start, self.generator, previous)
            self.finite.check(loss, "the on-policy policy-gradient loss")
            if loss.requires_grad:  # not where every plan failed
                (loss * len(obs)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() * len(obs)
        metrics = counted | {"train/policy_gradient_loss": total / sum(len(plans.obs) for plans in visited)}
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        if parameters:
            clip, name = self.gradient.config.grad_clip, "the on-policy policy gradient"
            metrics["train/policy_gradient_norm"] = self.finite.clipped_step(self.on_policy_optimizer, parameters, clip, name)
        return metrics

    def _captures(self) -> dict[str, Tensor]:
        """Captures of updates since the last call, where updates are captured."""
        fresh, self._told = self.graphs.captured - self._told, self.graphs.captured
        return {"train/captures": torch.tensor(float(fresh))} if self.graphs.loud else {}

    def check_finite(self) -> None:
        """See `difftop.contract.Agent`."""
        self.finite.raise_found()

    def latent_view(self) -> LatentView:
        """The networks for `difftop.diagnose`."""
        model = self.acts_in.model
        return LatentView(
            encode=model.encode,
            step=lambda z, a: (model.predict_reward(z, a), model.next(z, a)),
            values=model.values,
            policy=model.policy,
            sample=lambda z, generator: model.sample_policy(z, self.world.prior_std, generator),
            discount=float(self.world.gamma),
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        mine, current = f"{prefix}average.", f"{prefix}world.model."
        if self.average is not None and not any(key.startswith(mine) for key in state_dict):  # a checkpoint from before
            state_dict[f"{prefix}averaged"] = torch.tensor(1e9, dtype=torch.float64)
            state_dict |= {mine + key.removeprefix(current): x for key, x in state_dict.items() if key.startswith(current)}
        super()._load_from_state_dict(state_dict, prefix, *more)

    def train_state(self) -> dict[str, Any]:
        """Optimizers, generator and step count."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "prior_optimizer": self.prior_optimizer.state_dict(),
            "on_policy_optimizer": self.on_policy_optimizer.state_dict() if self.on_policy_optimizer else None,
            "generator": self.generator.get_state(),
            "grad_steps": self.grad_steps,
        }

    def load_train_state(self, state: Mapping[str, Any]) -> None:
        """Restores `train_state`."""
        self.optimizer.load_state_dict(state["optimizer"])
        rates_to_(self.optimizer, self.device)
        self.prior_optimizer.load_state_dict(state["prior_optimizer"])
        if self.on_policy_optimizer:
            self.on_policy_optimizer.load_state_dict(state["on_policy_optimizer"])
        restore_generator(self.generator, state["generator"].cpu())
        self.grad_steps = state["grad_steps"]
        self.graphs.clear()  # the optimizers' tensors are others now
