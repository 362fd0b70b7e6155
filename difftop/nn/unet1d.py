"""A U-Net over time, conditioned on observations and on the step of a diffusion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from difftop.nn.activations import Mish


class StepEmbedding(nn.Module):
    """Sines and cosines of a diffusion step, and an MLP: `[B]` to `[B, dim]`."""

    frequency: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        frequency = torch.exp(-math.log(10_000) * torch.arange(half) / max(half - 1, 1))
        self.register_buffer("frequency", frequency, persistent=False)
        self.net = nn.Sequential(nn.Linear(2 * half, 4 * dim), Mish(), nn.Linear(4 * dim, dim))

    def forward(self, step: Tensor) -> Tensor:
        """Embeddings of steps, int64."""
        angle = step[:, None] * self.frequency
        embedded: Tensor = self.net(torch.cat([angle.sin(), angle.cos()], -1))
        return embedded


class ConditionedBlock(nn.Module):
    """Two convolutions (GroupNorm, Mish) beside a skip; in between, channels are scaled and shifted by the condition (FiLM).

    h = block(x),   h = scale(c) h + shift(c),   y = block(h) + skip(x)
    """

    def __init__(self, inputs: int, outputs: int, condition: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Sequential(nn.Conv1d(size, outputs, kernel, padding=kernel // 2), nn.GroupNorm(groups, outputs), Mish())
            for size in (inputs, outputs)
        )
        self.film = nn.Sequential(Mish(), nn.Linear(condition, 2 * outputs))
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`[B, inputs, T]` and `[B, condition]` to `[B, outputs, T]`."""
        scale, shift = self.film(condition)[..., None].chunk(2, 1)
        y: Tensor = self.second(scale * self.first(x) + shift) + self.skip(x)
        return y


class UNet1d(nn.Module):
    """Predicts the noise in a sequence of actions.

    Down: for each width two blocks, then a strided convolution (not after the last). Two blocks in the middle. Up: the same with
    transposed convolutions, after joining what the way down remembers. Every block is conditioned on observations and step.

    Args:
        actions: A.
        condition: size of the features of the observations.
        widths: channels, level by level; T must be a multiple of 2^(levels - 1).
        step_dim: size of the step's embedding.
        kernel: of the convolutions, odd.
        groups: of GroupNorm; divides every width.
    Source: Diffusion Policy, arXiv:2303.04137, `ConditionalUnet1D` with global conditioning and `cond_predict_scale`.
    """

    def __init__(
        self, actions: int, condition: int, widths: Sequence[int], *, step_dim: int = 256, kernel: int = 5, groups: int = 8
    ) -> None:
        super().__init__()
        self.embed = StepEmbedding(step_dim)
        total = step_dim + condition

        def block(inputs: int, outputs: int) -> ConditionedBlock:
            return ConditionedBlock(inputs, outputs, total, kernel, groups)

        levels = list(pairwise((actions, *widths)))
        self.down = nn.ModuleList(nn.ModuleList([block(i, o), block(o, o)]) for i, o in levels)
        self.shrink = nn.ModuleList(nn.Conv1d(o, o, 3, 2, 1) for _, o in levels[:-1])
        self.middle = nn.ModuleList([block(widths[-1], widths[-1]), block(widths[-1], widths[-1])])
        self.up = nn.ModuleList(nn.ModuleList([block(2 * o, i), block(i, i)]) for i, o in reversed(levels[1:]))
        self.grow = nn.ModuleList(nn.ConvTranspose1d(i, i, 4, 2, 1) for i, _ in reversed(levels[1:]))
        self.last = nn.Sequential(
            nn.Conv1d(widths[0], widths[0], kernel, padding=kernel // 2),
            nn.GroupNorm(groups, widths[0]),
            Mish(),
            nn.Conv1d(widths[0], actions, 1),
        )

    def forward(self, x: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """Noise `[B, T, A]` in x `[B, T, A]` at steps `[B]`, int64, given features `[B, condition]`."""
        c = torch.cat([self.embed(step).to(condition.dtype), condition], -1)
        h, kept = x.mT, []
        for level, blocks in enumerate(self.down):
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, c)
            kept.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
        for block in self.middle:
            h = block(h, c)
        for blocks, grow in zip(self.up, self.grow, strict=True):
            h = torch.cat([h, kept.pop()], 1)
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, c)
            h = grow(h)
        noise: Tensor = self.last(h)
        return noise.mT
