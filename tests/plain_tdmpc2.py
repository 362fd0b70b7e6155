"""TD-MPC2's update written plainly from the paper: one step of time and one value network at a time, in eager torch modules.

The oracle of `agents/tdmpc2.py`, and what `benchmarks/tdmpc2_update.py` measures it against.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from agents.latent.agent import LatentAgent
from difftop.types import Batch


class SimplexNorm(nn.Module):
    """Softmax in groups of 8."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return torch.softmax(x.view(*x.shape[:-1], -1, 8), dim=-1).view(*x.shape)


def perceptron(sizes: list[int], last: nn.Module | None = None, dropout: float = 0.0) -> nn.Sequential:
    """Linear, (dropout in the first layer,) LayerNorm, Mish, ..., Linear, (LayerNorm, last)."""
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        layers.append(nn.Linear(sizes[i], sizes[i + 1]))
        if i < len(sizes) - 2:
            layers += [nn.Dropout(dropout)] if i == 0 and dropout > 0 else []
            layers += [nn.LayerNorm(sizes[i + 1]), nn.Mish()]
    return nn.Sequential(*layers, *([nn.LayerNorm(sizes[-1]), last] if last else []))


class PlainTDMPC2:
    """The agent's networks, copied, and its update.

    Args:
        agent: whose weights, sizes and coefficients it has; states only.
        all_heads: as the official code, evaluates every value network where two are asked for; else only these two.
    """

    def __init__(self, agent: LatentAgent, all_heads: bool = True) -> None:
        sizes: Any = agent.world.sizes
        spec = agent.spec
        z, a, width = sizes.latent_dim, spec.action_dim, sizes.mlp_dim
        self.agent, self.all_heads, self.sizes = agent, all_heads, sizes
        self.encoder = perceptron([spec.obs[spec.only_key].shape[0], sizes.encoder_dim, z], SimplexNorm())
        self.dynamics = perceptron([z + a, width, width, z], SimplexNorm())
        self.reward = perceptron([z + a, width, width, sizes.bins])
        self.pi = perceptron([z, width, width, 2 * a])
        self.q = nn.ModuleList(perceptron([z + a, width, width, sizes.bins], dropout=sizes.dropout) for _ in range(sizes.members))
        self._copy_weights()
        self.target_q = copy.deepcopy(self.q).eval()
        self.bins = torch.linspace(-10, 10, sizes.bins, dtype=torch.float64).float().to(self.pi[0].weight.dtype)
        rate = agent.config.loss.learning_rate
        others = [*self.dynamics.parameters(), *self.reward.parameters(), *self.q.parameters()]
        self.trained = [*self.encoder.parameters(), *others]
        self.optimizer = torch.optim.Adam([{"params": self.encoder.parameters(), "lr": 0.3 * rate}, {"params": others}], lr=rate)
        self.policy_optimizer = torch.optim.Adam(self.pi.parameters(), lr=rate, eps=1e-5)
        self.generator = torch.Generator()
        self.scale = 1.0

    def _copy_weights(self) -> None:
        model = self.agent.model
        dtype = next(model.parameters()).dtype
        pairs = [(self.encoder, model.encoder), (self.dynamics, model.dynamics), (self.reward, model.reward), (self.pi, model.pi)]
        for ours, theirs in pairs:
            for p, other in zip(ours.to(dtype).parameters(), theirs.parameters(), strict=True):
                p.data.copy_(other)
        for j, head in enumerate(self.q.to(dtype)):
            for p, other in zip(head.parameters(), model.q.parameters(), strict=True):
                p.data.copy_(other[j].view_as(p))

    def two_hot(self, x: Tensor) -> Tensor:
        """Two-hot form `[N, K]` of numbers `[N]`."""
        place = (torch.sign(x) * torch.log(1 + x.abs())).clamp(-10, 10)
        place = (place + 10) / (20 / (len(self.bins) - 1))
        index = torch.floor(place).long().clamp(max=len(self.bins) - 2)
        share = (place - index).unsqueeze(1)
        hot = torch.zeros(len(x), len(self.bins), dtype=x.dtype)
        hot.scatter_(1, index.unsqueeze(1), 1 - share)
        return hot.scatter_(1, index.unsqueeze(1) + 1, share)

    def cross_entropy(self, logits: Tensor, x: Tensor) -> Tensor:
        """Per sample `[N]`."""
        return -(self.two_hot(x) * torch.log_softmax(logits, dim=-1)).sum(dim=-1)

    def number(self, logits: Tensor) -> Tensor:
        """The number that logits stand for."""
        mean = (torch.softmax(logits, dim=-1) * self.bins).sum(dim=-1)
        return torch.sign(mean) * (torch.exp(mean.abs()) - 1)

    def sample(self, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Action and the logarithm of its density."""
        mean, raw = self.pi(z).chunk(2, dim=-1)
        low, high = -10.0, 2.0
        log_std = low + 0.5 * (high - low) * (torch.tanh(raw) + 1)
        u = mean + noise * log_std.exp()
        a = torch.tanh(u)
        log_p = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi) - torch.log(1 - a.square() + 1e-12)
        return a, log_p.sum(dim=-1)

    def two_values(self, heads: nn.ModuleList, z: Tensor, a: Tensor, members: list[int]) -> list[Tensor]:
        """Values of two members."""
        x = torch.cat([z, a], dim=-1)
        if self.all_heads:
            logits = [head(x) for head in heads]
            return [self.number(logits[j]) for j in members]
        return [self.number(heads[j](x)) for j in members]

    def members(self) -> list[int]:
        """Two, drawn."""
        return torch.randperm(len(self.q), generator=self.generator)[:2].tolist()

    def noise(self, steps: int, batch: int) -> Tensor:
        """Standard normal `[steps, batch, A]`."""
        size = (steps, batch, self.agent.spec.action_dim)
        return torch.randn(size, generator=self.generator, dtype=self.bins.dtype)

    def model_loss(self, batch: Batch) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Loss, targets and the latents of the rollout."""
        config, gamma = self.agent.config.loss, self.agent.world.discount
        size, steps = batch.action.shape[:2]
        with torch.no_grad():
            encoded = [self.encoder(batch.obs[:, t + 1]) for t in range(steps)]
            noise, members, targets = self.noise(steps, size), self.members(), []
            for t in range(steps):
                a, _ = self.sample(encoded[t], noise[t])
                value = torch.minimum(*self.two_values(self.target_q, encoded[t], a, members))
                targets.append(batch.reward[:, t] + gamma * torch.where(batch.terminated[:, t], 0.0, value))
        z = [self.encoder(batch.obs[:, 0])]
        loss = torch.zeros((), dtype=self.bins.dtype)
        for t in range(steps):
            x = torch.cat([z[t], batch.action[:, t]], dim=-1)
            z.append(self.dynamics(x))
            error = config.consistency * (z[t + 1] - encoded[t]).square().mean(dim=1)
            error = error + config.reward * self.cross_entropy(self.reward(x), batch.reward[:, t])
            for head in self.q:
                error = error + config.value * self.cross_entropy(head(x), targets[t]) / len(self.q)
            loss = loss + config.rho**t * (batch.weight * error).mean() / steps
        return loss, targets, z

    def policy_loss(self, z: list[Tensor]) -> Tensor:
        """Of the prior alone; the value networks are constants."""
        config = self.agent.config.loss
        noise, members = self.noise(len(z), len(z[0])), self.members()
        loss = torch.zeros((), dtype=self.bins.dtype)
        self.q.requires_grad_(False)
        for t in range(len(z)):
            a, log_p = self.sample(z[t].detach(), noise[t])
            q = sum(self.two_values(self.q, z[t].detach(), a, members)) / 2
            if t == 0:
                ends = torch.quantile(q.detach(), torch.tensor([0.05, 0.95], dtype=q.dtype))
                self.scale += 0.01 * (max(float(ends[1] - ends[0]), 1.0) - self.scale)
            bonus = config.entropy * a.shape[1] * log_p
            loss = loss - config.rho**t * (q / self.scale - bonus).mean() / len(z)
        self.q.requires_grad_(True)
        return loss

    def update(self, batch: Batch) -> None:
        """One gradient step."""
        loss, _, z = self.model_loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, self.agent.config.loss.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.policy_loss(z).backward()
        nn.utils.clip_grad_norm_(self.pi.parameters(), self.agent.config.loss.grad_clip)
        self.policy_optimizer.step()
        self.policy_optimizer.zero_grad()
        with torch.no_grad():
            for slow, fast in zip(self.target_q.parameters(), self.q.parameters(), strict=True):
                slow.lerp_(fast, self.agent.config.loss.target_rate)
