"""Noise on actions, and in place of them."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from difftop.noise import mixed_noise
from difftop.types import EnvSpec

PARTS = 25  # of an episode, each of which is explored in its own way
PRIOR_NOISE_CLIP = 0.3  # largest noise where a prior without a spread of its own is sampled; TD-MPC's


def add_noise(mean: Tensor, std: Tensor | float, generator: torch.Generator | None, noise_clip: float | None = None) -> Tensor:
    """`clamp(mean + noise, -1, 1)` with Gaussian noise; the gradient passes as if nothing had been clamped.

    Args:
        mean: actions, any shape.
        std: standard deviation, in units of the action range [-1, 1]; the number 0 draws nothing.
        generator: source of the noise, on the device of `mean`.
        noise_clip: largest noise, or None.
    """
    if not isinstance(std, Tensor) and std == 0:
        return mean
    noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=torch.float32).to(mean.dtype) * std
    if noise_clip is not None:
        noise = noise.clamp_(-noise_clip, noise_clip)
    with torch.no_grad():
        moved = (mean + noise).clamp_(-1, 1)
    return moved + (mean - mean.detach())


class EpisodeNoise:
    """One environment's exploration, a function of its episode's seed and of how many steps it has played.

    An episode that explores has `PARTS` parts, and each a number in [0, 1): those with the smallest are the noise's alone, in
    those with the largest plans are bold. A few random steps between planned ones lead nowhere new, a run of them does. The
    other episodes are planned from end to end: what was learned is played out, and their rewards tell how far that leads.

    Source: the runs of random steps are Dabney, Ostrovski, Barreto, "Temporally-Extended epsilon-Greedy Exploration",
    arXiv:2006.01782.  Differs: what acts is coloured noise and not one repeated action, for a fixed time.
    """

    def __init__(self, seed: int, spec: EnvSpec) -> None:
        self.begin(seed, spec)

    def begin(self, seed: int, spec: EnvSpec) -> None:
        """Draws the episode's noise, and the numbers of its parts."""
        self.seed, self.drawn = seed, 0
        self._steps = mixed_noise(spec.episode_steps, spec.action_dim, seed)
        numbers = random.Random(seed + 1)
        self._parts = [numbers.random() for _ in range(PARTS)]
        self._turn = numbers.random()

    def explores(self, share: float) -> bool:
        """Whether the episode is in the share of those with random and bold parts."""
        return self._turn < share

    def alone(self, share: float) -> bool:
        """Whether the next step is in the share of the episode in which noise acts alone."""
        return self.part < share

    def bold(self, share: float) -> bool:
        """Whether it is in the share with bold plans."""
        return self.part >= 1 - share

    @property
    def part(self) -> float:
        """Number of the part that the next step is in."""
        return self._parts[self.drawn * PARTS // len(self._steps) % PARTS]

    def draw(self) -> Tensor:
        """Noise of the next step `[A]`; from the start again in an episode that is too long."""
        self.drawn += 1
        return self._steps[(self.drawn - 1) % len(self._steps)]
