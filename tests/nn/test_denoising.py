"""Diffusion against Bayes' rule and closed forms for Gaussian data, and the U-Net's shapes and conditioning."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from difftop.nn.denoising import Denoising
from difftop.nn.unet1d import UNet1d

MEAN, STD = 0.3, 0.2  # of Gaussian data


def ideal(chain: Denoising, x: Tensor, k: int) -> Tensor:
    """E[eps | x_k] for data N(MEAN, STD^2)."""
    abar = float(chain.abar[k])
    return math.sqrt(1 - abar) * (x - math.sqrt(abar) * MEAN) / (abar * STD**2 + 1 - abar)


def test_schedule() -> None:
    chain = Denoising(100)
    assert chain.abar.shape == (100,) and bool((chain.abar.diff() < 0).all())
    for k in (0, 10, 50, 98):  # below the cap, the product telescopes
        u = (k + 1) / 100
        expected = math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        assert float(chain.abar[k]) == pytest.approx(expected, rel=1e-9)
    assert float(chain.beta[99]) == 0.999
    x, eps, step = torch.randn(3, 4, 2), torch.randn(3, 4, 2), torch.tensor([0, 50, 99])
    noised = chain.noised(x, eps, step)
    for b, k in enumerate(step.tolist()):
        abar = float(chain.abar[k])
        torch.testing.assert_close(noised[b], math.sqrt(abar) * x[b] + math.sqrt(1 - abar) * eps[b])


def test_ddpm_steps_are_bayes_rule() -> None:
    chain, g = Denoising(12), torch.Generator().manual_seed(0)
    start, draws = torch.randn(5, 3, generator=g).double(), torch.randn(5, 11, 3, generator=g).double()
    model = lambda x, k: ideal(chain, x, k)  # noqa: E731
    x = start
    for k in reversed(range(12)):
        abar, beta = float(chain.abar[k]), float(chain.beta[k])
        data = ((x - math.sqrt(1 - abar) * model(x, k)) / math.sqrt(abar)).clamp(-1, 1)
        if k == 0:
            x = data
            break
        before = float(chain.abar[k - 1])
        # q(x_{k-1} | x_0) = N(sqrt(abar') x_0, 1 - abar'), q(x_k | x_{k-1}) = N(sqrt(1 - beta) x_{k-1}, beta)
        precision = 1 / (1 - before) + (1 - beta) / beta
        mean = (math.sqrt(before) * data / (1 - before) + math.sqrt(1 - beta) * x / beta) / precision
        x = mean + precision**-0.5 * draws[:, 11 - k]
    torch.testing.assert_close(chain.sample(model, start, draws), x, rtol=1e-9, atol=1e-9)


def test_samplers_turn_noise_into_gaussian_data() -> None:
    """With the exact denoiser both samplers are affine in their random numbers, so that mean and variance need no sampling."""
    chain = Denoising(100)
    model = lambda x, k: ideal(chain, x, k)  # noqa: E731
    basis = torch.cat([torch.zeros(1, 100), torch.eye(100)]).double()  # start and 99 draws, one at a time
    out = chain.sample(model, basis[:, 0], basis[:, 1:], bound=math.inf)
    std = float((out[1:] - out[0]).square().sum().sqrt())
    assert float(out[0]) == pytest.approx(MEAN, abs=2e-3) and std == pytest.approx(
        STD, rel=0.1
    )  # the smaller variance loses a little
    for steps, tolerance in ((100, 0.05), (10, 0.3)):
        low, high = chain.sample_fast(model, torch.tensor([0.0, 1.0]).double(), steps, bound=math.inf)
        assert float(low) == pytest.approx(MEAN, abs=0.05)
        assert float(high - low) == pytest.approx(STD, rel=tolerance)


def test_fast_steps_keep_the_noise_where_nothing_is_clipped() -> None:
    chain = Denoising(20)
    data, eps = torch.rand(4, 3).double() - 0.5, torch.randn(4, 3).double()

    def exact(x: Tensor, k: int) -> Tensor:
        abar = float(chain.abar[k])
        return (x - math.sqrt(abar) * data) / math.sqrt(1 - abar)

    first = chain.noised(data, eps, torch.full((4,), 15))
    torch.testing.assert_close(chain.sample_fast(exact, first, 4), data)
    assert bool((chain.sample_fast(lambda x, k: -5 * torch.ones_like(x), first, 4).abs() <= 1).all())


def test_unet() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet1d(3, 5, [8, 16, 24], step_dim=6, kernel=3, groups=4)
    x, step, c = torch.randn(4, 8, 3), torch.tensor([0, 3, 50, 99]), torch.randn(4, 5)
    out = net(x, step, c)
    assert out.shape == x.shape
    torch.testing.assert_close(net(x[2:3], step[2:3], c[2:3]), out[2:3])
    for changed in (net(x + 1, step, c), net(x, step + 1, c), net(x, step, c + 1)):
        assert float((changed - out).detach().abs().amax((1, 2)).min()) > 1e-4  # in every sample
    out.square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in net.parameters())
    single = UNet1d(2, 1, [8], step_dim=4)
    assert single(torch.randn(2, 5, 2), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 1)).shape == (2, 5, 2)


def test_unet_has_the_papers_size() -> None:
    """ConditionalUnet1D of Diffusion Policy for 7 actions and two observations of 23 numbers, counted by its layers."""
    net = UNet1d(7, 46, [256, 512, 1024], step_dim=256)
    condition = 256 + 46

    def block(i: int, o: int) -> int:
        convolutions = (5 * i * o + o + 2 * o) + (5 * o * o + o + 2 * o)
        return convolutions + (condition * 2 * o + 2 * o) + (i * o + o if i != o else 0)

    expected = 256 * 1024 + 1024 + 1024 * 256 + 256
    for i, o in ((7, 256), (256, 512), (512, 1024)):
        expected += block(i, o) + block(o, o)
    expected += sum(3 * o * o + o for o in (256, 512)) + 2 * block(1024, 1024)
    for o, i in ((1024, 512), (512, 256)):
        expected += block(2 * o, i) + block(i, i) + 4 * i * i + i
    expected += 5 * 256 * 256 + 256 + 2 * 256 + 256 * 7 + 7
    assert sum(p.numel() for p in net.parameters()) == expected
