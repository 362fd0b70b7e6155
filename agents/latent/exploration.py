"""Noise on actions."""

from __future__ import annotations

import torch
from torch import Tensor

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
