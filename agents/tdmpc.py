"""TD-MPC (2022): a latent world model with a value function, acting by sampling-based planning.

Source: Hansen, Wang, Su, "Temporal Difference Learning for Model Predictive Control", arXiv:2203.04955.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agents.acting import ActingConfig, PlanningActor
from agents.base import Actor, UpdateResult
from agents.world_model import WorldModel, WorldModelConfig
from difftop.losses import RunningScale, check_finite, clipped_step, decayed_sum, ema_, full_precision, input_gradient, td_target
from difftop.nn.encoders import random_shift
from difftop.options import option
from difftop.planning.mppi import MPPIPlanner
from difftop.types import Batch, EnvSpec

if TYPE_CHECKING:
    from difftop.planning.theseus_lm import TheseusPlanner


@dataclass(frozen=True)
class LossConfig:
    """Coefficients of the model loss and its optimizer."""

    horizon: int = option(5, "steps of a replayed slice the model is unrolled for, in agent steps", low=1)
    rho: float = option(0.5, "weight of step t is rho^t", low=0, high=1)
    consistency: float = option(2.0, "coefficient of the latent prediction error", low=0)
    reward: float = option(0.5, "coefficient of the reward error", low=0)
    value: float = option(0.1, "coefficient of the TD error", low=0)
    learning_rate: float = option(1e-3, "Adam's learning rate, for model and policy", above=0)
    grad_clip: float = option(10.0, "largest joint gradient norm", above=0)
    target_rate: float = option(0.01, "rate of the target networks' moving average", above=0, high=1)
    target_every: int = option(2, "gradient steps between two moves of the target networks", low=1)
    shift_pixels: int = option(4, "random shift of pixel observations, in pixels", low=0)


@dataclass(frozen=True)
class TDMPCConfig:
    """Options of `agent=tdmpc`."""

    name: str = option("tdmpc", "registry name of the agent")
    discount: float = option(0.99, "discount gamma per agent step", low=0, high=1)
    model: WorldModelConfig = option(WorldModelConfig, "network sizes")
    loss: LossConfig = option(LossConfig, "loss coefficients")
    acting: ActingConfig = option(ActingConfig, "planner, exploration and horizon schedules")


@dataclass(frozen=True)
class Unrolled:
    """What one batch gives after encoding and unrolling, time-major so that all heads run in one batched pass.

    Attributes:
        obs: first observations, augmented, `[B, *obs_shape]`.
        next_obs: the T observations after them, augmented, `[T*B, *obs_shape]`.
        z_next: their latents under the online encoder `[T*B, Z]`, no gradient.
        z: latents predicted from the first observation `[T+1, B, Z]`.
        action, reward, terminated: `[T, B, A]`, `[T, B]`, `[T, B]`.
    """

    obs: Tensor
    next_obs: Tensor
    z_next: Tensor
    z: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor


class TDMPC(nn.Module):
    """World model, its target copy, and their update.

        L = mean_i w_i sum_t rho^t [ c1 mean_k (z_{t+1} - h'(s_{t+1}))_k^2 + c2 (R(z_t, a_t) - r_t)^2
                                     + c3 sum_j (Q_j(z_t, a_t) - y_t)^2 ]
        y_t = r_t + gamma min_j Q'_j(h(s_{t+1}), pi(h(s_{t+1})) + noise)
        L_pi = - sum_t rho^t mean_i min_j Q_j(sg(z_t), pi(sg(z_t)) + noise)

    where ' marks target networks. The gradient of L is divided by T, as in the official code.

    Source: TD-MPC, arXiv:2203.04955, equations 7 to 10.  Differs: one crop of each observation per update, where the official
    code draws a new one for every use; a termination is not bootstrapped.
    """

    config: TDMPCConfig

    def __init__(self, spec: EnvSpec, config: TDMPCConfig, *, seed: int, device: torch.device, bf16: bool = False) -> None:
        super().__init__()
        self.spec, self.config, self.device, self.bf16 = spec, config, device, bf16
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build()
        self.to(device)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.optimizer = torch.optim.Adam(self.trained_by_model_loss(), lr=config.loss.learning_rate, fused=True)
        self.policy_optimizer = torch.optim.Adam(self.model.pi.parameters(), lr=config.loss.learning_rate, fused=True)
        self.grad_steps = 0

    def _build(self) -> None:
        self.model = WorldModel(self.spec, self.config.model)
        self.target = copy.deepcopy(self.model).requires_grad_(False)
        self.return_scale = RunningScale(peak=0.0)
        self.reward_size = RunningScale()
        self.mppi = MPPIPlanner(self.config.acting.mppi, self.spec.action_dim)
        self.latent_model = self.model.latent_model(self.config.discount)

    @cached_property
    def lm(self) -> TheseusPlanner:
        """The Theseus planner; imported when it is first used, because theseus takes a second to load."""
        from difftop.planning.theseus_lm import TheseusPlanner

        return TheseusPlanner(self.config.acting.lm, self.spec.action_dim)

    def step_scale(self) -> Tensor:
        """Size of one step's reward, 0-d, by which the planner normalizes: the spread of rewards, or of returns per step."""
        return torch.maximum(self.reward_size.value, (1 - self.config.discount) * self.return_scale.value)

    def trained_by_model_loss(self) -> list[nn.Parameter]:
        """Parameters of the joint optimizer: all but the policy's."""
        return [p for name, p in self.model.named_parameters() if not name.startswith("pi.")]

    def actor(self, num_envs: int, *, seed: int, explore: bool) -> Actor:
        """A `PlanningActor` on this agent's weights."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return PlanningActor(self, self.config.acting, num_envs, generator, explore=explore)

    def finish_episode(self, actor: Actor, agent_steps: int) -> dict[str, Tensor]:
        """Nothing to learn from the states just visited before they are replayed."""
        return {}

    def autocast(self) -> torch.autocast:
        """Matrix products in bfloat16 where `precision=bf16`; weights, losses and optimizers stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def update(self, batch: Batch, agent_steps: int) -> UpdateResult:
        """One gradient step on model and policy, and one of the target networks when it is due."""
        with self.autocast():
            unrolled = self.unroll(batch)
            loss, metrics, priorities = self.losses(unrolled, batch.weight.to(self.device), agent_steps)
        check_finite(loss, "the model loss")
        loss.backward()  # type: ignore[no-untyped-call]
        metrics["train/grad_norm"] = clipped_step(self.optimizer, self.trained_by_model_loss(), self.config.loss.grad_clip)
        metrics |= self.update_policy(unrolled.z.detach())
        self.grad_steps += 1
        if self.grad_steps % self.config.loss.target_every == 0:
            self.move_targets()
        return UpdateResult(metrics, priorities)

    def move_targets(self) -> None:
        """One step of the target networks' moving average."""
        ema_(self.target.parameters(), self.model.parameters(), self.config.loss.target_rate)

    def unroll(self, batch: Batch) -> Unrolled:
        """Encodes a batch and rolls the dynamics along its actions; only this loop is sequential."""
        obs = batch.obs.to(self.device, non_blocking=True)
        action = batch.action.to(self.device, non_blocking=True).transpose(0, 1).contiguous()
        first, rest = self.augment(obs[:, 0]), self.augment(obs[:, 1:].transpose(0, 1).flatten(0, 1))
        with torch.no_grad():
            z_next = self.model.encode(rest)
        z = [self.model.encode(first)]
        for a in action:
            z.append(self.model.next(z[-1], a))
        return Unrolled(
            obs=first,
            next_obs=rest,
            z_next=z_next,
            z=torch.stack(z),
            action=action,
            reward=batch.reward.to(self.device).t(),
            terminated=batch.terminated.to(self.device).t(),
        )

    def augment(self, obs: Tensor) -> Tensor:
        """Random shift of pixels; states pass."""
        pad = self.config.loss.shift_pixels
        return random_shift(obs, pad, self.generator) if self.spec.obs_kind == "pixels" and pad else obs

    def losses(self, u: Unrolled, weight: Tensor, agent_steps: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
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
        a = self.model.sample_policy(u.z_next, self.config.acting.min_std, self.generator)
        value = full_precision(self.target.values(u.z_next, a).amin(dim=0)).view_as(u.reward)
        y = td_target(u.reward, u.terminated, value, self.config.discount)
        self.return_scale.update(y)
        self.reward_size.update(u.reward)
        return y

    def update_policy(self, z: Tensor) -> dict[str, Tensor]:
        """One step of the policy prior up the model's Q, at latents `z [T+1, B, Z]` that get no gradient."""
        with self.autocast():
            a = self.model.sample_policy(z.flatten(0, 1), self.config.acting.min_std, self.generator)
            q = full_precision(self.model.values(z.flatten(0, 1), a).amin(dim=0)).view(z.shape[:2])
        rho = self.config.loss.rho ** torch.arange(len(q), device=q.device)
        loss = -(rho * q.mean(dim=1)).sum()
        check_finite(loss, "the policy loss")
        parameters = list(self.model.pi.parameters())
        for p, gradient in zip(parameters, input_gradient(loss, parameters), strict=True):
            p.grad = gradient
        norm = clipped_step(self.policy_optimizer, parameters, self.config.loss.grad_clip)
        return {"train/policy_loss": loss.detach(), "train/policy_grad_norm": norm}

    def train_state(self) -> dict[str, Any]:
        """Optimizers, generator and step count."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "policy_optimizer": self.policy_optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "grad_steps": self.grad_steps,
        }

    def load_train_state(self, state: Mapping[str, Any]) -> None:
        """Restores `train_state`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.policy_optimizer.load_state_dict(state["policy_optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.grad_steps = state["grad_steps"]
