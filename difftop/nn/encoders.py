"""Encoders from observations to latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from difftop.nn.activations import SimNorm
from difftop.nn.mlp import mlp, normed_mlp, orthogonal_, truncated_normal_
from difftop.types import ObsSpec


class PixelEncoder(nn.Module):
    """Four strided convolutions and a linear map: uint8 `[N, C, 84, 84]` to `[N, out]`.

    Source: TD-MPC, arXiv:2203.04955, appendix F.
    """

    def __init__(self, obs_shape: Sequence[int], channels: int, out: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = obs_shape[0]
        for kernel in (7, 5, 3, 3):
            conv = nn.Conv2d(inputs, channels, kernel, stride=2)
            nn.init.orthogonal_(conv.weight.data.view(channels, -1), nn.init.calculate_gain("relu"))
            nn.init.zeros_(conv.bias) if conv.bias is not None else None
            layers += [conv, nn.ReLU()]
            inputs = channels
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            features = self.convolutions(torch.zeros(1, *obs_shape)).shape[1]
        self.project = nn.Linear(features, out)
        orthogonal_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, obs: Tensor) -> Tensor:
        """Latents `[N, out]` of frames `[N, C, H, W]` in 0..255."""
        scaled = obs.to(self.project.weight.dtype).div_(255) if obs.dtype == torch.uint8 else obs / 255
        features: Tensor = self.convolutions(scaled)
        out: Tensor = self.project(features)
        return out


def make_encoder(obs: ObsSpec, hidden: int, channels: int, out: int) -> nn.Module:
    """The encoder of a vector (an MLP) or an image (convolutions)."""
    if obs.kind == "vector":
        return mlp([obs.shape[0], hidden, out])
    return PixelEncoder(obs.shape, channels, out)


class SimplexPixelEncoder(nn.Module):
    """Four convolutions, the last without stride, to simplices: uint8 `[N, C, H, W]` to `[N, out]`.

    Source: TD-MPC2, arXiv:2310.16828, section 3.1 and appendix H.  Differs: where the features are not `out` in number (they are
    512 for its frames of 64x64 and 32 channels) a linear layer makes them so.
    """

    def __init__(self, obs_shape: Sequence[int], channels: int, out: int, simplex: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = obs_shape[0]
        for kernel, stride in ((7, 2), (5, 2), (3, 2), (3, 1)):
            layers += [nn.Conv2d(inputs, channels, kernel, stride), nn.ReLU()]
            inputs = channels
        self.convolutions = nn.Sequential(*layers[:-1], nn.Flatten())
        with torch.no_grad():
            features = self.convolutions(torch.zeros(1, *obs_shape)).shape[1]
        self.project: nn.Module = nn.Identity()
        if features != out:
            self.project = nn.Linear(features, out)
            truncated_normal_(self.project.weight)
            nn.init.zeros_(self.project.bias)
        self.simplices = SimNorm(simplex)

    def forward(self, obs: Tensor) -> Tensor:
        """Latents `[N, out]` of frames `[N, C, H, W]` in 0..255."""
        weight = next(self.convolutions.parameters())
        out: Tensor = self.simplices(self.project(self.convolutions(obs.to(weight.dtype) / 255 - 0.5)))
        return out


def make_simplex_encoder(obs: ObsSpec, hidden: int, channels: int, out: int, simplex: int) -> nn.Module:
    """TD-MPC2's encoder of a vector (one hidden layer) or an image; latents are simplices of `simplex` numbers."""
    if obs.kind == "vector":
        return normed_mlp([obs.shape[0], hidden, out], last=SimNorm(simplex))
    return SimplexPixelEncoder(obs.shape, channels, out, simplex)


def random_shift(frames: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Shifts each image by up to `pad` pixels, edges repeated.

    Args:
        frames: `[N, C, H, W]`, any dtype.
        pad: largest shift, in pixels.
    Returns:
        The same shape and dtype; one offset per image, shared by its channels.
    Source: DrQ-v2, arXiv:2107.09645.  Differs: whole-pixel gather instead of grid_sample at whole-pixel offsets (equal values).
    """
    n, channels, height, width = frames.shape
    shift = torch.randint(-pad, pad + 1, (2, n, 1), generator=generator, device=generator.device).to(frames.device)
    rows = (torch.arange(height, device=frames.device) + shift[0]).clamp_(0, height - 1)
    columns = (torch.arange(width, device=frames.device) + shift[1]).clamp_(0, width - 1)
    image = torch.arange(n, device=frames.device)[:, None, None, None]
    channel = torch.arange(channels, device=frames.device)[:, None, None]
    return frames[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
