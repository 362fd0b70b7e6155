"""Mish, Tanh, SimNorm and dropout against closed forms, torch and frequencies."""

from __future__ import annotations

import pytest
import torch

from difftop.nn import activations
from difftop.nn.activations import ELU, Mish, SimNorm, Tanh, elu_and_slope, mish_and_slope, tanh
from difftop.nn.mlp import dropout, normed_ensemble

POINTS = torch.cat([torch.linspace(-120, 120, 2401, dtype=torch.float64), torch.tensor([0.0, -1e-9, 1e-9, 1e3, -1e3])])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 3e-7)])
def test_mish_is_torch_s_with_its_slope(dtype: torch.dtype, tolerance: float) -> None:
    exact = POINTS.clone().requires_grad_()
    expected = torch.nn.functional.mish(exact)
    (slope,) = torch.autograd.grad(expected.sum(), exact)
    x = POINTS.to(dtype).requires_grad_()
    y = Mish()(x)
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0].double(), slope, rtol=tolerance, atol=2 * tolerance)
    assert torch.equal(Mish()(x.detach()), y.detach())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 3e-7)])
def test_tanh_is_torch_s(dtype: torch.dtype, tolerance: float) -> None:
    ours = Tanh()
    edges = torch.tensor([torch.inf, -torch.inf], dtype=torch.float64)
    for points in (POINTS, torch.cat([POINTS, edges]).repeat(20)):  # small and large: torch's own kernel, and ours
        exact, x = points.clone().requires_grad_(), points.to(dtype).requires_grad_()
        expected, y = torch.tanh(exact), ours(x * 1)
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
        slopes = [torch.autograd.grad(value.sum(), at)[0].double() for value, at in ((y, x), (expected, exact))]
        torch.testing.assert_close(slopes[0], slopes[1], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(ours(x.detach().clone()), y.detach(), rtol=0, atol=0)
    assert bool(ours(torch.full((10**5,), torch.nan)).isnan().all())


@pytest.mark.parametrize("overwrite", [False, True])
def test_its_gradient_has_the_right_gradient(overwrite: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "_SMALL", 0)
    x = torch.linspace(-5, 5, 60, dtype=torch.float64, requires_grad=True)

    def ours(x: torch.Tensor) -> torch.Tensor:
        return tanh(x * 1, overwrite)

    assert ours(x).grad_fn.name() != torch.tanh(x).grad_fn.name()  # type: ignore[union-attr]
    assert torch.autograd.gradcheck(ours, x) and torch.autograd.gradgradcheck(ours, x)
    kept = x.detach().clone()
    assert torch.equal(tanh(kept, overwrite), ours(x)) and torch.equal(kept, x) != overwrite
    assert torch.autograd.gradcheck(elu_and_slope, x)


def test_mish_s_slope_has_the_right_slope() -> None:
    x = torch.linspace(-30, 30, 61, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Mish(), x)
    assert torch.autograd.gradcheck(mish_and_slope, x)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(mish_and_slope(x), (Mish()(x), mish_and_slope(x)[1]), strict=True))
    large = torch.tensor([1e4], requires_grad=True)
    y, slope = mish_and_slope(large)
    (gradient,) = torch.autograd.grad(slope.sum(), large, retain_graph=True)
    assert (
        y.item() == pytest.approx(1e4, rel=1e-6)
        and slope.item() == pytest.approx(1.0, abs=1e-5)
        and gradient.item() == pytest.approx(0, abs=1e-3)
    )


def test_mish_of_bfloat16() -> None:
    x = torch.linspace(-5, 5, 11).bfloat16()
    assert torch.equal(Mish()(x), torch.nn.functional.mish(x))


def test_simnorm_makes_simplices() -> None:
    x = torch.randn(5, 3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = SimNorm(4)(x)
    assert y.shape == x.shape and y.min() > 0
    torch.testing.assert_close(y.view(5, 3, 3, 4).sum(-1), torch.ones(5, 3, 3, dtype=torch.float64))
    expected = x[..., 4:8].exp() / x[..., 4:8].exp().sum(-1, keepdim=True)
    torch.testing.assert_close(y[..., 4:8], expected)


def test_dropout_s_frequency_scale_and_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.ones(400, 500, requires_grad=True)
    y = dropout(x, 0.01, generator)
    dropped = y == 0
    rate = dropped.double().mean().item()
    assert abs(rate - 0.01) < 5 * (0.01 * 0.99 / x.numel()) ** 0.5
    assert torch.equal(y[~dropped], torch.full_like(y[~dropped], 1 / 0.99))
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    again = dropout(x, 0.01, generator)
    assert not torch.equal(again == 0, dropped)
    assert torch.equal(dropout(x, 0.01, torch.Generator().manual_seed(0)), y)
    assert dropout(x, 0.0, generator) is x


def test_dropout_hits_every_place_alike() -> None:
    """The first and the last place, and both of a pair, as often as independent draws would."""
    generator = torch.Generator().manual_seed(1)
    zeros = torch.stack([dropout(torch.ones(7), 0.3, generator) == 0 for _ in range(4000)]).double()
    sigma = (0.3 * 0.7 / 4000) ** 0.5
    assert (zeros.mean(0) - 0.3).abs().max() < 4.5 * sigma
    pairs = (zeros[:, :-1] * zeros[:, 1:]).mean(0)
    assert (pairs - 0.09).abs().max() < 4.5 * (0.09 * 0.91 / 4000) ** 0.5


def test_some_members_of_an_ensemble_and_dropout_in_its_first_layer() -> None:
    torch.manual_seed(0)
    net = normed_ensemble(4, [3, 6, 6, 2])
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.5)
    x = torch.randn(5, 3)
    everything = net(x)
    assert torch.equal(net(x, [2, 0]), everything[[2, 0]])
    stacked = x.expand(4, 5, 3)
    assert torch.equal(net(stacked, [3]), everything[3:])
    seen: list[torch.Size] = []

    def drop(h: torch.Tensor) -> torch.Tensor:
        seen.append(h.shape)
        return torch.zeros_like(h)

    dropped = net(x, [1, 2], drop)
    assert seen == [torch.Size([5, 6])] * 2  # after the first layer, before its norm
    torch.testing.assert_close(dropped, dropped[:, :1].expand_as(dropped))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [4, 4000])
def test_elu_is_torchs_in_place(rows: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    given = torch.randn(rows, 4, generator=g, dtype=dtype) * torch.tensor([1e-5, 1.0, 10.0, 100.0], dtype=dtype)
    ours, theirs = given.clone().requires_grad_(), given.clone().requires_grad_()
    y, expected = ELU()(ours * 1), torch.nn.functional.elu(theirs)
    torch.testing.assert_close(y, expected, atol=2e-7, rtol=1e-6)
    cotangent = torch.randn(y.shape, generator=g, dtype=dtype)
    found, wanted = (torch.autograd.grad(output, x, cotangent)[0] for output, x in ((y, ours), (expected, theirs)))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    x = given.clone()
    with torch.no_grad():
        assert ELU()(x) is x and torch.equal(x, y)
    assert torch.equal(ELU()(torch.tensor([-torch.inf, torch.inf]).repeat(5000)), torch.tensor([-1.0, torch.inf]).repeat(5000))
    assert ELU()(torch.full((9000,), torch.nan)).isnan().all()
