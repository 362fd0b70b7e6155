"""A residual network for small images, and the spatial softmax that turns its feature maps into points."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_GROUP = 16  # channels that share statistics where normalization is by group


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(channels // _GROUP, channels)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside an identity (a 1x1 convolution where the size changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([_norm(norm, outputs), _norm(norm, outputs)])
        same = stride == 1 and inputs == outputs
        self.side = (
            nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), _norm(norm, outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """`relu(side(x) + norm(conv(relu(norm(conv(x))))))`."""
        h = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(h)) + self.side(x))


class ResNet18(nn.Module):
    """ResNet18 without its classifier: `[N, C, height, width]` to `[N, 512, ceil(height / 32), ceil(width / 32)]`.

    Args:
        channels: C.
        norm: `batch`, or `group` (16 channels each), which keeps no running statistics.
    Source: He et al., arXiv:1512.03385, and torchvision's initialization; Diffusion Policy for the groups.
    """

    out, stride = 512, 32

    def __init__(self, channels: int = 3, norm: str = "batch") -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.norm = _norm(norm, 64)
        blocks: list[nn.Module] = []
        inputs = 64
        for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [ResidualBlock(inputs, outputs, stride, norm), ResidualBlock(outputs, outputs, 1, norm)]
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
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
