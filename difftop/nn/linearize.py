"""Networks with hand-written pullbacks: a Jacobian for many rows in a few matrix products, differentiable again.

`linearize(module, x)` returns the output y and a function that maps cotangents `[*N, *y.shape]` to cotangents of x, one matrix
product per layer for all N rows of all samples. The classes below turn networks into the callables of
`difftop.planning.LatentModel`:

    LatentModel(dynamics=StateAction(dynamics_net), reward=StateAction(reward_net, scalar=True),
                terminal=PolicyValue(q_ensemble, policy_net), discount=0.99)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from difftop.nn.activations import ELU, Mish, Tanh, elu_and_slope, elu_slope, mish_and_slope, tanh
from difftop.nn.mlp import EnsembleLinear, EnsembleMLP, EnsembleNorm

Pullback = Callable[[Tensor], Tensor]
Scale = Callable[[Tensor, bool], Tensor]  # cotangent, and whether it may be overwritten, to cotangent
Linearized = tuple[Tensor, Pullback]
Unrolled = tuple[list[Tensor], Callable[[int, Tensor, bool], tuple[Tensor | None, Tensor]], Pullback]

_SMALL = 8192  # numbers up to which one F.elu is faster than four sweeps without expm1 (one core)
_FEW_ROWS = 32  # up to which calls cost more than memory traffic


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
    if type(module) in _ACTIVATIONS:
        return _chain((module,), x, False)
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

    needs_autograd = False  # its Jacobian is taken by hand, so a planner may run it in inference mode

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

    def unroll(self, z0: Tensor, actions: Tensor) -> Unrolled:
        """Latents along plans `[H, B, A]` and their pullback, as `difftop.planning.model.unroll` describes it.

        The first layer is linear in z and a. For few rows its part of the actions is one product for all steps, forward and back,
        and a trace is the cotangent of the first layer's output; for many rows a trace is the cotangent of the action.
        """
        first, rest = _split(self.net)
        if first is None:
            return self._unroll_by_steps(z0, actions)
        size, few, weight = z0.shape[-1], z0.shape[0] <= _FEW_ROWS, first.weight
        weight_z, weight_a = weight[:, :size], weight[:, size:]
        transposed = weight_z.t()
        latents, pullbacks = [z0], []
        for a in (F.linear(actions, weight_a, first.bias) if few else actions).unbind():
            z = latents[-1]
            h = torch.addmm(a, z, transposed) if few else F.linear(torch.cat([z, a], -1), weight, first.bias)
            z, pullback = _chain(rest, h, True)
            latents.append(z)
            pullbacks.append(pullback)

        def pull(t: int, cotangent: Tensor, wanted: bool) -> tuple[Tensor | None, Tensor]:
            trace = pullbacks[t](cotangent)
            if few:
                return (trace @ weight_z if wanted else None), trace
            if not wanted:
                return None, trace @ weight_a
            gx = trace @ weight
            return gx[..., :size], gx[..., size:]

        return latents, pull, (lambda trace: trace @ weight_a) if few else _same

    def _unroll_by_steps(self, z0: Tensor, actions: Tensor) -> Unrolled:
        latents, pullbacks = [z0], []
        for a in actions.unbind():
            z, pullback = self.linearize(latents[-1], a)
            latents.append(z)
            pullbacks.append(pullback)
        return latents, lambda t, cotangent, _: pullbacks[t](cotangent), _same


class PolicyValue:
    """Terminal value `V(z) = min_i Q_i(z, tanh(pi(z)))`, or the mean over i, as the callable `z [B, Z] -> [B]`.

    Source: TD-MPC, arXiv:2203.04955, equation 3. Differs: pi without noise, as in DiffTORI's planner.
    """

    needs_autograd = False

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


def _split(net: nn.Module) -> tuple[nn.Linear | None, tuple[nn.Module, ...]]:
    """The linear layer that a network begins with (None where it begins otherwise), and the layers after it."""
    rest: tuple[nn.Module, ...] = ()
    while isinstance(net, nn.Sequential) and len(net):
        layers = tuple(net)
        net, rest = layers[0], (*layers[1:], *rest)
    return (net if type(net) is nn.Linear else None), rest


def _sequential(module: nn.Sequential, x: Tensor) -> Linearized:
    return _chain(module, x, False)


def _chain(layers: Iterable[nn.Module], x: Tensor, product: bool) -> Linearized:
    """Layers one after the other; `product`: x is the fresh output of a matrix product, which nothing else needs."""
    steps: list[tuple[Scale | None, Pullback | None, bool]] = []  # of which the last: whether the cotangent it gives is ours
    for layer in layers:
        activation = _ACTIVATIONS.get(type(layer))
        if activation is not None:
            x, scale = activation(layer, x, product)
            steps.append((scale, None, True))
            product = False
        else:
            x, pullback = linearize(layer, x)
            product = isinstance(layer, nn.Linear | EnsembleLinear)
            steps.append((None, pullback, product))

    def chain(cotangent: Tensor) -> Tensor:
        ours = False
        for scale, pullback, gives_ours in reversed(steps):
            if scale is not None:
                cotangent = scale(cotangent, ours and not torch.is_grad_enabled())
            elif pullback is not None:
                cotangent = pullback(cotangent)
            ours = ours or gives_ours
        return cotangent

    return x, chain


def _same(x: Tensor) -> Tensor:
    return x


def _scaled(slope: Tensor) -> Scale:
    """Multiplies cotangents by a slope."""
    return lambda g, overwrite: g.mul_(slope) if overwrite else g * slope


def _linear(module: nn.Linear, x: Tensor) -> Linearized:
    weight = module.weight
    return F.linear(x, weight, module.bias), lambda g: g @ weight


def _ensemble_linear(module: EnsembleLinear, x: Tensor) -> Linearized:
    weight = module.weight  # [E, out, in]
    if x.dim() == 3:
        return torch.baddbmm(module.bias, x, weight.transpose(1, 2)), lambda g: g @ weight

    def shared(g: Tensor) -> Tensor:
        # The members' cotangents add up in x: one product over members and outputs together.
        return g.transpose(-3, -2).flatten(-2) @ weight.flatten(0, 1)

    if x.shape[0] <= _FEW_ROWS:
        return torch.baddbmm(module.bias, x.expand(len(weight), -1, -1), weight.transpose(1, 2)), shared
    return module(x), shared


def _norm(module: nn.LayerNorm | EnsembleNorm, x: Tensor) -> Linearized:
    """LayerNorm in torch's own kernels, which autograd can differentiate again; by hand in types that they mix up."""
    if x.dtype not in (torch.float32, torch.float64):
        return module(x), _norm_by_hand(module, x)
    shape, ensemble = x.shape[-1:], isinstance(module, EnsembleNorm)
    weight, bias = (None, None) if ensemble else (module.weight, module.bias)
    y, mean, inverse = torch.native_layer_norm(x, shape, weight, bias, module.eps)

    def pullback(g: Tensor) -> Tensor:
        if ensemble:
            g = g * module.weight
        seen, m, i = x, mean, inverse
        if g.shape != x.shape:  # on a CPU the kernel reads the statistics as if they were contiguous
            seen, m, i = x.expand_as(g), m.expand(*g.shape[:-1], 1).contiguous(), i.expand(*g.shape[:-1], 1).contiguous()
        result: Tensor = torch.ops.aten.native_layer_norm_backward(g, seen, shape, m, i, weight, bias, [True, False, False])[0]
        return result

    return (torch.addcmul(module.bias, y, module.weight) if ensemble else y), pullback


def _norm_by_hand(module: nn.LayerNorm | EnsembleNorm, x: Tensor) -> Pullback:
    def pullback(g: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        inverse = (centred.square().mean(-1, keepdim=True) + module.eps).rsqrt()
        normed = centred * inverse
        if module.weight is not None:
            g = g * module.weight
        return inverse * (g - g.mean(-1, keepdim=True) - normed * (g * normed).mean(-1, keepdim=True))

    return pullback


def _layer_norm(module: nn.LayerNorm, x: Tensor) -> Linearized:
    if len(module.normalized_shape) != 1:
        raise TypeError(f"linearize: LayerNorm over {module.normalized_shape}; only the last axis is covered.")
    return _norm(module, x)


def _identity(module: nn.Identity, x: Tensor) -> Linearized:
    return x, lambda g: g


def _elu(module: nn.ELU, x: Tensor, overwrite: bool) -> tuple[Tensor, Scale]:
    recorded = torch.is_grad_enabled() and x.requires_grad
    alpha = module.alpha
    if alpha == 1.0 and recorded:
        y, slope = elu_and_slope(x)
        return y, _scaled(slope)
    if not recorded and (x.is_cuda or x.numel() <= _SMALL):
        y = F.elu(x, alpha, inplace=overwrite)
        return y, lambda g, _: torch.ops.aten.elu_backward(g, alpha, 1.0, 1.0, True, y)
    if alpha == 1.0:
        slope = elu_slope(x)
        return torch.maximum(x, slope - 1, out=x if overwrite else None), _scaled(slope)
    y = F.elu(x, alpha, inplace=overwrite)
    return y, lambda g, _: g * torch.where(y > 0, 1.0, y + alpha)


def _relu(module: nn.ReLU, x: Tensor, overwrite: bool) -> tuple[Tensor, Scale]:
    y = F.relu(x, inplace=overwrite)
    return y, lambda g, _: g * (y > 0).to(y.dtype)


def _tanh(module: nn.Tanh | Tanh, x: Tensor, overwrite: bool) -> tuple[Tensor, Scale]:
    y = tanh(x, overwrite)
    return y, lambda g, _: torch.ops.aten.tanh_backward(g, y)


def _sigmoid(module: nn.Sigmoid, x: Tensor, overwrite: bool) -> tuple[Tensor, Scale]:
    y = torch.sigmoid_(x) if overwrite else torch.sigmoid(x)
    return y, lambda g, _: torch.ops.aten.sigmoid_backward(g, y)


def _silu(module: nn.SiLU, x: Tensor, overwrite: bool) -> tuple[Tensor, Scale]:
    if not torch.is_grad_enabled():
        return F.silu(x), lambda g, _: torch.ops.aten.silu_backward(g, x)  # of which torch has no derivative
    s = torch.sigmoid(x)
    y = x * s
    return y, _scaled(s + y * (1 - s))


def _mish(module: nn.Module, x: Tensor, overwrite: bool) -> tuple[Tensor, Scale]:
    y, slope = mish_and_slope(x)
    return y, _scaled(slope)


_RULES: dict[type[nn.Module], Callable[..., Linearized]] = {
    nn.Sequential: _sequential,
    EnsembleMLP: _sequential,
    nn.Linear: _linear,
    EnsembleLinear: _ensemble_linear,
    nn.LayerNorm: _layer_norm,
    EnsembleNorm: _norm,
    nn.Identity: _identity,
}

# Elementwise layers: the output, and a function that multiplies a cotangent by the slope y'(x).
_ACTIVATIONS: dict[type[nn.Module], Callable[..., tuple[Tensor, Scale]]] = {
    nn.ELU: _elu,
    ELU: _elu,
    nn.ReLU: _relu,
    nn.Tanh: _tanh,
    Tanh: _tanh,
    nn.Sigmoid: _sigmoid,
    nn.SiLU: _silu,
    nn.Mish: _mish,
    Mish: _mish,
}
