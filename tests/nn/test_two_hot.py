"""Two-hot regression in symlog units against its formulas, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from difftop.nn.two_hot import TwoHot, symexp, symlog

GENERATOR = torch.Generator().manual_seed(0)


def two_hot() -> TwoHot:
    made = TwoHot(11, -2.0, 3.0).double()
    made.bins.copy_(torch.linspace(-2, 3, 11, dtype=torch.float64))
    return made


def explicit(x: float) -> torch.Tensor:
    """The two-hot vector of `x`, by searching its neighbours."""
    bins = [-2 + 0.5 * k for k in range(11)]
    place = min(max(math.copysign(math.log(1 + abs(x)), x), -2.0), 3.0)
    vector = torch.zeros(11, dtype=torch.float64)
    for k in range(10):
        if bins[k] <= place <= bins[k + 1]:
            vector[k] = (bins[k + 1] - place) / 0.5
            vector[k + 1] = (place - bins[k]) / 0.5
            return vector
    raise AssertionError(x)


def test_symlog_and_symexp() -> None:
    x = torch.tensor([-100.0, -1.0, 0.0, 1.0, 1e4], dtype=torch.float64)
    expected = torch.tensor([-math.log(101), -math.log(2), 0, math.log(2), math.log(10001)], dtype=torch.float64)
    torch.testing.assert_close(symlog(x), expected)
    torch.testing.assert_close(symexp(symlog(x)), x)


@pytest.mark.parametrize("x", [-50.0, -3.0, -1e-9, -0.0, 0.0, 1e-9, 2.0, 50.0])
def test_symexp_has_the_value_and_slope_of_its_formula(x: float) -> None:
    """At 0 too, whatever this version of torch takes for the slope of a clamp at its bound."""
    point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = symexp(point)
    assert value.item() == pytest.approx(math.copysign(math.expm1(abs(x)), x), rel=1e-14, abs=0)
    (slope,) = torch.autograd.grad(value, point)
    step = 1e-5
    with torch.no_grad():
        difference = (symexp(point + step) - symexp(point - step)) / (2 * step)
    assert slope.item() == pytest.approx(difference.item(), rel=2e-5)
    assert slope.item() == pytest.approx(math.exp(abs(x)), rel=1e-14)


def test_symexp_near_the_end_of_float32_has_no_nan() -> None:
    assert symexp(torch.tensor([-100.0, 100.0])).tolist() == [-math.inf, math.inf]
    x = torch.tensor([-88.0, 88.0], requires_grad=True)
    symexp(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((2,), math.exp(88.0)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("x", [0.0, 0.3, -0.7, 5.0, 19.0, 1e6, -1e6, math.exp(0.5) - 1])
def test_loss_is_the_cross_entropy_with_the_two_hot_vector(x: float) -> None:
    logits = torch.randn(3, 1, 11, dtype=torch.float64, generator=GENERATOR)
    expected = -(explicit(x) * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(two_hot().loss(logits, torch.tensor([x], dtype=torch.float64)), expected)


def test_loss_is_lowest_where_the_logits_stand_for_the_number() -> None:
    x = torch.tensor([0.4, -2.0, 7.0], dtype=torch.float64)
    logits = torch.zeros(3, 11, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], lr=1, max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = two_hot().loss(logits, x).sum()
        total.backward()
        return total

    optimizer.step(loss)
    final = two_hot().loss(logits.detach(), x).sum()
    entropies = sum(-(v[v > 0] * v[v > 0].log()).sum() for v in map(explicit, x.tolist()))
    assert final.item() == pytest.approx(float(entropies), abs=1e-2)
    torch.testing.assert_close(two_hot()(logits.detach()).squeeze(-1), x, rtol=2e-2, atol=2e-2)


def test_number_and_its_pullback() -> None:
    made = two_hot()
    logits = torch.randn(4, 11, dtype=torch.float64, generator=GENERATOR, requires_grad=True)
    mean = (logits.softmax(-1) * made.bins).sum(-1, keepdim=True)
    torch.testing.assert_close(made(logits), mean.sign() * (mean.abs().exp() - 1))
    y, pullback = made.linearize(logits)
    torch.testing.assert_close(y, made(logits))
    g = torch.randn(2, 4, 1, dtype=torch.float64, generator=GENERATOR)
    expected = torch.stack([torch.autograd.grad(made(logits), logits, c, retain_graph=True)[0] for c in g])
    torch.testing.assert_close(pullback(g), expected)


def test_untrained_logits_stand_for_zero_and_have_a_gradient() -> None:
    logits = torch.zeros(1, 101, requires_grad=True)
    y = TwoHot()(logits)
    assert abs(y.item()) < 1e-5
    y.sum().backward()
    torch.testing.assert_close(logits.grad[0], torch.linspace(-10, 10, 101) / 101, rtol=1e-4, atol=1e-5)


def test_bfloat16_logits_are_read_in_float32() -> None:
    made = TwoHot()
    logits = torch.randn(3, 101, generator=GENERATOR).bfloat16()
    assert torch.equal(made(logits), made(logits.float()))
    assert torch.equal(made.loss(logits, torch.ones(3)), made.loss(logits.float(), torch.ones(3)))
