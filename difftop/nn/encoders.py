"""Encoders from observations to latents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from difftop.nn.activations import SimNorm
from difftop.nn.mlp import mlp, normed_mlp, orthogonal_, truncated_normal_
from difftop.types import ObsSpec

_CPU_IMAGES = 64


class Convolutions(nn.Sequential):
    """Convolutions and ReLUs of frames `[N, C, H, W]` in 0..255, scaled to `[0, 1] - minus`, to features `[N, F]`.

    The first layer's weights are scaled in place of the frames, since bytes, and halves of odd ones, are exact in bfloat16 too:
    frames go into the type of the products without a copy in between. Convolutions are faster with channels last, and a CPU is
    given as many images at a time as its cache has room for: together two thirds of the time (64 and 192 frames of 84 pixels,
    AVX-512).

    Attributes:
        dtype: of the products; None: autocast's, else that of the weights. See `half_images`.
    """

    def __init__(self, *layers: nn.Module, minus: float = 0.0) -> None:
        super().__init__(*layers, nn.Flatten())
        self.minus = minus
        self.dtype: torch.dtype | None = None

    def forward(self, frames: Tensor) -> Tensor:
        """Features `[N, F]`, in the type of the products."""
        (first, *rest), device = list(self), frames.device.type
        assert isinstance(first, nn.Conv2d) and first.bias is not None
        cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        dtype = self.dtype or (torch.get_autocast_dtype(device) if cast else first.weight.dtype)
        scaled = (first.weight / 255).to(dtype)
        features = []
        for part in torch.split(frames, _CPU_IMAGES) if device == "cpu" else (frames,):
            x = part.to(dtype, memory_format=torch.channels_last)
            x = nn.functional.conv2d(x - 255 * self.minus if self.minus else x, scaled, first.bias.to(dtype), first.stride)
            for layer in rest:
                if isinstance(layer, nn.Conv2d):
                    assert layer.bias is not None
                    x = nn.functional.conv2d(x, layer.weight.to(dtype), layer.bias.to(dtype), layer.stride)
                else:
                    x = layer(x)
            features.append(x)
        return torch.cat(features)


def half_images(module: nn.Module) -> None:
    """Has all convolutions of images in `module` computed in bfloat16; what follows them stays as it is."""
    for part in module.modules():
        if isinstance(part, Convolutions):
            part.dtype = torch.bfloat16


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
        self.convolutions = Convolutions(*layers)
        with torch.no_grad():
            features = self.convolutions(torch.zeros(1, *obs_shape)).shape[1]
        self.project = nn.Linear(features, out)
        orthogonal_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, obs: Tensor) -> Tensor:
        """Latents `[N, out]` of frames `[N, C, H, W]` in 0..255."""
        out: Tensor = self.project(self.convolutions(obs).to(self.project.weight.dtype))
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
        self.convolutions = Convolutions(*layers[:-1], minus=0.5)
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
        out: Tensor = self.simplices(self.project(self.convolutions(obs).to(weight.dtype)))
        return out


def make_simplex_encoder(obs: ObsSpec, hidden: int, channels: int, out: int, simplex: int) -> nn.Module:
    """TD-MPC2's encoder of a vector (one hidden layer) or an image; latents are simplices of `simplex` numbers."""
    if obs.kind == "vector":
        return normed_mlp([obs.shape[0], hidden, out], last=SimNorm(simplex))
    return SimplexPixelEncoder(obs.shape, channels, out, simplex)


def random_shift(frames: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Shifts each image by up to `pad` pixels, edges repeated.

    Args:
        frames: `[N, ..., C, H, W]`, any dtype.
        pad: largest shift, in pixels.
    Returns:
        The same shape and dtype, in memory with channels last, as convolutions take it; one offset per image, shared by its
        channels.
    Source: DrQ-v2, arXiv:2107.09645.  Differs: whole images are copied from a padded one, where
        grid_sample is asked for whole-pixel offsets (equal values).
    """
    *lead, channels, height, width = frames.shape
    n = math.prod(lead)
    shift = torch.randint(-pad, pad + 1, (2, n, 1), generator=generator, device=generator.device).to(frames.device)
    top, left = (shift + pad).squeeze(-1)
    padded = frames.new_empty(*lead, height + 2 * pad, width + 2 * pad, channels)
    inner = padded[..., pad : pad + height, :, :]
    inner[..., pad : pad + width, :] = frames.movedim(-3, -1)
    inner[..., :pad, :], inner[..., pad + width :, :] = inner[..., pad : pad + 1, :], inner[..., pad + width - 1 : pad + width, :]
    padded[..., :pad, :, :], padded[..., pad + height :, :, :] = inner[..., :1, :, :], inner[..., -1:, :, :]
    places = padded.flatten(0, len(lead) - 1).unfold(1, height, 1).unfold(2, width, 1)
    places = places.permute(0, 1, 2, 4, 5, 3)  # [N, 2 pad + 1, 2 pad + 1, H, W, C], a view
    return places[torch.arange(n, device=frames.device), top, left].movedim(-1, 1).view(frames.shape)
