"""A world whose errors are measured in the size of what they predict: no loss owns the latents, whatever the task's units.

    L = mean_i w_i 1/T sum_t rho^t [ c1 mean_k (z_{t+1} - sg h(s_{t+1}))_k^2 / v + c2 H((R(z_t, a_t) - r_t) / S_r)
                                     + c3 sum_j H((Q_j(z_t, a_t) - y_t) / S_y) ]
    b_Q, b_Q' += c_new - c_old                                          c: the centre, `ValueCentre`
    y_t = sum_{k < m} gamma^k r_{t+k} + gamma^m V_K(h(s_{t+m})),   m = min(n, T - t)
    |y_t| <= (M + 5 u c5 M) / (1 - gamma), unless `bounded=false`
    V_K(z_0) = sum_{k < K} gamma^k R(z_k, a_k) + gamma^K Q'(z_K, a_K),   z_{k+1} = d(z_k, a_k),   a_k = pi(z_k) + noise
    n = 1 and K = 0 where rewards are not rare; K = 0 once an episode has terminated: the model knows of no ends
    gamma, here, is lower while rewards are rare
    r_t here is the environment's reward + u c5 M min(5, e_t / mean_i e_t),   u: how rare rewards are, in [0, 1]
    L_pi = - mean Q(sg z, pi(sg z) + noise) / S_y + c4 mean pi_raw^2
    Q = (1 - c6) mean_j Q_j + c6 min_j Q_j, and Q' likewise of the Q'_j
    eta(last layer of Q) = eta S_y,   eta(last layer of R) = eta S_r,   eta elsewhere

H is Huber's loss with threshold 1, v the variance of the batch's latents, S_r and S_y the running spreads of rewards and of
targets, Q'_j moving averages of Q_j, e_t the squared error of z_{t+1} above, M the largest reward seen: while rewards are rare,
steps that the model foretells badly have one of their own. The prior learns at the first latent of each slice and at some of
those predicted after it. The rates of the last layers are what makes the heads learn in these units too: features are of unit
size, so that a head grows by no more than its rate in a step, and values of hundreds would come thousands of steps late.

Source: put together here. The unrolled losses are TD-MPC's, arXiv:2203.04955; Huber's loss and, where asked for, targets of
several steps MR.Q's, arXiv:2501.16142; LayerNorm and weight decay in the critic, and values without pessimism (c6 = 0), BRO's,
arXiv:2405.16158; standardized observations SimbaV2's, arXiv:2502.15280; values expanded by K steps of the model
Feinberg et al.'s, arXiv:1803.00101; rewards for what is foretold badly Pathak et al.'s, arXiv:1705.05363; a discount that rises
as the agent learns François-Lavet et al.'s, arXiv:1512.02011. A rate times the scale is what Adam does to a head whose output
is multiplied by the scale: van Hasselt et al., "Learning values across many orders of magnitude", arXiv:1602.07714.  Differs:
the units of the errors; from van Hasselt, outputs are not corrected as the scale moves; from Pathak, the latents that are
foretold are the world's own, and such rewards go as others come; from François-Lavet et al., the discount follows the rewards
and not the clock.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.latent.centre import ValueCentre
from agents.latent.exploration import PRIOR_NOISE_CLIP, add_noise
from agents.latent.scaled_model import ScaledModel, ScaledModelConfig
from agents.latent.world import LossConfig, Losses, Unrolled, World
from difftop.losses import RunningScale, decayed_sum, ema_, full_precision, n_step_targets
from difftop.nn.mlp import EnsembleLinear, EnsembleMLP
from difftop.nn.running_norm import RunningNorm
from difftop.options import option
from difftop.types import EnvSpec

_SURPRISE = 5.0  # largest error that counts, in mean ones
_FADES = 0.2  # rarity below which what holds while rewards are rare gives way to what holds where they are common


@dataclass(frozen=True)
class ScaledLossConfig(LossConfig):
    """Coefficients of the model loss and the prior's, and their optimizers."""

    horizon: int = option(3, "steps of a replayed slice the model is unrolled for, in agent steps", low=1)
    rho: float = option(0.9, "weight of step t is rho^t", low=0, high=1)
    consistency: float = option(1.0, "coefficient of the latent prediction error, in units of the latents' variance", low=0)
    reward: float = option(1.0, "coefficient of the reward error, in units of the rewards' spread", low=0)
    value: float = option(1.0, "coefficient of the TD error, in units of the targets' spread", low=0)
    learning_rate: float = option(5e-4, "AdamW's learning rate, for model and policy", above=0)
    weight_decay: float = option(1e-2, "AdamW's weight decay", low=0)
    target_rate: float = option(0.02, "rate of the target networks' moving average", above=0, high=1)
    target_every: int = option(1, "gradient steps between two moves of the target networks", low=1)
    n_step: int = option(3, "replayed rewards in a TD target, as far as the slice goes; several learn the noise too", low=1)
    expansion: int = option(3, "steps K that the model takes, by the prior, before a TD target's value", low=0)
    far_while_rare: bool = option(True, "n_step and expansion only while rewards are rare; after that one-step targets")
    discount_while_rare: float = option(
        0.97, "discount of values while fewer than 0.4 of the steps have a reward; agent.discount from 0.5 on", above=0, high=1
    )
    curiosity: float = option(
        0.05, "mean reward, in largest ones, for steps that the model foretells badly, while rewards are rare", low=0
    )
    pessimism: float = option(
        0.0, "of the values that targets and the prior go by: 1 the smallest of all networks', 0 their mean", low=0, high=1
    )
    bounded: bool = option(True, "TD targets no larger than what the largest reward seen gives, in every step to come")
    prior_steps: int = option(2, "latents of a slice that the prior is trained on: the first, and others drawn", low=1)
    saturation: float = option(1e-4, "coefficient of the prior's squared outputs before its tanh", low=0)


class ScaledWorld(World):
    """Normalized world model, its target values, and their losses.

    Args:
        spec: of the environment.
        sizes: of the networks.
        config: coefficients.
        discount: gamma per agent step.
        prior_std: std of the policy prior where it is sampled: TD targets, its own update, MPPI's policy plans.
    """

    model: ScaledModel
    config: ScaledLossConfig
    prior_std: float

    def __init__(
        self, spec: EnvSpec, sizes: ScaledModelConfig, config: ScaledLossConfig, *, discount: float, prior_std: float
    ) -> None:
        super().__init__(spec, ScaledModel(spec, sizes), config, discount)
        self.return_scale = RunningScale()  # its peak keeps Huber's loss from ignoring the few rewards of a sparse task
        self.target_q = copy.deepcopy(self.model.q).requires_grad_(False)
        self.centre = ValueCentre()
        self.optimizer: torch.optim.Optimizer | None = None
        self._critics, self._targets = [self.model.q], [self.target_q]
        self._sizes, self.prior_std = sizes, prior_std
        self.norms = [module for module in self.model.encoder.modules() if isinstance(module, RunningNorm)]

    @property
    def sizes(self) -> ScaledModelConfig:
        """Sizes of the networks."""
        return self._sizes

    def adopt(self, critic: nn.Module, target: nn.Module) -> None:
        """See `World`: its last bias moves with the centre, and its last layer learns at the values' rate."""
        assert isinstance(critic, EnsembleMLP) and isinstance(target, EnsembleMLP)
        self._critics.append(critic)
        self._targets.append(target)

    def value_error(self, td: Tensor) -> Tensor:
        """Huber's loss in units of the targets' spread."""
        return _huber(td / self.return_scale.value)

    def optimizers(self, more: Sequence[nn.Parameter]) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        """AdamW, for the model and for the prior; `scale_rates_` sets the rates of the heads' last layers, which don't decay."""
        rate, decay = self.config.learning_rate, self.config.weight_decay
        heads = [list(list(net.children())[-1].parameters()) for net in (*self._critics, self.model.reward)]
        known = {id(p) for head in heads for p in head}
        groups: list[dict[str, Any]] = [{"params": [p for p in [*self.trained(), *more] if id(p) not in known]}]
        for head in heads:
            groups.append({"params": head, "lr": torch.tensor(rate, device=head[0].device), "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=True)
        return self.optimizer, torch.optim.AdamW(self.model.pi.parameters(), lr=rate, weight_decay=decay, fused=True)

    @torch.no_grad()
    def scale_rates_(self) -> None:
        """Learning rates of the last layers of values and rewards, in the size of what they predict now."""
        if self.optimizer is not None:
            scales = [self.return_scale] * len(self._critics) + [self.reward_size]
            for group, scale in zip(self.optimizer.param_groups[1:], scales, strict=True):
                group["lr"].copy_(self.config.learning_rate * scale.value)

    def move_targets_(self) -> None:
        """One step of the target values' moving average."""
        ema_(self.target_q.parameters(), self.model.q.parameters(), self.config.target_rate)

    def unroll(self, obs: Tensor, next_obs: Tensor, action: Tensor, **known: Any) -> Unrolled:
        """Takes the observations into the running statistics first."""
        for norm in self.norms:
            norm.update(obs)
        return super().unroll(obs, next_obs, action, **known)

    def losses(self, u: Unrolled, generator: torch.Generator) -> Losses:
        """The scaled loss, metrics, and replay priorities."""
        config = self.config
        steps, batch, _ = u.action.shape
        z, a = u.z[:-1].flatten(0, 1), u.action.flatten(0, 1)
        z_target = full_precision(u.z_next)
        variance = z_target.var(dim=0).mean().clamp(min=1e-4)  # a latent that stands still would be divided by nothing
        consistency = (full_precision(u.z[1:]) - z_target.view_as(u.z[1:])).square().mean(dim=2) / variance
        self.reward_size.update(u.reward)
        if self.seeks and config.curiosity:
            u = replace(u, reward=u.reward + self.curiosity(consistency.detach()))
        y = self.td_targets(u, generator)
        reward_error = (full_precision(self.model.predict_reward(z, a)).view(steps, batch) - u.reward) / self.reward_size.value
        td = full_precision(self.model.values(z, a)).view(-1, steps, batch) - y
        terms = {
            "consistency": decayed_sum(consistency, config.rho),
            "reward": decayed_sum(_huber(reward_error), config.rho),
            "value": decayed_sum(self.value_error(td).sum(dim=0), config.rho),
        }
        per_sample = config.consistency * terms["consistency"] + config.reward * terms["reward"] + config.value * terms["value"]
        loss = (u.weight * per_sample).mean() / steps
        metrics = {f"train/{name}_loss": term.detach().mean() for name, term in terms.items()}
        metrics |= {"train/model_loss": loss.detach() * steps, "train/td_target": y.mean(), "train/latent_variance": variance}
        priorities = decayed_sum((td.detach() / self.return_scale.value).abs().sum(dim=0), config.rho)
        return Losses(loss, metrics, priorities)

    @torch.no_grad()
    def td_targets(self, u: Unrolled, generator: torch.Generator) -> Tensor:
        """y `[T, B]`, from the online encoder and policy and the target Q; also feeds running scales and the centre.

        An episode's end is in one slice alone, at its last step, where the steps before are in as many as a slice has: so it is
        the slices' last steps that tell how often episodes terminate.
        """
        moved = self.centre.update(u.reward, u.terminated[-1], self.gamma)
        for net in (*self._critics, *self._targets):
            last = net[-1]
            assert isinstance(last, EnsembleLinear)
            last.bias.add_(moved)
        value = self.expanded_value(u.z_next, generator).view_as(u.reward)
        y = n_step_targets(u.reward, u.terminated, value, self.gamma, self.config.n_step if self.far else 1)
        if self.config.bounded:
            most = self.most
            y = y.clamp(-most, most)
        self.return_scale.update(y)
        self.scale_rates_()
        return y

    @property
    def sparse(self) -> Tensor:
        """Weight of what holds while rewards are rare, 0-d: 1 until 0.4 of the steps have one, and 0 from 0.5 on."""
        return (self.rarity / _FADES).clamp(max=1)

    @property
    def gamma(self) -> Tensor:
        """Discount of the values that are learned now, 0-d."""
        return self.discount + self.sparse * min(0.0, self.config.discount_while_rare - self.discount)

    @property
    def most(self) -> Tensor:
        """The most that a discounted return can be, 0-d, by the largest reward seen and the largest that curiosity gives."""
        return (self.reward_size.largest + _SURPRISE * self.curious) / (1 - self.gamma)

    @property
    def seeks(self) -> bool:
        """While rewards are rare."""
        return self.rare > 0

    @property
    def far(self) -> bool:
        """Whether targets reach further than one step."""
        return self.seeks or not self.config.far_while_rare

    def curiosity(self, error: Tensor) -> Tensor:
        """Rewards `[T, B]` of steps with the model's errors `[T, B]`: as large as those are among all of the same depth."""
        return self.curious * (error / error.mean(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=_SURPRISE)

    @property
    def curious(self) -> Tensor:
        """Reward of a step that the model foretells as badly as the mean one, 0-d."""
        size, part = self.reward_size, self.config.curiosity
        unit = torch.where(size.largest > 0, part * size.largest, size.floor if part else 0.0)  # floor: no reward was seen yet
        return unit * self.rarity

    def believed(self, q: Tensor) -> Tensor:
        """One value `[N]` of the networks' `[E, N]`: between their mean and the smallest."""
        q = full_precision(q)
        return torch.lerp(q.mean(dim=0), q.amin(dim=0), self.config.pessimism)

    def expanded_value(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """V_K `[N]` of latents `[N, Z]`; V_0 once an episode has terminated, and where rewards are not rare.

        The best of all actions is always a little overrated, and values of states from which nothing follows live on that:
        they fall by 1 - gamma from one to the one before, and by 1 - gamma^(K + 1) here.
        """
        first, total, gamma = z, torch.zeros(len(z), device=z.device), self.gamma
        discount = torch.ones_like(gamma)
        for _ in range(self.config.expansion if self.far else 0):
            a = self.model.sample_policy(z, self.prior_std, generator)
            total, discount = total + discount * full_precision(self.model.predict_reward(z, a)), discount * gamma
            z = self.model.next(z, a)
        goes_on = self.centre.ends == 0
        z = torch.where(goes_on, z, first)
        a = self.model.sample_policy(z, self.prior_std, generator)
        q: Tensor = self.target_q(torch.cat([z, a], dim=-1))
        value = self.believed(q.squeeze(-1))
        return torch.where(goes_on, total + discount * value, value)

    def prior_loss(self, z: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The prior climbs the model's Q, and is kept from the flat ends of its tanh."""
        others = torch.randperm(len(z) - 1, generator=generator, device=generator.device)[: self.config.prior_steps - 1] + 1
        z = torch.cat([z[:1], z[others.to(z.device)]]).flatten(0, 1)
        raw = self.model.pi(z)
        a = add_noise(torch.tanh(raw), self.prior_std, generator, PRIOR_NOISE_CLIP)
        q = self.believed(self.model.values(z, a)).mean() / self.return_scale.value
        return -q + self.config.saturation * full_precision(raw).square().mean(), {}


def _huber(x: Tensor) -> Tensor:
    return F.smooth_l1_loss(x, torch.zeros_like(x), reduction="none")
