"""Hand-written pullbacks against autograd, values, gradients and gradients of gradients, in float64."""

import pytest
import torch
from torch import nn

from difftop.nn.activations import Mish, SimNorm
from difftop.nn.linearize import PolicyValue, StateAction, linearize
from difftop.nn.mlp import EnsembleLinear, EnsembleNorm, ensemble_mlp, mlp, normed_ensemble, normed_mlp
from difftop.nn.two_hot import TwoHot
from difftop.planning.model import linearize_pair, linearize_state
from tests.oracles import networks

NETS = {
    "mlp": lambda: mlp([4, 7, 6, 3]),
    "norm_first": lambda: mlp([4, 7, 6, 3], norm_first=True),
    "ensemble": lambda: ensemble_mlp(3, [4, 7, 6, 2], zero_last=False),
    "ensemble_layers": lambda: nn.Sequential(EnsembleLinear(2, 4, 5), EnsembleNorm(2, 5), nn.Mish(), EnsembleLinear(2, 5, 3)),
    "ends_in_activation": lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh()),
    "begins_with_activation": lambda: nn.Sequential(nn.Identity(), nn.Sigmoid(), nn.Linear(4, 5), nn.ELU(0.7)),
    "relu_silu": lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.SiLU(), nn.Identity()),
    "plain_norm": lambda: nn.Sequential(nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 3)),
    "one_activation": lambda: nn.ELU(),
    "one_mish": lambda: Mish(),
    "simplices": lambda: normed_mlp([4, 7, 6], last=SimNorm(3)),
    "two_hot": lambda: nn.Sequential(normed_mlp([4, 7, 9]), TwoHot(9, -2, 2)),
    "two_hot_ensemble": lambda: nn.Sequential(normed_ensemble(3, [4, 7, 9]), TwoHot(9, -2, 2)),
}


@pytest.mark.parametrize("name", NETS)
def test_pullback_and_its_gradient(name: str) -> None:
    torch.manual_seed(0)
    net = NETS[name]().double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.6)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    y, pullback = linearize(net, x)
    torch.testing.assert_close(y, net(x), rtol=1e-12, atol=1e-12)
    cotangents = torch.randn(2, *y.shape, dtype=torch.float64)
    kept = cotangents.clone()
    expected = torch.stack([torch.autograd.grad(net(x), x, c, create_graph=True)[0] for c in cotangents])
    ours = pullback(cotangents)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(linearize(net, x)[1](cotangents), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(cotangents, kept)
    inputs = [x, *net.parameters()]
    weights = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), inputs, allow_unused=True, materialize_grads=True),
        torch.autograd.grad((expected * weights).sum(), inputs, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_members_of_an_ensemble_get_their_own_cotangents() -> None:
    net = EnsembleLinear(2, 3, 1).double()
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    ours = linearize(net, x)[1](torch.tensor([[1.0], [0.0]], dtype=torch.float64).view(2, 1, 1).expand(2, 4, 1))
    torch.testing.assert_close(ours[0], net.weight[0].expand(4, 3))
    assert torch.equal(ours[1], torch.zeros(4, 3, dtype=torch.float64))


@pytest.mark.parametrize("differentiable", [False, True])
def test_callables_with_and_without_fast_path_agree(differentiable: bool) -> None:
    n = networks(5, 2, 8)
    z, a = torch.randn(6, 5, dtype=torch.float64), torch.rand(6, 2, dtype=torch.float64)
    z.requires_grad_(differentiable)
    with torch.set_grad_enabled(differentiable):
        for name, width in (("dynamics", (5,)), ("reward", ())):
            cotangents = torch.randn(3, 6, *width, dtype=torch.float64)
            (y, fast), (y_plain, plain) = (linearize_pair(getattr(m, name), z, a) for m in (n.fast, n.plain))
            torch.testing.assert_close(y, y_plain)
            for ours, theirs in zip(fast(cotangents), plain(cotangents), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
                assert ours.requires_grad == theirs.requires_grad == differentiable
        (y, state), (y_plain, state_plain) = (linearize_state(m.terminal, z) for m in (n.fast, n.plain))
        torch.testing.assert_close(y, y_plain)
        cotangents = torch.randn(3, 6, dtype=torch.float64)
        torch.testing.assert_close(state(cotangents), state_plain(cotangents), rtol=1e-12, atol=1e-12)


def test_autograd_path_takes_functions_of_one_argument_only_and_of_none() -> None:
    z, a = torch.randn(3, 2), torch.randn(3, 2)
    _, pullback = linearize_pair(lambda z, a: z + 0, z, a)
    gz, ga = pullback(torch.ones(4, 3, 2))
    assert torch.equal(gz, torch.ones(4, 3, 2)) and torch.equal(ga, torch.zeros(4, 3, 2))
    gz, ga = linearize_pair(lambda z, a: torch.ones(3), z, a)[1](torch.ones(4, 3))
    assert torch.equal(gz, torch.zeros(4, 3, 2)) and torch.equal(ga, gz)


def test_a_module_can_bring_its_own_pullback() -> None:
    class Double(nn.Module):
        def linearize(self, x):
            return 2 * x, lambda g: 2 * g

    y, pullback = linearize(nn.Sequential(Double()), torch.ones(1, 2))
    assert torch.equal(y, 2 * torch.ones(1, 2)) and torch.equal(pullback(torch.ones(1, 2)), 2 * torch.ones(1, 2))


def test_unknown_layer_is_named() -> None:
    with pytest.raises(TypeError, match="no pullback for Softmax"):
        linearize(nn.Sequential(nn.Softmax(-1)), torch.ones(1, 2))
    with pytest.raises(TypeError, match="only the last axis"):
        linearize(nn.LayerNorm([3, 4]), torch.ones(1, 3, 4))


def test_callables_are_the_networks() -> None:
    torch.manual_seed(0)
    net, q, pi = mlp([5, 8, 1]), ensemble_mlp(2, [5, 8, 8, 1], zero_last=False), mlp([3, 8, 2])
    z, a = torch.randn(4, 3), torch.randn(4, 2)
    assert torch.equal(StateAction(net, scalar=True)(z, a), net(torch.cat([z, a], 1)).squeeze(1))
    members = [q(torch.cat([z, pi(z).tanh()], 1))[i, :, 0] for i in range(2)]
    torch.testing.assert_close(PolicyValue(q, pi)(z), torch.minimum(*members))
    torch.testing.assert_close(PolicyValue(q, pi, mean=True)(z), (members[0] + members[1]) / 2)


@pytest.mark.parametrize("mean", [False, True])
def test_terminal_value_s_pullback(mean: bool) -> None:
    torch.manual_seed(0)
    q, pi = ensemble_mlp(3, [5, 8, 1], zero_last=False).double(), mlp([3, 8, 2]).double()
    value, z = PolicyValue(q, pi, mean), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y, pullback = value.linearize(z)
    torch.testing.assert_close(y, value(z))
    cotangents = torch.randn(2, 4, dtype=torch.float64)
    expected = torch.stack([torch.autograd.grad(value(z), z, c)[0] for c in cotangents])
    torch.testing.assert_close(pullback(cotangents), expected, rtol=1e-12, atol=1e-12)
