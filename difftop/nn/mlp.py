"""Multilayer perceptrons, single and as ensembles whose members run in one batched matrix product."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from difftop.nn.activations import ELU, Mish, Tanh

Members = Sequence[int] | Tensor


def orthogonal_(weight: Tensor, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Orthogonal initialization of `weight [..., out, in]`, one draw per leading index, in place."""
    with torch.no_grad():
        for matrix in weight.view(-1, *weight.shape[-2:]):
            nn.init.orthogonal_(matrix, gain, generator=generator)
    return weight


def mlp(sizes: Sequence[int], *, norm_first: bool = False, zero_last: bool = False) -> nn.Sequential:
    """`Linear ELU ... Linear`, orthogonal weights, zero biases.

    Args:
        sizes: widths from input to output; at least two.
        norm_first: the first hidden layer is followed by LayerNorm and Tanh instead of ELU (TD-MPC's Q networks).
        zero_last: the last layer's weights start at zero (reward and value heads).
    Source: TD-MPC, arXiv:2203.04955, appendix F.
    """
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        linear = nn.Linear(inputs, outputs)
        orthogonal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers.append(linear)
        if i < len(sizes) - 2:
            layers += [nn.LayerNorm(outputs), Tanh()] if norm_first and i == 0 else [ELU()]
    if zero_last:
        nn.init.zeros_(linear.weight)
    return nn.Sequential(*layers)


def truncated_normal_(weight: Tensor) -> Tensor:
    """N(0, 0.02^2), in place: TD-MPC2's initialization of every weight."""
    return nn.init.trunc_normal_(weight, std=0.02)


def normed_mlp(
    sizes: Sequence[int],
    *,
    last: nn.Module | None = None,
    last_gain: bool = True,
    zero_last: bool = False,
    activation: type[nn.Module] = Mish,
    initialize_: Callable[[Tensor], Tensor] | None = None,
) -> nn.Sequential:
    """`Linear LayerNorm Mish ... Linear`, small normal weights, zero biases.

    Args:
        sizes: widths from input to output; at least two.
        activation: of the hidden layers.
        initialize_: of the weights.
        last: the output is followed by LayerNorm and this activation.
        last_gain: whether that LayerNorm has a gain and an offset, which are trained.
        zero_last: the last layer's weights start at zero.
    Source: TD-MPC2, arXiv:2310.16828, section 3.1 and appendix H.
    """
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        linear = nn.Linear(inputs, outputs)
        (initialize_ or truncated_normal_)(linear.weight)
        nn.init.zeros_(linear.bias)
        layers.append(linear)
        if i < len(sizes) - 2:
            layers += [nn.LayerNorm(outputs), activation()]
    if zero_last:
        nn.init.zeros_(linear.weight)
    return nn.Sequential(*layers, *([nn.LayerNorm(sizes[-1], elementwise_affine=last_gain), last] if last is not None else []))


def dropout(x: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Zeros each number with probability `p` and divides the others by 1 - p.

    On a CPU the gaps between zeros are drawn (they are geometric) instead of a number for each entry: for p = 0.01 a tenth of
    the time of `torch.nn.functional.dropout`, which takes no generator either.
    """
    if p == 0:
        return x
    if not x.is_cpu:
        return x * (torch.rand(x.shape, generator=generator, device=x.device) >= p) / (1 - p)
    count = x.numel()
    places = torch.empty(0, dtype=torch.int64)
    while not len(places) or places[-1] < count:  # once round, but for one in a million
        enough = int(count * p + 6 * math.sqrt(count * p)) + 16
        gaps = torch.empty(enough, dtype=torch.int64).geometric_(p, generator=generator)
        places = torch.cat([places, gaps.cumsum(0) + (places[-1] if len(places) else -1)])
    return x.flatten().index_fill(0, places[places < count], 0.0).mul_(1 / (1 - p)).view_as(x)


class EnsembleLinear(nn.Module):
    """E linear maps: `[E, N, in]` or `[N, in]` (shared input) to `[E, N, out]`."""

    def __init__(
        self, members: int, inputs: int, outputs: int, zero: bool = False, initialize_: Callable[[Tensor], Tensor] = orthogonal_
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))
        nn.init.zeros_(self.weight) if zero else initialize_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`y_e = x_e W_e^T + b_e`."""
        members, outputs, _ = self.weight.shape
        if x.dim() == 2:  # one GEMM against all members' weights, stacked
            y = x @ self.weight.flatten(0, 1).t()
            return y.view(x.shape[0], members, outputs).transpose(0, 1) + self.bias
        return torch.baddbmm(self.bias, x, self.weight.transpose(1, 2))


class EnsembleNorm(nn.Module):
    """LayerNorm over the last axis with one scale and shift per member; input `[E, N, C]`."""

    def __init__(self, members: int, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, 1, width))
        self.bias = nn.Parameter(torch.zeros(members, 1, width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`(x - mean) / sqrt(var + eps) * weight + bias`."""
        return torch.addcmul(self.bias, nn.functional.layer_norm(x, x.shape[-1:], eps=self.eps), self.weight)


class EnsembleMLP(nn.Sequential):
    """Layers that each hold all E members; input `[N, in]` (shared) or `[E, N, in]`, output `[E, N, out]`.

    On a CPU the members take turns, which keeps their activations in the cache: 0.85 times the time of TD-MPC's update. On a GPU
    all run in the same kernels. Both give the same numbers up to rounding.
    """

    def forward(self, x: Tensor, members: Members | None = None, drop: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Outputs of all members, or of some.

        Args:
            x: `[N, in]` or `[E, N, in]`.
            members: the members wanted, in this order: numbers, or a tensor where the host doesn't know them; on a CPU the
                others are not evaluated.
            drop: dropout after the first layer.
        """
        if isinstance(members, Tensor) or not x.is_cpu:
            for i, layer in enumerate(self):
                x = drop(layer(x)) if drop is not None and i == 0 else layer(x)
            return x if members is None else x[members if isinstance(members, Tensor) else list(members)]
        chosen = range(self._members()) if members is None else members
        inputs = x.unbind() if x.dim() == 3 else [x] * self._members()
        parameters = [[p.unbind() for p in layer.parameters()] for layer in self]
        return torch.stack([self._member(inputs[e], [[p[e] for p in layer] for layer in parameters], drop) for e in chosen])

    def _members(self) -> int:
        return len(next(self.parameters()))

    def _member(self, h: Tensor, parameters: Sequence[Sequence[Tensor]], drop: Callable[[Tensor], Tensor] | None) -> Tensor:
        for i, (layer, own) in enumerate(zip(self, parameters, strict=True)):
            if isinstance(layer, EnsembleLinear):
                h = nn.functional.linear(h, own[0], own[1].squeeze(0))
            elif isinstance(layer, EnsembleNorm):
                h = nn.functional.layer_norm(h, h.shape[-1:], own[0].squeeze(0), own[1].squeeze(0), layer.eps)
            else:
                h = layer(h)
            if drop is not None and i == 0:
                h = drop(h)
        return h


def ensemble_mlp(members: int, sizes: Sequence[int], *, norm_first: bool = True, zero_last: bool = True) -> EnsembleMLP:
    """E copies of `mlp(sizes)` with their own weights; input `[N, in]` (shared) or `[E, N, in]`, output `[E, N, out]`."""
    layers: list[nn.Module] = []
    last = len(sizes) - 2
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        layers.append(EnsembleLinear(members, inputs, outputs, zero=zero_last and i == last))
        if i < last:
            layers += [EnsembleNorm(members, outputs), Tanh()] if norm_first and i == 0 else [ELU()]
    return EnsembleMLP(*layers)


def normed_ensemble(
    members: int,
    sizes: Sequence[int],
    *,
    activation: type[nn.Module] = Mish,
    initialize_: Callable[[Tensor], Tensor] | None = None,
) -> EnsembleMLP:
    """E copies of `normed_mlp(sizes, zero_last=True)` with their own weights."""
    layers: list[nn.Module] = []
    last = len(sizes) - 2
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        layers.append(EnsembleLinear(members, inputs, outputs, zero=i == last, initialize_=initialize_ or truncated_normal_))
        if i < last:
            layers += [EnsembleNorm(members, outputs), activation()]
    return EnsembleMLP(*layers)


def count_parameters(module: nn.Module) -> int:
    """Number of scalars that are trained."""
    return sum(math.prod(p.shape) for p in module.parameters() if p.requires_grad)
