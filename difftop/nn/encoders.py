"""Encoders from observations to latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from difftop.nn.activations import SimNorm
from difftop.nn.mlp import mlp, normed_mlp, orthogonal_, truncated_normal_
from difftop.types import ObsSpec

_CPU_IMAGES = 64


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
        out: Tensor = self.project(convolved(self.convolutions, obs, self.project.weight.dtype))
        return out


def convolved(convolutions: nn.Module, frames: Tensor, dtype: torch.dtype, minus: float = 0.0) -> Tensor:
    """Features of frames `[N, C, H, W]` in 0..255, scaled to `[0, 1] - minus`.

    Convolutions are faster with channels last, and a CPU is given as many images at a time as its cache has room for: together
    two thirds of the time (64 and 192 frames of 84 pixels, AVX-512).
    """
    parts = torch.split(frames, _CPU_IMAGES) if frames.device.type == "cpu" else (frames,)
    scaled = (part.to(dtype, memory_format=torch.channels_last) / 255 for part in parts)
    return torch.cat([convolutions(part - minus if minus else part) for part in scaled])


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
        out: Tensor = self.simplices(self.project(convolved(self.convolutions, obs, weight.dtype, minus=0.5)))
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
    Source: DrQ-v2, arXiv:2107.09645.  Differs: whole images are copied from a padded one, where
        grid_sample is asked for whole-pixel offsets (equal values).
    """
    n, channels, height, width = frames.shape
    shift = torch.randint(-pad, pad + 1, (2, n, 1), generator=generator, device=generator.device).to(frames.device)
    top, left = (shift + pad).squeeze(-1)
    padded = frames.new_empty(n, channels, height + 2 * pad, width + 2 * pad)
    inner = padded[..., pad : pad + height, :]
    inner[..., pad : pad + width] = frames
    inner[..., :pad], inner[..., pad + width :] = frames[..., :1], frames[..., -1:]
    padded[..., :pad, :], padded[..., pad + height :, :] = inner[..., :1, :], inner[..., -1:, :]
    places = padded.unfold(2, height, 1).unfold(3, width, 1)  # [N, C, 2 pad + 1, 2 pad + 1, H, W], a view
    return places[torch.arange(n, device=frames.device), :, top, left]
