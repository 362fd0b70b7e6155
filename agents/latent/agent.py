"""What agents with a latent world model share: encoding and unrolling a batch, the order of an update, planning, state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agents.acting import ActingConfig, PlanningActor
from agents.base import Actor, UpdateResult
from agents.world_model import LatentWorld, WorldModelConfig
from difftop.losses import RunningScale, check_finite, clipped_step
from difftop.nn.encoders import random_shift
from difftop.options import option
from difftop.planning.model import LatentModel
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
class LatentAgentConfig:
    """What the options of all these agents have; each agent narrows it."""

    name: str = option("", "registry name of the agent")
    discount: float = option(0.99, "discount gamma per agent step", above=0, high=1)
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


class LatentAgent(nn.Module):
    """An agent with a latent world model. A subclass brings the model, its targets and its losses; any planner acts in it.

    Subclasses set `model` in `_build`, and define `losses`, `update_policy` and `move_targets`.
    """

    config: LatentAgentConfig
    model: LatentWorld
    latent_model: LatentModel

    def __init__(self, spec: EnvSpec, config: LatentAgentConfig, *, seed: int, device: torch.device, bf16: bool = False) -> None:
        super().__init__()
        self.spec, self.config, self.device, self.bf16 = spec, config, device, bf16
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build()
        self.to(device)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.optimizer, self.policy_optimizer = self._optimizers()
        self.grad_steps = 0

    def _build(self) -> None:
        """Makes everything that is saved, and the planners; here, what doesn't depend on the kind of model."""
        self.return_scale = RunningScale(peak=0.0)
        self.reward_size = RunningScale()
        self.mppi = MPPIPlanner(self.config.acting.mppi, self.spec.action_dim)
        self.latent_model = self.model.latent_model(self.discount)

    def _optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        """Of the model loss, and of the policy prior."""
        rate = self.config.loss.learning_rate
        return (
            torch.optim.Adam(self.trained_by_model_loss(), lr=rate, fused=True),
            torch.optim.Adam(self.model.pi.parameters(), lr=rate, fused=True),
        )

    def losses(self, u: Unrolled, weight: Tensor, agent_steps: int) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """The scaled loss to differentiate, metrics, and replay priorities `[B]` (None: not used)."""
        raise NotImplementedError

    def update_policy(self, z: Tensor) -> dict[str, Tensor]:
        """One step of the policy prior at latents `z [T+1, B, Z]` that get no gradient."""
        raise NotImplementedError

    def move_targets(self) -> None:
        """One step of the target networks' moving average."""
        raise NotImplementedError

    @property
    def sizes(self) -> WorldModelConfig:
        """Sizes of the networks, none left open."""
        return self.config.model

    @property
    def discount(self) -> float:
        """gamma per agent step."""
        return self.config.discount

    def sampled_model(self, generator: torch.Generator) -> LatentModel:
        """The model for one plan of a planner that samples; `generator` makes the choices that are drawn once per plan."""
        return self.latent_model

    @cached_property
    def lm(self) -> TheseusPlanner:
        """The Theseus planner; imported when it is first used, because theseus takes a second to load."""
        from difftop.planning.theseus_lm import TheseusPlanner

        return TheseusPlanner(self.config.acting.lm, self.spec.action_dim)

    def step_scale(self) -> Tensor:
        """Size of one step's reward, 0-d, by which the planner normalizes: the spread of rewards, or of returns per step."""
        return torch.maximum(self.reward_size.value, (1 - self.discount) * self.return_scale.value)

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
        parameters, clip = self.trained_by_model_loss(), self.config.loss.grad_clip
        metrics["train/grad_norm"] = clipped_step(self.optimizer, parameters, clip, "the model loss's gradient")
        metrics |= self.update_policy(unrolled.z.detach())
        self.grad_steps += 1
        if self.grad_steps % self.config.loss.target_every == 0:
            self.move_targets()
        return UpdateResult(metrics, priorities)

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
