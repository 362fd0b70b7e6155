"""An encoder of point clouds that doesn't care for the order of the points."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class PointNet(nn.Module):
    """The same small network on every point, a maximum over the points, and a projection.

        C -> 64 -> 128 -> 256 (LayerNorm and ReLU after each),  max over points,  256 -> out,  LayerNorm

    Args:
        channels: C, numbers of a point: 3 for its position, 6 with its colour.
        out: features.
    Source: 3D Diffusion Policy, arXiv:2403.03954, its encoder of MetaWorld's clouds.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((channels, 64, 128, 256)):
            layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU()]
        self.points = nn.Sequential(*layers)
        self.project = nn.Sequential(nn.Linear(256, out), nn.LayerNorm(out))

    def forward(self, cloud: Tensor) -> Tensor:
        """Features `[N, out]` of clouds `[N, P, C]`."""
        features: Tensor = self.project(self.points(cloud).amax(1))
        return features
