"""Networks with hand-written pullbacks: a Jacobian for many rows in a few matrix products, differentiable again.

`linearize(module, x)` returns the output y and a function that maps cotangents `[*N, *y.shape]` to cotangents of x, one matrix
product per layer for all N rows of all samples. The classes below turn networks into the callables of
`difftop.planning.LatentModel`:

    LatentModel(dynamics=StateAction(dynamics_net), reward=StateAction(reward_net, scalar=True),
                terminal=PolicyValue(q_ensemble, policy_net), discount=0.99)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from difftop.nn.activations import Mish, mish_and_slope
from difftop.nn.mlp import EnsembleLinear, EnsembleMLP, EnsembleNorm

Pullback = Callable[[Tensor], Tensor]
Linearized = tuple[Tensor, Pullback]


def linearize(module: nn.Module, x: Tensor) -> Linearized:
    """Output of `module` at `x`, and its pullback.

    Covers Sequential, Linear, LayerNorm, ELU, ReLU, Tanh, Sigmoid, Mish, SiLU, Identity, EnsembleLinear and EnsembleNorm; any
    other module needs a method `linearize(x)` of its own (SimNorm and TwoHot have one).

    Args:
        module: works on the last axis of `x`.
        x: `[B, in]`, or `[E, B, in]` between the layers of an ensemble.
    Raises:
        TypeError: a layer without a rule.
    """
    rule = _RULES.get(type(module))
    if rule is not None:
        return rule(module, x)
    activation = _ACTIVATIONS.get(type(module))
    if activation is not None:
        y, slope = activation(module, x, False)
        return y, lambda g: g * slope()
    own = getattr(module, "linearize", None)
    if own is not None:
        result: Linearized = own(x)
        return result
    raise TypeError(
        f"linearize: no pullback for {type(module).__name__}; give it a method linearize(x) -> (output, pullback), or hand the "
        "planner a plain function, whose Jacobian autograd takes."
    )


class StateAction:
    """A network on `[z, a]` as the callable `(z [B, Z], a [B, A]) -> [B, out]`, or `[B]` where `scalar`."""

    def __init__(self, net: nn.Module, scalar: bool = False) -> None:
        self.net = net
        self.scalar = scalar

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        """`net([z, a])`."""
        y: Tensor = self.net(torch.cat([z, a], -1))
        return y.squeeze(-1) if self.scalar else y

    def linearize(self, z: Tensor, a: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """Output and pullback to `(z, a)`."""
        y, pull = linearize(self.net, torch.cat([z, a], -1))

        def pullback(cotangent: Tensor) -> tuple[Tensor, Tensor]:
            gx = pull(cotangent.unsqueeze(-1) if self.scalar else cotangent)
            return gx[..., : z.shape[-1]], gx[..., z.shape[-1] :]

        return (y.squeeze(-1) if self.scalar else y), pullback


class PolicyValue:
    """Terminal value `V(z) = min_i Q_i(z, tanh(pi(z)))`, or the mean over i, as the callable `z [B, Z] -> [B]`.

    Source: TD-MPC, arXiv:2203.04955, equation 3. Differs: pi without noise, as in DiffTORI's planner.
    """

    def __init__(self, q: nn.Module, pi: nn.Module, mean: bool = False) -> None:
        """Takes an ensemble `[B, Z + A] -> [E, B, 1]` and a policy `[B, Z] -> [B, A]` before its tanh."""
        self.q = q
        self.pi = pi
        self.mean = mean

    def __call__(self, z: Tensor) -> Tensor:
        """`min_i Q_i(z, tanh(pi(z)))`, or their mean."""
        values: Tensor = self.q(torch.cat([z, torch.tanh(self.pi(z))], -1)).squeeze(-1)
        return values.mean(0) if self.mean else values.amin(0)

    def linearize(self, z: Tensor) -> Linearized:
        """Value and pullback to z; the gradient is that of the smallest member, or the mean of all."""
        mean, pull_pi = linearize(self.pi, z)
        a = torch.tanh(mean)
        values, pull_q = linearize(self.q, torch.cat([z, a], -1))
        if self.mean:
            value = values.squeeze(-1).mean(0)
            share = torch.full_like(values, 1 / len(values))  # [E, B, 1]
        else:
            value, index = values.squeeze(-1).min(0)
            share = (torch.arange(values.shape[0], device=z.device).unsqueeze(1) == index).unsqueeze(-1)

        def pullback(cotangent: Tensor) -> Tensor:
            gx = pull_q(cotangent[..., None, :, None] * share)
            return gx[..., : z.shape[-1]] + pull_pi(gx[..., z.shape[-1] :] * (1 - a * a))

        return value, pullback


def _sequential(module: nn.Sequential, x: Tensor) -> Linearized:
    steps: list[tuple[Callable[[], Tensor] | None, Pullback, bool]] = []
    product = False  # whether x is the fresh output of a matrix product, which nothing else needs
    for layer in module:
        activation = _ACTIVATIONS.get(type(layer))
        if activation is not None:
            x, slope = activation(layer, x, product)
            steps.append((slope, _unused, True))
            product = False
        else:
            x, pullback = linearize(layer, x)
            product = isinstance(layer, nn.Linear | EnsembleLinear)
            steps.append((None, pullback, product))

    def chain(cotangent: Tensor) -> Tensor:
        fresh = False  # whether the cotangent is ours to overwrite
        for slope, pullback, makes_fresh in reversed(steps):
            if slope is None:
                cotangent = pullback(cotangent)
            elif fresh and not torch.is_grad_enabled():
                cotangent.mul_(slope())
            else:
                cotangent = cotangent * slope()
            fresh = fresh or makes_fresh
        return cotangent

    return x, chain


def _unused(cotangent: Tensor) -> Tensor:
    return cotangent


def _linear(module: nn.Linear, x: Tensor) -> Linearized:
    weight = module.weight
    return F.linear(x, weight, module.bias), lambda g: g @ weight


def _ensemble_linear(module: EnsembleLinear, x: Tensor) -> Linearized:
    weight = module.weight  # [E, out, in]
    if x.dim() == 3:
        return module(x), lambda g: g @ weight

    def shared(g: Tensor) -> Tensor:
        # The members' cotangents add up in x: one product over members and outputs together.
        return g.transpose(-3, -2).flatten(-2) @ weight.flatten(0, 1)

    return module(x), shared


def _norm(module: nn.LayerNorm | EnsembleNorm, x: Tensor) -> Linearized:
    def pullback(g: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        inverse = (centred.square().mean(-1, keepdim=True) + module.eps).rsqrt()  # several times faster than Tensor.var
        normed = centred * inverse
        if module.weight is not None:
            g = g * module.weight
        return inverse * (g - g.mean(-1, keepdim=True) - normed * (g * normed).mean(-1, keepdim=True))

    return module(x), pullback


def _layer_norm(module: nn.LayerNorm, x: Tensor) -> Linearized:
    if len(module.normalized_shape) != 1:
        raise TypeError(f"linearize: LayerNorm over {module.normalized_shape}; only the last axis is covered.")
    return _norm(module, x)


def _identity(module: nn.Identity, x: Tensor) -> Linearized:
    return x, lambda g: g


class _Elu(torch.autograd.Function):
    """ELU and its slope at once, by exp: F.elu's expm1 takes seven times as long, and the slope is e^min(x, 0) itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        slope = x.clamp(max=0).exp_()
        ctx.save_for_backward(slope)
        return torch.maximum(x, slope - 1), slope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor | None, gslope: Tensor | None) -> Tensor | None:
        (slope,) = ctx.saved_tensors
        if gslope is None:
            return None if gy is None else gy * slope
        # The slope's own slope: itself left of 0 (where it is below 1), none right of it. One sweep, unlike masked_fill.
        g = torch.ops.aten.hardtanh_backward(gslope, slope, -1.0, 1.0)
        result: Tensor = (g if gy is None else g.add_(gy)).mul_(slope)
        return result


def _elu(module: nn.ELU, x: Tensor, overwrite: bool) -> tuple[Tensor, Callable[[], Tensor]]:
    if module.alpha == 1.0 and torch.is_grad_enabled() and x.requires_grad:
        y, slope = _Elu.apply(x)  # type: ignore[no-untyped-call]
        return y, lambda: slope
    if module.alpha == 1.0:
        slope = x.clamp(max=0).exp_()
        return torch.maximum(x, slope - 1, out=x if overwrite else None), lambda: slope
    y = F.elu(x, module.alpha, inplace=overwrite)
    return y, lambda: torch.where(y > 0, 1.0, y + module.alpha)


def _relu(module: nn.ReLU, x: Tensor, overwrite: bool) -> tuple[Tensor, Callable[[], Tensor]]:
    y = F.relu(x, inplace=overwrite)
    return y, lambda: (y > 0).to(y.dtype)


def _tanh(module: nn.Tanh, x: Tensor, overwrite: bool) -> tuple[Tensor, Callable[[], Tensor]]:
    y = torch.tanh_(x) if overwrite else torch.tanh(x)
    return y, lambda: 1 - y * y


def _sigmoid(module: nn.Sigmoid, x: Tensor, overwrite: bool) -> tuple[Tensor, Callable[[], Tensor]]:
    y = torch.sigmoid_(x) if overwrite else torch.sigmoid(x)
    return y, lambda: y * (1 - y)


def _silu(module: nn.SiLU, x: Tensor, overwrite: bool) -> tuple[Tensor, Callable[[], Tensor]]:
    def slope() -> Tensor:
        s = torch.sigmoid(x)
        return s * (1 + x * (1 - s))

    return F.silu(x), slope


def _mish(module: nn.Module, x: Tensor, overwrite: bool) -> tuple[Tensor, Callable[[], Tensor]]:
    y, slope = mish_and_slope(x)
    return y, lambda: slope


_RULES: dict[type[nn.Module], Callable[..., Linearized]] = {
    nn.Sequential: _sequential,
    EnsembleMLP: _sequential,
    nn.Linear: _linear,
    EnsembleLinear: _ensemble_linear,
    nn.LayerNorm: _layer_norm,
    EnsembleNorm: _norm,
    nn.Identity: _identity,
}

# Elementwise layers: the output, and a function that gives the slope y'(x) when a pullback first needs it.
_ACTIVATIONS: dict[type[nn.Module], Callable[..., tuple[Tensor, Callable[[], Tensor]]]] = {
    nn.ELU: _elu,
    nn.ReLU: _relu,
    nn.Tanh: _tanh,
    nn.Sigmoid: _sigmoid,
    nn.SiLU: _silu,
    nn.Mish: _mish,
    Mish: _mish,
}
