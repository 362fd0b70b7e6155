"""torch's transformer layers, with dropout from a generator, and places as sines and cosines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from difftop.nn.mlp import dropout

_SLOWEST = 10_000  # base of the wave lengths
Net = TypeVar("Net", bound=nn.Module)


def sinusoids(place: Tensor, dim: int) -> Tensor:
    """Places as waves, `[*]` to `[*, dim]`:

        e_{p,2k} = sin(p / 10000^{2k/dim}),   e_{p,2k+1} = cos(p / 10000^{2k/dim})

    Args:
        place: p, any number.
        dim: even.
    Source: Vaswani et al., arXiv:1706.03762, section 3.5.
    """
    slower = _SLOWEST ** (torch.arange(0, dim, 2, device=place.device) / dim)
    angle = place[..., None] / slower
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)


def grid_sinusoids(rows: int, columns: int, dim: int) -> Tensor:
    """Places of cells, row by row, `[rows columns, dim]`: half of the numbers tell the row, half the column.

    Args:
        dim: a multiple of 4.
    Source: DETR, arXiv:2005.12872, appendix A.4.
    """
    row, column = (sinusoids(torch.arange(n), dim // 2) for n in (rows, columns))
    both = torch.cat([row[:, None].expand(-1, columns, -1), column.expand(rows, -1, -1)], -1)
    return both.flatten(0, 1)


class SeededDropout(nn.Module):
    """Dropout that draws from a generator (see `drawing_from`); without one it is the identity.

    Args:
        p: share of numbers that become zero.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x if self.generator is None or not self.training else dropout(x, self.p, self.generator)


@contextmanager
def drawing_from(module: nn.Module, generator: torch.Generator | None) -> Iterator[None]:
    """Meanwhile all `SeededDropout` in a module draw from `generator`; None: torch's own of the CPU."""
    layers = [part for part in module.modules() if isinstance(part, SeededDropout)]
    for layer in layers:
        layer.generator = generator or torch.default_generator
    try:
        yield
    finally:
        for layer in layers:
            layer.generator = None


def transformer_encoder(
    layers: int, dim: int, heads: int, feedforward: int, dropout: float, *, activation: str = "relu"
) -> nn.TransformerEncoder:
    """Self-attention, batch first, normalized before each part and at the end.

    Args:
        layers: how many.
        dim: size of a token; a multiple of `heads`.
        heads: of the attention.
        feedforward: width of each layer's MLP.
        dropout: share, after attention and in and after the MLP.
        activation: of the MLP, relu or gelu.
    Differs: no dropout inside of the attention's weights, since torch draws it without a generator.
    """
    layer = nn.TransformerEncoderLayer(dim, heads, feedforward, 0.0, activation, batch_first=True, norm_first=True)
    made = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False)
    return _prepared(made, dropout)


def transformer_decoder(
    layers: int, dim: int, heads: int, feedforward: int, dropout: float, *, activation: str = "relu"
) -> nn.TransformerDecoder:
    """Self-attention and attention to a memory; otherwise see `transformer_encoder`."""
    layer = nn.TransformerDecoderLayer(dim, heads, feedforward, 0.0, activation, batch_first=True, norm_first=True)
    return _prepared(nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(dim)), dropout)


def _prepared(net: Net, p: float) -> Net:
    """Own weights for each layer, which torch makes as copies of the first; and dropout from a generator."""
    for parameter in net.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for part in list(net.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(part, name, SeededDropout(p))
    return net
