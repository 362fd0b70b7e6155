"""From a dictionary of observations to tokens, for transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from difftop.nn.observation import CroppedMaps, EncoderConfig, KeyedEncoder
from difftop.nn.pointnet import PointNet
from difftop.nn.transformer import grid_sinusoids


class ObservationTokens(KeyedEncoder):
    """Tokens of all keys, in the order of `shapes`; each has a learned vector of its key added.

        vector:  linear -> 1 token
        image:   crop -> random colours -> x / 127.5 - 1 -> ResNet or SmallConv -> linear, plus the cell's place as waves
                 -> a token for each cell; depths likewise, see there
        cloud:   PointNet -> linear -> 1 token

    Args:
        shapes, config: see `KeyedEncoder`.
        dim: size of a token, a multiple of 4.
    Attributes:
        count: tokens of one observation.
    Source: ACT, arXiv:2304.13705, section IV.C, for images and joint positions.
    Differs: one network per camera; a token for each vector where the paper has one of joint positions; image weights start at
    random.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], config: EncoderConfig, *, dim: int) -> None:
        super().__init__(shapes, config)
        self.out, self.count = dim, 0
        for key, shape in shapes.items():
            cells = 1, 1
            if len(shape) == 3:
                self.nets[key] = net = MapTokens(key, shape, config, dim)
                cells = net.cells
            elif len(shape) == 2:
                self.nets[key] = nn.Sequential(PointNet(shape[-1], config.features), nn.Linear(config.features, dim))
            else:
                self.nets[key] = nn.Linear(shape[0], dim)
            self.count += cells[0] * cells[1]
        self.kinds = nn.Parameter(0.02 * torch.randn(len(self.order), dim))

    def forward(self, obs: Mapping[str, Tensor], crops: Tensor | None = None, colours: Tensor | None = None) -> Tensor:
        """Tokens `[..., count, dim]`; see `KeyedEncoder.encoded`."""
        parts = self.encoded(obs, crops, colours)
        lists = [x if key in self.cameras else x[..., None, :] for key, x in zip(self.order, parts, strict=True)]
        return torch.cat([x + kind for x, kind in zip(lists, self.kinds, strict=True)], -2)


class MapTokens(CroppedMaps):
    """One camera's tokens: `[N, C, height, width]` in 0 .. 255 to `[N, rows columns, dim]`; raises as `CroppedMaps`."""

    place: Tensor

    def __init__(self, name: str, shape: Sequence[int], config: EncoderConfig, dim: int) -> None:
        super().__init__(name, shape, config)
        self.linear = nn.Linear(self.out, dim)
        self.register_buffer("place", grid_sinusoids(*self.cells, dim), persistent=False)

    def forward(self, image: Tensor, corner: Tensor | None = None, colour: Tensor | None = None) -> Tensor:
        """Tokens, row by row; see `maps`."""
        tokens: Tensor = self.linear(self.maps(image, corner, colour).flatten(2).mT)
        return tokens + self.place
