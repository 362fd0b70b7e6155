"""Residual networks for small images, and the spatial softmax that turns its feature maps into points."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_GROUP = 16  # channels that share statistics where normalization is by group
_LEVELS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}  # blocks at each size of the maps
_NARROW = 4  # a block of 50 layers computes with a quarter of its channels

DEPTHS = tuple(_LEVELS)
NORMS = ("batch", "group", "frozen")


class FrozenBatchNorm(nn.Module):
    """Batch normalization by recorded statistics, which never change: neither statistics nor scale and shift are trained.

    Source: Detectron2's and torchvision's `FrozenBatchNorm2d`, which ACT trains with.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.ones(channels))
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.BatchNorm2d` in evaluation."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "frozen":
        return FrozenBatchNorm(channels)
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(channels // _GROUP, channels)


def _side(inputs: int, outputs: int, stride: int, norm: str) -> nn.Module:
    """An identity, or a 1x1 convolution where the size changes."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), _norm(norm, outputs))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside an identity (a 1x1 convolution where the size changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([_norm(norm, outputs), _norm(norm, outputs)])
        self.side = _side(inputs, outputs, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """`relu(side(x) + norm(conv(relu(norm(conv(x))))))`."""
        h = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(h)) + self.side(x))


class Bottleneck(nn.Module):
    """As `ResidualBlock`, with a 3x3 convolution between two 1x1 ones; the stride is the 3x3's, as in torchvision."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        narrow = outputs // _NARROW
        self.first = nn.Conv2d(inputs, narrow, 1, bias=False)
        self.second = nn.Conv2d(narrow, narrow, 3, stride, 1, bias=False)
        self.third = nn.Conv2d(narrow, outputs, 1, bias=False)
        self.norms = nn.ModuleList([_norm(norm, narrow), _norm(norm, narrow), _norm(norm, outputs)])
        self.side = _side(inputs, outputs, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """`relu(side(x) + ...)`."""
        h = torch.relu(self.norms[0](self.first(x)))
        h = torch.relu(self.norms[1](self.second(h)))
        return torch.relu(self.norms[2](self.third(h)) + self.side(x))


class ResNet(nn.Module):
    """A ResNet without its classifier: `[N, C, height, width]` to `[N, out, ceil(height / 32), ceil(width / 32)]`.

    Args:
        channels: C.
        norm: `batch`; `group` (16 channels each), which keeps no running statistics; or `frozen`, see `FrozenBatchNorm`.
        depth: layers, 18, 34 or 50.
    Attributes:
        out: 512, of 50 layers 2048.
    Source: He et al., arXiv:1512.03385, and torchvision's initialization; Diffusion Policy for the groups.
    """

    out, stride = 512, 32

    def __init__(self, channels: int = 3, norm: str = "batch", depth: int = 18) -> None:
        super().__init__()
        self.levels = _LEVELS[depth]
        block, wide = (Bottleneck, _NARROW) if depth == 50 else (ResidualBlock, 1)
        self.stem = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.norm = _norm(norm, 64)
        blocks: list[nn.Module] = []
        inputs = 64
        for count, size, stride in zip(self.levels, (64, 128, 256, 512), (1, 2, 2, 2), strict=True):
            for number in range(count):
                blocks.append(block(inputs, size * wide, 1 if number else stride, norm))
                inputs = size * wide
        self.blocks, self.out = nn.Sequential(*blocks), inputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Feature maps."""
        x = F.max_pool2d(torch.relu(self.norm(self.stem(image))), 3, 2, 1)
        maps: Tensor = self.blocks(x)
        return maps


class SpatialSoftmax(nn.Module):
    """K expected positions, each under a softmax over the pixels of a map:

        p_k = sum_xy softmax_xy(f_k) (x, y),   x and y from -1 to 1.

    Args:
        channels: of the input; a 1x1 convolution makes K maps of them.
        size: rows and columns of the maps.
        points: K.
    Source: Levine et al., arXiv:1504.00702; robomimic's `SpatialSoftmax`, temperature 1, no noise.
    """

    grid: Tensor

    def __init__(self, channels: int, size: tuple[int, int], points: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, points, 1)
        y, x = torch.meshgrid(torch.linspace(-1, 1, size[0]), torch.linspace(-1, 1, size[1]), indexing="ij")
        self.register_buffer("grid", torch.stack([x, y], -1).view(-1, 2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Points `[N, K, 2]`, x before y, of maps `[N, channels, *size]`."""
        attention = self.maps(x).flatten(2).softmax(-1)
        points: Tensor = attention @ self.grid.to(attention.dtype)
        return points
